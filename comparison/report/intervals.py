"""Differences with their intervals, drawn on one scale: a forest plot, a strip for each row."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from comparison.report.markup import Markup, element, typeset

_MARGIN = 4.0  # percent of the width on either side, so that an end is never cut
_REACH = 3.0  # an interval is drawn as far as this many times the largest difference or noise


@dataclasses.dataclass(frozen=True)
class Scale:
    """What a strip shows, in nats per token, from its left to its right end.

    Attributes:
        floor: The noise floor, shaded on both sides of zero; None where it is not known.
    """

    low: float
    high: float
    floor: float | None

    def at(self, value: float) -> str:
        """Where a value stands, in percent of the width."""
        share = (value - self.low) / (self.high - self.low)
        return f"{_MARGIN + (100 - 2 * _MARGIN) * share:.2f}%"

    def ticks(self) -> list[float]:
        """Zero and its round neighbours."""
        step = _round_step((self.high - self.low) / 5)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [k * step for k in range(first, last + 1)]


def scale_of(
    differences: Iterable[tuple[float | None, Sequence[float] | None]], floor: float | None
) -> Scale | None:
    """The scale of a plot of (difference, interval); None where none of them is known.

    Zero and every difference are on it, and the intervals unless they are far longer than what
    there is to see: one arm of two seeds would squeeze all others into a dot.
    """
    known = [(value, bounds) for value, bounds in differences if value is not None and bounds]
    if not known:
        return None
    values = [value for value, _ in known]
    halves = sorted((high - low) / 2 for _, (low, high) in known)
    size = max(*map(abs, values), floor or 0.0, halves[(len(halves) - 1) // 2]) or 1.0
    low = min(0.0, -(floor or 0.0), *(bounds[0] for _, bounds in known))
    high = max(0.0, floor or 0.0, *(bounds[1] for _, bounds in known))
    if low == high:  # nothing differs from zero
        return Scale(-size, size, floor)
    return Scale(max(low, -_REACH * size), min(high, _REACH * size), floor)


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is no less."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def axis(scale: Scale) -> Markup:
    """The ticks of a scale, for the head of the column."""
    ticks = scale.ticks()
    decimals = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9)) if ticks[1:] else 0
    texts = [
        element("text", typeset(f"{tick:+.{decimals}f}") if tick else "0", x=scale.at(tick), y="11")
        for tick in ticks
    ]
    return element("svg", *texts, class_="axis", aria_hidden="true")


def strip(scale: Scale, value: float | None, interval: Sequence[float] | None, kind: str) -> Markup:
    """A difference and its interval over the zero line and the shaded noise floor.

    The strip is as large as its cell, so that lines go on from row to row.

    Args:
        kind: A verdict, whose colour the difference takes.
    """
    drawn = [*_ground(scale), *(_estimate(scale, value, interval) if interval else ())]
    return element("svg", *drawn, class_=f"strip {kind}", aria_hidden="true")


def _ground(scale: Scale) -> Iterable[Markup]:
    if scale.floor:
        left, right = (
            scale.at(min(max(end, scale.low), scale.high)) for end in (-scale.floor, scale.floor)
        )
        width = f"{float(right[:-1]) - float(left[:-1]):.2f}%"
        yield element("rect", class_="floor", x=left, y=0, width=width, height="100%")
    zero = scale.at(0)
    yield element("line", class_="zero", x1=zero, x2=zero, y1=0, y2="100%")


def _estimate(scale: Scale, value: float, interval: Sequence[float]) -> Iterable[Markup]:
    low, high = interval
    left, right = scale.at(max(low, scale.low)), scale.at(min(high, scale.high))
    yield element("line", class_="interval", x1=left, x2=right, y1="50%", y2="50%")
    yield _end(left, "M5 -4L0 0L5 4" if low < scale.low else "M0 -4V4")
    yield _end(right, "M-5 -4L0 0L-5 4" if high > scale.high else "M0 -4V4")
    yield element("circle", cx=scale.at(value), cy="50%", r=4.5)


def _end(x: str, path: str) -> Markup:
    """The end of an interval: a bar, or an arrow where it goes on beyond the scale."""
    drawn = element("path", class_="interval", d=path)
    return element("svg", drawn, x=x, y="50%", overflow="visible")
