"""How many seeds a verdict takes, and how small a difference the present seeds can find.

Both are about a true difference that is chosen beforehand, never about the one that was observed:
the power to find an observed difference is the p value in other words (Hoenig and Heisey 2001).
The variance is known from few seeds. Planned with the estimate itself, half of all plans would be
too small, and the mean power falls far short of the one that was asked for; so an upper confidence
limit of it is used.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache

import numpy as np
from scipy import special

from inference.estimates import Estimate
from inference.quantiles import chi2_quantile
from inference.rules import Rule

POWER = 0.8
"""Wanted probability of finding a difference that is there (Cohen 1988)."""

UPPER = 0.7
"""Confidence of the upper limit of the variance that plans are made with. Planned after 3, 5 or 10
seeds for families of 1, 4 and 8, the mean power is then 0.81 to 0.87 (18 cells of 400 simulated
pilots), with the estimate itself 0.66 to 0.79."""

MOST_SEEDS = 1000
"""Plans that need more seeds are not worth a number."""

_MIDPOINTS = (np.arange(2000) + 0.5) / 2000
"""Of as many equal parts of a distribution, the quantiles that an average over it is taken at."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a number of seeds finds.

    Attributes:
        error: Standard error of the difference with `n` seeds, taken as known.
        df: Degrees of freedom that its estimate will have with `n` seeds.
        n: A number of seeds.
        rule: How intervals are made.
        allowance: What tuning adds to the interval on the side of 0, however many seeds there are.
    """

    error: float
    df: float
    n: int
    rule: Rule
    allowance: float = 0.0

    @classmethod
    def after(cls, estimate: Estimate, rule: Rule, allowance: float = 0.0) -> Plan:
        """The plan after a first estimate: its error is an upper confidence limit."""
        inflation = math.sqrt(estimate.df / chi2_quantile(1 - UPPER, estimate.df))
        return cls(inflation * estimate.error, estimate.df, estimate.n, rule, allowance)

    def power(self, difference: float, seeds: int) -> float:
        """Probability of finding a true difference with so many seeds, its sign right.

        The noncentral t of Cohen 1988, as the probability that a normal variable exceeds the
        critical value times the estimated error, averaged over what that estimate may be.
        """
        df = self.df * (seeds - 1) / (self.n - 1)
        shift = (abs(difference) - self.allowance) / (self.error * math.sqrt(self.n / seeds))
        critical = self.rule.critical(df, seeds)
        if math.isinf(critical):
            return 0.0
        return float(special.ndtr(shift - critical * _error_estimates(df)).mean())

    def seeds_needed(self, difference: float) -> int | None:
        """The fewest seeds that find a true difference with probability POWER; None if that is
        more than MOST_SEEDS, as for any difference within the allowance."""
        if difference == 0 or self.power(difference, MOST_SEEDS) < POWER:
            return None
        low, high = 1, MOST_SEEDS
        while high - low > 1:
            middle = (low + high) // 2
            enough = self.power(difference, middle) >= POWER
            low, high = (low, middle) if enough else (middle, high)
        return high

    def detectable(self) -> float | None:
        """The smallest true difference that `n` seeds find with probability POWER; None if they
        find none, since the interval is infinite."""
        if math.isinf(self.rule.critical(self.df, self.n)):
            return None
        low, high = 0.0, self.error + self.allowance
        while self.power(high, self.n) < POWER:
            low, high = high, 2 * high
        while high - low > 1e-3 * high:
            middle = (low + high) / 2
            enough = self.power(middle, self.n) >= POWER
            low, high = (low, middle) if enough else (middle, high)
        return high


@lru_cache(maxsize=256)  # arms share a few; the inverse of chi-squared is slow
def _error_estimates(df: float) -> np.ndarray:
    """What an error of 1 may be estimated as: at equally likely points of its distribution."""
    return np.sqrt(special.chdtri(df, 1 - _MIDPOINTS) / df)
