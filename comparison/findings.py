"""The findings of a comparison as data, from which all views are made."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from comparison.advice import command_for_verdicts
from comparison.caveats import caveats
from comparison.curves import AXES, speedup
from comparison.design import Design
from comparison.effects import Effect, effects
from comparison.groups import (
    Group,
    changes,
    find_baseline,
    group_runs,
    machines,
    terms,
    unlike,
)
from comparison.judging import bar, final_standings, unfinished
from comparison.new_text import NewText, on_new_text
from comparison.readings import Reading, readings
from comparison.runs import MOST_OTHER_LOAD, LoggedRun
from inference.estimates import Estimate
from inference.failures import blow_ups, failure_interval, failure_p_value
from inference.verdicts import Verdict, unjudged

_MOST_BASELINES = 30
"""Maximum number of groups among which another baseline is searched for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupResult:
    """A group compared with the baseline.

    Attributes:
        changes: The keys in which it differs from the baseline as an arm, with its values.
        set_apart: The conditions in which it differs from the baseline; if there are any, it is
            not compared.
        verdict: The verdict on the final validation loss.
        new_text: Whether the verdict holds on new text; None if unknown, or if the variance of text
            is negligible.
        terms: What is equal to the baseline, and the ratios of what is not; see `groups.terms`.
        caveats: Other differences, one phrase each; see `caveats`.
        at_equal: By unit of budget, the reading at the largest budget that both spent.
        speedups: By unit of budget, the logarithm of the speed-up; see `curves.speedup`.
        pareto: Whether it is in the Pareto set: no compared group is better in one of mean loss,
            memory and speed without being worse in another. None if one of its own is unknown.
    """

    group: Group
    changes: Mapping[str, Any]
    set_apart: tuple[str, ...]
    verdict: Verdict
    new_text: NewText | None
    terms: str
    caveats: tuple[str, ...]
    at_equal: Mapping[str, Reading]
    speedups: Mapping[str, Estimate | None]
    pareto: bool | None

    def uses_fewer_seeds_than(self, baseline: Group) -> bool:
        """Whether its difference uses fewer seeds than its own mean or that of the baseline."""
        found = self.verdict.difference
        paired = found is not None and found.paired
        return paired and found.n < max(self.group.n, baseline.n)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """The results of a comparison.

    Attributes:
        rows: The baseline, the groups compared with it, then those that are not comparable.
        design: The declarations.
        family: Number of arms over which the verdicts are simultaneous.
        next_looks: By name, the number of seeds at the next look at each arm of a sweep with
            --until_sure; without arms that have stopped.
        axes: The units of budget for which a group has a reading at an equal budget.
        effects: The effects of a factorial design; otherwise empty.
        notes_on_runs: Notes on runs, one sentence each.
        further_notes: Notes on the comparison as a whole.
        notes_on_seconds: Notes on times.
    """

    rows: tuple[GroupResult, ...]
    design: Design
    family: int
    next_looks: Mapping[str, int]
    axes: tuple[str, ...]
    effects: tuple[Effect, ...]
    notes_on_runs: tuple[str, ...]
    further_notes: tuple[str, ...]
    notes_on_seconds: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """All notes."""
        return self.notes_on_runs + self.further_notes + self.notes_on_seconds

    @property
    def baseline(self) -> GroupResult:
        return self.rows[0]

    @property
    def fewer_seeds(self) -> bool:
        """Whether a difference uses fewer seeds than one of the two means, as it does if an arm of
        a sweep with --until_sure stops early; it is then not the difference of the means."""
        return any(row.uses_fewer_seeds_than(self.baseline.group) for row in self.rows[1:])

    @property
    def noise_floor(self) -> float | None:
        """Standard deviation of the difference between two runs of the baseline."""
        deviation = self.baseline.group.deviation
        return deviation and math.sqrt(2) * deviation


