"""Which groups may be judged, and the verdicts on those that may."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from comparison.design import Design
from comparison.groups import SAME_BUDGET, Group, unequal_length
from comparison.looking import standings_of
from inference.looks import Standing
from inference.samples import Sample
from inference.verdicts import Results, Verdict, judge, unjudged

BASELINE = "baseline"


def final_verdicts(groups: Sequence[Group], design: Design) -> dict[str, Verdict]:
    """By name the verdict on the final losses of each group; the first is the baseline."""
    base, *arms = groups
    if design.schedule:
        return {base.name: Verdict(BASELINE, margin=design.margin)} | {
            name: standing.verdict for name, standing in standings(base, arms, design).items()
        }
    return judged_groups(groups, lambda g: g.losses, lambda g: bar(g, base, design), design)


def standings(base: Group, arms: Sequence[Group], design: Design) -> dict[str, Standing]:
    """By name where each arm stands in a sweep that goes on until it is sure."""
    bars = {arm.name: bar(arm, base, design) for arm in arms}
    judged = [arm for arm in arms if not bars[arm.name]]
    found = {
        name: Standing(unjudged(reason, design.margin), 0, None) for name, reason in bars.items()
    }
    taken = standings_of(base, judged, dataclasses.replace(design, arms=design.family(len(arms))))
    return found | {arm.name: own for arm, own in zip(judged, taken, strict=True)}


def judged_groups(
    groups: Sequence[Group],
    losses: Callable[[Group], Sample],
    bar: Callable[[Group], str],
    design: Design,
) -> dict[str, Verdict]:
    """By name the verdict on each group; the first is the baseline.

    Args:
        groups: Comparable ones.
        losses: What to judge a group by.
        bar: Why a group may not be judged; empty if it may.
        design: What was declared.
    """

    def results(group: Group) -> Results:
        return Results(losses(group), group.diverged, design.allowance(group))

    base, *arms = groups
    bars = {arm.name: bar(arm) for arm in arms}
    judged = [arm for arm in arms if not bars[arm.name]]
    verdicts = judge(
        results(base),
        [results(arm) for arm in judged],
        design.rule(len(arms)),
        design.margin,
    )
    found = {name: unjudged(reason, design.margin) for name, reason in bars.items()}
    found |= {arm.name: verdict for arm, verdict in zip(judged, verdicts, strict=True)}
    return {base.name: Verdict(BASELINE, margin=design.margin), **found}


def bar(group: Group, baseline: Group, design: Design) -> str:
    """Why the final losses of a group may not be judged; empty if they may."""
    both = (group, baseline)
    for own in both:
        finished = own.n + own.diverged
        if design.seeds and finished < design.seeds:
            return f"{finished} of {design.seeds} declared seeds of {own.name} have finished"
    if not all(own.n for own in both):
        return ""  # without losses there will be no estimate
    unequal = unequal_length(*both)
    if unequal:
        return f"final losses are at unequal budgets ({unequal}); see the losses at equal budgets"
    if (group.progress or 0) < 1 - SAME_BUDGET:
        return f"runs end at {100 * (group.progress or 0):.0f} % of their schedule"
    return ""
