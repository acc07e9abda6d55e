"""Scheduled looks: adding seeds until the verdict is sure, at a fixed total error.

At each look the arms are judged at a share of alpha; the shares add up to alpha, so all intervals
of all looks hold together with probability 1 - alpha (union bound). An arm that is decided stops
and keeps its interval.
"""

from __future__ import annotations

import dataclasses
import math

from inference.quantiles import ALPHA, t_critical
from inference.rules import DeclaredSeeds
from inference.verdicts import Verdict

FIRST_LOOK = 5
"""Seeds of the first look, unless fewer are the most there may be."""

FUTILITY = 0.2
"""Two-sided level of the band around the estimate that decides whether to go on."""


@dataclasses.dataclass(frozen=True)
class Look:
    """A moment at which verdicts are given.

    Attributes:
        n: Seeds per arm.
        alpha: The share of the accepted error that is spent here.
    """

    n: int
    alpha: float


def scheduled_looks(max_seeds: int, alpha: float = ALPHA) -> list[Look]:
    """Looks at 5, 10, 20 ... seeds and at `max_seeds`. Each spends half of what is left of alpha,
    the last all of it."""
    seeds = []
    n = FIRST_LOOK
    while n < max_seeds:
        seeds.append(n)
        n *= 2
    looks, left = [], alpha
    for n in seeds:
        left /= 2
        looks.append(Look(n, left))
    return [*looks, Look(max_seeds, left)]


def futile(verdict: Verdict, last: DeclaredSeeds, max_seeds: int) -> bool:
    """Whether an undecided arm is unlikely to be decided by the last look.

    That is where the band around the estimate keeps clear of every difference that the last look
    could tell from 0, and of every one that it could call equal. The rule only stops an arm, so it
    cannot cause a false verdict.

    Args:
        verdict: Of the look that was just taken; it has an estimate.
        last: The rule of the last look.
        max_seeds: Seeds of the last look.
    """
    estimate = verdict.difference
    band = t_critical(estimate.df, FUTILITY) * estimate.error
    df = estimate.df * (max_seeds - 1) / (estimate.n - 1)
    error = estimate.error * math.sqrt(estimate.n / max_seeds)
    half = t_critical(df, last.level) * error
    never_clear_of_0 = abs(estimate.value) + band < half
    never_equal = max(abs(estimate.value) - band, 0.0) + half > verdict.margin
    return never_clear_of_0 and never_equal
