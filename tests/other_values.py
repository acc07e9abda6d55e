"""Values of config keys for tests that change every option, found from how the key is declared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from options import Key


def another(key: Key) -> Any:
    """A valid value of a key that is not its default."""
    default = key.default
    near = (default / 2, default + 1, default - 1) if isinstance(default, int | float) else ()
    tried = (*(key.choices or ()), True, False, *near, 0.005, 10)
    return next(value for value in tried if value != default and key.problem(value) is None)


def least(key: Key) -> Any:
    """0 where a key takes it, else its default."""
    return 0 if key.problem(0) is None else key.default


def others(keys: Iterable[Key]) -> dict[str, Any]:
    """Another value of every key."""
    return {key.name: another(key) for key in keys}
