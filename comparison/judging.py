"""The verdicts on groups, and the reasons why some groups cannot be judged."""

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


def final_standings(groups: Sequence[Group], design: Design) -> dict[str, Standing]:
    """By name, the verdict on the final losses of each group, and the next look at it in a sweep
    with --until_sure; the first group is the baseline."""
    base, *arms = groups
    if not design.schedule:
        found = judged_groups(groups, lambda g: g.losses, lambda g: bar(g, base, design), design)
        return {group.name: Standing(found[group.name], group.n, None) for group in groups}
    bars = {arm.name: bar(arm, base, design) for arm in arms}
    judged = [arm for arm in arms if not bars[arm.name]]
    found = {
        name: Standing(unjudged(reason, design.margin), 0, None) for name, reason in bars.items()
    }
    found[base.name] = Standing(Verdict(BASELINE, margin=design.margin), base.n, None)
    whole = dataclasses.replace(design, arms=design.family(len(arms)), all_pairs=False)
    taken = standings_of(base, judged, whole)
    return found | {arm.name: own for arm, own in zip(judged, taken, strict=True)}


def judged_groups(
    groups: Sequence[Group],
    losses: Callable[[Group], Sample],
    bar: Callable[[Group], str],
    design: Design,
) -> dict[str, Verdict]:
    """By name, the verdict on each group; the first group is the baseline.

    Args:
        groups: The comparable groups.
        losses: Returns the losses by which to judge a group.
        bar: Returns why a group cannot be judged; empty if it can.
        design: The declarations.
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


def unfinished(group: Group, baseline: Group, design: Design) -> str:
    """Why a group cannot be judged yet, at any budget; empty if it can.

    A sweep shows no verdict and no interval before its declared seeds have finished, because
    stopping as soon as the results look good would raise the error rate.
    """
    return design.waits_for(group) or design.waits_for(baseline)


def bar(group: Group, baseline: Group, design: Design) -> str:
    """Why the final losses of a group cannot be judged; empty if they can."""
    both = (group, baseline)
    waits = unfinished(group, baseline, design)
    if waits:
        return waits
    if not all(own.n for own in both):
        return ""  # without losses there will be no estimate
    unequal = unequal_length(*both)
    if unequal:
        return f"final losses are at unequal budgets ({unequal}); see the losses at equal budgets"
    if (group.progress or 0) < 1 - SAME_BUDGET:
        return f"runs end at {100 * (group.progress or 0):.0f} % of their schedule"
    return ""
