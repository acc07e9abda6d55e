"""Keys that choose components, and the options of the chosen components."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from components.registry import Choices, Entry, Registry
from errors import Problem, error_note, quoted
from options import Key


class View(Protocol):
    """Values of keys, read as attributes."""

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or a default if no chosen component has it."""


def registry_of(key: Key) -> Registry | None:
    """The registry that a key chooses a component from, or None."""
    choices = key.choices.registry if isinstance(key.choices, Choices) else key.choices
    return choices if isinstance(choices, Registry) else None


def chosen_by(key: Key, value: Any) -> list[Entry]:
    """The components that a value of a key chooses: none, one, or several for a list."""
    registry = registry_of(key)
    if registry is None or value is None:
        return []
    return [registry.entry(name) for name in key.named(value) if name in registry]


def expanded(roots: Mapping[str, Key]) -> dict[str, Key]:
    """The keys, each followed by the options of the components that it may choose."""
    found: dict[str, Key] = {}

    def add(keys: Iterable[Key]) -> None:
        for key in keys:
            if key.name in found:
                continue
            found[key.name] = key
            registry = registry_of(key)
            for name in () if registry is None else registry.names:
                add(registry.entry(name).keys.values())

    add(roots.values())
    return found


def canonical_name(key: Key, value: Any, given: Mapping[str, Any]) -> Any:
    """Replace an alias by the component's name; other values are unchanged."""
    registry = registry_of(key)
    return registry.canonical(value) if registry is not None and value in registry else value


class Draft:
    """Values that are being resolved. Reading a key as an attribute derives its value.

    Initially only the root keys are known; `resolved` adds the options of the chosen components.

    Args:
        given: Values by key; None is derived if possible.
        roots: The keys that exist regardless of the chosen components.
        canonical: A function like `canonical_name`.
    """

    def __init__(
        self,
        given: Mapping[str, Any],
        roots: Mapping[str, Key],
        canonical: Callable[[Key, Any, Mapping[str, Any]], Any] = canonical_name,
    ):
        self._given = given
        self._roots = roots
        self._canonical = canonical
        self._keys = dict(roots)
        self._values: dict[str, Any] = {}
        self._deriving: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self._keys:
            raise AttributeError(f"no chosen component has the option {name!r}")
        if name not in self._values:
            self._values[name] = self._found(self._keys[name])
        return self._values[name]

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    def _found(self, key: Key) -> Any:
        value = self._given.get(key.name, key.default)
        if value is None and key.derive is not None:
            value = self._derived(key)
        return self._canonical(key, value, self._given)

    def _derived(self, key: Key) -> Any:
        if key.name in self._deriving:
            way = " -> ".join([*self._deriving, key.name])
            raise RecursionError(f"{key.title} is derived from itself: {way}")
        self._deriving.append(key.name)
        value = key.derived(self)
        self._deriving.pop()
        return value

    def _admit(self, keys: Iterable[Key]) -> None:
        """Add the options of the components that these keys choose."""
        for key in keys:
            if registry_of(key) is None:  # not read yet: it may derive from components added later
                continue
            for entry in chosen_by(key, getattr(self, key.name)):
                self._keys.update(entry.keys)
                self._admit(entry.keys.values())

    def resolved(self, order: Iterable[str]) -> dict[str, Any]:
        """All root keys and options of chosen components with their values, in the given order."""
        self._admit(self._roots.values())
        return {name: getattr(self, name) for name in order if name in self._keys}


def parts_of(view: View, keys: Mapping[str, Key]) -> Iterator[tuple[str, type]]:
    """Yield the chosen components, with the keys that chose them."""
    for name, key in keys.items():
        for entry in chosen_by(key, view.get(name)):
            yield name, entry.part


def problems_of_parts(
    method: str, view: View, keys: Mapping[str, Key], *others: Any
) -> Iterator[Problem]:
    """Yield the problems from a method of each chosen component, such as `problems` or `idle`.
    Errors in the method get a note that names the component."""
    for name, part in dict(parts_of(view, keys)).items():
        said = getattr(part, method, None)
        if said is None:
            continue
        with error_note(f"{method}() of {name}={view.get(name)} failed."):
            found = list(said(view, *others))
            if not all(isinstance(problem, Problem) for problem in found):
                raise TypeError(
                    f"{method}() must yield Problem(keys, message), not {quoted(found)}"
                )
        yield from found


def chosen_through(key: Key, view: View) -> set[str]:
    """The key, the options of the component that it chooses, and recursively of those they
    choose."""
    chosen = chosen_by(key, view.get(key.name))
    own = (option for entry in chosen for option in entry.keys.values())
    return {key.name}.union(*(chosen_through(option, view) for option in own))
