"""The files of a prepared dataset: names, metadata and fingerprint.

train.bin, val.bin   consecutive token ids, little-endian uint16 or uint32
token_bytes.npy      UTF-8 length of each token id, uint16; 0 for special tokens
tokenizer.json       copy of the tokenizer, if it is a Hugging Face tokenizer
meta.json            describes the files; written last, so that it implies the others are complete
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
    """Name of the file with the tokens of a split."""
    return f"{split}.bin"


def dataset_files(folder: Path) -> list[str]:
    """Names of the files of a prepared dataset, meta.json last."""
    own = [TOKENIZER_FILE] if (folder / TOKENIZER_FILE).is_file() else []
    return [*map(bin_file, SPLITS), TOKEN_BYTES_FILE, *own, META_FILE]


def sha256_of(array: np.ndarray) -> str:
    """SHA-256 of the values of an array."""
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def fingerprint_of(tokenizer: dict[str, Any], splits: dict[str, dict[str, Any]]) -> str:
    """SHA-256 of the tokenizer and the tokens of both splits, which determine all model inputs.

    The tokenizer, as described by `Tokenizer.to_meta`, also determines the bytes per token.
    """
    seen = {
        "tokenizer": tokenizer,
        "sha256": {split: splits[split]["sha256"] for split in SPLITS},
    }
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode("ascii")).hexdigest()


def read_meta(folder: Path) -> dict[str, Any]:
    """Read the metadata of a prepared dataset, written by `write_dataset`.

    Raises:
        UserError: If it is missing, damaged, was changed, or has another version.
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
            f"{meta['fingerprint'][:12]!r}, but its tokenizer and splits have "
            f"{fingerprint[:12]!r}; prepare the dataset again."
        )
    return meta


def _is_complete(meta: dict[str, Any]) -> bool:
    """Whether the metadata has all required keys with values of the right type."""
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
