"""Safe reading of untrusted files: check them against a declared schema, and escape text.

A schema is declared once, by combining checks; values that pass need no further validation.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from errors import UserError, printable

LARGEST_FILE = 1_000_000_000
"""Maximum size in bytes. A log of a million evaluations is smaller."""

LARGEST, SMALLEST = 1e36, 1e-30
"""Allowed magnitudes of nonzero numbers; squares and quotients of two cannot overflow a float."""

LONGEST_NAME, LONGEST_TEXT = 1_000, 100_000  # characters
DEEPEST = 8  # nesting of lists and objects

Check = Callable[[Any], Sequence[str]]
"""Returns the problems of a value with their locations, such as `.eval_steps[3].val_loss is 'x',
not a number`; empty if it is valid."""

_FINE: Sequence[str] = ()


# Checks


def number(low: float = -LARGEST, high: float = LARGEST, *, whole: bool = False) -> Check:
    """A finite number from `low` to `high`, no closer to 0 than SMALLEST unless it is 0."""
    kinds = (int,) if whole else (int, float)
    wanted = f"a {'whole ' * whole}number from {low:g} to {high:g}"

    def check(value: Any) -> Sequence[str]:
        good = type(value) in kinds and low <= value <= high
        if good and (value == 0 or abs(value) >= SMALLEST):
            return _FINE
        return (f" is {told(value)}, not {wanted}",)

    return check


def between(low: float, high: float) -> Check:
    """A finite number above `low` and below `high`."""
    inside = number(low, high)

    def check(value: Any) -> Sequence[str]:
        if not inside(value) and low < value < high:
            return _FINE
        return (f" is {told(value)}, not a number between {low:g} and {high:g}",)

    return check


def text(longest: int = LONGEST_TEXT) -> Check:
    """Text of at most this many characters."""

    def check(value: Any) -> Sequence[str]:
        if not isinstance(value, str):
            return (f" is {told(value)}, not text",)
        if len(value) > longest:
            return (f" has {len(value):,} characters; at most {longest:,} are allowed",)
        return _FINE

    return check


def spelled(check: Check) -> Check:
    """Text that contains a number that passes a check."""

    def check_number(value: Any) -> Sequence[str]:
        if not isinstance(value, str):
            return (f" is {told(value)}, not text",)
        try:
            return check(float(value))
        except ValueError:
            return (f" is {told(value)}, not a number",)

    return check_number


def flag(value: Any) -> Sequence[str]:
    """True or false."""
    return _FINE if isinstance(value, bool) else (f" is {told(value)}, not true or false",)


def nullable(check: Check) -> Check:
    """Null, or a value that passes another check."""
    return lambda value: _FINE if value is None else check(value)


def scalar(value: Any) -> Sequence[str]:
    """Null, true, false, a number or text, which can be a dict key."""
    if value is None or isinstance(value, bool):
        return _FINE
    if isinstance(value, list | dict):
        return (f" is {told(value)}, not a single value",)
    return _text(value) if isinstance(value, str) else _finite(value)


def plain(value: Any, deepest: int = DEEPEST) -> Sequence[str]:
    """Any JSON value with finite numbers and at most this many levels of nesting."""
    if not isinstance(value, list | dict):
        return scalar(value)
    if not deepest:
        return (f" is nested more than {DEEPEST} levels deep",)
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        problems = plain(item, deepest - 1)
        if problems:
            return [_placed(key, problem) for problem in problems]
    return _FINE


def list_of(check: Check, *, most: int, fewest: int = 0) -> Check:
    """A list of `fewest` to `most` items that all pass a check; reports the first that does not."""

    def check_all(value: Any) -> Sequence[str]:
        if not isinstance(value, list):
            return (f" is {told(value)}, not a list",)
        if not fewest <= len(value) <= most:
            return (f" has {len(value):,} items, not {fewest:,} to {most:,}",)
        for index, item in enumerate(value):
            problems = check(item)
            if problems:
                return [_placed(index, problem) for problem in problems]
        return _FINE

    return check_all


def record(
    required: Mapping[str, Check],
    optional: Mapping[str, Check] | None = None,
    others: Check | None = None,
) -> Check:
    """An object.

    Args:
        required: Required keys, with the check of each value.
        optional: Optional keys, with the check of each value.
        others: The check of all other values; None: they are not used, so anything is allowed.
    """
    known = {**required, **(optional or {})}

    def check(value: Any) -> Sequence[str]:
        if not isinstance(value, dict):
            return (f" is {told(value)}, not an object",)
        problems = [f".{key} is missing" for key in required if key not in value]
        for key in value if others else known:
            if key in value:
                found = known.get(key, others)(value[key])
                problems += [_placed(key, problem) for problem in found] if found else ()
        return problems

    return check


def that(check: Check, holds: Callable[[Any], bool], problem: str) -> Check:
    """A value that passes a check and for which `holds` is true; otherwise it has the problem."""
    return lambda value: check(value) or (_FINE if holds(value) else (problem,))


def _finite(value: float) -> Sequence[str]:
    if isinstance(value, int):
        return number(whole=True)(value)
    return _FINE if math.isfinite(value) else (f" is {value}, not a finite number",)


_text = text()


def _placed(key: str | int, problem: str) -> str:
    return f"[{key}]{problem}" if isinstance(key, int) else f".{key:.40}{problem}"


def told(value: Any) -> str:
    """A value as shown in a message."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    told = repr(value)
    return told if len(told) <= 40 else f"{told[:30]}..."


# Reading


def read_checked(path: Path, read: Callable[[Path], Any], check: Check, what: str) -> Any:
    """Return `read(path)` if it passes a check.

    Args:
        path: A file.
        read: Reads the file; raises ValueError, or any error that JSON of the wrong shape causes.
        check: The schema of the result.
        what: What the file should be, such as `the log of a run`.

    Raises:
        UserError: If the file cannot be read, or is too large, damaged or invalid; the message
            names the path.
    """
    try:
        size = os.stat(path).st_size
        if size > LARGEST_FILE:
            raise UserError(f"{path}: {size:,} bytes; at most {LARGEST_FILE:,} are read.")
        found = read(path)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}).") from error
    problems = check(found)
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        told = "; ".join(problem.lstrip(".").lstrip() for problem in problems[:3])
        raise UserError(f"{path}: not {what} ({told}{more}).")
    return found


# Text


def all_printable(value: Any) -> Any:
    """A checked JSON value with all its texts and keys made `errors.printable`."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [all_printable(item) for item in value]
    if isinstance(value, dict):
        return {printable(key): all_printable(item) for key, item in value.items()}
    return value
