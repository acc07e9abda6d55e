"""Tokenizers as Hugging Face tokenizers reads them: tokenizer.json and its config."""

from __future__ import annotations

import itertools
from typing import Any

from data.tokenizer_json import BYTE_ALPHABET, TOKENIZER_FILE
from data.tokenizers import BytePairs, Tokenizer


def tokenizer_files(tokenizer: Tokenizer | None, longest: int) -> dict[str, Any]:
    """What to write, by file name; nothing where transformers has no tokenizer of the kind.

    Args:
        tokenizer: The tokenizer of the data.
        longest: Tokens that the model takes.
    """
    spec = None if tokenizer is None else _spec(tokenizer)
    if spec is None:
        return {}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest}
    added = spec["added_tokens"]
    end = [token["content"] for token in added if token["id"] == tokenizer.end_of_text]
    if end:
        config |= {"bos_token": end[0], "eos_token": end[0]}
    return {TOKENIZER_FILE: spec, "tokenizer_config.json": config}


def _spec(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """The content of tokenizer.json; None where there is none of the kind."""
    pairs = tokenizer.byte_pairs()
    return tokenizer.huggingface() if pairs is None else _tokenizer(pairs)


def _tokenizer(pairs: BytePairs) -> dict[str, Any]:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(text, token) for text, token in pairs.special.items()],
        "normalizer": None,
        "pre_tokenizer": _cut(pairs.pattern, level | {"use_regex": False}),
        "post_processor": None,
        "decoder": level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a piece that is a token is that token, as in tiktoken
            "vocab": {_spelled(token): rank for token, rank in pairs.ranks.items()},
            "merges": _merges(pairs.ranks),
        },
    }


def _special(text: str, token: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": text, **flags, "special": True}


def _cut(pattern: str | None, level: dict[str, Any]) -> dict[str, Any]:
    """How text is cut into pieces, and these into bytes."""
    if pattern is None:
        return level
    # There `{1,3}+` would repeat; a possessive count at a branch's end is a plain one.
    regex = {"Regex": pattern.replace("}+", "}")}
    split = {"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, level]}


def _spelled(token: bytes) -> str:
    return "".join(BYTE_ALPHABET[byte] for byte in token)


def _merges(ranks: dict[bytes, int]) -> list[str]:
    """The pair that makes each token of several bytes, in the order in which pairs are merged."""
    longer = sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__)
    return [" ".join(map(_spelled, _halves(token, ranks))) for token in longer]


def _halves(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, ...]:
    """The two tokens whose merging, the last of several, makes a token."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = (left + right for left, right in itertools.pairwise(parts))
        where = min(enumerate(pairs), key=lambda pair: ranks.get(pair[1], len(ranks)))[0]
        parts[where : where + 2] = [parts[where] + parts[where + 1]]
    return tuple(parts)
