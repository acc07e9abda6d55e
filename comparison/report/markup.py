"""HTML from Python, in which text that is not markup can only be text."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

_VOID = {"input", "br", "col"}


class Markup(str):
    """Text that is HTML already; any other is escaped where it becomes part of some."""

    __slots__ = ()


def escaped(text: str) -> Markup:
    return text if isinstance(text, Markup) else Markup(html.escape(text))


def joined(children: Iterable[str | None], between: str = "") -> Markup:
    """Children one after another, those that are no Markup escaped, None left out."""
    return Markup(between.join(escaped(child) for child in children if child is not None))


def element(name: str, *children: str | None, **attributes: Any) -> Markup:
    """`<name attributes>children</name>`.

    Args:
        children: Text, escaped, or Markup; None is left out.
        attributes: `class_` becomes `class` and `data_at` `data-at`. True gives the bare
            attribute, None and False none.
    """
    told = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{told}>")
    return Markup(f"<{name}{told}>{joined(children)}</{name}>")


def _attribute(key: str, value: Any) -> str:
    name = key.removesuffix("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'


def json_script(identity: str, value: Any) -> Markup:
    """JSON in an element that is never run; `<` is written so that nothing in it ends that."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return element("script", Markup(text), type="application/json", id=identity)


def sentences(texts: Sequence[str]) -> Markup | None:
    """A list of sentences; None where there are none."""
    items = [element("li", text) for text in texts]
    return element("ul", *items, class_="sentences") if items else None


class Figures:
    """The numbers of a JSON document: each is shown rounded, with its exact value and its place."""

    def __init__(self, document: Mapping[str, Any]):
        self._document = document

    def at(self, *place: str | int) -> Any:
        """What the document has at a place, such as `"groups", 1, "loss"`; None where some part of
        the way there is null."""
        found: Any = self._document
        for step in place:
            found = None if found is None else found[step]
        return found

    def show(self, format: Callable[[Any], str], *place: str | int) -> Markup:
        """The number at a place as a reader sees it; a dash where there is none."""
        value = self.at(*place)
        if value is None:
            return element("span", "–", class_="none")
        pointer = "".join(f"/{step}" for step in place)
        return element("data", typeset(format(value)), value=repr(value), data_at=pointer)

    def interval(self, format: Callable[[Any], str], *place: str | int) -> Markup:
        """`low to high`; a dash where there is none."""
        if self.at(*place) is None:
            return self.show(format, *place)
        low, high = (self.show(format, *place, end) for end in (0, 1))
        return joined([low, " to ", high])


def typeset(number: str) -> str:
    """A number with the minus sign of print in place of the hyphen."""
    return number.replace("-", "−")
