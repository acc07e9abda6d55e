"""Plot findings: loss over each budget, and the difference of each arm from the baseline.

The upper panels show the mean loss over seeds with a band from the lowest to the highest seed. The
lower panel is the legend, with the difference from the baseline and its 95 % interval. Arms are
numbered as in the tables. matplotlib is imported only for drawing and needs no display.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from comparison.bands import Band
from comparison.caveats import is_allowance
from comparison.figures import ArmFigure, Difference, Figures, figures_of
from comparison.findings import Findings
from comparison.judging import BASELINE
from comparison.labels import Label
from comparison.verdict_lines import verdict_line
from errors import UserError
from pages.palette import COLOURS, colour_of, dashes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

FILE_TYPES = (".png", ".svg", ".pdf")

_NEUTRAL = {"color": "black", "linestyle": "-", "linewidth": 1.8, "zorder": 3}
_STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "pdf.fonttype": 42,  # TrueType, so that text can be edited
    "svg.hashsalt": "nanoarch",  # makes files reproducible
    "text.parse_math": False,  # no LaTeX for a $ in a name
}
_UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}

_WIDTH, _CURVES_HEIGHT, _LINE_HEIGHT, _NOTE_HEIGHT = 10.0, 3.4, 0.18, 0.13  # inches
_AXIS_HEIGHT, _CHARACTER_WIDTH = 0.55, 0.068  # inches
_LEFT, _LABELS_LEFT, _VERDICTS_LEFT = 0.01, 0.06, 0.86  # fractions of the width
_LABEL_WIDTH, _LABEL_LINES, _NOTE_WIDTH = 60, 2, 170  # characters, lines, characters
_SMALL = 6.5  # points
_PANEL_GAP = 0.1  # inches around a panel, so that tick labels do not overlap
_ZERO_WIDTH = 0.2  # decades on the axis between zero and the first evaluation
_TICK_GAP = 1 / 5  # minimum distance between ticks, as a fraction of a panel's width
_FINEST_TICK = 1000  # ticks below 1/1000 of the longest budget would overlap the one at zero
_TRAINING_POINTS = 200
_FIRST_SHOWN, _FIRST_SPANNED = 1 / 6, 1 / 4
"""Fractions of the longest budget at which the curves start, and from which the loss axis spans
them. If it included the losses of an untrained model, their ends would be indistinguishable."""

_FROM_ZERO = 1 / 20
"""Curves start at step 0 if the next evaluation is at this fraction of the longest budget or later:
zero then takes little room on an axis that is logarithmic from there."""

_FEWEST_SPANNED = 3
"""Minimum number of points that the loss axis spans, if a curve has that many."""

_FARTHEST = 4
"""Arms that extend this many times farther than the median arm are cut off, because they would hide
the differences between the others. A note says so."""


# Arms


@dataclasses.dataclass(frozen=True)
class PlottedArm:
    """An arm and its line style."""

    figure: ArmFigure
    line: Mapping[str, Any]

    @property
    def number(self) -> str:
        return str(self.figure.label.number)

    @property
    def colour(self) -> str:
        return self.line["color"]

    @property
    def label(self) -> str:
        """Its number and name, in at most _LABEL_LINES lines."""
        text = f"{self.number}  {_name(self.figure.label)}"
        lines = textwrap.wrap(text, _LABEL_WIDTH)
        if len(lines) > _LABEL_LINES:
            lines[_LABEL_LINES - 1 :] = [lines[_LABEL_LINES - 1][: _LABEL_WIDTH - 4] + " ..."]
        return "\n".join(lines)

    @property
    def lines(self) -> int:
        """Number of lines of its label."""
        return self.label.count("\n") + 1

    def band(self, unit: str) -> Band | None:
        """Its curve; None if it ends at step 0."""
        whole = self.figure.bands.get(unit)
        return whole if whole and whole.trained else None


def _name(label: Label) -> str:
    named = label.is_baseline and label.name != BASELINE
    return f"baseline: {label.name}" if named else label.name


def arms_of(figures: Figures) -> list[PlottedArm]:
    """The compared arms, the baseline first."""
    return [PlottedArm(arm, _line(arm.label)) for arm in figures.compared]


def _line(label: Label) -> dict[str, Any]:
    if label.is_baseline:
        return _NEUTRAL
    dashes = dashes_of(label.number)
    line = (0, dashes) if dashes else "-"
    return {"color": colour_of(label.number), "linestyle": line, "linewidth": 1.3}


# The figure and its file


def plot_problem(path: Path, option: str = "--plot") -> str | None:
    """Why no plot can be written to a file of this name; None if it can."""
    if path.suffix.lower() not in FILE_TYPES:
        return f"{option}={path} must end in one of {', '.join(FILE_TYPES)}"
    if importlib.util.find_spec("matplotlib") is None:
        return f"{option} needs matplotlib: pip install matplotlib"
    return None


def write_plot(findings: Findings, path: Path) -> None:
    """Plot findings to a file of one of FILE_TYPES; creates its folder.

    Raises:
        UserError: If there is no loss to draw.
        OSError: If the file cannot be written.
    """
    write_figure(lambda: draw(findings), path)


def write_figure(draw: Callable[[], Figure], path: Path) -> None:
    """Draw a figure in the project's style and write it. Raises OSError if that fails."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        figure = draw()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=200, metadata=_UNDATED[path.suffix.lower()])


