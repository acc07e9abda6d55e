"""A ladder as a figure: losses over compute, and the multiplier at each rung."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from comparison.ladder_findings import LadderFindings
from comparison.plot import styled_figure, write_figure
from errors import UserError
from pages.palette import COLOURS
from training_logger import format_flops

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (10.0, 4.0)  # inches
_APART = 0.012  # offset between the intervals of arms, in decades of compute
_LEAST_SPAN = 1.5  # factor by which the multiplier axis extends beyond the multipliers


def write_ladder_plot(found: LadderFindings, path: Path) -> None:
    """Plot a ladder to a file of one of `plot.FILE_TYPES`; creates its folder.

    Raises:
        UserError: If there is no finished run.
        OSError: If the file cannot be written.
    """
    write_figure(lambda: _draw(found), path)


def _draw(found: LadderFindings) -> Figure:
    if None in found.compute:
        raise UserError("nothing to plot: no run of the baseline has finished at some rung")
    figure = styled_figure(_SIZE)
    losses, multipliers = figure.subplots(1, 2)
    _draw_losses(losses, found)
    _draw_multipliers(multipliers, found)
    ticks = [
        f"{label}\n{format_flops(compute)}"
        for label, compute in zip(found.labels, found.compute, strict=True)
    ]
    for panel in (losses, multipliers):
        panel.set_xscale("log")
        panel.set_xticks(found.compute, ticks)
        panel.set_xticks([], minor=True)
        panel.grid(alpha=0.25, linewidth=0.5)
    return figure


def _draw_losses(panel: Axes, found: LadderFindings) -> None:
    """The loss of every run over its own compute, and the means of each arm."""
    panel.set_xlabel("training compute; ticks at the rungs of the baseline")
    panel.set_ylabel("final validation loss (nats per token)")
    arms = [(found.baseline, "black"), *_coloured(found)]
    for name, colour in arms:
        places, means = [], []
        for own in found.rungs:
            for row in own.rows:
                if name == row.group.arm_or_name and row.group.n:
                    values = list(row.group.losses.values())
                    compute = row.group.mean(lambda run: run.flops)
                    panel.plot([compute] * len(values), values, ".", color=colour, markersize=3)
                    places.append(compute)
                    means.append(row.group.loss)
        panel.plot(places, means, color=colour, linewidth=1.2, label=name)
    panel.legend(frameon=False)


def _draw_multipliers(panel: Axes, found: LadderFindings) -> None:
    """The compute multiplier of each arm, with 95 % intervals."""
    panel.set_xlabel("rung, and training compute of the baseline")
    panel.set_ylabel("compute multiplier (above 1: needs less)")
    panel.set_yscale("log")
    panel.axhline(1, color="black", linewidth=0.8)
    ladders = [arm.ladder for arm in found.arms if arm.ladder]
    if ladders:
        shown = [1.0, *(value for ladder in ladders for value in ladder.multipliers)]
        room = max(max(shown) / min(shown), _LEAST_SPAN)
        panel.set_ylim(min(shown) / room, max(shown) * room)
        _label_factors(panel)
    for index, (arm, (_, colour)) in enumerate(zip(found.arms, _coloured(found), strict=True)):
        if arm.ladder is None:
            continue
        shift = 10 ** (_APART * index)
        places = [compute * shift for compute in found.compute]
        panel.vlines(places, *zip(*arm.ladder.intervals, strict=True), color=colour)
        label = f"{arm.name}: {arm.word}, exponent {arm.ladder.exponent:+.2f}"
        panel.plot(places, arm.ladder.multipliers, "o-", color=colour, markersize=4, label=label)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(frameon=False)


def _label_factors(panel: Axes) -> None:
    """Label a logarithmic axis with a few plain numbers: 0.5x, 1x, 2x."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = panel.get_ylim()
    steps = (1.0,) if high / low > 1000 else (1.0, 2.0, 5.0)
    panel.yaxis.set_major_locator(LogLocator(subs=steps))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}x"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _coloured(found: LadderFindings) -> list[tuple[str, str]]:
    return [(arm.name, COLOURS[i % len(COLOURS)]) for i, arm in enumerate(found.arms)]
