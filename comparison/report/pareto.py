"""The geometry of the scatter plot of quality against speed, in SVG units."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from statistics import fmean

from comparison.figures import Figures
from comparison.findings import Findings
from comparison.formatting import format_loss
from comparison.groups import Group
from comparison.report.intervals import round_step
from inference.quantiles import ALPHA, t_critical
from inference.samples import deviation
from training_logger import format_count

_WIDTH, _HEIGHT = 700, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 660, 12, 280
_ROOM = 0.08  # empty space on either side, as a fraction of the range
_TICKS = 5


@dataclasses.dataclass(frozen=True)
class Point:
    """The point of an arm: its speed (x), its loss (y), and the ends of both intervals.

    Attributes:
        number: The number of its label.
        inside: Whether it is in the Pareto set.
    """

    number: int
    inside: bool
    x: float
    y: float
    slow: float
    fast: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Scatter:
    """The plot: its points, and the position and label of each tick."""

    title: str
    points: Sequence[Point]
    across: Sequence[tuple[float, str]]
    up: Sequence[tuple[float, str]]
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _RIGHT
    top: int = _TOP
    bottom: int = _BOTTOM


def pareto_scatter(figures: Figures, findings: Findings) -> Scatter | None:
    """Loss against speed of the arms for which both are known; None for fewer than two arms."""
    known = [
        (arm.label.number, row.pareto, _interval(_losses(row.group)), _interval(_speeds(row.group)))
        for arm, row in zip(figures.arms, findings.rows, strict=True)
        if row.pareto is not None
    ]
    if len(known) < 2:
        return None
    across = _Axis.over([speed for *_, speed in known], _LEFT, _RIGHT)
    up = _Axis.over([loss for _, _, loss, _ in known], _BOTTOM, _TOP)
    points = [
        Point(
            number,
            bool(inside),
            across.at(speed[1]),
            up.at(loss[1]),
            across.at(speed[0]),
            across.at(speed[2]),
            up.at(loss[0]),
            up.at(loss[2]),
        )
        for number, inside, loss, speed in known
    ]
    title = "Validation loss (nats per token) against tokens/s, means with 95 % intervals"
    return Scatter(title, points, across.ticks(format_count), up.ticks(format_loss))


def _losses(group: Group) -> list[float]:
    return list(group.losses.values())


def _speeds(group: Group) -> list[float]:
    return [run.summary["median_tokens_per_second"] for run in group.counted]


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    """A mean with its 95 % interval: low, mean, high."""
    mean, n = fmean(values), len(values)
    half = t_critical(n - 1, ALPHA) * (deviation(values) or 0.0) / math.sqrt(n)
    return mean - half, mean, mean + half


@dataclasses.dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(
        cls, intervals: Sequence[tuple[float, float, float]], start: float, end: float
    ) -> _Axis:
        low = min(interval[0] for interval in intervals)
        high = max(interval[2] for interval in intervals)
        room = _ROOM * (high - low) or abs(high) or 1.0
        return cls(low - room, high + room, start, end)

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, written: Callable[[float], str]) -> list[tuple[float, str]]:
        """Round numbers along the axis."""
        step = round_step((self.high - self.low) / _TICKS)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        values = [k * step for k in range(first, last + 1)]
        return [(self.at(value), written(value)) for value in values]
