"""Numbers of the JSON document, formatted for the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

Place = tuple[str | int, ...]
"""The location of a value in the document, such as `("groups", 1, "loss")`."""

Format = Callable[[Any], str]


@dataclasses.dataclass(frozen=True)
class ShownNumber:
    """A number, rounded for readers.

    Attributes:
        exact: The unrounded number as text.
        pointer: Its location in the document as a JSON pointer.
    """

    text: str
    exact: str
    pointer: str


class DocumentNumbers:
    """Reads numbers of a JSON document by location."""

    def __init__(self, document: Mapping[str, Any]):
        self._document = document

    def at(self, *place: str | int) -> Any:
        """The value at a location; None if it or one of its parents is null."""
        found: Any = self._document
        for step in place:
            found = None if found is None else found[step]
        return found

    def show(self, format: Format, *place: str | int) -> ShownNumber | None:
        """The number at a location; None if there is none."""
        value = self.at(*place)
        if value is None:
            return None
        pointer = "".join(f"/{step}" for step in place)
        return ShownNumber(typeset(format(value)), repr(value), pointer)

    def interval(
        self, format: Format, *place: str | int
    ) -> tuple[ShownNumber | None, ShownNumber | None] | None:
        """The ends of the interval at a location; None if there is none."""
        if self.at(*place) is None:
            return None
        return self.show(format, *place, 0), self.show(format, *place, 1)


def typeset(number: str) -> str:
    """A number with a minus sign instead of a hyphen."""
    return number.replace("-", "\N{MINUS SIGN}")
