"""Scheduled looks at a sweep that goes on until it is sure, taken again from its runs.

What each look decides follows from the runs alone, so nothing has to be remembered between the
sessions of a sweep, and a comparison shows the verdicts by which the sweep stopped its arms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from comparison.design import Design
from comparison.groups import Group
from inference.looks import Look, futile
from inference.rules import DeclaredSeeds
from inference.verdicts import INCONCLUSIVE, Results, Verdict, judge, unjudged


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


def take_looks(base: Group, arms: Sequence[Group], design: Design) -> list[Standing]:
    """Where each arm stands.

    An arm stops when it is decided, or when the last look is unlikely to decide it. It keeps its
    verdict, and lends its variance to the looks that follow.
    """
    first = design.schedule[0].n
    waiting = unjudged(f"the first look is at {first} seeds", design.margin)
    standings = {arm.name: Standing(waiting, 0, first) for arm in arms}
    for k, look in enumerate(design.schedule):
        still = [arm for arm in arms if standings[arm.name].next_look == look.n]
        if not still or any(_unfinished(group, look, design) for group in (base, *still)):
            break
        later = design.schedule[k + 1 :]
        for arm, verdict in zip(arms, _judge(base, arms, standings, look, design), strict=True):
            if arm in still:
                standings[arm.name] = _after(verdict, look, later, design, len(arms))
    return [standings[arm.name] for arm in arms]


def _unfinished(group: Group, look: Look, design: Design) -> bool:
    """Whether a seed of a look has not finished."""
    ended = {*group.losses, *group.failed_seeds}
    return any(seeds not in ended for seeds in design.seed_order[: look.n])


def _judge(
    base: Group,
    arms: Sequence[Group],
    standings: dict[str, Standing],
    look: Look,
    design: Design,
) -> list[Verdict]:
    """The verdicts of one look; arms that have stopped take part with the seeds they had."""

    def results(group: Group, count: int) -> Results:
        seeds = design.seed_order[:count]
        return Results(
            {own: group.losses[own] for own in seeds if own in group.losses},
            sum(own in group.failed_seeds for own in seeds),
            design.allowance(group),
        )

    counts = [
        look.n if standings[arm.name].next_look == look.n else standings[arm.name].seeds
        for arm in arms
    ]
    return judge(
        results(base, look.n),
        [results(arm, count) for arm, count in zip(arms, counts, strict=True)],
        DeclaredSeeds(design.family(len(arms)), look.alpha),
        design.margin,
    )


def _after(
    verdict: Verdict, look: Look, later: Sequence[Look], design: Design, arms: int
) -> Standing:
    if not later or verdict.word != INCONCLUSIVE:
        return Standing(verdict, look.n, None)
    last = DeclaredSeeds(design.family(arms), later[-1].alpha)
    if verdict.difference is not None and futile(verdict, last, later[-1].n):
        reason = f"stopped: {later[-1].n} seeds are unlikely to decide"
        stopped = dataclasses.replace(verdict, reason=verdict.reason or reason)
        return Standing(stopped, look.n, None)
    return Standing(verdict, look.n, later[0].n)
