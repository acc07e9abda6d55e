"""Registries, which map the names that a config key accepts to classes."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from errors import UserError, quoted, unknown_name
from options import KEYS, Key, Role, keys_of, options_of

PartClass = TypeVar("PartClass", bound=type)

USERS_MODULE = "file_"
"""Prefix of the module names of the user's config files and plugins."""


def is_users_own(part: type) -> bool:
    """Whether a part was defined in a config file or plugin."""
    return is_users_module(part.__module__)


def is_users_module(name: str) -> bool:
    """Whether a module name is that of a config file or plugin."""
    return name.startswith(USERS_MODULE)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One registered part."""

    name: str
    part: type
    label: str
    """The part's label in architecture names, e.g. `RMS`."""
    summary: str
    """The first line of the class's docstring."""
    paper: str
    """The source, or an empty string."""
    aliases: tuple[str, ...] = ()
    keys: Mapping[str, Key] = dataclasses.field(default_factory=dict)
    """The config keys declared by the part, by name."""


class Registry:
    """The parts that a config key chooses from.

    Iteration yields every name that a config may use, including aliases; `names` excludes them.
    """

    def __init__(
        self,
        key: str,
        title: str,
        *,
        variable: str,
        base: type,
        made_with: str | None = "config",
        called_with: str | None = None,
        role: Role = Role.ARCHITECTURE,
    ):
        """Create an empty registry.

        Args:
            key: The config key that chooses a part.
            title: The heading in the catalog.
            variable: Name of the registry in code, for examples in messages.
            base: Base class of all parts.
            made_with: Comma-separated arguments of the constructor; None for parts that are used as
                classes, without instances.
            called_with: Comma-separated arguments of `forward`; None: not checked.
            role: The role of the options that parts declare.
        """
        self.key = key
        self.title = title
        self._variable = variable
        self._base = base
        self._made_with = made_with
        self._called_with = called_with
        self._role = role
        self._entries: dict[str, Entry] = {}
        self._canonical: dict[str, str] = {}
        self._words: set[str] = set()

    def register(
        self,
        name: str | None = None,
        /,
        *unwanted: object,
        label: str | None = None,
        paper: str = "",
        aliases: Sequence[str] = (),
        **unknown: object,
    ) -> Callable[[PartClass], PartClass]:
        """Register a part, as a class decorator.

        The same class from the same source file may be registered again, if a file is run twice.

        Args:
            name: The name of the part in configs.
            label: The label of the part in architecture names.
            paper: The source of the part.
            aliases: Other names of the part.

        Raises:
            UserError: If the name or the label is missing or taken, `aliases` is not a sequence of
                names, there are other arguments, or the class has no docstring, is not a subclass
                of the registry's base class, or does not accept the constructor's arguments.
        """
        if unwanted or unknown:
            others = [*map(quoted, unwanted), *(f"{key}={quoted(unknown[key])}" for key in unknown)]
            raise self._refused(
                "register takes the name of the part, then label=, paper= and aliases=, not "
                f"{', '.join(others)}"
            )
        if not isinstance(name, str) or not name:
            got = f"not {quoted(name)}" if isinstance(name, str) else "which is missing"
            raise self._refused(f"register takes the name of the part, {got}")
        if set(name) & set("+*"):
            raise self._refused(
                f"{name!r} contains '+' or '*', which are reserved for per-layer patterns"
            )
        if not isinstance(label, str) or not label:
            raise self._refused(f"{name!r} needs a label, which is used in architecture names")
        if not _is_names(aliases):
            raise self._refused(
                f"{name!r}: aliases takes a tuple of names, such as ('other',), not "
                f"{quoted(aliases)}"
            )

        def enter(part: PartClass) -> PartClass:
            self._refuse_unfit(name, part)
            self._refuse_taken(part, label, (name, *aliases))
            keys = self._keys_of(name, part)
            KEYS.declare(self.owner(name), keys)
            summary = (part.__doc__ or "").strip().splitlines()[0]
            self._entries[name] = Entry(name, part, label, summary, paper, tuple(aliases), keys)
            self._canonical.update(dict.fromkeys((name, *aliases), name))
            return part

        return enter

    def _keys_of(self, name: str, part: type) -> dict[str, Key]:
        """The keys declared by a part's options. Raises UserError if a declaration is invalid."""
        owner = self.owner(name)
        try:
            keys = keys_of(options_of(part), owner=owner, role=self._role, section=self.title)
            KEYS.refuse_clashes(owner, keys)
        except (TypeError, UserError) as error:
            raise self._refused(f"{name!r}: {str(error).rstrip('.')}") from None
        return keys

    def _refuse_unfit(self, name: str, part: type) -> None:
        """Raise UserError if a class cannot be registered here."""
        if not isinstance(part, type):
            raise self._refused(f"{name!r} must be a class, not {quoted(part)}")
        if not (part.__doc__ or "").strip():
            raise self._refused(f"{name!r}: {part.__name__} needs a docstring")
        if not issubclass(part, self._base):
            raise self._refused(f"{name!r}: {part.__name__} must subclass {self._base.__name__}")
        if self._made_with is not None:
            self._refuse_signature(name, part, "__init__", part, self._made_with)
        if self._called_with is not None:
            words = f"self, {self._called_with}"
            self._refuse_signature(name, part, "forward", part.forward, words)

    def _refuse_signature(
        self, name: str, part: type, method: str, called: Callable[..., Any], words: str
    ) -> None:
        """Raise UserError if a method does not accept its arguments."""
        try:
            inspect.signature(called).bind(*(word for word in words.split(", ") if word))
        except TypeError as error:
            wanted = words.removeprefix("self, ")
            raise self._refused(
                f"{name!r}: {part.__name__}.{method} must accept ({wanted}) ({error})"
            ) from None

    def _refused(self, what: str) -> UserError:
        """An error that says what is wrong with a part, and shows a correct example."""
        return UserError(
            f"{self.key}: {what}. For example:\n"
            f'@{self._variable}.register("mine", label="Mine")\n'
            f"class Mine({self._base_name()}):\n"
            '    """One-line description."""' + self._constructor()
        )

    def _base_name(self) -> str:
        module = self._base.__module__
        return f"nn.{self._base.__name__}" if module.startswith("torch.nn") else self._base.__name__

    def _constructor(self) -> str:
        lines = []
        if self._made_with:
            lines.append(f"\n    def __init__(self, {self._made_with}): ...")
        if self._called_with:
            lines.append(f"\n    def forward(self, {self._called_with}): ...")
        return "".join(lines)

    def _refuse_taken(self, part: type, label: str, names: tuple[str, ...]) -> None:
        for name in self._words.intersection(names):
            raise UserError(
                f"{self.key}: the name {name!r} has another meaning; register "
                f"{part.__qualname__} with another name."
            )
        for entry in self._entries.values():
            if entry.name == names[0] and _same_source(entry.part, part):
                continue
            taken = set(names) & {entry.name, *entry.aliases}
            if taken or entry.label == label:
                what = f"name {taken.pop()!r}" if taken else f"label {label!r}"
                raise UserError(
                    f"{self.key}: the {what} is taken by {entry.part.__qualname__} "
                    f"({entry.name!r}); register {part.__qualname__} with another one."
                )

    def owner(self, name: str) -> str:
        """The owner of the keys of a part: `position_encoding=rope`."""
        return f"{self.key}={name}"

    def canonical(self, name: str) -> str:
        """Resolve an alias. Raises UserError for an unknown name."""
        if name not in self._canonical:
            raise UserError(unknown_name(self.key, name, self))
        return self._canonical[name]

    def entry(self, name: str) -> Entry:
        """The entry of a part. Raises UserError for an unknown name."""
        return self._entries[self.canonical(name)]

    def __getitem__(self, name: str) -> type:
        return self.entry(name).part

    def __contains__(self, name: object) -> bool:
        return name in self._canonical

    def __iter__(self) -> Iterator[str]:
        return iter(self._canonical)

    def __len__(self) -> int:
        return len(self._entries)

    def plus(self, *words: str) -> Choices:
        """The names plus additional words, as the choices of a config key. No part can have such a
        word as its name."""
        self._words.update(words)
        return Choices(self, words)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all parts, without aliases."""
        return tuple(self._entries)


@dataclasses.dataclass(frozen=True)
class Choices:
    """The current names of a registry plus additional words."""

    registry: Registry
    words: tuple[str, ...]

    def __iter__(self) -> Iterator[str]:
        return iter((*self.registry, *self.words))


def _is_names(value: object) -> bool:
    """Whether a value is a tuple or list of names; a bare string would be iterated by character."""
    return isinstance(value, tuple | list) and all(isinstance(n, str) and n for n in value)


def _same_source(first: type, second: type) -> bool:
    def source(part: type) -> tuple[str, str | None]:
        try:
            return part.__qualname__, inspect.getfile(part)
        except (TypeError, OSError):
            return part.__qualname__, None

    return first is second or (source(first)[1] is not None and source(first) == source(second))
