"""Scheduled looks: adding seeds until the verdict is sure, at a fixed total error.

At each look the arms are judged at a share of alpha; the shares add up to alpha, so all intervals
of all looks hold together with probability 1 - alpha (union bound). An arm that is decided stops
and keeps its interval.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from inference.quantiles import ALPHA, t_critical
from inference.rules import DeclaredSeeds
from inference.verdicts import INCONCLUSIVE, MARGIN, Results, Verdict, judge, unjudged

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
    half = last.critical(df, max_seeds) * error + verdict.allowance
    never_clear_of_0 = abs(estimate.value) + band < half
    never_equal = max(abs(estimate.value) - band, 0.0) + half > verdict.margin
    return never_clear_of_0 and never_equal


@dataclasses.dataclass(frozen=True)
class Standing:
    """Where an arm stands after the looks that could be taken.

    Attributes:
        verdict: Of the last look that it took part in.
        seeds: Seeds of that look; 0 before the first.
        next_look: Seeds of the next look that it needs; None if it has stopped.
    """

    verdict: Verdict
    seeds: int
    next_look: int | None

    @property
    def futile(self) -> bool:
        """Whether it has stopped undecided."""
        return self.next_look is None and self.verdict.word == INCONCLUSIVE


ResultsOf = Callable[[int | None, int], Results | None]
"""What an arm, or None for the baseline, came to with so many seeds; None before they finish."""


def take_looks(
    results: ResultsOf,
    arms: int,
    schedule: Sequence[Look],
    family: int | None = None,
    margin: float = MARGIN,
) -> list[Standing]:
    """Where each arm stands.

    An arm stops when it is decided, or when the last look is unlikely to decide it. It keeps its
    verdict, and lends its variance to the looks that follow. If an arm that stopped undecided has
    more seeds all the same, the later looks are taken too: they have their share of alpha.

    Args:
        results: What the runs came to.
        arms: How many there are.
        schedule: The looks.
        family: Arms that were declared; None: these.
        margin: Differences up to this count as equal.
    """
    first = schedule[0].n
    waiting = unjudged(f"the first look is at {first} seeds", margin)
    standings = [Standing(waiting, 0, first)] * arms
    for k, look in enumerate(schedule):
        still = [
            arm
            for arm, own in enumerate(standings)
            if own.next_look == look.n or (own.futile and results(arm, look.n) is not None)
        ]
        counts = [look.n if arm in still else own.seeds for arm, own in enumerate(standings)]
        baseline = results(None, look.n) if still else None
        found = [results(arm, count) for arm, count in enumerate(counts)]
        if baseline is None or None in found:
            break
        rule = DeclaredSeeds(family or arms, look.alpha)
        verdicts = judge(baseline, found, rule, margin)
        for arm in still:
            standings[arm] = _after(verdicts[arm], look, schedule[k + 1 :], rule.family)
    return standings


def _after(verdict: Verdict, look: Look, later: Sequence[Look], family: int) -> Standing:
    """Where an arm stands after a look."""
    if not later or verdict.word != INCONCLUSIVE:
        return Standing(verdict, look.n, None)
    last = DeclaredSeeds(family, later[-1].alpha)
    if verdict.difference is not None and futile(verdict, last, later[-1].n):
        reason = f"stopped: {later[-1].n} seeds are unlikely to decide"
        stopped = dataclasses.replace(verdict, reason=verdict.reason or reason)
        return Standing(stopped, look.n, None)
    return Standing(verdict, look.n, later[0].n)
