"""Read the `tokenizer.json` of a Hugging Face tokenizer: the bytes of each token id.

The `tokenizers` library is not needed here, only for encoding. Supported are byte pair encodings
whose tokens represent the text completely: byte-level BPE (GPT-2, Llama 3, Qwen), and SentencePiece
BPE with byte fallback (Llama 2, Mistral, Gemma). Others, such as WordPiece, lose parts of the text.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from errors import UserError, quoted
from safe_files import open_regular, read_json

TOKENIZER_FILE = "tokenizer.json"
MAX_BYTES = 256 * 2**20
"""Maximum size of the file; that of Gemma 3 has 33 MB."""
MOST_IDS = 2**24

_SPACE = "\u2581"
"""SentencePiece's symbol for a space."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_KEEPS_TEXT = ("NFC", "Prepend")
"""Supported normalizers; see `TokenizerFile.normalizes` and `TokenizerFile.plain`."""


def _alphabet() -> list[str]:
    """GPT-2's alphabet (Radford et al. 2019): the character for each byte.

    Visible characters represent themselves; the others are mapped to U+0100 and following.
    """
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]


BYTE_ALPHABET = _alphabet()
_BYTE_OF = {character: byte for byte, character in enumerate(BYTE_ALPHABET)}


@dataclasses.dataclass(frozen=True)
class TokenizerFile:
    """A supported tokenizer.json.

    Attributes:
        content: The bytes of the file.
        spec: Its parsed JSON.
        bytes_by_id: The bytes of each token id; empty for special tokens and unused ids.
        special: The id of each special token, by its text.
    """

    content: bytes
    spec: dict[str, Any]
    bytes_by_id: list[bytes]
    special: dict[str, int]

    @classmethod
    def read(cls, path: Path) -> TokenizerFile:
        """Read the file at `path`, which may be a symbolic link.

        Raises:
            UserError: If it is missing, damaged or not supported.
        """
        try:
            with open_regular(path, follow_links=True) as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror}).") from error
        if len(content) > MAX_BYTES:
            raise UserError(f"{path} is larger than {MAX_BYTES:,} bytes and was not read.")
        return cls.parse(content, path)

    @classmethod
    def parse(cls, content: bytes, path: Path) -> TokenizerFile:
        """Parse the content of a file; `path` is for messages. Raises UserError like `read`."""
        try:
            spec = json.loads(content)
            problem = _unsupported(spec)
            table, special = ([], {}) if problem else _tokens(spec)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{path} is damaged or not the {TOKENIZER_FILE} of a Hugging Face tokenizer: "
                f"{type(error).__name__}: {error}."
            ) from error
        if problem:
            raise UserError(f"{path} {problem}")
        return cls(content, spec, table, special)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of token ids: the largest id plus 1."""
        return len(self.bytes_by_id)

    @property
    def normalizes(self) -> bool:
        """Whether text is first normalized to Unicode NFC, as in Qwen's tokenizer."""
        return any(step["type"] == "NFC" for step in _steps(self.spec["normalizer"]))

    @property
    def spells_spaces(self) -> bool:
        """Whether U+2581 and a space are equivalent, as in SentencePiece."""
        return not _is_byte_level(self.spec)

    def plain(self) -> dict[str, Any]:
        """The JSON of a tokenizer that encodes only the text itself.

        Removes the space that some tokenizers insert before a text, tokens added at its ends (such
        as a beginning-of-text token), truncation, padding, and dropout of merges.
        """
        spec = dict(self.spec) | dict.fromkeys(("truncation", "padding", "post_processor"))
        spec["model"] = {**spec["model"], "dropout": None}
        spec["normalizer"] = _joined(
            "normalizers", (s for s in _steps(spec["normalizer"]) if s["type"] != "Prepend")
        )
        cutting = (_without_prefix(step) for step in _steps(spec["pre_tokenizer"]))
        spec["pre_tokenizer"] = _joined("pretokenizers", cutting)
        decoding = (_without_prefix(s) for s in _steps(spec["decoder"]) if s["type"] != "Strip")
        spec["decoder"] = _joined("decoders", decoding)
        return spec


