"""`tokenizer.json` of Hugging Face tokenizers: the bytes that each token id stands for.

Read without the `tokenizers` library, which only encoding needs. Supported are byte pair encodings
whose tokens spell out the text: byte-level ones (GPT-2, Llama 3, Qwen), and those of SentencePiece
with byte fallback (Llama 2, Mistral, Gemma). Others, such as WordPiece, lose parts of the text.
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
"""Of the file; that of Gemma 3 has 33 MB."""
MOST_IDS = 2**24

_SPACE = "\u2581"
"""How SentencePiece spells a space."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_KEEPS_TEXT = ("NFC", "Prepend")
"""Normalizers that are supported: see `TokenizerFile.normalizes`, `TokenizerFile.plain`."""


def _alphabet() -> list[str]:
    """The character that stands for each byte: itself where it can be seen, else from U+0100 on.

    The alphabet of GPT-2 (Radford et al. 2019).
    """
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]


BYTE_ALPHABET = _alphabet()
_BYTE_OF = {character: byte for byte, character in enumerate(BYTE_ALPHABET)}


@dataclasses.dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer.json that is known to be supported.

    Attributes:
        content: The file, byte by byte.
        spec: The JSON in it.
        bytes_by_id: The bytes of each token id; none for special tokens and unused ids.
        special: The id of each special token, by its text.
    """

    content: bytes
    spec: dict[str, Any]
    bytes_by_id: list[bytes]
    special: dict[str, int]

    @classmethod
    def read(cls, path: Path) -> TokenizerFile:
        """The file at `path`, which may be a symbolic link.

        Raises:
            UserError: it is missing, damaged, or of a kind that is not supported.
        """
        try:
            with open_regular(path, follow_links=True) as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror}).") from error
        if len(content) > MAX_BYTES:
            raise UserError(f"{path} is larger than {MAX_BYTES:,} bytes; it is not read.")
        return cls.parse(content, path)

    @classmethod
    def parse(cls, content: bytes, path: Path) -> TokenizerFile:
        """A file's content; `path` is for messages. Raises UserError, as `read`."""
        try:
            spec = json.loads(content)
            problem = _unsupported(spec)
            table, special = ([], {}) if problem else _tokens(spec)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{path} is damaged or not a {TOKENIZER_FILE} of Hugging Face tokenizers: "
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
        """Number of token ids, from 0 to the largest."""
        return len(self.bytes_by_id)

    @property
    def normalizes(self) -> bool:
        """Whether text is brought into Unicode's normal form C first, as by Qwen's tokenizer."""
        return any(step["type"] == "NFC" for step in _steps(self.spec["normalizer"]))

    @property
    def spells_spaces(self) -> bool:
        """Whether U+2581 and a space are the same, as for SentencePiece."""
        return not _is_byte_level(self.spec)

    def plain(self) -> dict[str, Any]:
        """The JSON of the tokenizer whose tokens are those of a text and nothing else.

        Without the space that some add before a text, without tokens that they add to its ends
        (such as one for its beginning), truncation, padding, and merges left out at random.
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
    """The id of the end-of-text token that the files beside a tokenizer.json declare.

    Args:
        folder: Their folder.
        special: The id of each special token.

    Returns:
        None where they declare none.
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
    """What is not supported about a tokenizer, after the name of its file; empty if all is."""
    use = "use a byte-level BPE tokenizer (GPT-2, Llama 3, Qwen), 'bytes' or 'chars'."
    model = spec["model"]
    if model["type"] != "BPE":
        return f"is a {quoted(model['type'])} tokenizer, which does not keep all of a text; {use}"
    spaces = {"Replace", "Metaspace"} & {step["type"] for step in _steps(spec["decoder"])}
    if not _is_byte_level(spec) and not (model.get("byte_fallback") and spaces):
        return f"does not spell out the bytes of a text in its tokens; {use}"
    changing = [s["type"] for s in _steps(spec["normalizer"]) if not _keeps_text(s)]
    if changing:
        return f"changes the text before it is encoded ({', '.join(changing)}); {use}"
    return ""


def _is_byte_level(spec: dict[str, Any]) -> bool:
    return any(step["type"] == "ByteLevel" for step in _steps(spec["decoder"]))


def _keeps_text(normalizer: dict[str, Any]) -> bool:
    if normalizer["type"] == "Replace":
        return normalizer["pattern"] == {"String": " "} and normalizer["content"] == _SPACE
    return normalizer["type"] in _KEEPS_TEXT


def _steps(component: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, those of a sequence in order."""
    if component is None:
        return []
    if component["type"] != "Sequence":
        return [component]
    [members] = [value for value in component.values() if isinstance(value, list)]
    return [step for member in members for step in _steps(member)]


def _joined(name: str, steps: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
    """The component of these steps, whose sequences call them `name`."""
    members = list(steps)
    if len(members) > 1:
        return {"type": "Sequence", name: members}
    return members[0] if members else None


def _without_prefix(step: dict[str, Any]) -> dict[str, Any]:
    """A step that adds no space before a text, and removes none."""
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
