"""The page, put together: sections in the order of a reader's questions, in one file."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from comparison.exports import document
from comparison.figures import Figures, figures_of
from comparison.findings import Findings
from comparison.methods import methods
from comparison.report.answer import answer
from comparison.report.configs import config_table, shared_facts
from comparison.report.curve_data import curve_data, hue
from comparison.report.document_numbers import DocumentNumbers
from comparison.report.pareto import pareto_scatter
from comparison.report.result_tables import ResultTables

_HERE = Path(__file__).parent


def write_page(findings: Findings, path: Path) -> None:
    """Write the page; folders above it are made.

    Raises:
        OSError: It cannot be written there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_html(findings), encoding="utf-8")


def to_html(findings: Findings) -> str:
    """The page as text. It asks nothing of any network: style and script are in it, and its policy
    allows those two, by their hashes, and nothing else."""
    exported, figures = document(findings), figures_of(findings)
    numbers = DocumentNumbers(exported)
    style, script = (_asset(name) for name in ("style.css", "script.js"))
    return (
        _templates()
        .get_template("page.html")
        .render(
            title=_title(figures),
            policy=f"default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
            f"style-src {_source(style)}; script-src {_source(script)}",
            style=style,
            script=script,
            answer=answer(numbers, figures),
            sections=list(_sections(ResultTables(numbers, findings, figures), findings, figures)),
            document=exported,
            curves=curve_data(figures),
        )
    )


@cache
def _templates() -> Environment:
    """The templates, compiled once; text is escaped, and a name that is not known is an error."""
    templates = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["hue"] = hue
    templates.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return templates


def _asset(name: str) -> Markup:
    """A file of ours that goes into the page as it is."""
    return Markup((_HERE / name).read_text(encoding="utf-8"))


def _source(text: str) -> str:
    """How a Content-Security-Policy names a text that may be part of the page."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _title(figures: Figures) -> str:
    others = len(figures.arms) - 1
    return f"{figures.arms[0].label.name} and {others} other{'s' * (others != 1)}, compared"


@dataclasses.dataclass(frozen=True)
class PageSection:
    """A section of the page.

    Attributes:
        name: Its anchor.
        template: The file in `templates/sections/` that shows the content.
    """

    name: str
    title: str
    template: str
    content: Any


def _sections(tables: ResultTables, findings: Findings, figures: Figures) -> Iterator[PageSection]:
    """Those that there is something for."""
    yield PageSection("verdicts", "Verdicts", "table.html", tables.verdicts())
    yield PageSection("methods", "Methods", "methods.html", list(methods(findings)))
    yield PageSection("results", "Results and cost", "table.html", tables.results())
    yield PageSection("curves", "Curves", "curves.html", figures.axes)
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
        yield PageSection("apart", "Set apart", "table.html", apart)
    if findings.notes:
        yield PageSection("notes", "Notes", "notes.html", findings.notes)
    yield PageSection("configs", "Configs", "configs.html", config_table(findings))
    yield PageSection("environment", "Environment", "environment.html", shared_facts(findings))