def styled_figure(size: tuple[float, float]) -> Figure:
    """An empty figure with a size in inches."""
    from matplotlib.figure import Figure

    return Figure(size, layout="constrained")


def draw(findings: Findings) -> Figure:
    """Draw a panel of curves for each comparable unit of budget, and the legend below them.

    Raises:
        UserError: If there is no loss to draw.
    """
    figures = figures_of(findings)
    arms = arms_of(figures)
    panels = dict(_panels(figures, arms))
    if not panels:
        raise UserError("nothing to plot: no run has a finite validation loss after step 0")
    titles = {axis.unit: axis.title for axis in figures.axes}
    alone = arms[0].figure.training_bands(_TRAINING_POINTS) if len(arms) == 1 else {}
    limits = _loss_limits([found for bands in panels.values() for found in bands.values()])
    if len(arms) == 1:  # no differences between arms to show
        limits = _whole_limits([*next(iter(panels.values())).values(), *alone.values()])
    drawn = {number for bands in panels.values() for number in bands}
    notes = textwrap.wrap(" ".join(_notes(figures, arms, drawn, limits)), _NOTE_WIDTH)
    key_height = _LINE_HEIGHT * sum(arm.lines for arm in arms if len(arms) > 1)
    judged = any(arm.figure.difference for arm in arms)
    below = judged * _AXIS_HEIGHT + _NOTE_HEIGHT * (len(notes) + 1)
    heights = (_CURVES_HEIGHT, key_height + below)
    figure = styled_figure((_WIDTH, sum(heights)))
    curves, key = figure.subfigures(2, 1, height_ratios=heights)
    curves.get_layout_engine().set(w_pad=_PANEL_GAP)
    curves.suptitle(_title(arms), x=_LEFT, ha="left", fontsize="medium")
    for column, (unit, bands) in enumerate(panels.items(), start=1):
        panel = curves.add_subplot(1, len(panels), column)
        curved = [(arm, bands[arm.number]) for arm in arms if arm.number in bands]
        _draw_curves(panel, curved, limits)
        if unit in alone:
            _draw_training(panel, alone[unit])
        _label_budgets(panel, unit, titles[unit])
        panel.tick_params(labelleft=column == 1)
    curves.axes[0].set_ylabel(f"{'' if alone else 'validation '}loss (nats per token)")
    _draw_key(key, (below / heights[1], 1), arms, figures.margin)
    key.text(_LEFT, 0.01, "\n".join(notes), fontsize=_SMALL, verticalalignment="bottom")
    return figure


def _title(arms: Sequence[PlottedArm]) -> str:
    """The title of the curves."""
    if len(arms) == 1:
        training = " and training (blue)" if arms[0].figure.training_bands(2) else ""
        seeds = f", mean of {arms[0].figure.seeds} seeds" if arms[0].figure.seeds > 1 else ""
        return f"{arms[0].figure.label.name}: validation loss (black){training}{seeds}"
    counts = sorted({arm.figure.seeds for arm in arms if arm.figure.seeds})
    if counts == [1]:
        return "Validation loss of one seed"
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return f"Validation loss: mean of {seeds} seeds, with the range from the lowest to the highest"


