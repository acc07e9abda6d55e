"""Power analysis: the seeds needed for a verdict, and the minimum detectable effect.

Both concern a true difference chosen in advance, never the observed one: the power to detect an
observed difference is only another form of the p value (Hoenig and Heisey 2001). The variance is
estimated from few seeds. With the estimate itself, half of all plans would be too small, and the
mean power would be far below the requested one, so an upper confidence limit is used.
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
"""Requested probability of detecting a true difference (Cohen 1988)."""

UPPER = 0.7
"""Confidence level of the upper limit of the variance used for plans. For plans after 3, 5 or 10
seeds and families of 1, 4 and 8, the mean power is then 0.81 to 0.87 (18 cells of 400 simulated
pilots); with the estimate itself it is 0.66 to 0.79."""

MOST_SEEDS = 1000
"""Maximum number of seeds in a plan."""

_MIDPOINTS = (np.arange(2000) + 0.5) / 2000
"""Probabilities of the equally likely quantiles used to average over a distribution."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan for power analysis.

    Attributes:
        error: Standard error of the difference with `n` seeds, assumed known.
        df: Degrees of freedom of its estimate with `n` seeds.
        n: Reference number of seeds.
        rule: The rule for intervals.
        allowance: Widening of the interval toward 0 due to tuning, for any number of seeds.
    """

    error: float
    df: float
    n: int
    rule: Rule
    allowance: float = 0.0

    @classmethod
    def after(cls, estimate: Estimate, rule: Rule, allowance: float = 0.0) -> Plan:
        """A plan after a first estimate, with an upper confidence limit of its error."""
        inflation = math.sqrt(estimate.df / chi2_quantile(1 - UPPER, estimate.df))
        return cls(inflation * estimate.error, estimate.df, estimate.n, rule, allowance)

    def power(self, difference: float, seeds: int) -> float:
        """Probability of detecting a true difference with the correct sign with `seeds` seeds.

        This is the noncentral t of Cohen 1988, computed as the probability that a normal variable
        exceeds the critical value times the estimated error, averaged over the distribution of that
        estimate.
        """
        df = self.df * (seeds - 1) / (self.n - 1)
        shift = (abs(difference) - self.allowance) / (self.error * math.sqrt(self.n / seeds))
        critical = self.rule.critical(df, seeds)
        if math.isinf(critical):
            return 0.0
        return float(special.ndtr(shift - critical * _error_estimates(df)).mean())

    def seeds_needed(self, difference: float) -> int | None:
        """The fewest seeds that detect a true difference with probability POWER; None if more than
        MOST_SEEDS, as for any difference within the allowance."""
        if difference == 0 or self.power(difference, MOST_SEEDS) < POWER:
            return None
        low, high = 1, MOST_SEEDS
        while high - low > 1:
            middle = (low + high) // 2
            enough = self.power(difference, middle) >= POWER
            low, high = (low, middle) if enough else (middle, high)
        return high

    def detectable(self) -> float | None:
        """The smallest true difference that `n` seeds detect with probability POWER; None if the
        interval is infinite, so that no difference can be detected."""
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
    """Equally likely estimates of an error of 1, given its degrees of freedom."""
    return np.sqrt(special.chdtri(df, 1 - _MIDPOINTS) / df)
