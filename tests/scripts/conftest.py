"""What the tests of the scripts share."""

from __future__ import annotations

import pytest

from tests.tiny_data import tiny_run_flags, write_tiny_dataset


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> list[str]:
    """Flags of a run of three steps, its dataset prepared."""
    return tiny_run_flags(write_tiny_dataset(tmp_path_factory.mktemp("tiny_dataset")))
