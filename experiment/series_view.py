"""What a series of sweeps (a ladder, or several baselines) shows: tables, JSON and a figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from comparison.findings import Findings
from comparison.interactions import interaction_document, interaction_sections, on_baselines
from comparison.ladder_findings import climb_ladder
from comparison.ladder_plot import write_ladder_plot
from comparison.ladder_tables import ladder_document, ladder_sections
from comparison.tables import TitledTable
from errors import UserError
from experiment.selection import select
from experiment.series_file import LADDER, read_series


@dataclasses.dataclass(frozen=True)
class SeriesView:
    """A series as its readers want it.

    Attributes:
        sections: What a person reads, in order.
        document: The same for JSON.
        draw: Writes the figure to a path; None if there is no figure of this kind of series.
    """

    sections: tuple[TitledTable, ...]
    document: Mapping[str, Any]
    draw: Callable[[Path], None] | None


def view_series(
    folder: Path, baseline: str | None, margin: float | None, say: Callable[[str], None]
) -> SeriesView:
    """What the sweeps that a series lists show together.

    Args:
        folder: Where `series_file` is.
        baseline: What each sweep is compared with; None: its own baseline.
        margin: Differences up to this count as equal; None: as each sweep declared.
        say: Called with a line about each run that had to be excluded.

    Raises:
        UserError: The series cannot be read, or has no runs.
    """
    series = read_series(folder)
    found: dict[str, Findings] = {}
    for member in series.members:
        chosen = select([str(member.folder)], None, folder)
        for problem in chosen.problems:
            say(f"excluded: {problem}")
        if chosen.runs:
            found[member.label] = chosen.findings(baseline, margin)
    if not found:
        raise UserError(f"No run found in the sweeps of {folder}.")
    return _ladder(found) if series.kind == LADDER else _baselines(found)


def _ladder(rungs: Mapping[str, Findings]) -> SeriesView:
    found = climb_ladder(rungs)
    return SeriesView(
        tuple(ladder_sections(found)),
        ladder_document(found),
        lambda path: write_ladder_plot(found, path),
    )


def _baselines(baselines: Mapping[str, Findings]) -> SeriesView:
    found = on_baselines(baselines)
    return SeriesView(tuple(interaction_sections(found)), interaction_document(found), None)
