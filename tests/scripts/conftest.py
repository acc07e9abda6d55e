"""What the tests of the scripts share."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.runs import train
from tests.tiny_data import tiny_run_flags, write_tiny_dataset


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> list[str]:
    """Flags of a run of three steps, its dataset prepared."""
    flags = tiny_run_flags(write_tiny_dataset(tmp_path_factory.mktemp("tiny_dataset")))
    return [*flags, "--sequence_length=16"]  # recipes set both


@pytest.fixture(scope="session")
def tiny_training(tmp_path_factory, tiny_run) -> tuple[Path, dict]:
    """The folder and the log of such a run, in a folder that was not there."""
    folder = tmp_path_factory.mktemp("runs") / "somewhere" / "run"
    return folder, train(tiny_run, folder)
