"""Render the page: all sections in one file, in the order of a reader's questions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from comparison.exports import document
from comparison.figures import Figures, figures_of
from comparison.findings import Findings
from comparison.methods import methods
from comparison.report.answer import answer
from comparison.report.configs import config_table, shared_facts
from comparison.report.curve_data import curve_data
from comparison.report.document_numbers import DocumentNumbers
from comparison.report.heading import heading
from comparison.report.pareto import pareto_scatter
from comparison.report.result_tables import ResultTables
from comparison.report.run_list import run_list, samples_by_arm
from pages.rendering import render

_HERE = Path(__file__).parent


def write_page(findings: Findings, path: Path) -> None:
    """Write the page; creates its folder.

    Raises:
        OSError: If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_html(findings, path), encoding="utf-8", errors="backslashreplace")


def to_html(findings: Findings, path: Path | None = None) -> str:
    """The page as text.

    Args:
        findings: The findings to show.
        path: The file of the page, which links to the pages of runs; None: no links.
    """
    exported, figures = document(findings), figures_of(findings)
    numbers = DocumentNumbers(exported)
    tables = ResultTables(numbers, findings, figures)
    title = heading(findings, figures)
    sections = list(_sections(tables, findings, figures, path))
    return render(
        _HERE,
        "page.html",
        ["curves.js"],
        title=title.title,
        name=title.name,
        heading=title,
        answer=answer(numbers, figures),
        verdicts=tables.verdicts(),
        sections=sections,
        links=[("verdicts", "Verdicts"), *((section.name, section.title) for section in sections)],
        document=exported,
        curves=curve_data(figures),
    )


@dataclasses.dataclass(frozen=True)
class PageSection:
    """A section of the page.

    Attributes:
        name: Its anchor.
        template: The template in `templates/sections/` that renders the content.
    """

    name: str
    title: str
    template: str
    content: Any


def _sections(
    tables: ResultTables, findings: Findings, figures: Figures, path: Path | None
) -> Iterator[PageSection]:
    """Yield the nonempty sections after the verdicts."""
    yield PageSection("curves", "Curves", "curves.html", figures.axes)
    yield PageSection("results", "Results and cost", "table.html", tables.results())
    if findings.notes:
        yield PageSection("notes", "Notes", "notes.html", findings.notes)
    if samples := samples_by_arm(findings):
        yield PageSection("samples", "Samples", "samples.html", samples)
    yield PageSection("methods", "Methods", "methods.html", list(methods(findings)))
    if findings.axes:
        yield PageSection(
            "budgets", "At equal budgets (exploratory)", "budgets.html", tables.at_equal()
        )
    for name, title, table in (
        ("speedups", "Speed-ups", tables.speedups()),
        ("effects", "Effects", tables.effects()),
    ):
        if table:
            yield PageSection(name, title, "table.html", table)
    scatter = pareto_scatter(figures, findings)
    yield PageSection("pareto", "Pareto set", "pareto.html", (scatter, tables.pareto()))
    if apart := tables.set_apart():
        yield PageSection("apart", "Not comparable", "table.html", apart)
    yield PageSection("runs", "Runs", "runs.html", run_list(findings, path))
    yield PageSection("configs", "Configs", "configs.html", config_table(findings))
    yield PageSection("environment", "Environment", "environment.html", shared_facts(findings))
