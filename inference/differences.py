"""The difference between an arm and the baseline, and its precision given the seeds.

Arms are compared seed by seed: the same seed means the same initial weights and the same batches,
so effects of the seed that both arms share cancel. A variance estimated from few seeds is
imprecise, so arms of a comparison with similar variances borrow from each other (moderation, Smyth
2004, "Linear models and empirical Bayes methods"), except for arms that are much noisier than the
others (in the spirit of Phipson et al. 2016, "Robust hyperparameter estimation").
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import fmean, median

from inference.crossed import crossed_sample
from inference.estimates import MODERATED, PAIRED, WELCH, Estimate
from inference.grids import Grid, full_grid, independent
from inference.quantiles import chi2_quantile, f_quantile
from inference.samples import Sample, shared_seeds, spread, variance

GUARD = 0.70
"""F quantile above which an arm's variance is too large to borrow from the others."""

FEWEST_OTHERS = 2
"""Minimum number of other arms to borrow from."""


@dataclasses.dataclass(frozen=True)
class Difference(Estimate):
    """Arm minus baseline, in the unit of the samples (for losses, nats per token).

    Attributes:
        baseline_mean: Mean of the baseline over the runs used for the difference.
    """

    baseline_mean: float

    @property
    def mean(self) -> float:
        """Mean of the arm over the runs used for the difference."""
        return self.baseline_mean + self.value


def kappa(n: int) -> float:
    """The median of the sample variance of n normal numbers, divided by the true variance."""
    return chi2_quantile(0.5, n - 1) / (n - 1)


def differences(baseline: Sample, arms: Sequence[Sample]) -> list[Difference | None]:
    """The difference of each arm from the baseline; None if it cannot be estimated.

    Arms that share two or more seeds with the baseline are compared on those seeds only, others as
    independent samples (Welch 1947, "The generalization of Student's problem"). Seeds crossed with
    data orders are compared on the full grid that they share. None if a sample has fewer than two
    seeds, its values do not vary, or they are neither independent nor a grid.
    """
    shared = [shared_seeds(baseline, arm) for arm in arms]
    paired = [
        _Paired.of(baseline, arm) if independent(cells) else None
        for arm, cells in zip(arms, shared, strict=True)
    ]
    found: list[Difference | None] = []
    for i, (arm, own) in enumerate(zip(arms, paired, strict=True)):
        if own is not None:
            others = [p for j, p in enumerate(paired) if j != i]
            found.append(_moderated(own, [p for p in others if p is not None and p.variance > 0]))
        elif not independent(shared[i]):
            grid = full_grid(shared[i])
            found.append(_on_grid(baseline, arm, grid) if grid else None)
        elif independent(baseline) and independent(arm):
            found.append(_welch(baseline, arm))
        else:
            found.append(None)
    return found


def _on_grid(baseline: Sample, arm: Sample, grid: Grid) -> Difference | None:
    """The difference over seeds crossed with data orders; cells in the same row or column are not
    independent."""
    own = crossed_sample({cell: arm[cell] - baseline[cell] for cell in grid.cells}, grid)
    if own is None:
        return None
    mean = fmean(baseline[cell] for cell in grid.cells)
    return Difference(own.value, own.error, own.df, own.n, own.test, mean)


@dataclasses.dataclass(frozen=True)
class _Paired:
    """Paired differences over seeds: their mean and variance."""

    mean: float
    variance: float
    n: int
    baseline_mean: float

    @classmethod
    def of(cls, baseline: Sample, arm: Sample) -> _Paired | None:
        seeds = shared_seeds(baseline, arm)
        if len(seeds) < 2:
            return None
        values = [arm[seed] - baseline[seed] for seed in seeds]
        baseline_mean = fmean(baseline[seed] for seed in seeds)
        return cls(fmean(values), spread(values), len(seeds), baseline_mean)

    @property
    def typical_variance(self) -> float:
        """The true variance for which this one is the median estimate."""
        return self.variance / kappa(self.n)

    def difference(self, variance: float, df: float, test: str) -> Difference:
        error = math.sqrt(variance / self.n)
        return Difference(self.mean, error, df, self.n, test, self.baseline_mean)


def _moderated(own: _Paired, others: Sequence[_Paired]) -> Difference | None:
    if own.variance == 0:
        return None
    df = own.n - 1
    if len(others) >= FEWEST_OTHERS:
        pool = median(other.typical_variance for other in others)
        if own.variance / pool <= f_quantile(GUARD, df, 2 * df):
            return own.difference((pool + own.variance) / 2, 2 * df, MODERATED)
    return own.difference(own.variance, df, PAIRED)


def _welch(baseline: Sample, arm: Sample) -> Difference | None:
    samples = [list(sample.values()) for sample in (baseline, arm)]
    if any(len(values) < 2 or len(set(values)) == 1 for values in samples):
        return None
    parts = [variance(values) / len(values) for values in samples]
    total = sum(parts)
    df = total**2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, samples, strict=True)
    )
    mean, other = (fmean(values) for values in samples)
    return Difference(other - mean, math.sqrt(total), df, min(map(len, samples)), WELCH, mean)
