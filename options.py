"""Config keys, declared once with `option`.

An options class has annotated attributes created by `option`, such as the nested class `Options` of
a component, which owns these keys:

    class Options:
        rope_theta: float = option(10000.0, "base of the wavelengths", above=1, tag="Theta{}")

Everything else (`--help`, flags, error messages, sweeps, names, logs) is derived from these
declarations, which are collected in `KEYS`.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import math
import operator
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from errors import (
    Problem,
    UserError,
    error_note,
    is_unprintable,
    listed,
    nearest,
    quoted,
    unknown_name,
)
from patterns import Pattern, read_pattern, refuse_long

LARGEST_INT = 2**63 - 1
"""Maximum value of an int: the largest int64, which torch and NumPy use."""

LONGEST_NUMBER = 1000
"""Texts with more characters are not parsed as numbers."""

SPELLED_BY_KEY = "spelled by its key"
"""The default tag of an option: `my_option=3` becomes MyOption3."""

_TYPES = {int, float, str, bool, types.NoneType}
"""Types of key values: those that flags, JSON and names can represent."""

_BOUNDS = {
    "at_least": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "at_most": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}


class Role(enum.StrEnum):
    """The role of a key, which determines how runs are grouped, resumed, swept and compared."""

    ARCHITECTURE = "architecture"
    """What the model computes; distinguishes arms. Fixed for a run."""
    RECIPE = "recipe"
    """How the model is trained; equal in compared runs unless it is what they study."""
    LENGTH = "length"
    """How long the model is trained, and parts of the schedule in steps."""
    DATA = "data"
    """Training and validation data, batch by batch. Fixed for a run."""
    SEED = "seed"
    """Random seeds; runs that differ only in these are repetitions. Fixed for a run."""
    BOOKKEEPING = "bookkeeping"
    """Where a run is stored and how it is monitored."""
    EXECUTION = "execution"
    """How the model is computed; must not change the mathematics."""


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    choices: Iterable[Any] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    per_layer: bool = False,
    derive: Callable[[Any], Any] | None = None,
    tag: Any = SPELLED_BY_KEY,
    plain: Any = None,
    saved: Callable[[Any], Any] | None = None,
    several: bool = False,
    role: Role | None = None,
    section: str | None = None,
    varies: bool | None = None,
    fixed: bool | None = None,
    restored: bool = True,
    names: str | None = None,
) -> Any:
    """Declare a config key, as an attribute of an options class.

    Args:
        default: Default value; required.
        help: One-line description with units; required.
        choices: Allowed values. Any iterable; it is read at every check, so a registry may grow.
        at_least, above, at_most, below: Bounds of a number; `at_least` and `at_most` are inclusive.
        per_layer: Whether the key may differ between layers and takes a pattern; see `patterns`.
        derive: Function of a layer's config that computes the value if it is None.
        tag: How an architecture's name shows a value: a format such as "Theta{}", the words for
            False and True, or a dict of words. None: not shown, for values that other keys imply.
        plain: The value that the name omits, or a function of a layer's config that returns it.
            None: the default or derived value.
        saved: Function of a layer's config that returns the value for saved configs, if several
            values give the same architecture. None: the value itself.
        role: Role of the key. None: the role of the declaring class.
        section: Heading in `--help`. None: that of the declaring class.
        several: Whether a value may list several choices, separated by commas.
        varies: Whether the arms of a sweep may differ in the key. None: determined by the role.
        fixed: Whether a resumed run must keep the value. None: determined by the role.
        restored: Whether a resumed run gets the saved value.
        names: What a value can name besides files, for shell completion: `dataset`.

    Raises:
        UserError: If the default or the help is missing.
    """
    if default is dataclasses.MISSING or not isinstance(help, str) or not help.strip():
        said = "" if default is dataclasses.MISSING else quoted(default)
        raise UserError(
            f"option({said}) needs a default and a line of help text, for example "
            'width: int = option(3, "width of the window, in tokens", at_least=1).'
        )
    metadata = {
        "help": help,
        "choices": choices,
        "bounds": {"at_least": at_least, "above": above, "at_most": at_most, "below": below},
        "per_layer": per_layer,
        "derive": derive,
        "tag": tag,
        "plain": plain,
        "saved": saved,
        "several": several,
        "role": role,
        "section": section,
        "varies": varies,
        "fixed": fixed,
        "restored": restored,
        "names": names,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading in `--help`, and the default role of its keys."""

    title: str
    role: Role

    def option(self, default: Any, help: str, **rest: Any) -> Any:
        """An option of this section; see `option`."""
        return option(default, help, **{"role": self.role, "section": self.title, **rest})


