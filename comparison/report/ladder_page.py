"""The page of a ladder: the multipliers of each arm, their trend, and links to the rungs' pages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from comparison.figures import Difference
from comparison.formatting import format_difference, format_factor, format_loss
from comparison.judging import BASELINE
from comparison.labels import Label
from comparison.ladder_findings import ArmOnLadder, LadderFindings
from comparison.ladder_tables import about_arm, about_rungs, ladder_document, trend
from comparison.report.curve_data import BUDGET_AXES, drawn_as
from comparison.report.document_numbers import DocumentNumbers
from comparison.report.intervals import FactorScale, scale_of, strips
from comparison.report.page import PageSection
from comparison.report.result_tables import Column, Table
from comparison.report.series_page import (
    AboutSeries,
    render_series,
    series_heading,
    write_series_page,
)
from inference.ladder import Ladder
from inference.verdicts import BETTER, INCONCLUSIVE, WORSE
from pages.palette import hue
from training_logger import format_count, format_flops

_CHARTS = {"multipliers": "Compute multiplier", "losses": "Final validation loss"}
_REACH = 10.0
"""Intervals are drawn up to this factor beyond the multipliers."""


def write_ladder_page(found: LadderFindings, about: AboutSeries) -> None:
    """Write the page to `about.page`.

    Raises:
        OSError: If it cannot be written.
    """
    write_series_page(ladder_to_html(found, about), about.page)


def ladder_to_html(found: LadderFindings, about: AboutSeries) -> str:
    """The page as text."""
    exported = ladder_document(found)
    tables = _Tables(found, about, DocumentNumbers(exported))
    return render_series(
        series_heading(about, found.rungs, f"ladder of {len(found.labels)} rungs"),
        _headline(found),
        _lead(found),
        list(_sections(found, about, tables)),
        exported,
        dict(zip(_CHARTS, (_multipliers(found), _losses(found)), strict=True)),
        "The 95 % intervals of multipliers hold for one rung at a time; those of the exponents "
        f"hold for {_together(found.family)}.",
    )


def _together(family: int) -> str:
    return f"all {family} arms together" if family > 1 else "the one arm"


def _sections(found: LadderFindings, about: AboutSeries, tables: _Tables) -> Iterator[PageSection]:
    yield PageSection("trend", "Trend", "table.html", tables.trend())
    forests = [(_label(found, arm), tables.multipliers(arm)) for arm in found.arms]
    yield PageSection("verdicts", "Multiplier at each rung", "forests.html", forests)
    yield PageSection("compute", "Over compute", "series_charts.html", list(_CHARTS.items()))
    yield PageSection("rungs", "Rungs", "table.html", tables.rungs())
    notes = [
        *about_rungs(found),
        *(f"{arm.name}: {note}" for arm in found.arms for note in about_arm(arm, found.labels)),
    ]
    if notes:
        yield PageSection("notes", "Notes", "notes.html", notes)
    yield PageSection("methods", "Methods", "methods.html", list(_methods(found, about)))


# In words


def _headline(found: LadderFindings) -> str:
    if len(found.arms) == 1:
        [arm] = found.arms
        return f"{arm.name}: {arm.word}: {trend(arm)}.{_at_the_top(found, arm)}"
    words = [arm.word for arm in found.arms]
    counts = {word: words.count(word) for word in words}
    listed = ", ".join(f"{number} {word}" for word, number in counts.items())
    return f"Multipliers of {len(words)} arms: {listed}."


def _at_the_top(found: LadderFindings, arm: ArmOnLadder) -> str:
    """The multiplier at the largest rung, which is closest to the scale of interest."""
    if arm.ladder is None:
        return ""
    low, high = arm.ladder.intervals[-1]
    return (
        f" At {found.labels[-1]} its multiplier is {format_factor(arm.ladder.multipliers[-1])} "
        f"(95\N{NO-BREAK SPACE}% interval: {low:.3g} to {high:.3g})."
    )


def _lead(found: LadderFindings) -> str:
    known = [compute for compute in found.compute if compute is not None]
    span = ""
    if known:
        span = (
            f", from {format_flops(min(known))} to {format_flops(max(known))} per run "
            f"({max(known) / min(known):.3g}x)"
        )
    return (
        f"{_the_baseline(found)} has {len(found.labels)} rungs{span}. The multiplier is the "
        "compute that the baseline would need for an arm's loss, divided by the arm's compute; "
        "above 1 is better. It grows or fades if it scales as compute to a power above or below 0."
    )


def _the_baseline(found: LadderFindings) -> str:
    return "The baseline" if found.baseline == BASELINE else f"The baseline, {found.baseline},"


def _methods(found: LadderFindings, about: AboutSeries) -> Iterator[tuple[str, str]]:
    yield (
        "Curve",
        "the losses of the baseline as E + B C^-a; the intervals include all offsets E that are "
        "consistent with the losses",
    )
    seeds = sorted({own.baseline.group.n for own in found.rungs})
    yield "Seeds", " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1])))) + " at each rung"
    tuned = any(arm.allowance for arm in found.arms)
    yield (
        "Tuning",
        "each rung separately; the intervals and the trend include allowances for tuning"
        if tuned
        else "no allowance: nothing was tuned",
    )
    if about.command:
        yield "Command", about.command


def _label(found: LadderFindings, arm: ArmOnLadder) -> Label:
    """The number and the name of an arm; the baseline is 1."""
    return Label(
        number=2 + found.arms.index(arm),
        name=arm.name,
        is_baseline=False,
        in_sweep=True,
        set_apart=False,
        unfinished=(),
        details="",
    )


# In tables


class _Tables:
    def __init__(self, found: LadderFindings, about: AboutSeries, numbers: DocumentNumbers):
        self._found, self._about, self._numbers = found, about, numbers

    def trend(self) -> Table:
        """A row for each arm."""
        found, numbers = self._found, self._numbers
        places = [("arms", index) for index in range(len(found.arms))]
        signed = "{:+.3f}".format
        unlike = f"; the rungs differ in {', '.join(found.unlike)}" if found.unlike else ""
        columns = [
            Column("exponent", [numbers.show(signed, *at, "exponent") for at in places]),
            Column(
                "95 % interval",
                [numbers.interval(signed, *at, "exponent_interval") for at in places],
                "interval",
            ),
        ]
        if any(arm.allowance for arm in found.arms):
            shown = [numbers.show(format_loss, *at, "allowance") for at in places]
            columns.append(Column("allowance", shown))
        return Table(
            caption="exponent: the multiplier scales as compute to this power. Intervals hold for "
            f"{_together(found.family)}. allowance: for tuning, sum of arm and baseline, the "
            "largest of all rungs, nats per token.",
            labels=[_label(found, arm) for arm in found.arms],
            columns=[
                *columns,
                Column("trend", [(arm.word, trend(arm) + unlike) for arm in found.arms], "verdict"),
            ],
        )

    def multipliers(self, arm: ArmOnLadder) -> Table:
        """A row for each rung, with a plot of the multiplier."""
        found, numbers = self._found, self._numbers
        place, each = ("arms", found.arms.index(arm)), range(len(found.labels))
        columns = [
            Column(
                "multiplier",
                [numbers.show(format_factor, *place, "multipliers", k) for k in each],
            ),
            Column(
                "95 % interval",
                [numbers.interval("{:.3g}".format, *place, "intervals", k) for k in each],
                "interval",
            ),
            Column(
                "difference",
                [numbers.show(format_difference, *place, "differences", k) for k in each],
            ),
            *(
                Column(
                    f"allowance, {side}",
                    [numbers.show(format_loss, *place, "allowances", k, side) for k in each],
                )
                for side in ("arm", "baseline")
                if arm.allowance
            ),
        ]
        logs = _logs(arm.ladder)
        scale = scale_of(logs, kind=FactorScale)
        if scale is not None:
            drawn = strips(logs, scale, [hue(_label(found, arm).number)] * len(logs))
            columns.insert(0, Column("", drawn, "strip", scale))
        return Table(
            caption="multiplier: above 1, the arm needs less compute. difference: in final loss "
            "from the baseline, nats per token. allowance: how much lower the loss could be at the "
            "best tuned value; included in the interval.",
            title="Rung",
            labels=found.labels,
            columns=[*columns, self._about.links(found.labels)],
        )

    def rungs(self) -> Table:
        """A row for each rung: the size, the compute and the loss of the baseline."""
        places = [("rungs", index) for index in range(len(self._found.labels))]
        shown = {
            "params": ("parameters", format_count),
            "compute": ("compute", format_flops),
            "val loss": ("loss", format_loss),
            "n": ("n", str),
        }
        return Table(
            caption=f"{_the_baseline(self._found)} at each rung: training compute of a run, "
            "and final validation loss in nats per token, mean over n seeds.",
            title="Rung",
            labels=self._found.labels,
            columns=[
                *(
                    Column(head, [self._numbers.show(format, *at, key) for at in places])
                    for head, (key, format) in shown.items()
                ),
                self._about.links(self._found.labels),
            ],
        )


def _logs(ladder: Ladder | None) -> list[Difference | None]:
    """The logarithm of the multiplier at each rung; None if infinite, for example if the baseline
    hardly learns."""
    if ladder is None:
        return []
    return [
        Difference(math.log(value), _log(low), _log(high), _word(low, high))
        if 0 < value < math.inf
        else None
        for value, (low, high) in zip(ladder.multipliers, ladder.intervals, strict=True)
    ]


def _log(factor: float) -> float:
    return math.log(factor) if factor > 0 else -math.inf


def _word(low: float, high: float) -> str:
    return BETTER if low > 1 else WORSE if high < 1 else INCONCLUSIVE


# In charts


def _losses(found: LadderFindings) -> dict[str, Any]:
    """The mean loss of each arm over its compute, with the range of its seeds."""
    names = [found.baseline, *(arm.name for arm in found.arms)]
    curves = [_loss_curve(found, name, number) for number, name in enumerate(names, start=1)]
    return {
        "axis": _axis(),
        "title": "final validation loss (nats per token)",
        "logarithmic": False,
        "decimals": 4,
        "curves": [curve for curve in curves if curve["points"]],
    }


def _loss_curve(found: LadderFindings, name: str, number: int) -> dict[str, Any]:
    points = []
    for own in found.rungs:
        for row in own.rows:
            if row.group.arm_or_name == name and row.group.n:
                losses = list(row.group.losses.values())
                ends = min(losses), max(losses)
                compute = row.group.mean(lambda run: run.flops)
                points.append(_point(compute, row.group.loss, *ends))
    return {**drawn_as(number), "name": name, "points": points, "whiskers": True}


def _multipliers(found: LadderFindings) -> dict[str, Any]:
    """The multiplier of each arm over the compute of the baseline, and the fitted trends."""
    climbed = [arm for arm in found.arms if arm.ladder and None not in _logs(arm.ladder)]
    shown = [1.0, *(value for arm in climbed for value in arm.ladder.multipliers)]
    ends = min(shown) / _REACH, max(shown) * _REACH
    curves: list[dict[str, Any]] = []
    if climbed:
        line = [_point(compute, 1.0, 1.0, 1.0) for compute in found.compute]
        curves.append({**drawn_as(1), "name": found.baseline, "points": line, "whiskers": False})
    for arm in climbed:
        curves += _multiplier_curves(found, arm, ends)
    cut = any(
        low < ends[0] or high > ends[1] for arm in climbed for low, high in arm.ladder.intervals
    )
    return {
        "axis": _axis(),
        "title": "compute multiplier (above 1: needs less)",
        "logarithmic": True,
        "decimals": 2,
        "cut": cut,
        "curves": curves,
    }


def _multiplier_curves(
    found: LadderFindings, arm: ArmOnLadder, ends: tuple[float, float]
) -> Iterator[dict[str, Any]]:
    """The multipliers of an arm with their intervals, and their fitted trend."""
    look = drawn_as(_label(found, arm).number)
    rungs = zip(found.compute, arm.ladder.multipliers, arm.ladder.intervals, strict=True)
    points = [
        _point(compute, value, max(low, ends[0]), min(high, ends[1]))
        for compute, value, (low, high) in rungs
    ]
    yield {**look, "name": arm.name, "points": points, "whiskers": True}
    fitted = zip(found.compute, _fitted(found.compute, arm.ladder), strict=True)
    line = [_point(compute, value, value, value) for compute, value in fitted]
    yield {**look, "name": arm.name, "points": line, "whiskers": False, "trend": True}


def _fitted(compute: Sequence[float], ladder: Ladder) -> list[float]:
    """The trend at each rung: a line through the mean log multiplier with the exponent as slope."""
    x = [math.log(own) for own in compute]
    middle = sum(x) / len(x)
    level = sum(map(math.log, ladder.multipliers)) / len(x)
    return [math.exp(level + ladder.exponent * (own - middle)) for own in x]


def _axis() -> dict[str, Any]:
    return {**BUDGET_AXES["flops"], "title": "training FLOPs of a run"}


def _point(x: float, mean: float, low: float, high: float) -> dict[str, float]:
    rounded = (float(f"{value:.6g}") for value in (x, mean, low, high))
    return dict(zip(("x", "mean", "low", "high"), rounded, strict=True))
