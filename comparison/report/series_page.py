"""What the pages of a ladder and of several baselines share: a heading, and links to the sweeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison.findings import Findings
from comparison.report.heading import Heading, datasets, dates
from comparison.report.page import PageSection
from comparison.report.result_tables import Column
from comparison.report.run_list import link_to
from pages.rendering import render

_HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class AboutSeries:
    """A series of sweeps, as its page tells of it.

    Attributes:
        name: Of the series.
        command: That made it; empty if that is not known.
        folders: By label that of each sweep.
        page: The file that the page is written to; None: it has no links to files.
    """

    name: str
    command: str
    folders: Mapping[str, Path]
    page: Path | None

    def links(self, labels: Sequence[str]) -> Column:
        """A column of links to the pages of sweeps that have one."""
        found = {label: link_to(self.folders[label], self.page) for label in labels}
        return Column("page", [own and ("report", own) for own in found.values()], "link")


def write_series_page(text: str, path: Path) -> None:
    """Write a page; folders above it are made.

    Raises:
        OSError: It cannot be written there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def series_heading(about: AboutSeries, findings: Sequence[Findings], what: str) -> Heading:
    """The name of a series, its dataset, what it consists of, and when it was trained."""
    runs = [run for own in findings for row in own.rows for run in row.group.runs]
    facts = [datasets(runs), what, dates(runs)]
    return Heading(about.name, [fact for fact in facts if fact])


def render_series(
    heading: Heading,
    headline: str,
    lead: str,
    sections: Sequence[PageSection],
    document: Mapping[str, Any],
    charts: Mapping[str, Any],
    footer: str,
) -> str:
    """The page as text.

    Args:
        heading: Its title.
        headline: The answer in a sentence.
        lead: What it is about.
        sections: In order; the first has no title, since it is the answer in numbers.
        document: The same as JSON, where every number shown comes from.
        charts: What series.js draws, by the name of each chart.
        footer: What the intervals of the page hold for.
    """
    return render(
        _HERE,
        "series.html",
        ["series.js"],
        title=heading.title,
        name=heading.name,
        heading=heading,
        headline=headline,
        lead=lead,
        sections=sections,
        links=[(section.name, section.title) for section in sections],
        document=document,
        charts=charts,
        footer=footer,
    )
