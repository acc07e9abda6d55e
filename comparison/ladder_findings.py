"""What a ladder shows: of each arm, how its gain over the baseline changes with the budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from comparison.findings import Findings, GroupResult
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
"""Share of the span that a ladder needs that is enough: runs stop after whole steps."""


@dataclasses.dataclass(frozen=True)
class ArmOnLadder:
    """An arm over the rungs.

    Attributes:
        name: What the sweeps call it.
        differences: Mean difference in final loss at each rung, nats per token; None where there
            is none.
        ladder: Its multipliers; None if they cannot be told.
        reason: Why they cannot; empty if they can.
        allowance: The largest allowance for tuning at a rung, of arm and baseline together, nats.
    """

    name: str
    differences: tuple[float | None, ...]
    ladder: Ladder | None
    reason: str
    allowance: float

    @property
    def word(self) -> str:
        """grows, holds, fades or inconclusive."""
        return INCONCLUSIVE if self.ladder is None else self.ladder.verdict


@dataclasses.dataclass(frozen=True)
class LadderFindings:
    """What a ladder shows.

    Attributes:
        labels: Of each rung, such as `params=1M`.
        rungs: The findings at each.
        baseline: What its sweeps call the baseline.
        compute: Training FLOPs of the baseline at each rung; None where no run of it finished.
        arms: In the order of the sweeps.
    """

    labels: tuple[str, ...]
    rungs: tuple[Findings, ...]
    baseline: str
    compute: tuple[float | None, ...]
    arms: tuple[ArmOnLadder, ...]


def climb_ladder(rungs: Mapping[str, Findings]) -> LadderFindings:
    """What the rungs, by label in rising order, show together."""
    findings = tuple(rungs.values())
    names = dict.fromkeys(row.group.arm_or_name for own in findings for row in own.rows[1:])
    return LadderFindings(
        tuple(rungs),
        findings,
        findings[0].baseline.group.arm_or_name,
        tuple(map(_compute, findings)),
        tuple(_climbed(name, findings) for name in names),
    )


def _compute(findings: Findings) -> float | None:
    """Training FLOPs of the baseline; None if no run of it finished."""
    return findings.baseline.group.mean(lambda run: run.flops)


def _climbed(name: str, findings: Sequence[Findings]) -> ArmOnLadder:
    rows = [
        next((r for r in own.rows[1:] if r.group.arm_or_name == name), None) for own in findings
    ]
    differences = tuple(row and row.verdict.difference for row in rows)
    values = tuple(found and found.value for found in differences)
    allowance = max(
        (
            own.design.allowance(row.group) + own.design.allowance(own.baseline.group)
            for row, own in zip(rows, findings, strict=True)
            if row
        ),
        default=0.0,
    )
    ladder, reason = None, next(_obstacles(rows, findings), "")
    if not reason:
        ladder = climb(_rungs(rows, findings))
        reason = "" if ladder else "the losses do not fall with compute at every rung"
    return ArmOnLadder(name, values, ladder, reason, allowance)


def _obstacles(rows: Sequence[GroupResult | None], findings: Sequence[Findings]) -> Iterator[str]:
    """What forbids to climb: there must be enough rungs, each of which can be judged."""
    if len(rows) < FEWEST_RUNGS:
        yield f"{len(rows)} rungs have runs; {FEWEST_RUNGS} are needed"
    for row, own in zip(rows, findings, strict=True):
        if row is None:
            yield "it has no runs at some rung"
        elif row.verdict.difference is None:
            yield row.verdict.reason
        elif row.group.diverged or own.baseline.group.diverged:
            yield "runs failed at some rung"
    if len(_shared(rows, findings)) < FEWEST_SEEDS:
        yield f"fewer than {FEWEST_SEEDS} seeds finished at every rung"
    compute = list(map(_compute, findings))
    if max(compute) < SAME_SPAN * FEWEST_SPAN * min(compute):
        yield f"the rungs span less than {FEWEST_SPAN:.0f}x of compute"


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
        allowances = (own.design.allowance(group) for group in (base, row.group))
        made.append(Rung(_compute(own), *losses, *allowances))
    return made
