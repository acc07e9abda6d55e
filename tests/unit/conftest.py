"""What unit tests share: data that takes no time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_data import write_tiny_dataset


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_dataset(tmp_path_factory.mktemp("data") / "tiny")
