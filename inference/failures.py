"""Failed runs: how often they occur, and whether one arm fails more often than another.

A run fails if its final loss is not finite, or not below its initial loss. Failed runs are excluded
from means; `verdicts.judge` ensures that an arm cannot benefit from that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from scipy import special

from inference.quantiles import ALPHA

BLOW_UP = 0.1
"""A loss this many nats above the median of its arm is a blow-up, unless noise explains it."""

BLOW_UP_DEVIATIONS = 10
"""Standard deviations above the median beyond which a loss is not explained by noise."""

_MAD_TO_DEVIATION = 1.4826
"""Ratio of standard deviation to median absolute deviation for normal numbers."""


def failure_interval(failures: int, runs: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Exact confidence interval of a failure rate (Clopper and Pearson 1934)."""
    low = special.betaincinv(failures, runs - failures + 1, alpha / 2) if failures else 0.0
    high = special.betaincinv(failures + 1, runs - failures, 1 - alpha / 2)
    return float(low), float(high) if failures < runs else 1.0


def failure_p_value(failures: tuple[int, int], runs: tuple[int, int]) -> float:
    """Two-sided mid-p value of Fisher's exact test that two arms fail equally often.

    This is the probability of all splits of the failures over the arms that are less likely than
    the observed one, plus half that of equally likely ones.
    """
    failed = sum(failures)
    splits = range(max(0, failed - runs[1]), min(failed, runs[0]) + 1)
    ways = [math.comb(runs[0], k) * math.comb(runs[1], failed - k) for k in splits]
    seen = math.comb(runs[0], failures[0]) * math.comb(runs[1], failures[1])
    total = math.comb(sum(runs), failed)
    return (sum(w for w in ways if w < seen) + sum(w for w in ways if w == seen) / 2) / total


def blow_ups(arms: Sequence[Sequence[float]]) -> list[list[bool]]:
    """For each finished run of each arm, whether its loss is far above the median of its arm.

    Far means BLOW_UP nats or BLOW_UP_DEVIATIONS standard deviations, whichever is more; the
    standard deviation is estimated from the median absolute deviations of all arms. Such runs are
    reported but not excluded, which would favor the arm.
    """
    medians = [median(losses) if losses else 0.0 for losses in arms]
    deviations = [
        abs(x - middle) for losses, middle in zip(arms, medians, strict=True) for x in losses
    ]
    noise = _MAD_TO_DEVIATION * median(deviations) if deviations else 0.0
    far = max(BLOW_UP, BLOW_UP_DEVIATIONS * noise)
    return [
        [x > middle + far for x in losses] for losses, middle in zip(arms, medians, strict=True)
    ]