# Keys


@dataclasses.dataclass(frozen=True)
class Key:
    """A declared key; see `option` for the meaning of its attributes.

    Attributes:
        owner: The component that it belongs to, such as `position_encoding=rope`; empty for keys
            that every run has.
    """

    name: str
    annotation: Any
    default: Any
    role: Role
    section: str
    owner: str
    metadata: Mapping[str, Any]

    @property
    def help(self) -> str:
        return self.metadata["help"]

    @property
    def choices(self) -> Iterable[Any] | None:
        return self.metadata["choices"]

    def named(self, value: Any) -> list[Any]:
        """The choices in a value: the value itself, or several separated by commas."""
        if not self.metadata["several"]:
            return [value]
        return [name for name in map(str.strip, value.split(",")) if name]

    @property
    def boolean(self) -> bool:
        """Whether the key can be True."""
        return bool in _members(self.annotation)

    @property
    def takes_text(self) -> bool:
        """Whether the value can be any text."""
        return str in _members(self.annotation) and not self.boolean and self.choices is None

    @property
    def takes_none(self) -> bool:
        """Whether the key can be None."""
        return types.NoneType in _members(self.annotation)

    @property
    def per_layer(self) -> bool:
        return self.metadata["per_layer"]

    @property
    def derive(self) -> Callable[[Any], Any] | None:
        return self.metadata["derive"]

    @property
    def title(self) -> str:
        """How messages about the declaration refer to the key."""
        return f"the option {self.name!r} of {self.owner or 'every run'}"

    def derived(self, config: Any) -> Any:
        """The value derived from a layer's config. Errors in `derive` get a note with the
        option."""
        with error_note(f"`derive` of {self.title} failed."):
            return self.derive(config)

    def plain(self, config: Any) -> Any:
        """The value that an architecture's name omits, given a layer's config."""
        plain = self.metadata["plain"]
        if callable(plain):
            with error_note(f"`plain` of {self.title} failed."):
                return plain(config)
        if plain is None and self.default is None and self.derive is not None:
            return self.derived(config)
        return self.default if plain is None else plain

    def saved(self, config: Any) -> Any:
        """The value for saved configs, given a layer's config."""
        with error_note(f"`saved` of {self.title} failed."):
            return self.metadata["saved"](config)

    def declares_as(self, other: Key) -> bool:
        """Whether two keys with the same name have the same declaration."""
        compared = ("help", "choices", "bounds", "per_layer", "tag")
        return (self.annotation, self.default, self.role) == (
            other.annotation,
            other.default,
            other.role,
        ) and all(self.metadata[name] == other.metadata[name] for name in compared)

    # Values

    def parse(self, text: str) -> Any:
        """Parse a value or pattern from the command line.

        Text of another type is returned as what it parses to, for `problem` to refuse.
        """
        return text if self._spells_pattern(text) else parse(text, self.annotation)

    def read(self, value: Any) -> Any:
        """Interpret a value from a file or a flag: pattern texts and lists become a `Pattern`.

        Raises:
            UserError: If it is not a valid pattern, or lists too many values.
        """
        if not self.per_layer:
            return value
        if isinstance(value, list | tuple):
            pattern = self._listed(value)
        elif self._spells_pattern(value):
            pattern = read_pattern(
                value, lambda text: parse(text, self.annotation), of_numbers=self._takes_numbers
            )
        else:
            return value
        return pattern if pattern.length > 1 or not pattern.repeats else pattern.runs[0][0]

    def _listed(self, values: Sequence[Any]) -> Pattern:
        """The pattern for a list, equal to that for the text with its values joined by `+`."""
        if not values:
            raise UserError("is an empty list; list at least one value.")
        refuse_long(len(values))
        for item in values:
            if isinstance(item, str) and not self._survives_saving(item):
                raise UserError(
                    f"lists {quoted(item)}, which would be read back as a different value from a "
                    "saved pattern; choose another value."
                )
        return Pattern(tuple((value, 1) for value in values))

    def _survives_saving(self, item: str) -> bool:
        """Whether an item of a list is unchanged when read back from the text of the pattern."""
        plain = not set("+*") & set(item) and item == item.strip() != ""
        return plain and parse(item, self.annotation) == item

    def _spells_pattern(self, value: Any) -> bool:
        return self.per_layer and isinstance(value, str) and bool({"+", "*"}.intersection(value))

    @property
    def _takes_numbers(self) -> bool:
        return float in _members(self.annotation)

    def problem(self, value: Any) -> Problem | None:
        """Check a value by itself (type, choices, bounds); returns the problem, or None.

        The values of a pattern are checked in order, up to the first invalid one.
        """
        try:
            meant = self.read(value)
        except UserError as error:
            return Problem((self.name,), f"{self.name}={quoted(value)} {error}")
        if not isinstance(meant, Pattern):
            return self._problem_of_one(meant)
        for layer, one in meant.starts():
            problem = self._problem_of_one(one)
            if problem:
                where = f"{self.name}={quoted(value)}, layer {layer}"
                return Problem(problem.keys, f"{where}: {problem.message}")
        return None

    def _problem_of_one(self, value: Any) -> Problem | None:
        try:
            value = convert(value, self.annotation)
        except UserError as error:
            hint = "" if self.choices is None else f" {listed(self.choices)}"
            return Problem((self.name,), f"{self.name} {error}.{hint}")
        for one in () if self.choices is None or value is None else self.named(value):
            if one not in list(self.choices):
                return Problem((self.name,), unknown_name(self.name, one, self.choices))
        if isinstance(value, str) and any(map(is_unprintable, value)):
            message = f"{self.name}={quoted(value)} contains unprintable characters."
            return Problem((self.name,), message)
        if isinstance(value, int | float) and not isinstance(value, bool):
            message = _bound_message(value, self.metadata["bounds"])
            if message:
                return Problem((self.name,), f"{self.name}={quoted(value)} {message}.")
        return None

    def converted(self, value: Any) -> Any:
        """Convert a valid value to exactly the key's type; for float keys, ints become floats."""
        meant = self.read(value)
        if isinstance(meant, Pattern):
            return meant.mapped(lambda one: convert(one, self.annotation))
        return convert(meant, self.annotation)


