"""Config keys: declared once with `option`, then checked, parsed and described from there.

A class of options is a class whose annotated attributes are made by `option`, such as the nested
class `Options` of a part, which owns them:

    class Options:
        rope_theta: float = option(10000.0, "base of the wavelengths", above=1, tag="Theta{}")

Everything else (`--help`, flags, error messages, sweeps, names, logs) is derived from these
declarations, which `KEYS` holds.
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
"""What an int may be at most: what fits the int64 that torch and NumPy count with."""

LONGEST_NUMBER = 1000
"""Characters of a text that may be a number; longer ones are not parsed."""

SPELLED_BY_KEY = "spelled by its key"
"""The tag of an option that declares none: `my_option=3` is spelled MyOption3."""

_TYPES = {int, float, str, bool, types.NoneType}
"""What the value of a key may be: what a flag, JSON and a name can spell."""

_BOUNDS = {
    "at_least": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "at_most": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}


class Role(enum.StrEnum):
    """What a key is for, which decides how runs are grouped, resumed, swept and compared."""

    ARCHITECTURE = "architecture"
    """What the model computes: tells arms apart; fixed for a run."""
    RECIPE = "recipe"
    """How it is trained: the same in runs that are compared, unless it is what they study."""
    LENGTH = "length"
    """How long it is trained, and the parts of its schedule in steps."""
    DATA = "data"
    """What it is trained and validated on, batch by batch; fixed for a run."""
    SEED = "seed"
    """Runs that differ in nothing else are repetitions of one experiment; fixed for a run."""
    BOOKKEEPING = "bookkeeping"
    """Where a run is kept and how closely it is watched."""
    EXECUTION = "execution"
    """How it is computed; may not change the mathematics."""


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
    """A config key, declared as an attribute of a class of options.

    Args:
        default: The value if nothing else sets it; required.
        help: One line, with units; required.
        choices: Names it may take; any iterable, read anew at each check (a registry may grow).
        at_least, above, at_most, below: Bounds of a number, inclusive or not.
        per_layer: Whether layers may differ in it: it also takes a pattern, see `patterns`.
        derive: The value where it is left at None, from the config of a layer.
        tag: How an architecture's name spells a value: a format such as "Theta{}", the words for
            False and True, or a dict of words. None: not at all, for what other keys imply.
        plain: The value that a name leaves out, or a function of a layer's config that gives it;
            None: the default, or what is derived.
        saved: What a saved config has in place of a value, from the config of a layer, if several
            values make the same architecture; None: the value.
        role: What the key is for; None: the role of the class that declares it.
        section: Its heading in `--help`; None: that of the class that declares it.
        several: Whether a text lists several of the choices, separated by commas.
        varies: Whether the arms of a sweep may differ in it; None: as its role says.
        fixed: Whether a run that is resumed must keep its value; None: as its role says.
        restored: Whether a run that is resumed has the value that it was saved with.
        names: What a text names besides files, for shell completion: `dataset`.

    Raises:
        UserError: there is no default or no help.
    """
    if default is dataclasses.MISSING or not isinstance(help, str) or not help.strip():
        said = "" if default is dataclasses.MISSING else quoted(default)
        raise UserError(
            f"option({said}) needs a default and a line of help, for example "
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
    """A heading in `--help`, and the role of the keys under it."""

    title: str
    role: Role

    def option(self, default: Any, help: str, **rest: Any) -> Any:
        """An option of this section; see `option`."""
        return option(default, help, **{"role": self.role, "section": self.title, **rest})


# Keys


@dataclasses.dataclass(frozen=True)
class Key:
    """A key as it was declared: see `option` for what its attributes mean.

    Attributes:
        owner: The part that it belongs to, as `position_encoding=rope`; empty for a key that every
            run has.
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
        """The choices that a value makes: itself, or several that commas separate."""
        if not self.metadata["several"]:
            return [value]
        return [name for name in map(str.strip, value.split(",")) if name]

    @property
    def boolean(self) -> bool:
        """Whether True is one of its values."""
        return bool in _members(self.annotation)

    @property
    def takes_text(self) -> bool:
        """Whether any text may be its value."""
        return str in _members(self.annotation) and not self.boolean and self.choices is None

    @property
    def takes_none(self) -> bool:
        """Whether None is one of its values."""
        return types.NoneType in _members(self.annotation)

    @property
    def per_layer(self) -> bool:
        return self.metadata["per_layer"]

    @property
    def derive(self) -> Callable[[Any], Any] | None:
        return self.metadata["derive"]

    @property
    def title(self) -> str:
        """What it is called in a message about its declaration."""
        return f"the option {self.name!r} of {self.owner or 'every run'}"

    def derived(self, config: Any) -> Any:
        """The value that follows from a layer's config. An error of `derive` names the option."""
        with error_note(f"`derive` of {self.title} failed."):
            return self.derive(config)

    def plain(self, config: Any) -> Any:
        """The value that an architecture's name leaves out, given a layer's config."""
        plain = self.metadata["plain"]
        if callable(plain):
            with error_note(f"`plain` of {self.title} failed."):
                return plain(config)
        if plain is None and self.default is None and self.derive is not None:
            return self.derived(config)
        return self.default if plain is None else plain

    def saved(self, config: Any) -> Any:
        """What a saved config has in place of a value, given a layer's config."""
        with error_note(f"`saved` of {self.title} failed."):
            return self.metadata["saved"](config)

    def declares_as(self, other: Key) -> bool:
        """Whether two keys of one name are the same declaration."""
        told = ("help", "choices", "bounds", "per_layer", "tag")
        return (self.annotation, self.default, self.role) == (
            other.annotation,
            other.default,
            other.role,
        ) and all(self.metadata[name] == other.metadata[name] for name in told)

    # Values

    def parse(self, text: str) -> Any:
        """The value or pattern that a command-line text stands for.

        Text that stands for none comes back as what it does stand for, for `problem` to refuse.
        """
        return text if self._spells_pattern(text) else parse(text, self.annotation)

    def read(self, value: Any) -> Any:
        """What a value from a file or a flag means: a pattern where it spells one or is a list.

        Raises:
            UserError: it is meant to be a pattern and is none, or lists too many values.
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
        """The pattern that a list is, the same as the text with these values between pluses."""
        if not values:
            raise UserError("is an empty list; list at least one value.")
        refuse_long(len(values))
        for item in values:
            if isinstance(item, str) and not self._survives_saving(item):
                raise UserError(
                    f"lists {quoted(item)}, which a saved pattern would read as another value; "
                    "choose another."
                )
        return Pattern(tuple((value, 1) for value in values))

    def _survives_saving(self, item: str) -> bool:
        """Whether the text of a list reads back as itself from the text of the pattern."""
        plain = not set("+*") & set(item) and item == item.strip() != ""
        return plain and parse(item, self.annotation) == item

    def _spells_pattern(self, value: Any) -> bool:
        return self.per_layer and isinstance(value, str) and bool({"+", "*"}.intersection(value))

    @property
    def _takes_numbers(self) -> bool:
        return float in _members(self.annotation)

    def problem(self, value: Any) -> Problem | None:
        """What is wrong with a value by itself (type, choices, bounds), or None.

        The values of a pattern are checked one by one, up to the first that is wrong.
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
            message = f"{self.name}={quoted(value)} has characters that cannot be printed."
            return Problem((self.name,), message)
        if isinstance(value, int | float) and not isinstance(value, bool):
            message = _bound_message(value, self.metadata["bounds"])
            if message:
                return Problem((self.name,), f"{self.name}={quoted(value)} {message}.")
        return None

    def converted(self, value: Any) -> Any:
        """A sound value as exactly the key's type, ints as floats where it takes floats."""
        meant = self.read(value)
        if isinstance(meant, Pattern):
            return meant.mapped(lambda one: convert(one, self.annotation))
        return convert(meant, self.annotation)


