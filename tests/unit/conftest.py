"""What unit tests share: data that takes no time."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from tests.tiny_data import write_tiny_dataset


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list:
    """A stand-in for the package `datasets`; records what was asked of it."""
    asked = []

    def load_dataset(path, name=None, **options):
        asked.append((path, name, options))
        return ({"text": f"page {n}", "url": "u"} for n in range(1000))

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return asked
