"""Open a prepared dataset: check it and map it into memory."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset_files import (
    META_FILE,
    SPLITS,
    TOKEN_BYTES_FILE,
    bin_file,
    read_meta,
    sha256_of,
)
from data.tokenizers import NotCached, Tokenizer, token_dtype, tokenizer_from_meta
from errors import UserError

# Splits with up to this many tokens are checked completely on opening (about 0.2 s); in larger
# ones, this many tokens spread over the split are checked.
CHECKED_TOKENS = 100_000_000
CHUNK_TOKENS = 2**20


@dataclass(frozen=True, eq=False)
class Dataset:
    """A prepared dataset, checked and mapped into memory.

    Attributes:
        folder: Folder of the dataset.
        meta: Contents of its `meta.json`.
        train, val: Token ids of the splits, read-only memory maps, shape (tokens,), uint16 or
            uint32.
        token_bytes: UTF-8 length of each token id, shape (vocab_size,), uint16.
        tokenizer_files: The tokenizer's files by name, needed in addition to its entry in `meta`.
    """

    folder: Path
    meta: dict[str, Any]
    train: np.ndarray
    val: np.ndarray
    token_bytes: np.ndarray
    tokenizer_files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path | str, sequence_length: int) -> Dataset:
        """Open and check a dataset for training on sequences of `sequence_length` tokens.

        The following is checked: the metadata; that each split has the expected size, enough tokens
        for one sequence and its targets, and no token outside the vocabulary; and that it matches
        the fingerprint. The last two are checked on all tokens of splits with up to 100 million
        tokens. In a larger split, the vocabulary is checked on 100 million tokens spread evenly
        over it, and the fingerprint is not checked. The bytes per token must match the tokenizer.
        If that would have to be downloaded, they must match the digest in the metadata, which
        datasets of older versions lack.

        Raises:
            UserError: If a check fails.
        """
        folder = Path(folder)
        meta = read_meta(folder)
        splits = {split: _open_split(folder, meta, split, sequence_length) for split in SPLITS}
        tokenizer = _tokenizer_at_hand(folder, meta)
        token_bytes = _open_token_bytes(folder, meta, tokenizer)
        files = tokenizer.files() if tokenizer else {}
        return cls(folder, meta, splits["train"], splits["val"], token_bytes, files)

    @property
    def name(self) -> str:
        return self.meta["dataset"]

    @property
    def vocab_size(self) -> int:
        return self.meta["vocab_size"]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the tokenizer and the tokens of both splits."""
        return self.meta["fingerprint"]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, created on first use, since training does not need it."""
        return tokenizer_from_meta(self.meta["tokenizer"], self.folder)


def _open_split(folder: Path, meta: dict[str, Any], split: str, sequence_length: int) -> np.ndarray:
    path = folder / bin_file(split)
    expected = meta["splits"][split]
    dtype = token_dtype(meta["vocab_size"])
    size = path.stat().st_size if path.is_file() else 0
    if size != expected["tokens"] * dtype.itemsize:
        raise UserError(
            f"{path} has {size} bytes, but {META_FILE} says {expected['tokens']} tokens of "
            f"{dtype.itemsize} bytes: it is truncated or belongs to another dataset; prepare it "
            "again."
        )
    if expected["tokens"] < sequence_length + 1:
        raise UserError(
            f"{path} has {expected['tokens']} tokens, but one sequence and its targets need "
            f"sequence_length + 1 = {sequence_length + 1}; lower sequence_length to at most "
            f"{expected['tokens'] - 1}, or prepare more text."
        )
    tokens = np.memmap(path, dtype=dtype, mode="r")
    _check_tokens(tokens, path, meta["vocab_size"], expected["sha256"])
    return tokens


def _check_tokens(tokens: np.ndarray, path: Path, vocab_size: int, sha256: str) -> None:
    whole = len(tokens) <= CHECKED_TOKENS
    if whole:
        starts = np.arange(0, len(tokens), CHUNK_TOKENS)
    else:
        chunks = max(2, CHECKED_TOKENS // CHUNK_TOKENS)
        starts = np.linspace(0, len(tokens) - CHUNK_TOKENS, chunks).astype(np.int64)
    digest = hashlib.sha256()
    for start in starts:
        chunk = tokens[start : start + CHUNK_TOKENS]
        if chunk.max() >= vocab_size:
            position = start + int(np.argmax(chunk >= vocab_size))
            raise UserError(
                f"{path} contains token {tokens[position]} at position {position}, outside the "
                f"vocabulary of {vocab_size}; prepare the dataset again."
            )
        digest.update(chunk)
    if whole and digest.hexdigest() != sha256:
        raise UserError(
            f"{path} has changed since it was prepared: its sha256 is {digest.hexdigest()}, "
            f"but {META_FILE} says {sha256}; prepare the dataset again."
        )


def _open_token_bytes(
    folder: Path, meta: dict[str, Any], tokenizer: Tokenizer | None
) -> np.ndarray:
    path = folder / TOKEN_BYTES_FILE
    token_bytes = _load_array(path)
    if token_bytes.shape != (meta["vocab_size"],) or token_bytes.dtype != np.uint16:
        raise UserError(
            f"{path} contains {token_bytes.dtype} of shape {token_bytes.shape}, but the "
            f"vocabulary needs a uint16 for each of its {meta['vocab_size']} tokens; prepare the "
            "dataset again."
        )
    if tokenizer is None:
        same = sha256_of(token_bytes) == meta.get("token_bytes_sha256", sha256_of(token_bytes))
    else:
        same = np.array_equal(token_bytes, tokenizer.token_bytes())
    if not same:
        raise UserError(
            f"{path} has changed since it was prepared: it does not match the bytes per token of "
            f"the tokenizer {meta['tokenizer']['name']!r}; prepare the dataset again."
        )
    return token_bytes


def _load_array(path: Path) -> np.ndarray:
    """Load a .npy file; files smaller than their header says are refused."""
    if not os.path.isfile(path):
        raise UserError(f"cannot read {path} (it is not a file); prepare the dataset again.")
    try:
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path} ({error}); prepare the dataset again.") from error


def _tokenizer_at_hand(folder: Path, meta: dict[str, Any]) -> Tokenizer | None:
    """The tokenizer of a dataset; None if it would have to be downloaded."""
    try:
        return tokenizer_from_meta(meta["tokenizer"], folder)
    except NotCached:
        return None
