"""What script.js draws: for each arm and unit of budget, the mean loss and its band over seeds."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from comparison.bands import Band, band
from comparison.curves import AXES
from comparison.figures import BUDGET_TITLES
from comparison.findings import Findings, GroupResult
from comparison.formatting import format_budget
from comparison.report.arms import compared, hue, numbered

FIRST_SHOWN = 8
"""Arms whose curves are shown at first; a reader adds others."""

_UNITS = {
    "tokens": ("", "K", "M", "B", "T"),
    "flops": ("", "k", "M", "G", "T", "P", "E", "Z"),
    "seconds": ("",),
}
_MOST_POINTS, _FEWEST_POINTS, _ALL_POINTS = 200, 30, 6_000


def curves(findings: Findings) -> dict[str, Any]:
    """The axes that have curves, and the arms with their bands.

    Losses are rounded to the four decimals that are shown, budgets to six digits. A curve of very
    many evaluations is thinned, the sooner the more arms there are, so that the page stays small;
    `thinned` tells.
    """
    rows = numbered(findings)
    most = min(_MOST_POINTS, max(_FEWEST_POINTS, _ALL_POINTS // len(rows)))
    whole = {number: {axis: band(row.group, axis) for axis in AXES} for number, row in rows}
    axes = [axis for axis in AXES if any(bands[axis] for bands in whole.values())]
    shown = shown_at_first(findings)
    return {
        "axes": {
            axis: {
                "title": BUDGET_TITLES[axis] + (" (s)" if axis == "seconds" else ""),
                "units": _UNITS[axis],
                "caution": _caution(findings, axis),
            }
            for axis in axes
        },
        "arms": [
            {
                "number": number,
                "name": row.group.name,
                "hue": hue(number),
                "shown": number in shown,
                "seeds": row.group.n,
                "bands": {
                    axis: _points(_thinned(whole[number][axis], most), axis)
                    for axis in axes
                    if whole[number][axis]
                },
            }
            for number, row in rows
        ],
        "thinned": any(
            len(found.budgets) > most
            for bands in whole.values()
            for found in bands.values()
            if found
        ),
    }


def _caution(findings: Findings, axis: str) -> str:
    """What keeps curves over this unit from being compared; empty where nothing does."""
    if axis != "seconds" or axis in findings.budgets or len(compared(findings)) == 1:
        return ""
    return "Seconds cannot be compared here: they are not all of one machine, or not all known."


def shown_at_first(findings: Findings) -> Collection[int]:
    """The baseline and the arms of lowest loss, among those compared with it."""

    def loss(item: tuple[int, GroupResult]) -> float:
        known = item[1].group.loss
        return float("inf") if known is None else known

    (first, _), *others = compared(findings)
    best = sorted(others, key=loss)[: FIRST_SHOWN - 1]
    return {first, *(number for number, _ in best)}


def _thinned(whole: Band, most: int) -> Band:
    """At most so many points of a band, evenly chosen, with the first and the last."""
    count = len(whole.budgets)
    if count <= most:
        return whole
    kept = [round(i * (count - 1) / (most - 1)) for i in range(most)]
    return Band(*([column[i] for i in kept] for column in _columns(whole)))


def _columns(points: Band) -> tuple[list[float], ...]:
    return points.budgets, points.mean, points.low, points.high


def _points(points: Band, axis: str) -> dict[str, Any]:
    mean, low, high = ([round(x, 4) for x in column] for column in _columns(points)[1:])
    spread = {} if low == high else {"low": low, "high": high}
    return {
        "spent": [float(f"{budget:.6g}") for budget in points.budgets],
        "told": [format_budget(axis, budget) for budget in points.budgets],
        "mean": mean,
        **spread,
    }
