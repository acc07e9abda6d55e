"""Everything that runs show, as data, which every view is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from comparison.code_versions import code_note
from comparison.curves import AXES, common_budget, losses_at, speedup
from comparison.effects import Effect, effects
from comparison.groups import (
    Group,
    changes,
    find_baseline,
    group_runs,
    unequal_length,
    unlike,
)
from comparison.inference import Estimate, Sample
from comparison.runs import LoggedRun
from comparison.verdicts import BASELINE, CANNOT_TELL, Verdict, judge


@dataclasses.dataclass(frozen=True)
class Reading:
    """Losses of a group at a budget, and the verdict on them."""

    losses: Sample
    verdict: Verdict


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupResult:
    """A group beside the baseline.

    Attributes:
        changes: The keys that make it another arm, and its values of them.
        set_apart: The conditions in which it is unlike the baseline; where there are any, it is
            not compared.
        verdict: On the final validation loss.
        at_equal: For each unit of budget, the losses at the largest that all groups spent.
        speedups: For each, the logarithm of how much less of it the group needs; see
            `curves.speedup`.
        pareto: Whether no compared group is better in one of loss, memory and speed and no worse
            in the others, by their means; None where that is not known of it.
    """

    group: Group
    changes: Mapping[str, Any]
    set_apart: tuple[str, ...]
    verdict: Verdict
    at_equal: Mapping[str, Reading]
    speedups: Mapping[str, Estimate | None]
    pareto: bool | None

    @property
    def unnamed_changes(self) -> dict[str, Any]:
        """The changes that the group's name does not say already."""
        named = self.group.name.split(", ")
        return {k: value for k, value in self.changes.items() if f"{k}={value}" not in named}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """What runs show.

    Attributes:
        rows: The baseline, the groups compared with it, then those set apart.
        margin: Differences up to this count as equal, nats per token; None where it was not given
            and the baseline has fewer than two seeds.
        budgets: The largest common budget in each unit where there is one.
        effects: Of a factorial design; else none.
        notes: What a reader has to know, a sentence each.
    """

    rows: tuple[GroupResult, ...]
    margin: float | None
    budgets: Mapping[str, float]
    effects: tuple[Effect, ...]
    notes: tuple[str, ...]

    @property
    def baseline(self) -> GroupResult:
        return self.rows[0]


def compare(
    runs: Iterable[LoggedRun],
    baseline: str | LoggedRun | None = None,
    margin: float | None = None,
    tuned: Collection[str] = (),
    factors: Sequence[str] = (),
    varied: Sequence[str] = (),
) -> Findings:
    """What runs show of architectures.

    Args:
        runs: At least one.
        baseline: What to compare with; see `groups.find_baseline`.
        margin: Differences up to this count as equal, nats per token; None: the noise floor.
        tuned: Keys that every arm was given the same trials to choose.
        factors: The keys of a factorial design; none: those that the groups themselves show.
        varied: Keys that were varied on purpose; they lead the changes of an arm.

    Raises:
        UserError: The baseline is not among the runs.
    """
    groups = group_runs(runs)
    base = find_baseline(groups, baseline)
    margin = base.deviation if margin is None else margin
    apart = {group.name: tuple(unlike(group, base, tuned)) for group in groups}
    arms = [group for group in groups if group is not base]
    compared = [base, *(group for group in arms if not apart[group.name])]
    verdicts = _final_verdicts(compared, margin)
    budgets = {axis: common_budget(compared, axis) for axis in AXES}
    budgets = {axis: budget for axis, budget in budgets.items() if budget}
    readings = {axis: _readings(compared, axis, at, margin) for axis, at in budgets.items()}
    pareto = _pareto_set(compared)

    def row(group: Group) -> GroupResult:
        alike = not apart[group.name]
        return GroupResult(
            group=group,
            changes=changes(group, base, tuned, varied),
            set_apart=apart[group.name],
            verdict=verdicts.get(group.name, Verdict(CANNOT_TELL, why_not="set apart")),
            at_equal={axis: readings[axis][group.name] for axis in budgets if alike},
            speedups={axis: speedup(group, base, axis) for axis in budgets if alike},
            pareto=pareto.get(group.name),
        )

    others = [group for group in arms if apart[group.name]]
    return Findings(
        rows=tuple(row(group) for group in [*compared, *others]),
        margin=margin,
        budgets=budgets,
        effects=tuple(_effects(compared, factors)),
        notes=tuple(_notes(groups, compared)),
    )