def compare(
    runs: Iterable[LoggedRun],
    baseline: str | LoggedRun | None = None,
    design: Design | None = None,
) -> Findings:
    """Compare runs.

    Args:
        runs: One or more runs.
        baseline: The group to compare with; see `groups.find_baseline`.
        design: The declarations; None: nothing was declared.

    Raises:
        UserError: If the baseline is not among the runs.
    """
    groups = group_runs(runs)
    base = find_baseline(groups, baseline)
    design = (design or Design()).with_looks_at(groups).against(base)
    apart = {g.name: tuple(unlike(g, base, design.may_differ(g, base))) for g in groups}
    arms = [group for group in groups if group is not base]
    compared = [base, *(group for group in arms if not apart[group.name])]
    standings = final_standings(compared, design)
    verdicts = {name: own.verdict for name, own in standings.items()}
    at_equal = readings(compared, design, verdicts)
    waiting = any(own.next_look is not None for own in standings.values())
    pareto = _pareto_set(compared)

    def seeds(group: Group) -> Collection[Any]:
        """The seeds used for the verdict."""
        if design.schedule:
            return design.seed_order[: standings[group.name].seeds]
        return list(group.losses)

    def row(group: Group) -> GroupResult:
        alike = not apart[group.name]
        return GroupResult(
            group=group,
            changes=changes(group, base, design.may_differ(group, base), design.varied),
            set_apart=apart[group.name],
            verdict=verdicts[group.name] if alike else unjudged("not comparable", design.margin),
            new_text=on_new_text(group, base, verdicts[group.name], seeds(group))
            if alike
            else None,
            terms=terms(group, base),
            caveats=tuple(caveats(group, base, design)) if alike else (),
            at_equal={axis: own[group.name] for axis, own in at_equal.items() if group.name in own},
            speedups={
                axis: None
                if unfinished(group, base, design)
                else speedup(group, base, axis, seeds(group))
                for axis in AXES
                if alike
            },
            pareto=pareto.get(group.name),
        )

    others = [group for group in arms if apart[group.name]]
    return Findings(
        rows=tuple(row(group) for group in [*compared, *others]),
        design=design,
        family=design.rule(len(compared) - 1).family,
        next_looks={
            name: own.next_look for name, own in standings.items() if own.next_look is not None
        },
        axes=tuple(at_equal),
        effects=() if waiting else tuple(_effects(compared, design)),
        notes_on_runs=tuple(_notes_on_runs(groups, compared)),
        further_notes=tuple(_further_notes(groups, compared, design, isinstance(baseline, str))),
        notes_on_seconds=tuple(_notes_on_seconds(compared)),
    )


def _effects(groups: Sequence[Group], design: Design) -> list[Effect]:
    """The effects of a factorial design; empty if a run failed or an arm may not be judged."""
    base = groups[0]
    whole = not any(group.diverged or bar(group, base, design) for group in groups)
    return effects(groups, design.factors, design.allowance, design.rule_for) if whole else []


# Quality against memory and speed


def _pareto_set(groups: Sequence[Group]) -> dict[str, bool]:
    """Whether each group is in the Pareto set of loss, memory and speed. Includes the groups for
    which all three are known, the loss from two or more seeds; empty if machines differ."""
    if len(set().union(*machines(groups))) > 1:
        return {}
    known = {group.name: point for group in groups if None not in (point := _point(group))}
    return {
        name: not any(_dominates(other, point) for other in known.values())
        for name, point in known.items()
    }


def _point(group: Group) -> tuple[float | None, ...]:
    """Loss, memory and negative speed, each of which is better if lower."""
    speed = group.mean(lambda run: run.summary.get("median_tokens_per_second"))
    comparable = group.n > 1 and not group.diverged
    return group.loss if comparable else None, group.peak_memory, speed and -speed


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


# Notes


def _notes_on_runs(groups: Sequence[Group], compared: Sequence[Group]) -> Iterator[str]:
    yield from (f"Excluded: {reason}." for group in groups for reason in group.left_out)
    yield from _blow_ups(compared)
    yield from _failures(compared)


def _further_notes(
    groups: Sequence[Group], compared: Sequence[Group], design: Design, named: bool
) -> Iterator[str]:
    if len(groups) > len(compared) == 1:
        yield _nothing_comparable(groups, design)
    base, *arms = compared
    if arms and all(group.n == 1 for group in compared):
        known = [(arm, changes(arm, base, design.may_differ(arm, base))) for arm in arms]
        command = command_for_verdicts(base, known)
        yield "Each arm has one run, so this table is descriptive. " + (
            f"For verdicts: {command}"
            if command
            else "For verdicts, train each arm with other values of --seed and --data_seed, too, "
            "or use sweep.py."
        )
    if design.schedule:
        planned = ", ".join(str(look.n) for look in design.schedule)
        yield (
            f"Sequential testing: looks at {planned} seeds share the error rate. An arm stops once "
            "its verdict is conclusive, and keeps its interval."
        )
    elif design.undeclared_looks:
        seen = ", ".join(map(str, design.undeclared_looks))
        yield (
            f"Seeds were added after a verdict had been shown at {seen}, so the intervals are "
            "confidence sequences."
        )
    elif len(compared) > 1 and any(g.n > 1 and not design.declares(g) for g in compared):
        what, it = ("number of seeds was", "it")
        if named:
            what, it = ("number of seeds and the baseline were", "they")
        yield (
            f"The {what} not declared before the runs, as in a sweep. The error rates are valid "
            f"only if {it} did not depend on the results."
        )
    if design.all_pairs and arms:
        yield (
            f"{base.name} is not the declared baseline and may have been chosen after seeing the "
            f"results: the intervals hold for all {design.family(len(arms))} pairs of arms."
        )
    if design.declared_margin not in (None, design.margin):
        yield (
            f"Equal means within {design.margin:g} here; {design.declared_margin:g} was declared "
            "before the runs."
        )
    yield from _shared_randomness(compared)