def _notes(
    figures: Figures,
    arms: Sequence[PlottedArm],
    drawn: Collection[str],
    limits: tuple[float, float],
) -> Iterator[str]:
    """Yield what is not in the figure, one sentence each."""
    above = [arm for arm in arms if arm.number in drawn and arm.figure.loss > limits[1]]
    if above:
        ends = ", ".join(f"{arm.number} ends at {arm.figure.loss:.4f}" for arm in above)
        yield f"Above the losses shown: {ends}."
    lost = [arm.number for arm in arms if arm.number not in drawn]
    if lost:
        yield f"No finite loss after step 0: {', '.join(lost)}."
    apart = [arm.label.name for arm in figures.arms if arm.label.set_apart]
    if apart:
        yield f"Excluded because not comparable with the baseline: {', '.join(apart)}."
    if figures.fewer_seeds:
        yield "Differences are over the seeds that an arm shares with the baseline."
    told: dict[str, list[str]] = {}
    for arm in arms:
        for caveat in arm.figure.caveats:
            told.setdefault(caveat, []).append(arm.number)
    allowances = [caveat for caveat in told if is_allowance(caveat)]
    if allowances:
        yield "The intervals include allowances for tuning, which the tables list."
    for caveat, numbers in told.items():
        if caveat in allowances:
            continue
        yield f"{', '.join(numbers)}: {caveat}."


# Curves


def _panels(figures: Figures, arms: Sequence[PlottedArm]) -> Iterator[tuple[str, dict[str, Band]]]:
    """Yield each comparable unit of budget, with the bands of the arms by number."""
    for axis in figures.axes:
        if axis.comparable:
            bands = {arm.number: arm.band(axis.unit) for arm in arms}
            yield axis.unit, {number: found for number, found in bands.items() if found}


def _loss_limits(bands: Sequence[Band]) -> tuple[float, float]:
    """The range of losses to show: those of the last three quarters, or of the last few
    evaluations, except those of arms far above most others."""
    ends = [_end(band) for band in bands]
    low = min(min(end.low) for end in ends)
    reach = _usual([max(end.high) - low for end in ends]) or 0.01 * abs(low)
    return low - 0.05 * reach, low + 1.05 * reach


def _end(band: Band) -> Band:
    """The part of a band that the loss axis spans."""
    least = _FIRST_SPANNED * band.budgets[-1]
    return band.since(min(least, band.budgets[-_FEWEST_SPANNED:][0]))


def _whole_limits(bands: Sequence[Band]) -> tuple[float, float]:
    """The range of all losses of bands."""
    low, high = min(min(band.low) for band in bands), max(max(band.high) for band in bands)
    room = 0.05 * (high - low) or 0.01 * abs(low)
    return low - room, high + room


def _usual(reaches: Sequence[float]) -> float:
    """The largest value that is not much larger than most."""
    return max(reach for reach in reaches if reach <= _FARTHEST * median(reaches))


def _draw_curves(
    panel: Axes, drawn: Sequence[tuple[PlottedArm, Band]], limits: tuple[float, float]
) -> None:
    for arm, found in drawn:
        marker = "o" if len(found.budgets) == 1 else None  # a line needs two points
        dot = {"marker": marker, "markersize": 4, "clip_on": marker is None}
        panel.plot(found.budgets, found.mean, gid=arm.number, **dot, **arm.line)
        panel.fill_between(found.budgets, found.low, found.high, color=arm.colour, alpha=0.15, lw=0)
    _span_budgets(panel, [found for _, found in drawn])
    panel.set_ylim(*limits)
    panel.grid(alpha=0.25, linewidth=0.5)
    if len(drawn) > 1:
        _number_ends(panel, drawn, limits)


