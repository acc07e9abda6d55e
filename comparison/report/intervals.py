"""The geometry of forest plots: differences with their intervals on a common scale, with a strip
for each row of a table. Positions are percentages of the strip's width, such as `50.00%`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import ClassVar

from comparison.figures import Difference
from comparison.report.document_numbers import typeset

_MARGIN = 4.0  # percent of the width on either side, so that ends are not clipped
_REACH = 3.0  # intervals are drawn up to this multiple of the largest difference or noise


_TICKS = 3.5  # maximum number of tick intervals; the narrowest strip has room for four numbers
_LEAST_SIDE = 1 / 3  # minimum width of the shorter side relative to the longer, for its label
_WIDE = 4.0  # ratio of factors above which ticks are those of a logarithmic scale


@dataclasses.dataclass(frozen=True)
class Scale:
    """The range of a strip from left to right, in nats per token.

    Attributes:
        floor: The noise floor, shaded on both sides of zero; None if unknown.
        sides: The labels of the left and right sides of zero.
    """

    low: float
    high: float
    floor: float | None
    sides: ClassVar[tuple[str, str]] = ("← better", "worse →")

    def at(self, value: float) -> str:
        """The position of a value, clipped to the scale."""
        return f"{self._percent(value):.2f}%"

    def width(self, low: float, high: float) -> str:
        """The width of the range from `low` to `high`, clipped to the scale."""
        left, right = (round(self._percent(end), 2) for end in (low, high))
        return f"{right - left:.2f}%"

    def _percent(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return _MARGIN + (100 - 2 * _MARGIN) * share

    def ticks(self) -> list[float]:
        """Zero and round numbers on both sides."""
        step = round_step((self.high - self.low) / _TICKS)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [k * step for k in range(first, last + 1)]

    def tick_labels(self) -> list[tuple[str, str]]:
        """The position and label of each tick."""
        ticks = self.ticks()
        decimals = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9)) if ticks[1:] else 0
        return [
            (self.at(tick), typeset(f"{tick:+.{decimals}f}") if tick else "0") for tick in ticks
        ]


@dataclasses.dataclass(frozen=True)
class FactorScale(Scale):
    """The range of a strip of factors, in natural logarithms."""

    sides: ClassVar[tuple[str, str]] = ("← needs more", "needs less →")

    def tick_labels(self) -> list[tuple[str, str]]:
        """The position and label of each tick: `1x` and round factors on both sides."""
        return [(self.at(math.log(factor)), f"{factor:.3g}x") for factor in self._factors()]

    def _factors(self) -> list[float]:
        least, most = math.exp(self.low), math.exp(self.high)
        if most < _WIDE * least:
            step = round_step((most - least) / _TICKS)
            return [k * step for k in range(math.ceil(least / step), math.floor(most / step) + 1)]
        decades = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
        powers = [(decade, factor) for decade in decades for factor in (1, 2, 5)]
        inside = [p for p in powers if least <= p[1] * 10.0 ** p[0] <= most]
        every = math.ceil(len(inside) / (_TICKS + 0.5))
        if every > 1:
            every = 3 * math.ceil(every / 3)  # whole decades
        first = inside.index((0, 1)) % every
        return [factor * 10.0**decade for decade, factor in inside[first::every]]


def scale_of(
    differences: Iterable[Difference | None],
    floor: float | None = None,
    kind: type[Scale] = Scale,
) -> Scale | None:
    """The scale of a plot of differences; None if none of them is known.

    It includes zero and all differences, and intervals unless they are much longer than these:
    otherwise a single arm with two seeds would make the others unreadable. Intervals may be
    infinite.
    """
    known = [found for found in differences if found]
    if not known:
        return None
    halves = sorted(half for found in known if math.isfinite(half := found.high - found.low))
    usual = halves[(len(halves) - 1) // 2] / 2 if halves else 0.0
    size = max(*(abs(found.value) for found in known), floor or 0.0, usual) or 1.0
    low = min(0.0, -(floor or 0.0), *(found.low for found in known))
    high = max(0.0, floor or 0.0, *(found.high for found in known))
    if low == high:  # nothing differs from zero
        return kind(-size, size, floor)
    low, high = max(low, -_REACH * size), min(high, _REACH * size)
    return kind(min(low, -_LEAST_SIDE * high), max(high, -_LEAST_SIDE * low), floor)


def round_step(least: float) -> float:
    """The smallest number of the form 1, 2 or 5 times a power of ten that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


@dataclasses.dataclass(frozen=True)
class Mark:
    """A difference and its interval on a strip.

    Attributes:
        goes_on: Whether the interval extends beyond the left and the right end of the scale.
        dots: The differences of single seeds.
    """

    left: str
    at: str
    right: str
    goes_on: tuple[bool, bool]
    verdict: str
    dots: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Strip:
    """A row of a forest plot.

    Attributes:
        hue: The CSS class that colors its mark; empty: according to the verdict.
        zero: The position of zero.
        floor: The left end and the width of the noise floor; None if unknown.
        mark: The mark; None if there is no difference to draw.
    """

    zero: str
    floor: tuple[str, str] | None
    mark: Mark | None
    hue: str = ""


def strips(
    differences: Sequence[Difference | None], scale: Scale, hues: Sequence[str] = ()
) -> list[Strip]:
    """The strips of differences, in these colors or according to their verdicts."""
    floor = scale.floor
    shaded = (scale.at(-floor), scale.width(-floor, floor)) if floor else None
    return [
        Strip(scale.at(0), shaded, found and _mark(found, scale), hues[i] if hues else "")
        for i, found in enumerate(differences)
    ]


def _mark(found: Difference, scale: Scale) -> Mark:
    return Mark(
        left=scale.at(found.low),
        at=scale.at(found.value),
        right=scale.at(found.high),
        goes_on=(found.low < scale.low, found.high > scale.high),
        verdict=found.verdict,
        dots=tuple(map(scale.at, found.seeds)),
    )
