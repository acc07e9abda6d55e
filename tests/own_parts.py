"""Parts that tests register, gone afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from options import KEYS
from training_components import ALL_REGISTRIES


@contextlib.contextmanager
def forgotten() -> Iterator[None]:
    """Forget the parts that are registered meanwhile, and their config keys."""
    with pytest.MonkeyPatch.context() as patch:
        for registry in ALL_REGISTRIES.values():
            for table in ("_entries", "_canonical"):
                patch.setattr(registry, table, dict(getattr(registry, table)))
        declared = {name: dict(owners) for name, owners in KEYS._declared.items()}
        patch.setattr(KEYS, "_declared", declared)
        yield
