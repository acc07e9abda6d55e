"""The data that curves.js draws: the mean loss of each arm and its band over seeds."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from comparison.bands import Band
from comparison.figures import ArmFigure, BudgetAxis, Figures
from pages.palette import dashes_of, hue

FIRST_SHOWN = 8
"""Number of arms whose curves are shown initially."""

_LINE_WIDTH = 2  # pixels, as in style.css
BUDGET_AXES = {
    "tokens": {
        "short": "tokens",
        "units": ("", "K", "M", "B", "T"),
        "decimals": 2,
        "words": "{number}{unit} tokens",
    },
    "flops": {
        "short": "FLOPs",
        "units": ("", "k", "M", "G", "T", "P", "E", "Z"),
        "decimals": 1,
        "words": "{number} {unit}FLOPs",
    },
    "seconds": {"short": "time", "units": ("",), "decimals": 1, "words": "{number} seconds"},
}
_MOST_POINTS, _FEWEST_POINTS, _ALL_POINTS = 200, 30, 6_000


def curve_data(figures: Figures) -> dict[str, Any]:
    """The axes that have curves, and the arms with their bands.

    Losses are rounded to the four decimals that are shown, budgets to six digits. Curves with many
    points are thinned to keep the page small, depending on the number of arms; `thinned` is true in
    that case.
    """
    most = most_points(figures)
    shown = shown_at_first(figures)
    bands = [found for arm in figures.arms for found in arm.bands.values()]
    return {
        "axes": {
            axis.unit: {
                **BUDGET_AXES[axis.unit],
                "title": axis.title + (" (s)" if axis.unit == "seconds" else ""),
                "caution": _caution(figures, axis),
            }
            for axis in figures.axes
        },
        "arms": [
            {
                "name": arm.label.name,
                **drawn_as(arm.label.number),
                "shown": arm.label.number in shown,
                "bands": {
                    "validation": {
                        unit: _points(found.thinned(most)) for unit, found in arm.bands.items()
                    },
                    "training": {
                        unit: _points(found)
                        for unit, found in arm.training_bands(most).items()
                        if unit in arm.bands
                    },
                },
            }
            for arm in figures.arms
        ],
        "thinned": any(len(found.budgets) > most for found in bands),
    }


def drawn_as(number: int) -> dict[str, Any]:
    """The number, color and dashes with which chart.js draws an arm."""
    dashes = " ".join(f"{_LINE_WIDTH * own:g}" for own in dashes_of(number))
    return {"number": number, "hue": hue(number), "dash": dashes or "none"}


def most_points(figures: Figures) -> int:
    """Maximum number of points of a curve, which keeps the page small."""
    return min(_MOST_POINTS, max(_FEWEST_POINTS, _ALL_POINTS // len(figures.arms)))


def _caution(figures: Figures, axis: BudgetAxis) -> str:
    """Why curves over this unit cannot be compared; empty if they can."""
    if axis.unit != "seconds" or axis.comparable or len(figures.compared) == 1:
        return ""
    return "Seconds cannot be compared: they are from different machines, or some are unknown."


def shown_at_first(figures: Figures) -> Collection[int]:
    """The numbers of the baseline and of the compared arms with the lowest losses."""

    def loss(arm: ArmFigure) -> float:
        return float("inf") if arm.loss is None else arm.loss

    first, *others = figures.compared
    best = sorted(others, key=loss)[: FIRST_SHOWN - 1]
    return {arm.label.number for arm in (first, *best)}


def _points(points: Band) -> dict[str, Any]:
    mean, low, high = (
        [round(loss, 4) for loss in column] for column in (points.mean, points.low, points.high)
    )
    spread = {} if low == high else {"low": low, "high": high}
    return {"spent": [float(f"{budget:.6g}") for budget in points.budgets], "mean": mean, **spread}
