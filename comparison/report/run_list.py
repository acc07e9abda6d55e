"""The runs of a comparison: their folders and text samples."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from comparison.findings import Findings
from comparison.labels import Label, labels
from comparison.runs import LoggedRun
from pages.rendering import PAGE_FILE

MANY = 40
"""Number of runs above which the list is initially collapsed."""


@dataclasses.dataclass(frozen=True)
class ListedRun:
    """A run of an arm.

    Attributes:
        link: The link from the page of the comparison to that of the run; None if there is none.
    """

    label: Label
    run: LoggedRun
    link: str | None


@dataclasses.dataclass(frozen=True)
class RunList:
    """All runs.

    Attributes:
        is_open: Whether the list is short enough to be initially open.
    """

    runs: Sequence[ListedRun]
    is_open: bool


def run_list(findings: Findings, page: Path | None) -> RunList:
    """The runs, arm by arm.

    Args:
        findings: The findings of the comparison.
        page: The file that the page is written to; None: no links.
    """
    found = [
        ListedRun(label, run, link_to(run.path.parent, page))
        for label, row in zip(labels(findings), findings.rows, strict=True)
        for run in row.group.runs
    ]
    return RunList(found, len(found) <= MANY)


def link_to(folder: Path, page: Path | None) -> str | None:
    """The link from a page to the page in a folder; None if there is none."""
    target = folder / PAGE_FILE
    if page is None or not os.path.isfile(target):
        return None
    try:
        way = os.path.relpath(target.resolve(), page.parent.resolve())
    except ValueError:  # on another drive
        return None
    return quote(f"./{Path(way).as_posix()}")


@dataclasses.dataclass(frozen=True)
class WrittenByArm:
    """The last sample of a run of an arm: a record with `iter`, `prompt` and `text`."""

    label: Label
    run_name: str
    sample: Mapping[str, Any]


def samples_by_arm(findings: Findings) -> list[WrittenByArm]:
    """For each arm with samples, the last sample of its first run that has any."""
    found = []
    for label, row in zip(labels(findings), findings.rows, strict=True):
        written = next(((run, own) for run in row.group.runs if (own := run.samples)), None)
        if written:
            found.append(WrittenByArm(label, written[0].run_name, written[1][-1]))
    return found