def keys_of(
    declaring: type, *, owner: str = "", role: Role | None = None, section: str | None = None
) -> dict[str, Key]:
    """The keys declared by an options class, by name; inherited keys come first.

    Args:
        declaring: The class.
        owner: See `Key`.
        role: Default role of the options.
        section: Default heading of the options.

    Raises:
        TypeError: If an attribute is not created by `option`, or a key has no role, or an invalid
            type, choices or tag.
    """
    found = {}
    for name, annotation in _annotations(declaring).items():
        field = getattr(declaring, name, None)
        if not isinstance(field, dataclasses.Field) or "help" not in field.metadata:
            raise TypeError(f"{declaring.__qualname__}.{name} must be created by option(...)")
        own_role = field.metadata["role"] or role
        if own_role is None:
            raise TypeError(f"{declaring.__qualname__}.{name} has no role")
        wrong = _unfit(annotation, own_role, field.metadata)
        if wrong:
            raise TypeError(f"{declaring.__qualname__}.{name} {wrong}")
        found[name] = Key(
            name=name,
            annotation=annotation,
            default=field.default,
            role=Role(own_role),
            section=field.metadata["section"] or section or declaring.__name__,
            owner=owner,
            metadata=field.metadata,
        )
    return found


def _annotations(declaring: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(declaring)
    except NameError as error:
        raise TypeError(f"{declaring.__qualname__} has an unknown type: {error}") from None


def _unfit(annotation: Any, role: Any, metadata: Mapping[str, Any]) -> str | None:
    """Why the declaration of an option is invalid, or None."""
    alone = typing.get_origin(annotation) in (None, typing.Union, types.UnionType)
    if not alone or not set(_members(annotation)) <= _TYPES:
        return f"has the type {annotation}; use int, float, str, bool, or one of them | None"
    if role not in set(Role):
        return f"has the role {role!r}; {listed(Role)}".rstrip(".")
    if isinstance(metadata["choices"], Iterator):
        return "has choices that can be read only once; use a tuple"
    return _unfit_tag(metadata["tag"], metadata["choices"], annotation)


def _unfit_tag(tag: Any, choices: Iterable[Any] | None, annotation: Any) -> str | None:
    if isinstance(tag, tuple) and (len(tag) != 2 or bool not in _members(annotation)):
        return f"has the tag {tag!r}; a tuple must be the words of a bool for False and True"
    if isinstance(tag, dict):
        missing = [str(choice) for choice in choices or () if choice not in tag]
        return f"has a tag without a word for {', '.join(missing)}" if missing else None
    if not isinstance(tag, str):
        return None
    try:
        tag.format("")
    except (LookupError, ValueError) as error:
        return f"has the tag {tag!r}, which is not a format such as 'Theta{{}}' ({error})"
    return None


def options_of(part: type) -> type:
    """The nested `Options` classes of a component and its base classes, as one class."""
    own = [vars(base)["Options"] for base in part.__mro__ if "Options" in vars(base)]
    return type("Options", tuple(dict.fromkeys(own)), {"__qualname__": f"{part.__name__}.Options"})


class KeyTable(Mapping[str, Key]):
    """All declared keys, by name."""

    def __init__(self) -> None:
        self._declared: dict[str, dict[str, Key]] = {}
        self._reserved: set[str] = set()

    def reserve(self, names: Iterable[str]) -> None:
        """Reserve names for other purposes, so that no key can use them."""
        self._reserved |= {name for name in names if not name.startswith("_")}

    def refuse_clashes(self, owner: str, keys: Mapping[str, Key]) -> None:
        """Raise UserError if a name is already a different key. Components may share a key."""
        for name, key in keys.items():
            if name in self._reserved or name.startswith("_"):
                raise UserError(f"the option name {name!r} is reserved; choose another.")
            for other_owner, other in self._declared.get(name, {}).items():
                if other_owner != owner and not key.declares_as(other):
                    where = (
                        f"differently by {other_owner}" if other_owner else "as a key of every run"
                    )
                    raise UserError(
                        f"the option {name!r} is already declared {where}; "
                        "choose another name, or inherit from that Options class."
                    )
            self._refuse_taken_tag(key)

    def _refuse_taken_tag(self, key: Key) -> None:
        """Raise UserError if another key has the same tag: different architectures need different
        names."""
        tag = key.metadata["tag"]
        for name, owners in self._declared.items():
            if tag == SPELLED_BY_KEY or not isinstance(tag, str) or name == key.name:
                continue
            if any(other.metadata["tag"] == tag for other in owners.values()):
                raise UserError(
                    f"the tag {tag!r} of the option {key.name!r} is already used by {name!r}; "
                    "choose another."
                )

    def declare(self, owner: str, keys: Mapping[str, Key]) -> None:
        """Add the keys of an owner, replacing its earlier ones."""
        self.refuse_clashes(owner, keys)
        if owner:
            for declared in self._declared.values():
                declared.pop(owner, None)
        for name, key in keys.items():
            self._declared.setdefault(name, {})[owner] = key
        self._declared = {name: owners for name, owners in self._declared.items() if owners}

    def owners(self, name: str) -> list[str]:
        """The components that a key belongs to, such as `position_encoding=rope`; empty for keys
        that every run has."""
        owners = self._declared[name]
        return [] if "" in owners else list(owners)

    def owned_by(self, name: str) -> str:
        """The components that a key belongs to, as text: `rope_scaling=linear, yarn or llama3`."""
        parts: dict[str, list[str]] = {}
        for owner in self.owners(name):
            key, _, part = owner.partition("=")
            parts.setdefault(key, []).append(part)
        return ", or ".join(f"{key}={_any_of(names)}" for key, names in parts.items())

    def __getitem__(self, name: str) -> Key:
        return next(iter(self._declared[name].values()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._declared)

    def __len__(self) -> int:
        return len(self._declared)

    def nearest(self, name: str) -> str:
        """`; did you mean 'x'?` for the key closest to a name, else a period."""
        return nearest(name, self)


KEYS = KeyTable()
"""The keys of every run and of all registered components."""


def _any_of(names: Sequence[str]) -> str:
    """`a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


# Types and values


def _members(annotation: Any) -> tuple[Any, ...]:
    """The types that an annotation allows: `(int, NoneType)` for `int | None`."""
    return typing.get_args(annotation) or (annotation,)


def type_name(annotation: Any) -> str:
    """An annotation as shown to users: `int`, `int or none`, `True or False`."""
    names = {types.NoneType: "none", bool: "True or False"}
    return " or ".join(names.get(member, member.__name__) for member in _members(annotation))


def convert(value: Any, annotation: Any) -> Any:
    """Convert `value` to exactly the annotated type, for example from a subclass like np.float64.

    An int is accepted for a float; a bool is never accepted for a number.

    Raises:
        UserError: If `value` has another type, or is an int too large for a float.
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
                raise UserError(f"takes float, but {quoted(value)} is too large for one") from None
    kind = type(value).__name__
    raise UserError(f"takes {type_name(annotation)}, not {quoted(value)} ({kind})")


def parse(text: str, annotation: Any) -> Any:
    """Parse a value from the command line, given the key's type.

    Text of another type is returned as what it parses to, for `Key.problem` to refuse.
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
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # e.g. from many minus signs
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