# Verdicts


def _final_verdicts(groups: Sequence[Group], margin: float | None) -> dict[str, Verdict]:
    def why_not(group: Group) -> str | None:
        unequal = unequal_length(group, groups[0])
        return unequal and f"{unequal}; see the losses at equal budgets"

    return _verdicts(groups, lambda group: group.losses, why_not, margin)


def _readings(
    groups: Sequence[Group], axis: str, budget: float, margin: float | None
) -> dict[str, Reading]:
    losses = {group.name: losses_at(group, axis, budget) for group in groups}
    verdicts = _verdicts(groups, lambda group: losses[group.name], lambda group: None, margin)
    return {name: Reading(losses[name], verdict) for name, verdict in verdicts.items()}


def _verdicts(
    groups: Sequence[Group],
    losses: Callable[[Group], Sample],
    why_not: Callable[[Group], str | None],
    margin: float | None,
) -> dict[str, Verdict]:
    """By name the verdict on each group; the baseline is the first. `why_not` says what bars a
    group from being judged."""
    base, *arms = groups
    found = {base.name: Verdict(BASELINE, margin=margin)}
    bars = {arm.name: _diverged(arm) or _diverged(base) or why_not(arm) for arm in arms}
    judged = [arm for arm in arms if not bars[arm.name]]
    found |= {arm.name: Verdict(CANNOT_TELL, why_not=bars[arm.name] or "") for arm in arms}
    verdicts = judge(losses(base), [losses(arm) for arm in judged], margin)
    return found | {arm.name: verdict for arm, verdict in zip(judged, verdicts, strict=True)}


def _diverged(group: Group) -> str | None:
    """A mean without the runs that failed would flatter the arm."""
    if not group.diverged:
        return None
    return f"{group.diverged} of {len(group.runs)} runs of {group.name} diverged"


def _effects(groups: Sequence[Group], factors: Sequence[str]) -> list[Effect]:
    whole = not any(_diverged(group) or unequal_length(group, groups[0]) for group in groups)
    return effects(groups, factors) if whole else []


# Quality against memory and speed


def _pareto_set(groups: Sequence[Group]) -> dict[str, bool]:
    """Of each group whose loss (from two seeds or more), memory and speed are known, all on one
    machine, whether none is better in one and no worse in the others."""
    if len(set.union(set(), *(group.machines for group in groups))) > 1:
        return {}
    known = {group.name: point for group in groups if None not in (point := _point(group))}
    return {
        name: not any(_dominates(other, point) for other in known.values())
        for name, point in known.items()
    }


def _point(group: Group) -> tuple[float | None, ...]:
    """Loss, memory and slowness: less is better of each."""
    speed = group.mean(lambda run: run.summary.get("median_tokens_per_second"))
    comparable = group.n > 1 and not group.diverged
    return group.loss if comparable else None, group.peak_memory, speed and -speed


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


# What a reader has to know


def _notes(groups: Sequence[Group], compared: Sequence[Group]) -> list[str]:
    notes = [f"Not counted: {reason}." for group in groups for reason in group.left_out]
    notes += filter(None, map(code_note, groups))
    if len(groups) > len(compared) == 1:
        notes.append("No group is comparable with the baseline; --baseline names another.")
    machines = sorted({str(m[0]) for group in compared for m in group.machines})
    if len(set.union(set(), *(group.machines for group in compared))) > 1:
        notes.append(
            "Speeds are not comparable: the runs differ in device, threads or compile "
            f"({', '.join(machines)})."
        )
    torch = sorted({str(r.environment.get("torch")) for group in compared for r in group.counted})
    if len(torch) > 1:
        notes.append(f"The runs used different versions of torch: {', '.join(torch)}.")
    return notes