def _nothing_comparable(groups: Sequence[Group], design: Design) -> str:
    """The note that no group is comparable with the baseline, and what to do."""
    searched = groups[:_MOST_BASELINES]
    for base in searched:
        alike = [
            group
            for group in searched
            if group is not base and not unlike(group, base, design.may_differ(group, base))
        ]
        if alike:
            option = shlex.quote(f"--baseline={base.name}")
            return (
                f"No group is comparable with the baseline. {option} is comparable with "
                f"{', '.join(group.name for group in alike)}."
            )
    return (
        "No two groups are comparable. To compare architectures, train them under equal "
        "conditions: python sweep.py --arms A.py,B.py"
    )


def _notes_on_seconds(compared: Sequence[Group]) -> Iterator[str]:
    if len(compared) == 1:
        return
    shared = [run.run_name for group in compared for run in group.counted if not run.alone]
    if shared:
        more = f" and {len(shared) - 3} more" if len(shared) > 3 else ""
        yield (
            f"Seconds are not compared: {', '.join(shared[:3])}{more} shared the machine (other "
            f"processes used over {100 * MOST_OTHER_LOAD:.0f} % of its CPUs), or the log does not "
            "say."
        )
    elif len(ran_on := set().union(*machines(compared))) > 1:
        devices = ", ".join(sorted({str(device) for device, *_ in ran_on}))
        yield (
            f"Seconds are not compared: the runs differ in device, threads or compile ({devices})."
        )


def _shared_randomness(groups: Sequence[Group]) -> Iterator[str]:
    """Yield a note if all runs share a seed, whose randomness the intervals do not cover."""
    seeds = {run.seeds for group in groups for run in group.counted}
    if len(seeds) < 2:
        return
    covered = {
        "data_seed": ("initialisation and dropout", "the order of the data"),
        "seed": ("the order of the data", "initialisation and dropout"),
    }
    for key, own in zip(("seed", "data_seed"), zip(*seeds, strict=True), strict=True):
        if len(set(own)) == 1:
            yield (
                f"All runs share {key}={own[0]}: the intervals cover the randomness of "
                f"{covered[key][0]}, not that of {covered[key][1]}."
            )


def _failures(groups: Sequence[Group]) -> Iterator[str]:
    """Yield failure rates with exact intervals, and their comparison with the baseline."""
    base, *arms = groups
    runs = {group.name: group.n + group.diverged for group in groups}
    for group in groups:
        if not group.diverged:
            continue
        low, high = failure_interval(group.diverged, runs[group.name])
        yield (
            f"{group.diverged} of {runs[group.name]} runs of {group.name} failed "
            f"({100 * low:.0f} to {100 * high:.0f} % with 95 % confidence)."
        )
    for arm in arms:
        if arm.diverged or base.diverged:
            failures, of = (arm.diverged, base.diverged), (runs[arm.name], runs[base.name])
            p = failure_p_value(failures, of)
            yield (
                f"Failures of {arm.name} against the baseline, {failures[0]} of {of[0]} against "
                f"{failures[1]} of {of[1]}: p={p:.3f} (Fisher's exact test, mid-p; exploratory)."
            )


def _blow_ups(groups: Sequence[Group]) -> Iterator[str]:
    """Yield notes on runs that ended far above the others of their arm; they are not excluded."""
    flags = blow_ups([list(group.losses.values()) for group in groups])
    for group, own in zip(groups, flags, strict=True):
        for run, far in zip(group.counted, own, strict=True):
            if far:
                others = median(group.losses.values())
                yield (
                    f"{run.run_name} ended at {run.loss:.4f}, far above the median of its arm "
                    f"({others:.4f}). It is included."
                )
