"""Shared by the pages of ladders and of several baselines: headings, and links to the sweeps."""

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
    """Facts about a series of sweeps for its page.

    Attributes:
        name: The name of the series.
        command: The command that created it; empty if unknown.
        folders: By label, the folder of each sweep.
        page: The file that the page is written to; None: no links.
    """

    name: str
    command: str
    folders: Mapping[str, Path]
    page: Path | None

    def links(self, labels: Sequence[str]) -> Column:
        """A column of links to the pages of the sweeps, if they have one."""
        found = {label: link_to(self.folders[label], self.page) for label in labels}
        return Column("page", [own and ("report", own) for own in found.values()], "link")


def write_series_page(text: str, path: Path) -> None:
    """Write a page; creates its folder.

    Raises:
        OSError: If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def series_heading(about: AboutSeries, findings: Sequence[Findings], what: str) -> Heading:
    """The heading of a series: its name, its dataset, what it consists of, and its dates."""
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
        heading: The title.
        headline: The answer in one sentence.
        lead: What the page is about.
        sections: The sections in order; the first, with the answer in numbers, has no title.
        document: The content as JSON, the source of all numbers shown.
        charts: The data that series.js draws, by name of the chart.
        footer: An explanation of the intervals.
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
