"""Patterns of per-layer values: `a*3+b` repeats over the layers; in `a+b*`, b is used for the rest.

    sliding_window = "128*5+none"          five layers with a window, one without, repeated
    position_encoding = "rope*3+none"
    ffn_type = "swiglu+moe*"               the first layer, and all others
    ffn_hidden = [512, 512, 768]           a Python list, in config files

The length of a pattern, which is the sum of its counts, is checked against `n_layer` before the
pattern is expanded.
"""

from __future__ import annotations

import dataclasses
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, groupby
from typing import Any

from errors import UserError, quoted

MOST_LAYERS_TO_DIFFER = 10_000
"""Maximum number of layers for which patterns are expanded, and of values in a pattern."""

_ELEMENT = re.compile(r"(?P<value>[^*]*)(?P<star>\*\s*(?P<count>[0-9]{0,18}))?")
_PLUS = re.compile(r"\+")
_PLUS_NOT_OF_AN_EXPONENT = re.compile(r"\+(?<![0-9.][eE]\+)")

EXAMPLE = "write a pattern as 'a*3+b' (repeats over the layers) or 'a+b*' (b in all later layers)"


@dataclasses.dataclass(frozen=True)
class Pattern:
    """The values of a key over the layers.

    Attributes:
        runs: Each value with the number of consecutive layers that have it. If the last number is
            None, the value is used for all remaining layers; otherwise the pattern repeats.
    """

    runs: tuple[tuple[Any, int | None], ...]

    @cached_property
    def _ends(self) -> list[int]:
        """The layer after each run; for a rest, which has no end, that of the previous run."""
        return list(accumulate(count or 0 for _, count in self.runs))

    @property
    def length(self) -> int:
        """Number of layers in the pattern, excluding the rest."""
        return self._ends[-1]

    @property
    def repeats(self) -> bool:
        return self.runs[-1][1] is not None

    @property
    def values(self) -> list[Any]:
        """The distinct values, in order."""
        return list({(type(value), value): value for value, _ in self.runs}.values())

    def starts(self) -> Iterator[tuple[int, Any]]:
        """Yield the first layer and the value of each run."""
        return zip([0, *self._ends], (value for value, _ in self.runs), strict=False)

    def at(self, layer: int) -> Any:
        """The value of a layer."""
        place = layer % self.length if self.repeats else layer
        run = bisect_right(self._ends, place)
        return self.runs[min(run, len(self.runs) - 1)][0]

    def mapped(self, change: Callable[[Any], Any]) -> Pattern:
        """The pattern with a function applied to every value."""
        return Pattern(tuple((change(value), count) for value, count in self.runs))

    def cut(self, layers: int) -> Pattern:
        """The pattern cut to the first `layers` layers."""
        if self.length <= layers:
            return self
        kept: list[tuple[Any, int | None]] = []
        for value, count in self.runs:
            if layers <= 0:
                break
            assert count is not None, "a rest comes after more layers than there are"
            kept.append((value, min(count, layers)))
            layers -= count
        return Pattern(tuple(kept))

    def simplified(self) -> Any:
        """The shortest equivalent pattern; a single value if all layers have the same."""
        runs = list(_merged(self.runs))
        if len(runs) == 1:
            return runs[0][0]
        if self.repeats and self.length <= MOST_LAYERS_TO_DIFFER:
            values = [self.at(layer) for layer in range(self.length)]
            period = _shortest_period(values)
            # The pattern repeats as a whole, so the period must divide its length.
            return _in_runs(values if len(values) % period else values[:period])
        return Pattern(tuple(runs))

    def over(self, layers: int) -> Any:
        """The canonical form for `layers` layers, equal for all patterns with the same values: a
        single value if all layers agree, a pattern with a rest if nothing repeats."""
        return with_rest([self.at(layer) for layer in range(layers)])

    def __str__(self) -> str:
        return "+".join(
            spelled(value) + ("*" if count is None else f"*{count}" if count > 1 else "")
            for value, count in self.runs
        )


def repeating(values: Sequence[Any]) -> Any:
    """The pattern that repeats these values; a single value if all agree."""
    return Pattern(tuple((value, 1) for value in values)).simplified()


def by_layer(values: Sequence[Any]) -> Any:
    """The pattern with the shortest period for these values; a single value if all agree."""
    return _in_runs(values[: _shortest_period(values)])


def with_rest(values: Sequence[Any]) -> Any:
    """Like `by_layer`, but with a rest (`a+b*`) if nothing repeats and the last values agree."""
    pattern = by_layer(values)
    if not isinstance(pattern, Pattern) or pattern.length < len(values):
        return pattern
    *runs, (last, count) = pattern.runs
    return Pattern((*runs, (last, None))) if count > 1 else pattern


def _in_runs(values: Sequence[Any]) -> Any:
    """The pattern that lists these values; a single value if all agree."""
    runs = tuple(_merged((value, 1) for value in values))
    return runs[0][0] if len(runs) == 1 else Pattern(runs)


def spelled(value: Any) -> str:
    """A value of a config key as written on the command line."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


def read_pattern(text: str, read: Callable[[str], Any], *, of_numbers: bool) -> Pattern:
    """Parse a pattern.

    Args:
        text: The text, such as `a*3+b`.
        read: Parses a single value.
        of_numbers: Whether values may be numbers with an exponent, whose `+` is not a separator.

    Raises:
        UserError: If the text is not a pattern, or lists too many values.
    """
    plus = _PLUS_NOT_OF_AN_EXPONENT if of_numbers else _PLUS
    refuse_long(1 + sum(1 for _ in plus.finditer(text)))
    runs = []
    for element in plus.split(text):
        found = _ELEMENT.fullmatch(element.strip())
        if found is None or not found["value"].strip():
            raise UserError(
                f"contains {quoted(element)}, which is not value or value*count; {EXAMPLE}."
            )
        count = 1 if found["star"] is None else int(found["count"]) if found["count"] else None
        if count == 0:
            raise UserError(f"assigns {quoted(element)} to no layer; remove it.")
        runs.append((read(found["value"].strip()), count))
    if any(count is None for _, count in runs[:-1]):
        raise UserError(f"uses '*' without a count before its last value; {EXAMPLE}.")
    return Pattern(tuple(runs))


def refuse_long(values: int) -> None:
    """Raise UserError if a pattern lists more than MOST_LAYERS_TO_DIFFER values."""
    if values > MOST_LAYERS_TO_DIFFER:
        raise UserError(
            f"lists {values:,} values, but a pattern covers at most {MOST_LAYERS_TO_DIFFER:,} "
            "layers; shorten it."
        )


def _merged(runs: Iterable[tuple[Any, int | None]]) -> Iterator[tuple[Any, int | None]]:
    """Merge adjacent runs with the same value."""
    for _, same in groupby(runs, key=lambda run: (type(run[0]), run[0])):
        values, counts = zip(*same, strict=True)
        yield values[0], None if None in counts else sum(counts)


def _shortest_period(values: Sequence[Any]) -> int:
    """The shortest period of the values; the last repetition may be incomplete.

    Uses the longest prefix that is also a suffix (Knuth, Morris and Pratt 1977), in linear time.
    """
    borders = [0]
    for value in values[1:]:
        border = borders[-1]
        while border and not _same(value, values[border]):
            border = borders[border - 1]
        borders.append(border + _same(value, values[border]))
    return len(values) - borders[-1]


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other
