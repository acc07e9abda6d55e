"""Plot the tuning curve of each arm, with the fitted parabola and its confidence band."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from comparison.design import TuningCurve
from comparison.plot import styled_figure, write_figure
from errors import UserError
from inference.tuning import CONFIDENCE, Fit, Noise, at_grid, fit, noise_of
from pages.palette import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS, _PANEL = 4, (2.5, 2.1)  # panels per row, and their size in inches
_PLACES = 60  # points of a parabola
_HIGHEST = 0.4  # nats above the lowest loss of an arm; higher losses are cut off


def write_tuning_plot(curves: Sequence[TuningCurve], path: Path) -> None:
    """Plot the curves to a file of one of `plot.FILE_TYPES`; creates its folder.

    Raises:
        UserError: If there is no tuning curve.
        OSError: If the file cannot be written.
    """
    if not curves:
        raise UserError("nothing to plot: no sweep tuned a single number such as learning_rate.")
    write_figure(lambda: _draw(curves), path)


def _draw(curves: Sequence[TuningCurve]) -> Figure:
    fits = [fit(curve.losses) for curve in curves]
    noise = noise_of([curve.losses for curve in curves], fits)
    columns = min(_COLUMNS, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = styled_figure((columns * _PANEL[0], rows * _PANEL[1]))
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel, curve, found in zip(panels, curves, fits, strict=False):
        _draw_curve(panel, curve, found, noise)
    for panel in list(panels)[len(curves) :]:
        panel.set_visible(False)
    figure.supylabel("loss of the trial (nats per token)", fontsize="medium")
    figure.supxlabel(
        f"{curves[0].key}; line: fitted parabola, band: {100 * CONFIDENCE:.0f} %, dashed: chosen, "
        "open: not fitted",
        fontsize="medium",
    )
    return figure


def _draw_curve(panel: Axes, curve: TuningCurve, found: Fit | None, noise: Noise) -> None:
    colour = COLOURS[0]
    panel.set_title(f"{curve.arm}\nallowance {curve.allowance:.4f}", fontsize="medium")
    panel.set_xscale("log")
    panel.set_xticks(curve.tried, [f"{value:.3g}" for value in curve.tried], rotation=45)
    panel.set_xticks([], minor=True)
    losses = [math.nan if loss is None else loss for loss in curve.losses]
    if found is None:
        return
    first, last = found.kept
    for z, (value, loss) in enumerate(zip(curve.tried, losses, strict=True)):
        face = colour if first <= z <= last else "none"
        panel.plot(value, loss, "o", color=colour, markerfacecolor=face, markersize=4)
    if found.coefficients is not None:
        places = np.linspace(first, last, _PLACES)
        x = [at_grid(curve.tried, z) for z in places]
        y = np.array([found.loss(z) for z in places])
        panel.plot(x, y, color=colour, linewidth=1.2)
        if noise.df:
            half = np.array([found.band(z, noise) for z in places])
            panel.fill_between(x, y - half, y + half, color=colour, alpha=0.15, linewidth=0)
    panel.axvline(curve.fitted, color="black", linestyle="--", linewidth=0.8)
    lowest = min(loss for loss in losses if math.isfinite(loss))
    panel.set_ylim(lowest - _HIGHEST / 4, lowest + _HIGHEST)
