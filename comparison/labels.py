"""What an arm is called, the same in the tables, the plot and the page."""

from __future__ import annotations

import dataclasses

from comparison.findings import Findings, GroupResult
from comparison.formatting import assignments
from comparison.judging import BASELINE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """The number and the name of an arm, and what it is beyond its name.

    Attributes:
        number: Its place in `Findings.rows`, from 1; the baseline is 1.
        in_sweep: Whether the name is that of an arm of a sweep, not that of an architecture.
        set_apart: Whether it is not comparable with the baseline.
        unfinished: The statuses of counted runs that are not completed.
        changes: How it differs from the baseline, `normalization=rmsnorm, bias=False`; empty for
            the baseline.
        details: Of the changes those that the name does not say; for the baseline of a sweep its
            architecture.
    """

    number: int
    name: str
    is_baseline: bool
    in_sweep: bool
    set_apart: bool
    unfinished: tuple[str, ...]
    changes: str
    details: str


def labels(findings: Findings) -> list[Label]:
    """The labels of the rows, in order."""
    return [_label(number, row) for number, row in enumerate(findings.rows, start=1)]


def _label(number: int, row: GroupResult) -> Label:
    group = row.group
    is_baseline, in_sweep = row.verdict.word == BASELINE, bool(group.arm)
    architecture = group.architecture["name"] if in_sweep else ""
    return Label(
        number=number,
        name=group.name,
        is_baseline=is_baseline,
        in_sweep=in_sweep,
        set_apart=bool(row.set_apart),
        unfinished=tuple(sorted({run.status for run in group.counted} - {"completed"})),
        changes=assignments(row.changes),
        details=architecture if is_baseline else assignments(row.unnamed_changes),
    )
