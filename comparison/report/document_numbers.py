"""The numbers of the JSON document as the page shows them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

Place = tuple[str | int, ...]
"""Where a value stands in the document: `("groups", 1, "loss")`."""

Format = Callable[[Any], str]


@dataclasses.dataclass(frozen=True)
class ShownNumber:
    """A number, rounded for readers.

    Attributes:
        exact: As Python writes it, unrounded.
        pointer: Its place in the document, a JSON pointer.
    """

    text: str
    exact: str
    pointer: str


class DocumentNumbers:
    """Reads numbers of a JSON document by their places."""

    def __init__(self, document: Mapping[str, Any]):
        self._document = document

    def at(self, *place: str | int) -> Any:
        """What the document has at a place; None where some part of the way there is null."""
        found: Any = self._document
        for step in place:
            found = None if found is None else found[step]
        return found

    def show(self, format: Format, *place: str | int) -> ShownNumber | None:
        """The number at a place; None where there is none."""
        value = self.at(*place)
        if value is None:
            return None
        pointer = "".join(f"/{step}" for step in place)
        return ShownNumber(typeset(format(value)), repr(value), pointer)

    def interval(
        self, format: Format, *place: str | int
    ) -> tuple[ShownNumber | None, ShownNumber | None] | None:
        """The ends of the interval at a place; None where there is none."""
        if self.at(*place) is None:
            return None
        return self.show(format, *place, 0), self.show(format, *place, 1)


def typeset(number: str) -> str:
    """A number with the minus sign of print in place of the hyphen."""
    return number.replace("-", "\N{MINUS SIGN}")
