"""Typed, documented config fields: declared once, then checked, parsed and described from there.

A config is a frozen dataclass whose fields are made by `option`. Everything that a user meets
(`--help`, error messages, the parsing of flags) is derived from those declarations.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing wrong with a config: the keys it concerns, and a sentence that names the fix."""

    keys: tuple[str, ...]
    message: str


class ConfigError(ValueError):
    """Every problem found in a config, raised once."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        lines = [problem.message for problem in self.problems]
        head = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        super().__init__(f"{head} in the configuration:\n" + "\n".join(f"  - {x}" for x in lines))


def option(
    default: Any,
    help: str,
    *,
    choices: Iterable[Any] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    **extra: Any,
) -> Any:
    """A dataclass field with one line of help and the values it takes.

    Args:
        default: The value where nothing else says otherwise.
        help: One line, with units.
        choices: Names it may take; any iterable, read anew at each check (a registry may grow).
        at_least, above, at_most, below: Bounds of a number, inclusive or not.
        extra: Further metadata for the dataclass's own use.
    """
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    metadata = {"help": help, "choices": choices, "bounds": bounds, **extra}
    return dataclasses.field(default=default, metadata=metadata)


def type_of(config_class: type, key: str) -> Any:
    """The annotation of a field, resolved."""
    return typing.get_type_hints(config_class)[key]


def type_name(annotation: Any) -> str:
    """An annotation as a user reads it: `int`, `int or none`."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return " or ".join(type_name(arg) for arg in typing.get_args(annotation))
    return "none" if annotation is types.NoneType else annotation.__name__


def convert(value: Any, annotation: Any) -> Any:
    """`value` as the annotated type; ValueError where it is another.

    An int is taken where a float is meant; a bool is never taken for a number.
    """
    members = typing.get_args(annotation) or (annotation,)
    for member in members:
        if isinstance(value, bool) and member is not bool:
            continue
        if isinstance(value, member):
            return value
        if member is float and isinstance(value, int):
            return float(value)
    raise ValueError(f"takes {type_name(annotation)}, not {value!r} ({type(value).__name__})")


def parse(text: str, annotation: Any) -> Any:
    """The value that a command-line text stands for, by the field's type.

    Raises ValueError where the text is of another type.
    """
    members = typing.get_args(annotation) or (annotation,)
    if types.NoneType in members and text.lower() == "none":
        return None
    if bool in members and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if str in members and float not in members and int not in members:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    return convert(value, annotation)


def nearest(name: str, choices: Iterable[Any]) -> str:
    """`; did you mean 'x'?` for the choice nearest to `name`, else a full stop."""
    names = [str(choice) for choice in choices]
    matches = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else "."


def unknown_name(kind: str, name: str, choices: Iterable[Any]) -> str:
    """The message for a name that is none of the choices: the nearest, then all."""
    names = [str(choice) for choice in choices]
    return f"unknown {kind} {name!r}{nearest(name, names)} Choices: {', '.join(names)}."


def _bound_message(value: float, bounds: dict[str, float | None]) -> str | None:
    if not math.isfinite(value):
        return "must be finite"
    tests = (
        ("at_least", lambda bound: value >= bound, "at least"),
        ("above", lambda bound: value > bound, "above"),
        ("at_most", lambda bound: value <= bound, "at most"),
        ("below", lambda bound: value < bound, "below"),
    )
    for name, holds, words in tests:
        bound = bounds[name]
        if bound is not None and not holds(bound):
            return f"must be {words} {bound:g}"
    return None


def field_problem(field: dataclasses.Field, annotation: Any, value: Any) -> Problem | None:
    """What is wrong with one value by itself (type, choices, bounds), or None."""
    key = field.name
    try:
        value = convert(value, annotation)
    except ValueError as error:
        return Problem((key,), f"{key} {error}")
    choices = field.metadata["choices"]
    if choices is not None and value is not None and value not in list(choices):
        return Problem((key,), unknown_name(key, value, choices))
    if isinstance(value, int | float) and not isinstance(value, bool):
        message = _bound_message(value, field.metadata["bounds"])
        if message:
            return Problem((key,), f"{key}={value} {message}.")
    return None


def field_problems(config: Any) -> list[Problem]:
    """What is wrong with each field of a config dataclass by itself, in field order."""
    hints = typing.get_type_hints(type(config))
    found = (
        field_problem(field, hints[field.name], getattr(config, field.name))
        for field in dataclasses.fields(config)
    )
    return [problem for problem in found if problem]


def convert_fields(config: Any) -> None:
    """Turn ints into floats where the field is a float; for a config whose fields are sound."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = convert(getattr(config, field.name), hints[field.name])
        object.__setattr__(config, field.name, value)
