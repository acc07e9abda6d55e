"""The page of changes on several baselines: their effects on each, and the interactions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from comparison.figures import Difference, contrast_figure, difference_of
from comparison.formatting import format_difference, format_p
from comparison.interactions import OnBaselines, interaction_document, sentences_on
from comparison.report.document_numbers import DocumentNumbers
from comparison.report.intervals import scale_of, strips
from comparison.report.page import PageSection
from comparison.report.result_tables import Column, Table, reasons
from comparison.report.series_page import (
    AboutSeries,
    render_series,
    series_heading,
    write_series_page,
)


def write_interactions_page(found: OnBaselines, about: AboutSeries) -> None:
    """Write the page to `about.page`.

    Raises:
        OSError: If it cannot be written.
    """
    write_series_page(interactions_to_html(found, about), about.page)


def interactions_to_html(found: OnBaselines, about: AboutSeries) -> str:
    """The page as text."""
    exported = interaction_document(found)
    first, *others = found.baselines
    tables = _Tables(found, DocumentNumbers(exported))
    heading = series_heading(
        about, list(found.findings.values()), f"{len(found.baselines)} baselines"
    )
    return render_series(
        heading,
        " ".join(sentence for label in others for sentence in sentences_on(found, label)),
        f"Each change on {' and '.join(found.baselines)}; an interaction is its effect on "
        f"{' or '.join(others)} minus that on {first}.",
        list(_sections(found, about, tables)),
        exported,
        {},
        "The 95 % intervals are simultaneous over the changes on each baseline, and over all "
        "interactions, which are exploratory.",
    )


def _sections(found: OnBaselines, about: AboutSeries, tables: _Tables) -> Iterator[PageSection]:
    changes = [(f"Changes on {label}", tables.changes(label)) for label in found.baselines]
    yield PageSection("verdicts", "Changes on each baseline", "forests.html", changes)
    interactions = [
        (f"The effect on {label} minus that on {found.baselines[0]}", tables.interactions(label))
        for label in found.baselines[1:]
    ]
    yield PageSection("interactions", "Interactions (exploratory)", "forests.html", interactions)
    sweeps = Table(
        caption="Each sweep has a page with its runs, curves, costs and notes.",
        title="Baseline",
        labels=found.baselines,
        columns=[about.links(found.baselines)],
    )
    yield PageSection("sweeps", "Sweeps", "table.html", sweeps)
    notes = [f"{label}: {note}" for label, own in found.notes.items() for note in own]
    if notes:
        yield PageSection("notes", "Notes", "notes.html", notes)
    if about.command:
        yield PageSection("methods", "Methods", "methods.html", [("Command", about.command)])


class _Tables:
    def __init__(self, found: OnBaselines, numbers: DocumentNumbers):
        self._found, self._numbers = found, numbers
        effects = [(label, change) for label, rows in found.rows.items() for change in rows]
        self._places = {own: ("effects", index) for index, own in enumerate(effects)}

    def changes(self, label: str) -> Table:
        """The effects of the changes on a baseline."""
        rows = self._found.rows[label]
        places = [self._places[label, change] for change in rows]
        verdicts = [
            (row.verdict.word, "; ".join([*reasons(row), *row.caveats])) for row in rows.values()
        ]
        return Table(
            caption="difference: from the final validation loss of the baseline, nats per token; "
            "left of zero is better.",
            title="Change",
            labels=list(rows),
            columns=[
                *self._estimates(places, [difference_of(row.verdict) for row in rows.values()]),
                Column("n", [self._numbers.show(str, *at, "n") for at in places]),
                Column("verdict", verdicts, "verdict"),
            ],
        )

    def interactions(self, label: str) -> Table:
        """The effect of each change on a baseline minus its effect on the first."""
        listed = enumerate(self._found.interactions)
        own = {index: each for index, each in listed if each.baseline == label}
        places = [("interactions", index) for index in own]
        reasons = [[each.reason] if each.reason else [] for each in own.values()]
        contrasts = [each.contrast and contrast_figure(each.contrast) for each in own.values()]
        return Table(
            caption="nats per token; left of zero: the change improves this baseline more.",
            title="Change",
            labels=[each.change for each in own.values()],
            columns=[
                *self._estimates(places, contrasts),
                Column("n", [self._numbers.show(str, *at, "n") for at in places]),
                *([Column("", reasons, "list")] if any(reasons) else []),
            ],
        )

    def _estimates(
        self, places: Sequence[Any], differences: Sequence[Difference | None]
    ) -> list[Column]:
        """Columns of estimates: as a plot if any is known, and as numbers."""
        show = self._numbers.show
        columns = [
            Column("difference", [show(format_difference, *at, "difference") for at in places]),
            Column(
                "95 % interval",
                [self._numbers.interval(format_difference, *at, "interval") for at in places],
                "interval",
            ),
            Column("p", [show(format_p, *at, "p_adjusted") for at in places]),
        ]
        scale = scale_of(differences)
        if scale is None:
            return columns
        return [Column("", strips(differences, scale), "strip", scale), *columns]
