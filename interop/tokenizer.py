"""Byte pair encodings as Hugging Face tokenizers reads them: tokenizer.json and its config."""

from __future__ import annotations

import itertools
from typing import Any

from data.tokenizers import BytePairs, Tokenizer


def tokenizer_files(tokenizer: Tokenizer | None, longest: int) -> dict[str, Any]:
    """What to write, by file name; nothing where transformers has no tokenizer of the kind.

    Args:
        tokenizer: The tokenizer of the data.
        longest: Tokens that the model takes.
    """
    pairs = None if tokenizer is None else tokenizer.byte_pairs()
    if pairs is None:
        return {}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest}
    end = [text for text, token in pairs.special.items() if token == tokenizer.end_of_text]
    if end:
        config |= {"bos_token": end[0], "eos_token": end[0]}
    return {"tokenizer.json": _tokenizer(pairs), "tokenizer_config.json": config}


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


def _alphabet() -> list[str]:
    """The character that stands for each byte: itself where it can be seen, else from U+0100 on.

    The alphabet of GPT-2 (Radford et al. 2019).
    """
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]


_ALPHABET = _alphabet()


def _spelled(token: bytes) -> str:
    return "".join(_ALPHABET[byte] for byte in token)


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
