"""The tables of results on the page, with one row per arm."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from comparison.exports import costs
from comparison.figures import Difference, Figures, contrast_figure, difference_of, final_difference
from comparison.findings import Findings, GroupResult
from comparison.formatting import (
    ACTIVE,
    QUANTITIES,
    REACHED,
    axis_name,
    format_budget,
    format_difference,
    format_factor,
    format_first,
    format_loss,
    format_p,
)
from comparison.judging import BASELINE
from comparison.labels import Label
from comparison.report.document_numbers import DocumentNumbers, Format, Place
from comparison.report.intervals import Scale, scale_of, strips
from comparison.tables import MOST_CONDITIONS, TOO_FEW, too_few
from comparison.verdict_lines import new_text_note, reading_verdict, verdict_notes
from pages.palette import hue


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        cells: One cell per row; None if there is nothing to show.
        kind: The type of the cells, which determines how they are rendered: `number` (ShownNumber),
            `interval` (two of them), `factor` (a number and an interval), `strip`
            (intervals.Strip), `mark` (a word), `verdict` (the verdict and notes), `list`
            (sentences), `link` (a text and a URL).
        axis: The scale of a column of strips.
    """

    label: str
    cells: Sequence[Any]
    kind: str = "number"
    axis: Scale | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table with one row per label.

    Attributes:
        title: The title of the label column.
        labels: Labels of arms, or texts.
        detailed: Whether labels include the differences from the baseline.
        wide: Whether the table may be wider than the page, so that it needs to scroll.
    """

    caption: str
    title: str = "Arm"
    labels: Sequence[Label | str]
    columns: Sequence[Column]
    detailed: bool = False
    wide: bool = False


@dataclasses.dataclass(frozen=True)
class BudgetReading:
    """The results at equal budgets in one unit: a table, or a sentence why there is none."""

    unit: str
    table: Table | None
    why: str = ""


class ResultTables:
    """Creates the tables of a comparison.

    Args:
        numbers: The JSON document of the findings, the source of all numbers shown.
    """

    def __init__(self, numbers: DocumentNumbers, findings: Findings, figures: Figures):
        self._numbers = numbers
        self._findings = findings
        labels = [arm.label for arm in figures.arms]
        self._all = list(zip(labels, findings.rows, strict=True))
        self._compared = [(label, row) for label, row in self._all if not row.set_apart]
        self._apart = [(label, row) for label, row in self._all if row.set_apart]

    # Results and costs

    def results(self) -> Table:
        marks = {True: "yes", False: "no", None: None}
        labels = _labels(self._all)
        shown = costs(self._findings)
        active = "active: parameters used per token. " if ACTIVE in shown else ""
        return Table(
            caption="val loss: final, nats per token, mean over n seeds, with its standard "
            f"deviation (sd). {active}tokens/s and MFU: medians; memory: the largest peak, "
            "1 GB = 1e9 bytes; seconds: in training steps. Pareto: yes if no other arm is better "
            "in one of loss, memory and speed without being worse in another.",
            labels=labels,
            columns=[
                self._column("n", str, _places(labels), "n"),
                *self._quantities(labels, (*REACHED, *shown)),
                Column("Pareto", [marks[row.pareto] for _, row in self._all], "mark"),
            ],
            detailed=True,
            wide=True,
        )

    def pareto(self) -> Table | None:
        """The arms in the Pareto set of loss, memory and speed; None if it is unknown."""
        known = [(label, row) for label, row in self._compared if row.pareto is not None]
        labels = [label for label, row in known if row.pareto]
        if not known:
            return None
        return Table(
            caption=f"The Pareto set: {len(labels)} of the {len(known)} arms with known loss, "
            "memory and speed. No other arm is better in one without being worse in another. "
            "Differences within the noise floor may be due to chance.",
            labels=labels,
            columns=self._quantities(labels, ("loss", "peak_memory_bytes", "tokens_per_second")),
        )

    def set_apart(self) -> Table | None:
        """The arms that are not comparable with the baseline; None if all are."""
        if not self._apart:
            return None
        labels = _labels(self._apart)
        return Table(
            caption="Trained or validated under other conditions than the baseline.",
            labels=labels,
            columns=[
                Column(
                    "differs from the baseline in",
                    [
                        format_first(row.set_apart, MOST_CONDITIONS, "settings")
                        for _, row in self._apart
                    ],
                    "list",
                ),
                self._column("n", str, _places(labels), "n"),
                *self._quantities(labels, REACHED),
            ],
        )

    # Verdicts, on the final losses and at equal budgets

    def verdicts(self) -> Table:
        rows = self._compared
        verdicts = [(row.verdict.word, "; ".join([*reasons(row), *row.caveats])) for _, row in rows]
        return self._judged(
            rows,
            [],
            [final_difference(row, self._findings.baseline.group) for _, row in rows],
            verdicts,
            "difference: from the final validation loss of the baseline, over shared seeds; large "
            "dots: means, small dots: single seeds",
        )

    def at_equal(self) -> list[BudgetReading]:
        """The losses and verdicts at equal budgets."""
        return [self._at_budget(axis) for axis in self._findings.axes]

    def _at_budget(self, axis: str) -> BudgetReading:
        rows = [(label, row) for label, row in self._compared if axis in row.at_equal]
        readings = [row.at_equal[axis] for _, row in rows]
        if all(reading.final for reading in readings):
            why = f"As above: all runs end at equal {axis_name(axis)}."
            return BudgetReading(axis_name(axis), None, why)
        if too_few(readings):
            return BudgetReading(axis_name(axis), None, TOO_FEW.format(unit=axis_name(axis)))
        places = _places(_labels(rows), "at_equal", axis)
        table = self._judged(
            rows,
            ["at_equal", axis],
            [difference_of(reading.verdict) for reading in readings],
            [reading_verdict(reading) for reading in readings],
            "difference: from the loss of the baseline at the largest budget that both reached",
        )
        spent = self._column("at", lambda value: format_budget(axis, value), places, "budget")
        return BudgetReading(
            axis_name(axis), dataclasses.replace(table, columns=[spent, *table.columns])
        )

    def _judged(
        self,
        rows: Sequence[tuple[Label, GroupResult]],
        below: Sequence[str],
        differences: Sequence[Difference | None],
        verdicts: Sequence[tuple[str, str]],
        caption: str,
    ) -> Table:
        """A table of losses and verdicts, read at a location below that of each arm."""
        labels = _labels(rows)
        places = _places(labels, *below)
        shaded = "" if self._numbers.at("noise_floor") is None else " Shaded: the noise floor."
        return Table(
            caption=f"{caption}, nats per token; left of zero is better.{shaded}",
            labels=labels,
            columns=[
                *self._estimates("difference", places, differences, labels),
                self._column("val loss", format_loss, places, "loss"),
                self._column("sd", format_loss, places, "sd"),
                self._column("n", str, places, "n"),
                Column("verdict", verdicts, "verdict"),
            ],
        )

    # Speed-ups and effects

    def speedups(self) -> Table | None:
        """The speed-ups of the arms; None if none is known."""
        rows = [(label, row) for label, row in self._compared if row.verdict.word != BASELINE]
        if not any(log for _, row in rows for log in row.speedups.values()):
            return None
        return Table(
            caption="Speed-up to the baseline's final loss (exploratory): the budget that the "
            "baseline needs to reach it, divided by that of the arm, with a 95 % interval. An arm "
            "that ends higher is compared at its own final loss.",
            labels=_labels(rows),
            columns=[self._factors(unit, _labels(rows)) for unit in self._findings.axes],
        )

    def _factors(self, unit: str, labels: Sequence[Label]) -> Column:
        cells = [
            (
                self._numbers.show(format_factor, *place, "factor"),
                self._numbers.interval(lambda value: f"{value:.3g}", *place, "interval"),
            )
            for place in _places(labels, "speedup", unit)
        ]
        return Column(unit.replace("flops", "FLOPs"), cells, "factor")

    def effects(self) -> Table | None:
        """The effects of a factorial design; None for other designs."""
        effects = self._findings.effects
        if not effects:
            return None
        places = [("effects", index) for index in range(len(effects))]
        return Table(
            caption="Main effects, averaged over the other factors, and two-way interactions "
            "(exploratory); nats per token, negative is better.",
            title="Change",
            labels=[" x ".join(effect.changes) for effect in effects],
            columns=self._estimates(
                "effect", places, [contrast_figure(effect.contrast) for effect in effects]
            ),
        )

    # Columns

    def _column(self, label: str, format: Format, places: Sequence[Place], key: str) -> Column:
        return Column(label, [self._numbers.show(format, *place, key) for place in places])

    def _quantities(self, labels: Sequence[Label], keys: Sequence[str]) -> list[Column]:
        quantities = [(key, QUANTITIES[key]) for key in keys]
        return [
            self._column(quantity.label, quantity.format, _places(labels), key)
            for key, quantity in quantities
        ]

    def _estimates(
        self,
        key: str,
        places: Sequence[Place],
        differences: Sequence[Difference | None],
        arms: Sequence[Label] = (),
    ) -> list[Column]:
        """Columns of estimates: as a plot in the arms' colors if any is known, as numbers, and
        their p values."""
        intervals = [
            self._numbers.interval(format_difference, *place, "interval") for place in places
        ]
        columns = [
            self._column(key, format_difference, places, key),
            Column("95 % interval", intervals, "interval"),
            self._column("p", format_p, places, "p_adjusted"),
        ]
        scale = scale_of(differences, self._numbers.at("noise_floor"))
        if scale is None:
            return columns
        drawn = strips(differences, scale, [hue(label.number) for label in arms])
        return [Column("", drawn, "strip", scale), *columns]


def reasons(row: GroupResult) -> Iterator[str]:
    """Yield the terms and notes of a verdict."""
    if row.verdict.difference is not None and row.terms:
        yield row.terms
    yield from verdict_notes(row.verdict)
    if row.new_text is not None:
        yield new_text_note(row.verdict, row.new_text)


def _labels(rows: Sequence[tuple[Label, GroupResult]]) -> list[Label]:
    return [label for label, _ in rows]


def _places(labels: Sequence[Label], *below: str) -> list[Place]:
    """The locations of the arms in the document, or of a value below each."""
    return [("groups", label.number - 1, *below) for label in labels]