def keys_of(
    declaring: type, *, owner: str = "", role: Role | None = None, section: str | None = None
) -> dict[str, Key]:
    """The keys that a class of options declares, by name, those that it inherits first.

    Args:
        declaring: The class.
        owner: See `Key`.
        role: The role of options that declare none.
        section: The heading of options that declare none.

    Raises:
        TypeError: an attribute is not made by `option`, or a key has no role, or a type, choices or
            a tag that keys cannot have.
    """
    found = {}
    for name, annotation in _annotations(declaring).items():
        field = getattr(declaring, name, None)
        if not isinstance(field, dataclasses.Field) or "help" not in field.metadata:
            raise TypeError(f"{declaring.__qualname__}.{name} must be made by option(...)")
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
        raise TypeError(f"{declaring.__qualname__} has a type that is not known: {error}") from None


def _unfit(annotation: Any, role: Any, metadata: Mapping[str, Any]) -> str | None:
    """What of an option's declaration cannot be used, or None."""
    alone = typing.get_origin(annotation) in (None, typing.Union, types.UnionType)
    if not alone or not set(_members(annotation)) <= _TYPES:
        return f"has the type {annotation}; use int, float, str, bool, or one of them | None"
    if role not in set(Role):
        return f"has the role {role!r}; {listed(Role)}".rstrip(".")
    if isinstance(metadata["choices"], Iterator):
        return "has choices that can be read once only; use a tuple"
    return _unfit_tag(metadata["tag"], metadata["choices"], annotation)


