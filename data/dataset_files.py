"""The files of a prepared dataset: their names, the meta data, the fingerprint.

train.bin, val.bin   token ids one after the other, little-endian uint16 or uint32
token_bytes.npy      UTF-8 length of each token id, uint16; 0 for special tokens
tokenizer.json       copy of the tokenizer, where it is one of Hugging Face tokenizers
meta.json            what the files hold; written last, so that it vouches for the others
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from data.tokenizer_json import TOKENIZER_FILE
from data.tokenizers import token_dtype
from errors import UserError
from safe_files import read_json

SCHEMA_VERSION = 1
SPLITS = ("train", "val")
META_FILE = "meta.json"
TOKEN_BYTES_FILE = "token_bytes.npy"


def bin_file(split: str) -> str:
    """Name of the file that holds the tokens of a split."""
    return f"{split}.bin"


def dataset_files(folder: Path) -> list[str]:
    """Names of the files that a prepared dataset consists of, meta.json last."""
    own = [TOKENIZER_FILE] if (folder / TOKENIZER_FILE).is_file() else []
    return [*map(bin_file, SPLITS), TOKEN_BYTES_FILE, *own, META_FILE]


def sha256_of(array: np.ndarray) -> str:
    """SHA-256 of an array's numbers."""
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def fingerprint_of(tokenizer: dict[str, Any], splits: dict[str, dict[str, Any]]) -> str:
    """SHA-256 of what a model gets to see: the tokenizer, and the tokens of both splits.

    The tokenizer, as `Tokenizer.to_meta` describes it, also decides the bytes per token.
    """
    seen = {
        "tokenizer": tokenizer,
        "sha256": {split: splits[split]["sha256"] for split in SPLITS},
    }
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode("ascii")).hexdigest()


def read_meta(folder: Path) -> dict[str, Any]:
    """The meta data of a prepared dataset, as `write_dataset` wrote it.

    Raises:
        UserError: it is missing, damaged, changed since it was prepared, or of another version.
    """
    path = folder / META_FILE
    try:
        meta = read_json(path, follow_links=True)
    except OSError as error:
        raise UserError(
            f"{folder} is not a prepared dataset: its {META_FILE} cannot be read "
            f"({error.strerror})."
        ) from error
    version = meta.get("schema_version") if isinstance(meta, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema_version {version}, but this version reads {SCHEMA_VERSION}; "
            "prepare the dataset again."
        )
    if not _is_complete(meta):
        raise UserError(f"{path} is damaged (some keys are invalid); prepare the dataset again.")
    fingerprint = fingerprint_of(meta["tokenizer"], meta["splits"])
    if meta["fingerprint"] != fingerprint:
        raise UserError(
            f"{path} has changed since the dataset was prepared: its fingerprint is "
            f"{meta['fingerprint'][:12]!r}, but its tokenizer and splits make "
            f"{fingerprint[:12]!r}; prepare the dataset again."
        )
    return meta


def _is_complete(meta: dict[str, Any]) -> bool:
    """Whether the meta data have every key that is relied on, of the right kind."""
    try:
        return (
            isinstance(meta["fingerprint"], str)
            and isinstance(meta["dataset"], str)
            and isinstance(meta["tokenizer"]["name"], str)
            and isinstance(meta["vocab_size"], int)
            and meta["dtype"] == token_dtype(meta["vocab_size"]).name
            and all(isinstance(meta["splits"][split]["tokens"], int) for split in SPLITS)
            and all(meta["splits"][split]["tokens"] > 0 for split in SPLITS)
            and all(isinstance(meta["splits"][split]["sha256"], str) for split in SPLITS)
        )
    except (KeyError, TypeError):
        return False
