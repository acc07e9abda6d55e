"""What curves.js draws: for each arm and unit of budget, the mean loss and its band over seeds."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from comparison.bands import Band
from comparison.figures import ArmFigure, BudgetAxis, Figures
from pages.palette import dashes_of, hue

FIRST_SHOWN = 8
"""Arms whose curves are shown at first; a reader adds others."""

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

    Losses are rounded to the four decimals that are shown, budgets to six digits. A curve of very
    many evaluations is thinned, the sooner the more arms there are, so that the page stays small;
    `thinned` tells.
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
    """What chart.js needs to draw an arm as everywhere: its number, colour and dashes."""
    dashes = " ".join(f"{_LINE_WIDTH * own:g}" for own in dashes_of(number))
    return {"number": number, "hue": hue(number), "dash": dashes or "none"}


def most_points(figures: Figures) -> int:
    """Points that a curve may have so that the page stays small."""
    return min(_MOST_POINTS, max(_FEWEST_POINTS, _ALL_POINTS // len(figures.arms)))


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


def _points(points: Band) -> dict[str, Any]:
    mean, low, high = (
        [round(loss, 4) for loss in column] for column in (points.mean, points.low, points.high)
    )
    spread = {} if low == high else {"low": low, "high": high}
    return {"spent": [float(f"{budget:.6g}") for budget in points.budgets], "mean": mean, **spread}
