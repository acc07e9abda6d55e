"""Typed, documented config fields: declared once, then checked, parsed and described from there.

A config is a frozen dataclass whose fields are made by `option`. Everything that a user meets
(`--help`, error messages, the parsing of flags) is derived from those declarations. A one-line
comment between an empty line and a field is the heading of the fields that follow: see `groups`.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import operator
import re
import types
import typing
from collections.abc import Iterable
from typing import Any

from errors import Problem, UserError, is_unprintable, listed, quoted, unknown_name

LARGEST_INT = 2**63 - 1
"""What an int may be at most: what fits the int64 that torch and NumPy count with."""

LONGEST_NUMBER = 1000
"""Characters of a text that may be a number; longer ones are not parsed."""

_BOUNDS = {
    "at_least": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "at_most": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}


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


def field_types(config_class: type) -> dict[str, Any]:
    """The annotation of each field, resolved, in field order."""
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}


def groups(config_class: type) -> dict[str, list[dataclasses.Field]]:
    """The fields under the headings that the class's source gives them, in order."""
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    found: dict[str, list[dataclasses.Field]] = {}
    heading = config_class.__name__
    lines = inspect.getsource(config_class).splitlines()
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        field = re.match(r"    (\w+): .*= option\(", after)
        if field:
            if line.startswith("    # ") and not before.strip():
                heading = line.removeprefix("    # ")
            found.setdefault(heading, []).append(fields[field[1]])
    return found


def type_of(config_class: type, key: str) -> Any:
    """The annotation of one field, resolved."""
    return field_types(config_class)[key]


def _members(annotation: Any) -> tuple[Any, ...]:
    """The types that an annotation admits: `(int, NoneType)` for `int | None`."""
    return typing.get_args(annotation) or (annotation,)


def type_name(annotation: Any) -> str:
    """An annotation as a user reads it: `int`, `int or none`, `True or False`."""
    names = {types.NoneType: "none", bool: "True or False"}
    return " or ".join(names.get(member, member.__name__) for member in _members(annotation))


def convert(value: Any, annotation: Any) -> Any:
    """`value` as exactly the annotated type, be it of a subclass such as np.float64.

    An int is taken where a float is meant; a bool is never taken for a number.

    Raises:
        UserError: `value` is of another type, or an int too large for a float.
    """
    for member in _members(annotation):
        if isinstance(value, bool) and member is not bool:
            continue
        if isinstance(value, member):
            return value if type(value) is member else member(value)
        if member is float and isinstance(value, int):
            try:
                return float(value)
            except OverflowError:
                raise UserError(f"takes float, and {quoted(value)} is too large for one") from None
    kind = type(value).__name__
    raise UserError(f"takes {type_name(annotation)}, not {quoted(value)} ({kind})")


def parse(text: str, annotation: Any) -> Any:
    """The value that a command-line text stands for, by the field's type.

    Text that stands for no value of the type comes back as what it does stand for, for
    `field_problem` to refuse.
    """
    members = _members(annotation)
    if types.NoneType in members and text.lower() == "none":
        return None
    if bool in members and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if str in members and not {int, float}.intersection(members):
        return text
    if len(text) > LONGEST_NUMBER:
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # e.g. of many minus signs
        return text


def _bound_message(value: float, bounds: dict[str, float | None]) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return "must be finite"
    for name, bound in bounds.items():
        holds, words = _BOUNDS[name]
        if bound is not None and not holds(value, bound):
            return f"must be {words} {bound}"
    if isinstance(value, int) and abs(value) > LARGEST_INT:
        return f"must be at most {LARGEST_INT}"
    return None


def field_problem(field: dataclasses.Field, annotation: Any, value: Any) -> Problem | None:
    """What is wrong with one value by itself (type, choices, bounds), or None."""
    key, choices = field.name, field.metadata["choices"]
    try:
        value = convert(value, annotation)
    except UserError as error:
        hint = "" if choices is None else f" {listed(choices)}"
        return Problem((key,), f"{key} {error}.{hint}")
    if choices is not None and value is not None and value not in list(choices):
        return Problem((key,), unknown_name(key, value, choices))
    if isinstance(value, str) and any(map(is_unprintable, value)):
        return Problem((key,), f"{key}={quoted(value)} has characters that cannot be printed.")
    if isinstance(value, int | float) and not isinstance(value, bool):
        message = _bound_message(value, field.metadata["bounds"])
        if message:
            return Problem((key,), f"{key}={quoted(value)} {message}.")
    return None


def field_problems(config: Any) -> list[Problem]:
    """What is wrong with each field of a config dataclass by itself, in field order."""
    annotations = field_types(type(config))
    found = (
        field_problem(field, annotations[field.name], getattr(config, field.name))
        for field in dataclasses.fields(config)
    )
    return [problem for problem in found if problem]


def convert_fields(config: Any) -> None:
    """Turn ints into floats where the field is a float; for a config whose fields are sound."""
    for key, annotation in field_types(type(config)).items():
        object.__setattr__(config, key, convert(getattr(config, key), annotation))
