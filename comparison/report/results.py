"""The tables of the page, each a column after another over the arms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from comparison.findings import Findings, GroupResult
from comparison.formatting import (
    COST,
    QUANTITIES,
    REACHED,
    format_budget,
    format_difference,
    format_factor,
    format_loss,
    format_p,
)
from comparison.inference import ALPHA
from comparison.report.arms import (
    after_verdict,
    compared,
    label,
    numbered,
    set_apart,
    verdict_mark,
)
from comparison.report.intervals import axis, scale_of, strip
from comparison.report.markup import Figures, Markup, element, joined, sentences
from comparison.verdicts import BASELINE, BETTER, WORSE

Rows = Sequence[tuple[int, GroupResult]]


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        cell: From the index of a line to what stands there.
        head: What stands in the head, where that is more than the label.
        kind: Its class: `number`, `plot`, `words`.
    """

    label: str
    cell: Callable[[int], str | None]
    kind: str = "number"
    head: Markup | None = None


def table(
    caption: str,
    title: str,
    labels: Sequence[str],
    columns: Sequence[Column],
    *,
    wide: bool = False,
) -> Markup:
    """A line for each label. On a narrow screen every line becomes a card, which needs the roles to
    stay a table to a screen reader.

    Args:
        title: Of the first column.
        wide: It may be wider than a desktop's page; then it scrolls by itself.
    """
    heads = [_head(title), *(_head(c.label, c.head, class_=c.kind) for c in columns)]
    lines = [
        element("tr", _line_head(line), *(_cell(c, i) for c in columns), role="row")
        for i, line in enumerate(labels)
    ]
    made = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *heads, role="row"), role="rowgroup"),
        element("tbody", *lines, role="rowgroup"),
        class_="cards",
        role="table",
    )
    reachable = {"role": "region", "tabindex": 0, "aria_label": "Results, scrolls sideways"}
    return element("div", made, class_="scroll", **(reachable if wide else {}))


def _head(*children: str | None, **attributes: str) -> Markup:
    return element("th", *children, scope="col", role="columnheader", **attributes)


def _line_head(line: str) -> Markup:
    return element("th", line, scope="row", role="rowheader")


def _cell(column: Column, line: int) -> Markup:
    known = {"class_": column.kind, "data_label": column.label, "role": "cell"}
    return element("td", column.cell(line), **known)


def _quantities(figures: Figures, rows: Rows, keys: Sequence[str]) -> list[Column]:
    def column(key: str) -> Column:
        quantity = QUANTITIES[key]
        return Column(
            quantity.label, lambda i: figures.show(quantity.format, "groups", rows[i][0] - 1, key)
        )

    return [column(key) for key in keys]


def _seeds(figures: Figures, place: Callable[[int], Sequence[str | int]]) -> Column:
    return Column("n", lambda i: figures.show(str, *place(i), "n"))


# What each arm reached and cost


def results(figures: Figures, findings: Findings) -> Markup:
    rows = numbered(findings)
    marks = {True: "yes", False: "no", None: None}
    columns = [
        _seeds(figures, lambda i: ("groups", i)),
        *_quantities(figures, rows, (*REACHED, *COST)),
        Column("Pareto", lambda i: marks[rows[i][1].pareto] or element("span", "–", class_="none")),
    ]
    return table(
        "val loss: final, nats per token, mean over n seeds, with its standard deviation (sd). "
        "tokens/s and MFU: medians; memory: the largest peak, 1 GB = 1e9 bytes; seconds: in "
        "training steps. Pareto: no arm is better in loss, memory or speed and no worse in any.",
        "Arm",
        [label(number, row, details=True) for number, row in rows],
        columns,
        wide=True,
    )


# Verdicts


def verdicts(figures: Figures, findings: Findings) -> Markup:
    """On the final losses."""
    return _judged(
        figures,
        findings,
        lambda i: ("groups", i),
        "difference: from the final validation loss of the baseline",
    )


def _judged(
    figures: Figures,
    findings: Findings,
    place: Callable[[int], tuple[str | int, ...]],
    caption: str,
) -> Markup:
    """Losses and verdicts at a place of each compared group, which are the first ones."""
    rows = compared(findings)

    def figure(name: str, key: str, format: Callable[[float], str]) -> Column:
        return Column(name, lambda i: figures.show(format, *place(i), key))

    columns = [
        _seeds(figures, place),
        figure("val loss", "loss", format_loss),
        figure("sd", "sd", format_loss),
        *_estimated(figures, place, "difference", range(len(rows))),
        Column("verdict", lambda i: _verdict(figures, place(i)), "words"),
    ]
    floor = " Shaded: the noise floor." if figures.at("noise_floor") is not None else ""
    return table(
        f"{caption}, nats per token; left of zero is better.{floor}",
        "Arm",
        [label(*item) for item in rows],
        columns,
    )


