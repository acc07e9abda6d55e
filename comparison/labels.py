"""Labels of arms, shared by the tables, the plot and the page."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

from comparison.findings import Findings, GroupResult
from comparison.formatting import assigned, assignments, format_first
from comparison.groups import Group, changes
from comparison.judging import BASELINE

LONGEST_NAME = 60
"""Maximum number of characters of changes used as a name; longer ones are replaced by the name of
the architecture."""

MOST_CHANGES = 8
"""Maximum number of changes in the details of an arm, whose architecture's name has the rest."""

_NO_PRESETS = (None, "none", "custom", "legacy")
"""Presets that say nothing about the architecture; `legacy` is that of configs without a preset."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """The number, name and details of an arm.

    Attributes:
        number: Its position in `Findings.rows`, from 1; the baseline is 1.
        name: The name of the arm in a sweep, the preset, or the changes from a preset or from the
            baseline; the name of the architecture if these are unknown or long.
        in_sweep: Whether the name is that of an arm of a sweep.
        set_apart: Whether it is not comparable with the baseline.
        unfinished: The statuses of included runs that are not completed.
        details: The architecture and the changes from the baseline, unless the name contains them.
    """

    number: int
    name: str
    is_baseline: bool
    in_sweep: bool
    set_apart: bool
    unfinished: tuple[str, ...]
    details: str


def labels(findings: Findings) -> list[Label]:
    """The labels of the rows, in order."""
    names = list(_names(findings.rows))
    seen = Counter(names)
    return [
        _label(number, row, name if seen[name] == 1 else row.group.name)
        for number, (row, name) in enumerate(zip(findings.rows, names, strict=True), start=1)
    ]


def _names(rows: Sequence[GroupResult]) -> Iterator[str]:
    """Yield the name of each row; names may not be unique."""
    first: dict[str, Group] = {}
    for row in rows:
        group, preset = row.group, row.group.config.get("arch_preset")
        if group.arm:
            yield group.name
        elif preset in _NO_PRESETS:
            yield _short(assignments(row.changes)) or group.name
        else:
            base = first.setdefault(preset, group)
            changed = assignments(changes(group, base))
            yield f"{preset}, {changed}" if _short(changed) else group.name if changed else preset


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else ""


def _label(number: int, row: GroupResult, name: str) -> Label:
    group = row.group
    architecture = group.architecture["name"]
    is_baseline = row.verdict.word == BASELINE
    named = name.split(", ")
    unnamed = {k: value for k, value in row.changes.items() if f"{k}={value}" not in named}
    details = [] if architecture in name or (group.arm and not is_baseline) else [architecture]
    shown = [] if is_baseline else format_first(assigned(unnamed), MOST_CHANGES, "changes")
    changed = ", ".join(shown)
    return Label(
        number=number,
        name=name,
        is_baseline=is_baseline,
        in_sweep=bool(group.arm),
        set_apart=bool(row.set_apart),
        unfinished=tuple(sorted({run.status for run in group.counted} - {"completed"})),
        details="; ".join([*details, changed] if changed else details),
    )
