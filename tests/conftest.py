"""What all tests share: one thread per process, their own and those that they start; no files left
outside pytest's folders."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest
import torch

from tests import own_parts


def pytest_configure(config: pytest.Config) -> None:
    """Tiny models are slower on several threads, and the order of sums depends on their number."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if "NANOARCH_CACHE_DIR" not in os.environ:  # the workers of pytest-xdist inherit it
        cache = tempfile.TemporaryDirectory(prefix="nanoarch-tests-")
        config.add_cleanup(cache.cleanup)
        os.environ["NANOARCH_CACHE_DIR"] = cache.name
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_parts() -> Iterator[None]:
    """What a test registers is gone after it."""
    with own_parts.forgotten():
        yield
