"""What script.js draws: for each arm and unit of budget, the mean loss and its band over seeds."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from comparison.bands import Band
from comparison.figures import ArmFigure, BudgetAxis, Figures
from comparison.formatting import format_budget

FIRST_SHOWN = 8
"""Arms whose curves are shown at first; a reader adds others."""

HUES = 6
"""Colours of the palette in style.css; arms share them, so the number tells them apart."""

_UNITS = {
    "tokens": ("", "K", "M", "B", "T"),
    "flops": ("", "k", "M", "G", "T", "P", "E", "Z"),
    "seconds": ("",),
}
_MOST_POINTS, _FEWEST_POINTS, _ALL_POINTS = 200, 30, 6_000


def curve_data(figures: Figures) -> dict[str, Any]:
    """The axes that have curves, and the arms with their bands.

    Losses are rounded to the four decimals that are shown, budgets to six digits. A curve of very
    many evaluations is thinned, the sooner the more arms there are, so that the page stays small;
    `thinned` tells.
    """
    most = min(_MOST_POINTS, max(_FEWEST_POINTS, _ALL_POINTS // len(figures.arms)))
    shown = shown_at_first(figures)
    bands = [found for arm in figures.arms for found in arm.bands.values()]
    return {
        "axes": {
            axis.unit: {
                "title": axis.title + (" (s)" if axis.unit == "seconds" else ""),
                "units": _UNITS[axis.unit],
                "caution": _caution(figures, axis),
            }
            for axis in figures.axes
        },
        "arms": [
            {
                "number": arm.label.number,
                "name": arm.label.name,
                "hue": hue(arm.label.number),
                "shown": arm.label.number in shown,
                "seeds": arm.seeds,
                "bands": {
                    unit: _points(found.thinned(most), unit) for unit, found in arm.bands.items()
                },
            }
            for arm in figures.arms
        ],
        "thinned": any(len(found.budgets) > most for found in bands),
    }


def hue(number: int) -> str:
    """The class that colours what belongs to an arm."""
    return f"hue-{(number - 1) % HUES + 1}"


def _caution(figures: Figures, axis: BudgetAxis) -> str:
    """What keeps curves over this unit from being compared; empty where nothing does."""
    if axis.unit != "seconds" or axis.comparable or len(figures.compared) == 1:
        return ""
    return "Seconds cannot be compared here: they are not all of one machine, or not all known."


def shown_at_first(figures: Figures) -> Collection[int]:
    """The baseline and the arms of lowest loss, among those compared with it."""

    def loss(arm: ArmFigure) -> float:
        return float("inf") if arm.loss is None else arm.loss

    first, *others = figures.compared
    best = sorted(others, key=loss)[: FIRST_SHOWN - 1]
    return {arm.label.number for arm in (first, *best)}


def _points(points: Band, unit: str) -> dict[str, Any]:
    mean, low, high = (
        [round(loss, 4) for loss in column] for column in (points.mean, points.low, points.high)
    )
    spread = {} if low == high else {"low": low, "high": high}
    return {
        "spent": [float(f"{budget:.6g}") for budget in points.budgets],
        "told": [format_budget(unit, budget) for budget in points.budgets],
        "mean": mean,
        **spread,
    }