def _unfit_tag(tag: Any, choices: Iterable[Any] | None, annotation: Any) -> str | None:
    if isinstance(tag, tuple) and (len(tag) != 2 or bool not in _members(annotation)):
        return f"has the tag {tag!r}; two words are those of a bool, for False and True"
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
    """The nested classes `Options` of a part and of what it inherits from, as one class."""
    own = [vars(base)["Options"] for base in part.__mro__ if "Options" in vars(base)]
    return type("Options", tuple(dict.fromkeys(own)), {"__qualname__": f"{part.__name__}.Options"})


class KeyTable(Mapping[str, Key]):
    """Every key that has been declared, by name."""

    def __init__(self) -> None:
        self._declared: dict[str, dict[str, Key]] = {}
        self._reserved: set[str] = set()

    def reserve(self, names: Iterable[str]) -> None:
        """Refuse keys of these names from now on, for they mean something else."""
        self._reserved |= {name for name in names if not name.startswith("_")}

    def refuse_clashes(self, owner: str, keys: Mapping[str, Key]) -> None:
        """Raise UserError where a name is another key already; several parts may share one."""
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
                        "choose another name, or inherit that class Options."
                    )
            self._refuse_taken_tag(key)

    def _refuse_taken_tag(self, key: Key) -> None:
        """Names of architectures that differ must differ, so no two keys have one tag."""
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
        """Enter the keys of an owner in place of those that it had."""
        self.refuse_clashes(owner, keys)
        if owner:
            for declared in self._declared.values():
                declared.pop(owner, None)
        for name, key in keys.items():
            self._declared.setdefault(name, {})[owner] = key
        self._declared = {name: owners for name, owners in self._declared.items() if owners}

    def owners(self, name: str) -> list[str]:
        """The parts that a key belongs to, as `position_encoding=rope`; none for a key that every
        run has."""
        owners = self._declared[name]
        return [] if "" in owners else list(owners)

    def owned_by(self, name: str) -> str:
        """The parts that a key belongs to, in words: `rope_scaling=yarn or llama3`."""
        parts: dict[str, list[str]] = {}
        for owner in self.owners(name):
            key, _, part = owner.partition("=")
            parts.setdefault(key, []).append(part)
        return ", ".join(f"{key}={' or '.join(names)}" for key, names in parts.items())

    def __getitem__(self, name: str) -> Key:
        return next(iter(self._declared[name].values()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._declared)

    def __len__(self) -> int:
        return len(self._declared)

    def nearest(self, name: str) -> str:
        """`; did you mean 'x'?` for the key nearest to a name, else a full stop."""
        return nearest(name, self)


KEYS = KeyTable()
"""The keys of every run, and of every part that is registered."""


# Types and values


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
                raise UserError(f"takes float, but {quoted(value)} is too large for one") from None
    kind = type(value).__name__
    raise UserError(f"takes {type_name(annotation)}, not {quoted(value)} ({kind})")


def parse(text: str, annotation: Any) -> Any:
    """The value that a command-line text stands for, by the key's type.

    Text that stands for no value of the type comes back as what it does stand for, for
    `Key.problem` to refuse.
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