def _span_budgets(panel: Axes, bands: Sequence[Band]) -> None:
    """Set a logarithmic axis over the end of the curves, or from step 0 if they have few points."""
    last = max(band.budgets[-1] for band in bands)
    first = min(band.trained.budgets[0] for band in bands)
    if any(band.budgets[0] == 0 for band in bands) and first >= _FROM_ZERO * last:
        panel.set_xscale("symlog", linthresh=first, linscale=_ZERO_WIDTH)
        panel.set_xlim(0, last)
        return
    panel.set_xscale("log")
    start = max(first, _FIRST_SHOWN * last)
    panel.set_xlim(start if start < last else last / 2, last)


def _draw_training(panel: Axes, found: Band) -> None:
    """Draw the training loss of a single arm behind its validation loss, with all of both shown."""
    panel.set_xscale("linear")
    panel.set_xlim(0, max(found.budgets[-1], panel.get_xlim()[1]))
    panel.plot(found.budgets, found.mean, color=COLOURS[0], linewidth=0.8, zorder=1)
    panel.fill_between(found.budgets, found.low, found.high, color=COLOURS[0], alpha=0.2, lw=0)


def _label_budgets(panel: Axes, unit: str, title: str) -> None:
    from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

    symbol = "s" if unit == "seconds" else ""
    scale = "" if panel.get_xscale() == "linear" else " (log scale)"
    panel.set_xlabel(f"{title}{scale}")
    panel.xaxis.set_major_locator(FixedLocator(_budget_ticks(panel)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(EngFormatter(symbol, sep=" " if symbol else ""))


def _budget_ticks(panel: Axes) -> list[float]:
    """Round numbers with enough room for their labels, and zero if it is on the axis."""
    low, high = panel.get_xlim()
    place = panel.xaxis.get_transform().transform
    start, width = place([low])[0], place([high])[0] - place([low])[0]
    least = math.floor(math.log10(low or high / _FINEST_TICK))
    chosen = [0.0] if low == 0 else []
    for factor in (1, 2, 5, 3, 1.5, 7):
        for power in range(least, math.floor(math.log10(high)) + 1):
            tick = factor * 10.0**power
            at = [(place([own])[0] - start) / width for own in (tick, *chosen)]
            if low <= tick <= high and all(abs(at[0] - own) >= _TICK_GAP for own in at[1:]):
                chosen.append(tick)
    return sorted(chosen)


def _number_ends(
    panel: Axes, drawn: Sequence[tuple[PlottedArm, Band]], limits: tuple[float, float]
) -> None:
    """Write the arms' numbers at the right edge, each with a thin line to the end of its curve."""
    shown = [(arm, found) for arm, found in drawn if found.mean[-1] <= limits[1]]
    shown.sort(key=lambda pair: pair[1].mean[-1])
    gap = 0.045 * (limits[1] - limits[0])
    heights = spread([found.mean[-1] for _, found in shown], gap)
    for height, (arm, found) in zip(heights, shown, strict=True):
        panel.annotate(
            arm.number,
            xy=(found.budgets[-1], found.mean[-1]),
            xytext=(1.03, height),
            textcoords=panel.get_yaxis_transform(),
            arrowprops={
                "arrowstyle": "-",
                "color": arm.colour,
                "linewidth": 0.5,
                "shrinkB": 3 if len(found.budgets) == 1 else 0,  # stop before the dot
            },
            color=arm.colour,
            fontsize=_SMALL,
            verticalalignment="center",
            annotation_clip=False,
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move increasing heights as little as possible so that neighbors are at least `gap` apart."""
    clusters: list[list[float]] = []
    for height in heights:
        cluster = [height]
        while clusters and _placed(cluster, gap)[0] - _placed(clusters[-1], gap)[-1] < gap:
            cluster = clusters.pop() + cluster
        clusters.append(cluster)
    return [place for cluster in clusters for place in _placed(cluster, gap)]


def _placed(cluster: Sequence[float], gap: float) -> list[float]:
    """Heights that are `gap` apart and centered on the mean of the given ones."""
    lowest = fmean(cluster) - gap * (len(cluster) - 1) / 2
    return [lowest + gap * index for index in range(len(cluster))]


# The legend, with the differences from the baseline


def _draw_key(
    key: SubFigure, span: tuple[float, float], arms: Sequence[PlottedArm], margin: float
) -> None:
    """Draw a row for each arm: its line, label, difference and verdict. A single arm needs none,
    because the title names it.

    Args:
        span: Start and end of the rows, as fractions of the height.
    """
    from matplotlib.transforms import blended_transform_factory

    if len(arms) == 1:
        return
    ends = list(accumulate(arm.lines for arm in arms))
    rows = [(arm, end - arm.lines / 2) for arm, end in zip(arms, ends, strict=True)]
    longest = max(len(line) for arm in arms for line in arm.label.split("\n"))
    left = _LABELS_LEFT + _CHARACTER_WIDTH / _WIDTH * longest
    judged = [(arm, height) for arm, height in rows if arm.figure.difference]
    panel = key.add_axes((left, span[0], _VERDICTS_LEFT - 0.01 - left, span[1] - span[0]))
    panel.set_ylim(ends[-1], 0)
    panel.yaxis.set_visible(False)
    panel.spines["left"].set_visible(False)
    at = blended_transform_factory(key.transSubfigure, panel.transData)
    for arm, height in rows:
        line = (_LEFT, _LABELS_LEFT - 0.01), (height, height)
        panel.plot(*line, transform=at, clip_on=False, **arm.line)
        whole = verdict_line(arm.figure.verdict, arm.figure.terms, arm.figure.new_text)
        words = (_VERDICTS_LEFT, _brief(arm)) if judged else (left, whole)
        for x, text in ((_LABELS_LEFT, arm.label), words):
            panel.text(x, height, text, transform=at, verticalalignment="center")
    if judged:
        _draw_differences(panel, judged, margin)
    else:
        panel.xaxis.set_visible(False)
        panel.spines["bottom"].set_visible(False)


def _brief(arm: PlottedArm) -> str:
    """A verdict short enough to fit next to an interval."""
    word, difference = arm.figure.verdict.word, arm.figure.difference
    if difference is None:
        return word
    return f"{difference.value:+.4f}  {word}".replace("-", "\N{MINUS SIGN}")


def _draw_differences(
    panel: Axes, judged: Sequence[tuple[PlottedArm, float]], margin: float
) -> None:
    """Draw the difference of each judged arm in its row, with the interval and the margin."""
    differences = [arm.figure.difference for arm, _ in judged]
    low, high = _difference_limits([_spanned(found, margin) for found in differences])
    panel.set_xlim(low, high)
    panel.axvline(0, color="black", linewidth=0.8)
    label = "difference in final loss from the baseline, simultaneous 95 % interval"
    panel.axvspan(-margin, margin, color="black", alpha=0.08, linewidth=0)
    panel.set_xlabel(f"{label}; shaded: equal (±{margin:.2g})")
    first = min(height for _, height in judged)
    for words, side in (("← better  ", "right"), ("  worse →", "left")):  # in the baseline's row
        panel.text(0, first - 1, words, horizontalalignment=side, verticalalignment="center")
    panel.grid(axis="x", alpha=0.25, linewidth=0.5)
    for (arm, height), found in zip(judged, differences, strict=True):
        interval = (max(found.low, low), min(found.high, high))
        panel.plot(interval, (height, height), color=arm.colour, linewidth=1.5, gid=arm.number)
        outside = {True: ">", False: "<"}[found.value > 0]
        marker = "o" if low <= found.value <= high else outside
        shown = min(max(found.value, low), high)
        panel.plot(shown, height, marker, color=arm.colour, markersize=4, clip_on=False)


def _spanned(found: Difference, margin: float) -> tuple[float, float]:
    """The range that the axis should span for an interval; if infinite, only its difference."""
    if math.isfinite(found.high - found.low):
        return found.low, found.high
    return min(found.value, -margin), max(found.value, margin)


def _difference_limits(intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The range of the axis: 0, and the intervals that are not much longer than most."""
    reaches = [max(-low, high) for low, high in intervals]
    reach = _usual(reaches)
    usual = [interval for interval, r in zip(intervals, reaches, strict=True) if r <= reach]
    low, high = (min(0, *(low for low, _ in usual)), max(0, *(high for _, high in usual)))
    return low - 0.06 * (high - low), high + 0.06 * (high - low)
