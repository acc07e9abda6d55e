"""What integration tests share: a dataset and a folder for runs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.tokenizers import ByteTokenizer
from tests.integration.runs import Workshop, make_dataset
from tests.integration.torchrun import Torchrun

WORDS = ("the ", "cat ", "sat ", "on ", "a ", "mat.\n", "Öl ", "日本 ")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty thousand bytes of words in random order, some of them of several bytes a character."""
    words = random.Random(0).choices(WORDS, k=6000)
    folder = tmp_path_factory.mktemp("data") / "words"
    return make_dataset(folder, ByteTokenizer(), "".join(words[:5000]), "".join(words[5000:]))


@pytest.fixture
def workshop(dataset: Path, tmp_path: Path) -> Workshop:
    return Workshop(dataset, tmp_path / "out")


@pytest.fixture
def started() -> Iterator[list[Torchrun]]:
    """A list for what a test starts; whatever is left of it is killed at the end."""
    runs: list[Torchrun] = []
    yield runs
    for own in runs:
        own.kill()
