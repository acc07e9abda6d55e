"""Scheduled looks: add seeds until the verdict is conclusive, at a fixed total error rate.

At each look the arms are judged at a part of alpha. The parts add up to alpha, so all intervals of
all looks hold together with probability 1 - alpha (union bound). An arm with a conclusive verdict
stops and keeps its interval.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from inference.quantiles import ALPHA, t_critical
from inference.rules import DeclaredSeeds
from inference.verdicts import INCONCLUSIVE, MARGIN, Results, Verdict, judge, unjudged

FIRST_LOOK = 5
"""Seeds at the first look, unless the maximum is lower."""

FUTILITY = 0.2
"""Two-sided level of the band around the estimate that decides whether to continue."""


@dataclasses.dataclass(frozen=True)
class Look:
    """A point at which verdicts are given.

    Attributes:
        n: Number of seeds per arm.
        alpha: The part of the error rate that is spent here.
    """

    n: int
    alpha: float


def scheduled_looks(max_seeds: int, alpha: float = ALPHA) -> list[Look]:
    """Looks at 5, 10, 20 ... seeds and at `max_seeds`. Each spends half of the remaining alpha, the
    last one all of it."""
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
    """Whether an inconclusive arm is unlikely to become conclusive by the last look.

    This is the case if the band around the estimate contains no difference that the last look could
    distinguish from 0, and none that it could call equal. The rule only stops arms, so it cannot
    cause a false verdict.

    Args:
        verdict: The verdict at the current look; must have an estimate.
        last: The rule of the last look.
        max_seeds: Seeds at the last look.
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
    """The status of an arm after the looks taken so far.

    Attributes:
        verdict: The verdict at the last look that included it.
        seeds: Seeds at that look; 0 before the first.
        next_look: Seeds at the next look that it needs; None if it has stopped.
    """

    verdict: Verdict
    seeds: int
    next_look: int | None

    @property
    def futile(self) -> bool:
        """Whether it has stopped with an inconclusive verdict."""
        return self.next_look is None and self.verdict.word == INCONCLUSIVE


ResultsOf = Callable[[int | None, int], Results | None]
"""Returns the results of an arm (None: the baseline) with a number of seeds; None if unfinished."""


def take_looks(
    results: ResultsOf,
    arms: int,
    schedule: Sequence[Look],
    family: int | None = None,
    margin: float = MARGIN,
) -> list[Standing]:
    """Take the scheduled looks; returns the status of each arm.

    An arm stops when it has a conclusive verdict, or is unlikely to get one by the last look. It
    keeps its verdict, and its variance is used in later looks. If an arm that stopped inconclusive
    has more seeds anyway, later looks are taken too, since they have their part of alpha.

    Args:
        results: Returns the results of the runs.
        arms: Number of arms.
        schedule: The looks.
        family: Number of declared arms. Defaults to `arms`.
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
    """The status of an arm after a look."""
    if not later or verdict.word != INCONCLUSIVE:
        return Standing(verdict, look.n, None)
    last = DeclaredSeeds(family, later[-1].alpha)
    if verdict.difference is not None and futile(verdict, last, later[-1].n):
        reason = f"stopped: unlikely to be conclusive with {later[-1].n} seeds"
        stopped = dataclasses.replace(verdict, reason=verdict.reason or reason)
        return Standing(stopped, look.n, None)
    return Standing(verdict, look.n, later[0].n)
