"""Texts to prepare, and what is in a prepared dataset."""

import json
from pathlib import Path

import numpy as np

from data.tokenizers import ByteTokenizer

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared" / "data"
"""Where texts and vocabularies are looked for, which are never downloaded by a test."""


def text_file(tmp_path, content, name="a.txt"):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def tokens_of(folder, split):
    """The token ids of a split of a prepared dataset."""
    meta = json.loads((folder / "meta.json").read_text())
    return np.fromfile(folder / f"{split}.bin", dtype=meta["dtype"])


def text_of(folder, split):
    """The text of a split of a dataset of bytes."""
    return ByteTokenizer().decode(tokens_of(folder, split))
