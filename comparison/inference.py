"""What can be concluded from a few numbers per arm: differences, intervals, p values, power.

Everything here is a linear contrast of group means, sum_g w_g mean_g: an arm against the baseline
is (-1, +1), an effect of a factorial design has more terms. It is tested by Student's t,
seed by seed where seeds are paired, else with the degrees of freedom of Welch and Satterthwaite.
Which of the two is decided by the seeds alone, never by the values.

Sources: Student 1908, "The probable error of a mean"; Welch 1947, "The generalization of
Student's problem"; Satterthwaite 1946, "An approximate distribution of estimates of variance
components"; Holm 1979, "A simple sequentially rejective multiple test procedure"; Cohen 1988,
"Statistical Power Analysis". docs/fairness.md explains the choices.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property, lru_cache
from statistics import fmean

import numpy as np
from scipy import special

ALPHA = 0.05
"""Accepted chance of a false claim in a family of comparisons; intervals cover 1 - ALPHA."""

POWER = 0.8
"""Wanted chance of finding a difference that is there (Cohen 1988)."""

MOST_SEEDS = 1000
"""Plans that need more seeds than this are not worth a number."""

_MIDPOINTS = (np.arange(2000) + 0.5) / 2000
"""Of as many equal parts of a distribution, the quantiles that an average over it is taken at."""

Sample = Mapping[Hashable, float]
"""The results of a group: its seeds to a number each."""


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample (n - 1 in the denominator); None for fewer than two."""
    if len(values) < 2:
        return None
    mean = fmean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A contrast of group means and how surely it is known.

    Attributes:
        value: The contrast.
        error: Its standard error; above 0.
        df: Degrees of freedom of that.
        seeds: Seeds of the smallest group it rests on.
        paired: Whether it was taken seed by seed.
    """

    value: float
    error: float
    df: float
    seeds: int
    paired: bool

    @property
    def test(self) -> str:
        return "paired t" if self.paired else "Welch t"

    @cached_property
    def p_value(self) -> float:
        """Two-sided p value of there being no difference."""
        if self.error == 0:
            return float(self.value == 0)
        return 2 * float(special.stdtr(self.df, -abs(self.value) / self.error))

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """The interval that covers the true value with probability 1 - alpha."""
        half = self.error * _t_quantile(self.df, alpha)
        return self.value - half, self.value + half

    # Planning. With n seeds in place of `seeds`, the error shrinks as 1/sqrt(n) and the degrees
    # of freedom grow as n - 1.

    def _plan(self, seeds: int) -> tuple[float, float]:
        """(error, df) that so many seeds per group would give."""
        error = self.error * math.sqrt(self.seeds / seeds)
        return error, self.df * (seeds - 1) / (self.seeds - 1)

    def power(self, difference: float, seeds: int, alpha: float) -> float:
        """Chance that a test at level alpha finds a true difference with so many seeds.

        The noncentral t of Cohen 1988, without the chance of an error in sign, which is nothing
        where the power is of use. It is the chance that a normal variable exceeds the critical
        value times the error's own estimate, averaged over what that estimate may be.
        """
        error, df = self._plan(seeds)
        shift = abs(difference) / error if error else math.inf
        return float(special.ndtr(shift - _t_quantile(df, alpha) * _error_estimates(df)).mean())

    def detectable(self, alpha: float) -> float:
        """The true difference that a test at level alpha finds with POWER at the present seeds."""
        low, high = 0.0, self.error
        while self.power(high, self.seeds, alpha) < POWER:
            low, high = high, 2 * high
        while high - low > 1e-3 * high:
            middle = (low + high) / 2
            enough = self.power(middle, self.seeds, alpha) >= POWER
            low, high = (low, middle) if enough else (middle, high)
        return high

    def seeds_needed(self, difference: float, alpha: float) -> int | None:
        """Fewest seeds per group with which a test at level alpha finds a true difference with
        POWER; None where that is more than MOST_SEEDS."""
        if difference == 0 or self.power(difference, MOST_SEEDS, alpha) < POWER:
            return None
        low, high = 1, MOST_SEEDS
        while high - low > 1:
            middle = (low + high) // 2
            enough = self.power(difference, middle, alpha) >= POWER
            low, high = (low, middle) if enough else (middle, high)
        return high


@lru_cache(maxsize=256)  # arms share a few; the inverse of chi-squared is slow
def _error_estimates(df: float) -> np.ndarray:
    """What an error of 1 may be estimated as: the square roots of chi-squared over df, at equally
    likely points."""
    return np.sqrt(special.chdtri(df, 1 - _MIDPOINTS) / df)


def _t_quantile(df: float, alpha: float) -> float:
    """Where Student's t leaves alpha / 2 above it."""
    return float(special.stdtrit(df, 1 - alpha / 2))


def contrast(weights: Sequence[float], samples: Sequence[Sample]) -> Estimate | None:
    """The weighted sum of group means; None where it cannot be judged.

    Seeds are paired where all seeds of the smallest group are in every group. That cannot be
    judged where a group has fewer than two seeds, or where its results are all the same: then its
    seeds changed nothing, and nothing is known of chance.
    """
    if any(len(sample) < 2 or len(set(sample.values())) == 1 for sample in samples):
        return None
    shared = set.intersection(*(set(sample) for sample in samples))
    if len(shared) == min(map(len, samples)):
        return _paired(weights, samples, shared)
    return _welch(weights, samples)


def _paired(weights: Sequence[float], samples: Sequence[Sample], seeds: set) -> Estimate:
    sums = [
        math.fsum(weight * sample[seed] for weight, sample in zip(weights, samples, strict=True))
        for seed in seeds
    ]
    n = len(sums)
    error = deviation(sums) / math.sqrt(n)
    return Estimate(fmean(sums), error, n - 1, n, paired=True)


def _welch(weights: Sequence[float], samples: Sequence[Sample]) -> Estimate:
    value, variance, spread = 0.0, 0.0, 0.0
    for weight, sample in zip(weights, samples, strict=True):
        numbers, n = list(sample.values()), len(sample)
        part = (weight * deviation(numbers)) ** 2 / n
        value += weight * fmean(numbers)
        variance += part
        spread += part**2 / (n - 1)
    n = min(map(len, samples))
    return Estimate(value, math.sqrt(variance), variance**2 / spread, n, paired=False)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number, so that rejecting those below ALPHA makes a false claim
    in the whole family with probability ALPHA at most, however they depend on each other."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
