"""Contrasts: weighted sums of the mean losses of several arms, such as main effects."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import fmean

from inference.crossed import crossed_sample
from inference.estimates import PAIRED, Estimate
from inference.grids import full_grid, independent
from inference.rules import Rule
from inference.samples import Sample, shared_seeds, spread


@dataclasses.dataclass(frozen=True)
class Term:
    """An arm in a contrast.

    Attributes:
        weight: Weight of its mean loss.
        sample: Its losses, or other numbers, by seed.
        allowance: How much lower its losses could be at its best learning rate; see `tuning`.
    """

    weight: float
    sample: Sample
    allowance: float = 0.0


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A contrast and its interval.

    Attributes:
        estimate: Its value and precision.
        interval: Its interval, simultaneous over the rule's family.
        p_adjusted: The p value of no effect, adjusted for the family.
    """

    estimate: Estimate
    interval: tuple[float, float]
    p_adjusted: float

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval[0] > 0 or self.interval[1] < 0


def estimate_contrast(terms: Sequence[Term]) -> Estimate | None:
    """The weighted sum of means, computed seed by seed over the seeds that all arms share.

    For seeds crossed with data orders, it is computed over the full grid that the arms share. None
    if there are fewer than two shared seeds, all of them give the same sum, or they are neither
    independent nor a grid.
    """
    seeds = shared_seeds(*(term.sample for term in terms))
    sums = {seed: math.fsum(term.weight * term.sample[seed] for term in terms) for seed in seeds}
    if not independent(seeds):
        grid = full_grid(seeds)
        return grid and crossed_sample(sums, grid)
    variance = spread(list(sums.values()))
    if not variance:
        return None
    n = len(sums)
    return Estimate(fmean(sums.values()), math.sqrt(variance / n), n - 1, n, PAIRED)


def judge_contrast(terms: Sequence[Term], rule: Rule) -> Contrast | None:
    """A contrast with its interval, widened by the allowances of its arms; None if there is no
    estimate."""
    estimate = estimate_contrast(terms)
    if estimate is None:
        return None
    down = math.fsum(term.weight * term.allowance for term in terms if term.weight > 0)
    up = math.fsum(-term.weight * term.allowance for term in terms if term.weight < 0)
    half = rule.half_width(estimate)
    return Contrast(
        estimate,
        (estimate.value - half - down, estimate.value + half + up),
        rule.p_adjusted(estimate, up if estimate.value < 0 else down),
    )
