"""The page, put together: sections in the order of a reader's questions, in one file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any

from comparison.exports import document
from comparison.findings import Findings
from comparison.report import results, settings
from comparison.report.answer import answer
from comparison.report.arms import set_apart
from comparison.report.curves import curves
from comparison.report.markup import (
    Figures,
    Markup,
    element,
    escaped,
    joined,
    json_script,
    sentences,
)

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
    told = document(findings)
    drawn = curves(findings)
    figures = Figures(told)
    style, script = (_asset(name) for name in ("style.css", "script.js"))
    made = list(_sections(figures, findings, drawn))
    return Template(_asset("template.html")).substitute(
        title=escaped(_title(findings)),
        policy=f"default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {_source(style)}; script-src {_source(script)}",
        style=style,
        script=script,
        answer=answer(figures, findings),
        contents=joined(
            element("li", element("a", title, href=f"#{name}")) for name, title, _ in made
        ),
        sections=joined(_section(name, title, body) for name, title, body in made),
        document=json_script("document", told),
        curves=json_script("curves-data", drawn),
    )


def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """How a Content-Security-Policy names a text that may be part of the page."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _title(findings: Findings) -> str:
    arms = len(findings.rows)
    return f"{findings.baseline.group.name} and {arms - 1} other{'s' * (arms != 2)}, compared"


def _section(name: str, title: str, body: Markup) -> Markup:
    heading = element("h2", title, id=f"{name}-title")
    return element("section", heading, body, id=name, aria_labelledby=f"{name}-title")


def _sections(
    figures: Figures, findings: Findings, drawn: Mapping[str, Any]
) -> Iterator[tuple[str, str, Markup]]:
    """Of each section that there is something for: its anchor, title and body."""
    yield "results", "Results and cost", results.results(figures, findings)
    yield "verdicts", "Verdicts", results.verdicts(figures, findings)
    yield "curves", "Curves", _curves(drawn)
    if findings.budgets:
        yield "budgets", "At equal budgets", results.at_equal(figures, findings)
    speedups = results.speedups(figures, findings)
    if speedups:
        yield "speedups", "Speed-ups", speedups
    if findings.effects:
        yield "effects", "Effects", results.effects(figures, findings)
    yield "pareto", "Pareto set", results.pareto(figures, findings)
    if set_apart(findings):
        yield "apart", "Set apart", results.not_compared(figures, findings)
    if findings.notes:
        yield "notes", "Notes", sentences(findings.notes)
    yield "configs", "Configs", settings.configs(findings)
    yield "environment", "Environment", settings.environment(findings)


def _curves(drawn: Mapping[str, Any]) -> Markup:
    if not drawn["axes"]:
        return element(
            "p", "No arm was evaluated at a common budget by all of its runs, so there is no curve."
        )
    return Markup(_asset("curves.html"))
