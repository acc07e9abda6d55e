"""The findings of a ladder: how the gain of each arm over the baseline changes with the budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from comparison.alike import other_code_or_machine, other_conditions
from comparison.caveats import allowance_caveat
from comparison.findings import Findings, GroupResult
from comparison.groups import SAME_BUDGET
from inference.ladder import (
    FEWEST_RUNGS,
    FEWEST_SEEDS,
    FEWEST_SPAN,
    INCONCLUSIVE,
    Ladder,
    Rung,
    climb,
)
from inference.samples import shared_seeds

SAME_SPAN = 0.99
"""Fraction of FEWEST_SPAN that is accepted, because runs stop after whole steps."""

Where = Mapping[str, tuple[str, ...]]
"""By sentence or phrase, the labels of the rungs to which it applies, in order."""


@dataclasses.dataclass(frozen=True)
class ArmOnLadder:
    """An arm over the rungs.

    Attributes:
        name: Its name in the sweeps.
        differences: Mean difference in final loss at each rung, in nats per token; None if there is
            no estimate.
        ladder: Its multipliers; None if they cannot be estimated.
        reason: Why they cannot be estimated; empty if they can.
        allowances: At each rung, the tuning allowances of the arm and of the baseline, in nats per
            token; None if it has no runs.
        compute: Training FLOPs at each rung; None if none of its runs finished.
        terms: If its FLOPs differ from the baseline's: what is equal and what is not; see
            `groups.terms`.
        caveats: Other differences from the baseline; see `caveats`.
    """

    name: str
    differences: tuple[float | None, ...]
    ladder: Ladder | None
    reason: str
    allowances: tuple[tuple[float, float] | None, ...]
    compute: tuple[float | None, ...]
    terms: Where
    caveats: Where

    @property
    def allowance(self) -> float:
        """The largest sum of the allowances of arm and baseline at a rung."""
        return max(sum(own or ()) for own in self.allowances)

    @property
    def word(self) -> str:
        """grows, holds, fades or inconclusive."""
        return INCONCLUSIVE if self.ladder is None else self.ladder.verdict


@dataclasses.dataclass(frozen=True)
class LadderFindings:
    """The findings of a ladder.

    Attributes:
        labels: The label of each rung, such as `params=1M`.
        rungs: The findings at each rung.
        baseline: The name of the baseline in the sweeps.
        compute: Training FLOPs of the baseline at each rung; None if none of its runs finished.
        arms: The arms, in the order of the sweeps.
        family: Number of arms over which the intervals of the exponents are simultaneous.
        unlike: Unintended differences between the baselines of the rungs.
        notes: Notes on runs.
    """

    labels: tuple[str, ...]
    rungs: tuple[Findings, ...]
    baseline: str
    compute: tuple[float | None, ...]
    arms: tuple[ArmOnLadder, ...]
    family: int
    unlike: tuple[str, ...]
    notes: Where


def climb_ladder(rungs: Mapping[str, Findings]) -> LadderFindings:
    """Combine the findings of rungs, given by label in increasing order."""
    findings = tuple(rungs.values())
    names = dict.fromkeys(row.group.arm_or_name for own in findings for row in own.rows[1:])
    family = max(own.family for own in findings)
    return LadderFindings(
        tuple(rungs),
        findings,
        findings[0].baseline.group.arm_or_name,
        tuple(_flops(own.baseline) for own in findings),
        tuple(_climbed(name, rungs, family) for name in names),
        family,
        (*other_conditions(findings), *other_code_or_machine(findings)),
        _where((label, note) for label, own in rungs.items() for note in own.notes_on_runs),
    )


def _where(sentences: Iterable[tuple[str, str]]) -> Where:
    """Labels by sentence, from pairs of label and sentence."""
    found: dict[str, tuple[str, ...]] = {}
    for label, sentence in sentences:
        found[sentence] = (*found.get(sentence, ()), label)
    return found


def _climbed(name: str, rungs: Mapping[str, Findings], family: int) -> ArmOnLadder:
    findings = list(rungs.values())
    rows = [
        next((r for r in own.rows[1:] if r.group.arm_or_name == name), None) for own in findings
    ]
    having = [
        (label, row, own)
        for (label, own), row in zip(rungs.items(), rows, strict=True)
        if row is not None
    ]
    differences = tuple(row and row.verdict.difference for row in rows)
    ladder, reason = None, next(_obstacles(rows, findings), "")
    if not reason:
        ladder = climb(_rungs(rows, findings), family)
        reason = "" if ladder else "the baseline's loss does not fall from each rung to the next"
    return ArmOnLadder(
        name,
        differences=tuple(found and found.value for found in differences),
        ladder=ladder,
        reason=reason,
        allowances=tuple(
            row and _allowances(row, own) for row, own in zip(rows, findings, strict=True)
        ),
        compute=tuple(row and _flops(row) for row in rows),
        terms=_where((label, row.terms) for label, row, own in having if _other_flops(row, own)),
        caveats=_where(
            (label, caveat)
            for label, row, own in having
            for caveat in row.caveats
            if caveat != allowance_caveat(*_allowances(row, own))
        ),
    )


def _flops(row: GroupResult) -> float | None:
    """Training FLOPs of a run of the arm; None if none finished."""
    return row.group.mean(lambda run: run.flops)


def _other_flops(row: GroupResult, findings: Findings) -> bool:
    """Whether the training FLOPs of an arm differ from the baseline's."""
    own, base = _flops(row), _flops(findings.baseline)
    return bool(own and base) and abs(own - base) > SAME_BUDGET * base