def _estimated(
    figures: Figures, place: Callable[[int], tuple[str | int, ...]], key: str, lines: range
) -> list[Column]:
    """An estimate of each line: drawn, in numbers, and its p values."""
    floor = figures.at("noise_floor")
    known = [(figures.at(*place(i), key), figures.at(*place(i), "interval")) for i in lines]
    scale = scale_of(known, floor)

    def drawn(i: int) -> Markup:
        kind = figures.at(*place(i), "verdict") if key == "difference" else sign(i)
        return strip(scale, *known[i], kind)

    def sign(i: int) -> str:
        """The class of an effect, by its p value after correction."""
        p = figures.at(*place(i), "p_adjusted")
        if p is None or p >= ALPHA:
            return "cannot_tell"
        return "better" if known[i][0] < 0 else "worse"

    plot = [Column("95 % interval, drawn", drawn, "plot", axis(scale))] if scale else []
    return [
        *plot,
        Column(key, lambda i: figures.show(format_difference, *place(i), key)),
        Column(
            "95 % interval",
            lambda i: figures.interval(format_difference, *place(i), "interval"),
            "number range",
        ),
        Column("p", lambda i: figures.show(format_p, *place(i), "p_value")),
        Column("p Holm", lambda i: figures.show(format_p, *place(i), "p_adjusted")),
    ]


def _verdict(figures: Figures, place: tuple[str | int, ...]) -> Markup:
    """The verdict, and of its words what the numbers beside it do not say already."""
    verdict, words = figures.at(*place, "verdict"), figures.at(*place, "words")
    rest = after_verdict(verdict, words)
    if verdict in (BETTER, WORSE):
        rest = rest.partition("), ")[2]
    told = element("span", rest, class_="why") if rest else None
    return joined([verdict_mark(verdict), " ", told])


# At equal budgets


def at_equal(figures: Figures, findings: Findings) -> Markup:
    """The losses and verdicts where all compared runs had spent the same."""
    return joined(_at_budget(figures, findings, axis) for axis in findings.budgets)


def _at_budget(figures: Figures, findings: Findings, axis: str) -> Markup:
    budget = figures.show(lambda value: format_budget(axis, value), "budgets", axis)
    title = element("h3", "At ", budget)
    readings = [(row.group.losses, row.at_equal[axis].losses) for _, row in compared(findings)]
    if all(final == read for final, read in readings):
        return joined([title, element("p", "As above: that is where the runs end.")])
    caption = "difference: from the loss of the baseline at this budget"
    place = lambda i: ("groups", i, "at_equal", axis)  # noqa: E731
    return joined([title, _judged(figures, findings, place, caption)])


def speedups(figures: Figures, findings: Findings) -> Markup | None:
    """How much less an arm needs for a loss; None where no arm has such a factor."""
    rows = [(n, row) for n, row in compared(findings) if row.verdict.verdict != BASELINE]
    axes = list(findings.budgets)
    if not any(log for _, row in rows for log in row.speedups.values()):
        return None

    def column(axis: str) -> Column:
        def cell(i: int) -> Markup:
            place = "groups", rows[i][0] - 1, "speedup", axis
            factor = figures.show(format_factor, *place, "factor")
            if figures.at(*place, "interval") is None:
                return factor
            interval = figures.interval(lambda value: f"{value:.3g}", *place, "interval")
            return joined([factor, element("span", " (", interval, ")", class_="why")])

        return Column(axis.replace("flops", "FLOPs"), cell)

    return table(
        "How many times less an arm needs for the loss that the baseline ends with, or where it "
        "ends higher, for the loss it ends with itself; with the 95 % interval. Above 1x: it needs "
        "less.",
        "Arm",
        [label(*item) for item in rows],
        [column(axis) for axis in axes],
    )


# Effects, the Pareto set, what is set apart


def effects(figures: Figures, findings: Findings) -> Markup:
    lines = range(len(findings.effects))
    return table(
        "Each change averaged over the others, and what pairs add to that; nats per token, "
        "below zero is better.",
        "Change",
        [" x ".join(effect.changes) for effect in findings.effects],
        _estimated(figures, lambda i: ("effects", i), "effect", lines),
    )


def pareto(figures: Figures, findings: Findings) -> Markup:
    """The arms that none beats in loss, memory and speed at once."""
    known = [(n, row) for n, row in compared(findings) if row.pareto is not None]
    if not known:
        return element(
            "p",
            "Not known: it takes arms of two seeds or more, on one machine, with memory and speed "
            "logged.",
        )
    rows = [(n, row) for n, row in known if row.pareto]
    keys = ("loss", "peak_memory_bytes", "tokens_per_second")
    return table(
        f"{len(rows)} of the {len(known)} arms of which loss, memory and speed are known: no other "
        "is better in one and no worse in the rest. Means within the noise floor may trade places.",
        "Arm",
        [label(*item) for item in rows],
        _quantities(figures, rows, keys),
    )


def not_compared(figures: Figures, findings: Findings) -> Markup:
    rows = set_apart(findings)

    def why(i: int) -> Markup | None:
        return sentences(rows[i][1].set_apart)

    return table(
        "These were trained or validated under other conditions than the baseline.",
        "Arm",
        [label(*item) for item in rows],
        [
            Column("unlike the baseline in", why, "words"),
            _seeds(figures, lambda i: ("groups", rows[i][0] - 1)),
            *_quantities(figures, rows, REACHED),
        ],
    )
