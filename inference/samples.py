"""Samples, which have one number per seed."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean

Sample = Mapping[Hashable, float]
"""The final losses of an arm, by seed."""


def variance(values: Sequence[float]) -> float:
    """Unbiased variance of two or more numbers."""
    mean = fmean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation with n - 1 in the denominator; None for fewer than two numbers."""
    return math.sqrt(variance(values)) if len(values) > 1 else None


def spread(values: Sequence[float]) -> float:
    """The variance; 0 for fewer than two numbers, or if they differ only by rounding."""
    if len(values) < 2 or math.isclose(min(values), max(values), abs_tol=1e-12):
        return 0.0
    return variance(values)


def shared_seeds(*samples: Sample) -> list[Hashable]:
    """The seeds in all samples, in the order of the first."""
    first, *others = samples
    return [seed for seed in first if all(seed in other for other in others)]