def _allowances(row: GroupResult, findings: Findings) -> tuple[float, float]:
    """The tuning allowances of the arm and of the baseline, in nats per token."""
    allowance = findings.design.allowance
    return allowance(row.group), allowance(findings.baseline.group)


def _obstacles(rows: Sequence[GroupResult | None], findings: Sequence[Findings]) -> Iterator[str]:
    """Yield the reasons why no multiplier can be estimated, such as too few rungs."""
    if len(rows) < FEWEST_RUNGS:
        yield f"{len(rows)} rungs have runs; {FEWEST_RUNGS} are needed"
    unlike = other_conditions(findings)
    if unlike:
        yield f"the rungs differ in {', '.join(unlike)}"
    for row, own in zip(rows, findings, strict=True):
        if row is None:
            yield "it has no runs at some rung"
        elif row.verdict.difference is None:
            yield row.verdict.reason
        elif row.group.diverged or own.baseline.group.diverged:
            yield "runs failed at some rung"
        elif own.design.undeclared_looks:
            yield (
                "seeds were added after a verdict had been shown at some rung, so intervals for a "
                "declared number of seeds are not valid"
            )
    if len(_shared(rows, findings)) < FEWEST_SEEDS:
        yield f"fewer than {FEWEST_SEEDS} seeds have finished at every rung"
    compute = [_flops(own.baseline) for own in findings]
    if max(compute) < SAME_SPAN * FEWEST_SPAN * min(compute):
        yield f"the rungs span less than {FEWEST_SPAN:.0f}x in compute"


def _shared(rows: Sequence[GroupResult], findings: Sequence[Findings]) -> list[Any]:
    """The seeds that arm and baseline finished at every rung."""
    arms, bases = [row.group.losses for row in rows], [f.baseline.group.losses for f in findings]
    return shared_seeds(*arms, *bases)


def _rungs(rows: Sequence[GroupResult], findings: Sequence[Findings]) -> list[Rung]:
    seeds = _shared(rows, findings)
    made = []
    for row, own in zip(rows, findings, strict=True):
        base = own.baseline.group
        losses = ([group.losses[seed] for seed in seeds] for group in (base, row.group))
        for_arm, for_base = _allowances(row, own)
        made.append(Rung(_flops(own.baseline), *losses, for_base, for_arm, _flops(row)))
    return made
