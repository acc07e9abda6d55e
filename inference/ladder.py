"""A ladder: the same comparison at several budgets, and whether its outcome holds as they grow.

The *multiplier* of an arm is how many times less compute it needs for the baseline's loss. Losses
fall steeply at small budgets and slowly at large ones, so a fixed difference in loss is worth more
and more compute; a straight line through the differences says nothing. Each arm's curve, loss over
the logarithm of compute, is a parabola through its rungs, and a difference is divided by the slope.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from inference.quantiles import ALPHA, t_critical

FEWEST_RUNGS, FEWEST_SEEDS, FEWEST_SPAN = 3, 3, 16.0
"""What a ladder needs: rungs, shared seeds, and the ratio of its largest to its smallest budget."""

SAME_EXPONENT = 0.05
"""An exponent within this of 0 means that the multiplier holds."""

MODEL_ERROR = 0.007
"""Standard deviation of the log multiplier that is due to the parabola; shared by all rungs."""

_ITERATIONS = 6

GROWS, FADES, HOLDS, INCONCLUSIVE = "grows", "fades", "holds", "inconclusive"


@dataclasses.dataclass(frozen=True)
class Rung:
    """Paired final losses at one budget, the same seeds in the same order.

    Attributes:
        compute: The budget, FLOPs.
        baseline: The baseline's losses, by seed.
        arm: The arm's.
        baseline_allowance: How far below the baseline's losses those at its best learning rate may
            lie, see `tuning`.
        arm_allowance: The same of the arm.
    """

    compute: float
    baseline: Sequence[float]
    arm: Sequence[float]
    baseline_allowance: float = 0.0
    arm_allowance: float = 0.0


@dataclasses.dataclass(frozen=True)
class Ladder:
    """The multiplier over the rungs.

    Attributes:
        multipliers: Of each rung, how many times less compute the arm needs.
        intervals: Of each, the interval of its multiplier, 95 % for each rung by itself.
        exponent: How the multiplier grows: it goes as compute to this power.
        exponent_interval: 95 %.
        verdict: grows, holds, fades or inconclusive.
    """

    multipliers: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    exponent: float
    exponent_interval: tuple[float, float]
    verdict: str


def climb(rungs: Sequence[Rung], alpha: float = ALPHA) -> Ladder | None:
    """The multiplier of an arm over three rungs or more, in rising order of compute.

    ln m_j = D_j / g_j: D_j is the mean difference in loss (baseline minus arm) at rung j, g_j the
    mean of the two curves' slopes -dL/dx at the losses that are compared, x = ln compute. The arm's
    slope is that over its own compute, which is the baseline's to the power 1 + exponent, so slope
    and exponent are found by turns. None if that gives no slope, or a loss that rises with compute.

    The intervals are widened by what tuning leaves open, at its worst for each: a rung's multiplier
    may be lower if the baseline could be tuned better there, higher if the arm could.
    """
    compute, seeds = [rung.compute for rung in rungs], min(len(rung.arm) for rung in rungs)
    assert len(rungs) >= FEWEST_RUNGS
    assert seeds >= FEWEST_SEEDS
    assert max(compute) >= FEWEST_SPAN * min(compute) * (1 - 1e-9)
    x = np.log(compute)
    x -= x.mean()
    baseline, arm = (np.array([getattr(r, side) for r in rungs]) for side in ("baseline", "arm"))
    to_slopes, to_exponent = _slopes(x), x / (x @ x)
    slopes = [to_slopes @ losses.mean(axis=1) for losses in (baseline, arm)]
    gap = (baseline - arm).mean(axis=1)
    exponent = 0.0
    for _ in range(_ITERATIONS):
        if exponent <= -1:
            return None
        slope = (slopes[0] + slopes[1] / (1 + exponent)) / 2
        if slope.min() <= 0:
            return None
        logs = gap / slope
        exponent = float(to_exponent @ logs)
    noise = _Noise.of(baseline, arm)
    of_slope = to_slopes @ to_slopes.T * noise.of_slope(exponent)
    per_slope = gap / slope**2
    covariance = np.diag(noise.difference / slope**2) + np.outer(per_slope, per_slope) * of_slope
    critical = t_critical(noise.df, alpha)
    halves = critical * np.sqrt(np.diag(covariance) + MODEL_ERROR**2)
    half = critical * math.sqrt(float(to_exponent @ covariance @ to_exponent))
    down = np.array([rung.baseline_allowance for rung in rungs]) / slope
    up = np.array([rung.arm_allowance for rung in rungs]) / slope
    rising, falling = to_exponent.clip(min=0), -to_exponent.clip(max=0)
    lows, highs = np.exp(logs - halves - down), np.exp(logs + halves + up)
    ends = (
        exponent - half - float(rising @ down + falling @ up),
        exponent + half + float(rising @ up + falling @ down),
    )
    return Ladder(
        tuple(np.exp(logs).tolist()),
        tuple(zip(lows.tolist(), highs.tolist(), strict=True)),
        exponent,
        ends,
        _word(*ends),
    )


@dataclasses.dataclass(frozen=True)
class _Noise:
    """Variances of means over seeds, pooled over rungs."""

    difference: float
    baseline: float
    arm: float
    both: float
    df: int

    @classmethod
    def of(cls, baseline: np.ndarray, arm: np.ndarray) -> _Noise:
        rungs, seeds = baseline.shape
        df = rungs * (seeds - 1)
        left = [losses - losses.mean(axis=1, keepdims=True) for losses in (baseline, arm)]

        def mean_product(one: np.ndarray, other: np.ndarray) -> float:
            return float((one * other).sum()) / df / seeds

        difference = left[0] - left[1]
        pairs = ((difference, difference), (left[0], left[0]), (left[1], left[1]), left)
        return cls(*(mean_product(*pair) for pair in pairs), df)

    def of_slope(self, exponent: float) -> float:
        """What the variance of the mean slope of both curves is proportional to."""
        share = 1 / (1 + exponent)
        return (self.baseline + self.arm * share**2 + 2 * self.both * share) / 4


def _slopes(x: np.ndarray) -> np.ndarray:
    """The matrix that turns losses at x into -dL/dx of the parabola through them."""
    parabola = np.linalg.pinv(np.vander(x, 3, increasing=True))
    return -(np.outer(np.ones_like(x), parabola[1]) + 2 * np.outer(x, parabola[2]))


def _word(low: float, high: float) -> str:
    if low > 0:
        return GROWS
    if high < 0:
        return FADES
    return HOLDS if max(-low, high) <= SAME_EXPONENT else INCONCLUSIVE
