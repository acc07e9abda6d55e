"""What integration tests share: a dataset and a folder for runs."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from data.tokenizers import ByteTokenizer
from tests.integration.runs import Workshop, make_dataset

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