def end_of_text_of(folder: Path, special: dict[str, int]) -> int | None:
    """The id of the end-of-text token declared by the files next to a tokenizer.json.

    Args:
        folder: Folder of the files.
        special: The id of each special token.

    Returns:
        The id; None if none is declared.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if not (folder / name).is_file():
            continue
        fields = read_json(folder / name, follow_links=True)
        token = fields.get("eos_token") if isinstance(fields, dict) else None
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and text in special:
            return special[text]
    return None


# The parts of a tokenizer.json


def _unsupported(spec: dict[str, Any]) -> str:
    """Why a tokenizer is not supported, to follow its file name; empty if it is supported."""
    use = "use a byte-level BPE tokenizer (GPT-2, Llama 3, Qwen), 'bytes' or 'chars'."
    model = spec["model"]
    if model["type"] != "BPE":
        return f"is a {quoted(model['type'])} tokenizer, which loses parts of a text; {use}"
    spaces = {"Replace", "Metaspace"} & {step["type"] for step in _steps(spec["decoder"])}
    if not _is_byte_level(spec) and not (model.get("byte_fallback") and spaces):
        return f"does not represent all bytes of a text by its tokens; {use}"
    changing = [s["type"] for s in _steps(spec["normalizer"]) if not _keeps_text(s)]
    if changing:
        return f"changes the text before encoding it ({', '.join(changing)}); {use}"
    return ""


def _is_byte_level(spec: dict[str, Any]) -> bool:
    return any(step["type"] == "ByteLevel" for step in _steps(spec["decoder"]))


def _keeps_text(normalizer: dict[str, Any]) -> bool:
    if normalizer["type"] == "Replace":
        return normalizer["pattern"] == {"String": " "} and normalizer["content"] == _SPACE
    return normalizer["type"] in _KEEPS_TEXT


def _steps(component: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, with sequences flattened in order."""
    if component is None:
        return []
    if component["type"] != "Sequence":
        return [component]
    [members] = [value for value in component.values() if isinstance(value, list)]
    return [step for member in members for step in _steps(member)]


def _joined(name: str, steps: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
    """A component with these steps; a sequence stores them under `name`."""
    members = list(steps)
    if len(members) > 1:
        return {"type": "Sequence", name: members}
    return members[0] if members else None


def _without_prefix(step: dict[str, Any]) -> dict[str, Any]:
    """The step without inserting or removing a space before a text."""
    if step["type"] == "ByteLevel":
        return {**step, "add_prefix_space": False}
    if step["type"] == "Metaspace":
        kept = {key: value for key, value in step.items() if key != "add_prefix_space"}
        return {**kept, "prepend_scheme": "never"}
    return step


def _tokens(spec: dict[str, Any]) -> tuple[list[bytes], dict[str, int]]:
    """The bytes of each token id, and the ids of special tokens."""
    vocabulary, added = spec["model"]["vocab"], spec.get("added_tokens") or []
    ids = [*vocabulary.values(), *(token["id"] for token in added)]
    if not all(isinstance(token, int) and 0 <= token < MOST_IDS for token in ids):
        raise ValueError(f"token ids must be integers from 0 to {MOST_IDS - 1}")
    spelled = _spelled_by_bytes if _is_byte_level(spec) else _spelled_by_sentencepiece
    table = [b""] * (max(ids, default=-1) + 1)
    for text, token in vocabulary.items():
        table[token] = spelled(text)
    for token in added:
        table[token["id"]] = b"" if token["special"] else token["content"].encode()
    return table, {token["content"]: token["id"] for token in added if token["special"]}


def _spelled_by_bytes(text: str) -> bytes:
    try:
        return bytes(_BYTE_OF[character] for character in text)
    except KeyError:
        return text.encode()


def _spelled_by_sentencepiece(text: str) -> bytes:
    byte = _BYTE.fullmatch(text)
    return bytes.fromhex(byte[1]) if byte else text.replace(_SPACE, " ").encode()
