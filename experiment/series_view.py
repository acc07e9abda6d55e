"""Views of a series of sweeps (a ladder, or several baselines): tables, JSON, page and figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from comparison.findings import Findings
from comparison.interactions import interaction_document, interaction_sections, on_baselines
from comparison.ladder_findings import climb_ladder
from comparison.ladder_plot import write_ladder_plot
from comparison.ladder_tables import ladder_document, ladder_sections
from comparison.report.interactions_page import write_interactions_page
from comparison.report.ladder_page import write_ladder_page
from comparison.report.series_page import AboutSeries
from comparison.tables import TitledTable
from errors import UserError, printable
from experiment.selection import select
from experiment.series_file import LADDER, read_series


@dataclasses.dataclass(frozen=True)
class SeriesView:
    """The presentation of a series.

    Attributes:
        sections: The sections to print, in order.
        document: The same as a JSON object.
        write_page: Writes the page to a path. Raises OSError if it cannot be written.
        draw: Writes the figure to a path; None if this kind of series has no figure.
    """

    sections: tuple[TitledTable, ...]
    document: Mapping[str, Any]
    write_page: Callable[[Path], None]
    draw: Callable[[Path], None] | None


def view_series(
    folder: Path, baseline: str | None, margin: float | None, say: Callable[[str], None]
) -> SeriesView:
    """Compare the sweeps of a series together.

    Args:
        folder: The folder with the series file.
        baseline: The group to compare with in each sweep. Defaults to its own baseline.
        margin: Differences up to this count as equal. Defaults to each sweep's declaration.
        say: Called with a message for each excluded run.

    Raises:
        UserError: If the series cannot be read, or has no runs.
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
    folders = {member.label: member.folder for member in series.members}
    about = partial(AboutSeries, printable(folder.resolve().name), series.command, folders)
    return _ladder(found, about) if series.kind == LADDER else _baselines(found, about)


AboutPage = Callable[[Path], AboutSeries]
"""Returns the facts about the series for a page at a path."""


def _ladder(rungs: Mapping[str, Findings], about: AboutPage) -> SeriesView:
    found = climb_ladder(rungs)
    return SeriesView(
        tuple(ladder_sections(found)),
        ladder_document(found),
        lambda path: write_ladder_page(found, about(path)),
        lambda path: write_ladder_plot(found, path),
    )


def _baselines(baselines: Mapping[str, Findings], about: AboutPage) -> SeriesView:
    found = on_baselines(baselines)
    return SeriesView(
        tuple(interaction_sections(found)),
        interaction_document(found),
        lambda path: write_interactions_page(found, about(path)),
        None,
    )
