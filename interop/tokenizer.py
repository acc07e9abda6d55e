"""Byte pair encodings as the `tokenizer.json` of Hugging Face tokenizers."""

from __future__ import annotations

from typing import Any

from training.tokenizers import Tokenizer


def tokenizer_files(tokenizer: Tokenizer | None, longest: int) -> dict[str, Any]:
    return {}
