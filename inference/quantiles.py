"""Quantiles and tail probabilities from scipy.special, cached if slow."""

from __future__ import annotations

import math
from functools import lru_cache

from scipy import special

ALPHA = 0.05
"""Accepted probability of a false verdict in a family of comparisons."""


@lru_cache(maxsize=4096)
def t_critical(df: float, alpha: float) -> float:
    """The value that |t| exceeds with probability alpha."""
    return float(special.stdtrit(df, 1 - alpha / 2))


def t_p_value(t: float, df: float) -> float:
    """Two-sided p value of a t statistic."""
    return 2 * float(special.stdtr(df, -abs(t)))


@lru_cache(maxsize=4096)
def chi2_quantile(q: float, df: float) -> float:
    """The value below which chi-squared falls with probability q."""
    return float(special.chdtri(df, 1 - q))


@lru_cache(maxsize=4096)
def f_quantile(q: float, df1: float, df2: float) -> float:
    """The value below which F falls with probability q."""
    return float(special.fdtri(df1, df2, q))


def sidak_level(alpha: float, family: int) -> float:
    """The level of each of `family` comparisons for a familywise level of alpha (Sidak 1967)."""
    return -math.expm1(math.log1p(-alpha) / family)


def sidak_p(p: float, family: int) -> float:
    """The p value of one of `family` comparisons, adjusted for their number."""
    return 1.0 if p >= 1 else -math.expm1(family * math.log1p(-p))
