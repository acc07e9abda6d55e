"""Tokenizers: bytes, characters, and byte pair encodings from tiktoken and Hugging Face tokenizers.

Tokenizers are lossless: the concatenated bytes of the tokens are the UTF-8 bytes of the text. This
makes bits per byte exact and comparable between tokenizers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import threading
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import tiktoken.load

from data.tokenizer_json import TOKENIZER_FILE, TokenizerFile, end_of_text_of
from errors import UserError, unknown_name

END_OF_TEXT = "<|endoftext|>"
"""Text of the end-of-text token where tokens need a text, as in GPT-2's vocabulary."""

_LOADING = threading.Lock()
"""Held while tiktoken loads a vocabulary, because `_without_network` patches its loader."""


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded as UTF-8; lone surrogates, possible in JSON, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def token_dtype(vocab_size: int) -> np.dtype:
    """The smaller of uint16 and uint32, little-endian, that fits all ids of the vocabulary."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


@dataclasses.dataclass(frozen=True)
class BytePairs:
    """The definition of a byte pair encoding.

    Attributes:
        ranks: The id of each token, by its bytes; pairs are merged in order of ids.
        pattern: The regular expression that first splits text into pieces; None: a single piece.
        special: The id of each special token, by its text.
    """

    ranks: dict[bytes, int]
    pattern: str | None = None
    special: dict[str, int] = dataclasses.field(default_factory=dict)


class NotCached(UserError):
    """A vocabulary is not cached, and its download was not requested."""


class Tokenizer(ABC):
    """Base class of tokenizers.

    Attributes:
        name: The tokenizer's name, as in `--tokenizer`.
        vocab_size: Number of token ids, including special tokens.
        end_of_text: Id of the token that separates documents; None if there is none.
    """

    name: str
    vocab_size: int
    end_of_text: int | None = None

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Encode text as ids of shape (tokens,) and dtype `token_dtype`, without special tokens."""

    @abstractmethod
    def _bytes_of(self, ids: np.ndarray) -> bytes:
        """The bytes of ids that are known to be in the vocabulary."""

    @abstractmethod
    def token_bytes(self) -> np.ndarray:
        """UTF-8 length of each token id, shape (vocab_size,), uint16; 0 for special tokens."""

    def byte_pairs(self) -> BytePairs | None:
        """The definition of the byte pair encoding, for export; None if it is not one."""
        return None

    def huggingface(self) -> dict[str, Any] | None:
        """The content of its tokenizer.json; None if it has none."""
        return None

    def to_meta(self) -> dict[str, Any]:
        """A JSON-serializable description, from which `tokenizer_from_meta` creates the tokenizer
        again."""
        return {"name": self.name}

    def files(self) -> dict[str, bytes]:
        """Additional files that `tokenizer_from_meta` needs: file name -> content."""
        return {}

    def vocabulary_sha256(self) -> str:
        """SHA-256 of the text of each id, which is the same for equal vocabularies of any type."""
        digest = hashlib.sha256()
        for token in np.arange(self.vocab_size):
            spelled = self._bytes_of(token[None])
            digest.update(len(spelled).to_bytes(4, "little") + spelled)
        return digest.hexdigest()

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Decode ids to UTF-8 bytes, which may end in the middle of a character.

        To print a text while it is generated, pass them to an incremental UTF-8 decoder.

        Raises:
            UserError: If an id is outside the vocabulary.
        """
        ids = np.asarray(ids, dtype=np.int64).reshape(-1)
        outside = ids[(ids < 0) | (ids >= self.vocab_size)]
        if outside.size:
            raise UserError(
                f"token id {outside[0]} is outside the {self.vocab_size} ids of the tokenizer "
                f"{self.name!r}; mask the padding ids of the vocabulary before sampling."
            )
        return self._bytes_of(ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to text; bytes that are not UTF-8 become U+FFFD.

        Raises:
            UserError: If an id is outside the vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


class ByteTokenizer(Tokenizer):
    """One token per UTF-8 byte, plus an end-of-text token; can encode any text.

    Args:
        end_of_text: Whether the vocabulary has the end-of-text token, and thus 257 instead of 256
            ids. Datasets of earlier versions lack it.
    """

    name = "bytes"

    def __init__(self, *, end_of_text: bool = True) -> None:
        self.end_of_text = 256 if end_of_text else None
        self.vocab_size = 257 if end_of_text else 256

    def encode(self, text: str) -> np.ndarray:
        ids = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
        return ids.astype(token_dtype(self.vocab_size))

    def _bytes_of(self, ids: np.ndarray) -> bytes:
        return ids[ids < 256].astype(np.uint8).tobytes()

    def token_bytes(self) -> np.ndarray:
        return (np.arange(self.vocab_size) < 256).astype(np.uint16)

    def byte_pairs(self) -> BytePairs:
        special = {} if self.end_of_text is None else {END_OF_TEXT: self.end_of_text}
        return BytePairs({bytes([byte]): byte for byte in range(256)}, special=special)

    def to_meta(self) -> dict[str, Any]:
        return {"name": self.name} | ({} if self.end_of_text is None else {"end_of_text": True})


class CharTokenizer(Tokenizer):
    """One token per character of a given set, numbered in code point order.

    Args:
        characters: The known characters, in any order; may contain duplicates.

    Raises:
        UserError: If there are no characters.
    """

    name = "chars"

    def __init__(self, characters: str) -> None:
        if not characters:
            raise UserError("the tokenizer 'chars' needs at least one character; found no text.")
        if not is_unicode(characters):
            raise UserError("the characters of the tokenizer 'chars' contain a lone surrogate.")
        self.characters = "".join(sorted(set(characters)))
        self.vocab_size = len(self.characters)
        self._code_points = self._to_code_points(self.characters)

    @staticmethod
    def _to_code_points(text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")

    def encode(self, text: str) -> np.ndarray:
        """Encode text as ids.

        Raises:
            UserError: If a character is not in the set.
        """
        wanted = self._to_code_points(text)
        ids = np.searchsorted(self._code_points, wanted)
        known = self._code_points.take(ids, mode="clip") == wanted
        if not known.all():
            position = int(np.argmin(known))
            raise UserError(
                f"character {text[position]!r} (U+{wanted[position]:04X}) at position {position} "
                f"is not one of the {self.vocab_size} characters of this dataset; remove it, or "
                "use a dataset with the tokenizer 'bytes'."
            )
        return ids.astype(token_dtype(self.vocab_size))

    def _bytes_of(self, ids: np.ndarray) -> bytes:
        return self._code_points[ids].tobytes().decode("utf-32-le").encode("utf-8")

    def token_bytes(self) -> np.ndarray:
        return np.array([len(c.encode("utf-8")) for c in self.characters], dtype=np.uint16)

    def to_meta(self) -> dict[str, Any]:
        return {"name": self.name, "characters": self.characters}


class TiktokenTokenizer(Tokenizer):
    """A byte pair encoding from tiktoken (https://github.com/openai/tiktoken), such as gpt2.

    tiktoken caches vocabularies in $TIKTOKEN_CACHE_DIR, or in a temporary folder by default.

    Args:
        name: `gpt2`, `cl100k_base`, or any other name that tiktoken knows.
        download: Whether to download the vocabulary if it is not cached.

    Raises:
        NotCached: If the vocabulary is not cached, and `download` is False.
        UserError: If the name is unknown, or the download failed.
    """

    def __init__(self, name: str, *, download: bool = False) -> None:
        known = tiktoken.list_encoding_names()
        if name not in known:
            own = (ByteTokenizer.name, CharTokenizer.name)
            raise UserError(unknown_name("tokenizer", name, (*own, *known)))
        try:
            with _LOADING, contextlib.nullcontext() if download else _without_network():
                self._encoding = tiktoken.get_encoding(name)
        except _Refused as error:
            raise NotCached(
                f"the vocabulary of the tokenizer {name!r} is not cached, and it is only "
                "downloaded on request: pass --download to sample.py or the export (download=True "
                "in Python), or set TIKTOKEN_CACHE_DIR to a folder that contains it."
            ) from error
        # tiktoken raises OSError if a download fails, and ValueError if the file is the wrong one.
        except (OSError, ValueError) as error:
            raise UserError(
                f"the vocabulary of the tokenizer {name!r} is not cached and could not be "
                f"downloaded ({error}). Run once with network access, or copy tiktoken's cache "
                "from a machine that has it and set TIKTOKEN_CACHE_DIR to that folder."
            ) from error
        self.name = name
        self.vocab_size = self._encoding.n_vocab
        self.end_of_text = self._encoding.eot_token

    def encode(self, text: str) -> np.ndarray:
        # Texts of special tokens are ordinary text here. This call releases the GIL, so threads can
        # encode in parallel.
        ids = self._encoding.encode_to_numpy(text, disallowed_special=())
        return ids.astype(token_dtype(self.vocab_size))

    @cached_property
    def _bytes_by_id(self) -> list[bytes]:
        """The bytes of each id; empty for special tokens and gaps in some vocabularies."""
        table = [b""] * self.vocab_size
        for token in self._encoding.token_byte_values():
            table[self._encoding.encode_single_token(token)] = token
        return table

    def _bytes_of(self, ids: np.ndarray) -> bytes:
        return b"".join(self._bytes_by_id[token] for token in ids)

    def token_bytes(self) -> np.ndarray:
        return np.array([len(token) for token in self._bytes_by_id], dtype=np.uint16)

    def byte_pairs(self) -> BytePairs:
        ranks = {token: rank for rank, token in enumerate(self._bytes_by_id) if token}
        special = self._encoding.special_tokens_set
        ids = {text: self._encoding.encode_single_token(text) for text in special}
        return BytePairs(ranks, self._encoding._pat_str, ids)  # tiktoken has no public attribute


class _Refused(Exception):
    """Raised instead of a download by tiktoken."""


@contextlib.contextmanager
def _without_network() -> Iterator[None]:
    """Make tiktoken raise _Refused instead of downloading; it has no such setting."""

    def refuse(place: str) -> bytes:
        raise _Refused(place)

    download = tiktoken.load.read_file
    tiktoken.load.read_file = refuse
    try:
        yield
    finally:
        tiktoken.load.read_file = download


class HuggingFaceTokenizer(Tokenizer):
    """A byte pair encoding in a tokenizer.json of Hugging Face tokenizers.

    Only the text itself is encoded, without a beginning-of-text token, and without the space that
    some tokenizers insert before a text. The text is first normalized to Unicode NFC if the
    tokenizer does so, and U+2581 is replaced by a space if the tokenizer does not distinguish them;
    bits per byte count the bytes of that text. Only `encode` needs the `tokenizers` library.

    Args:
        file: The tokenizer.json.
        end_of_text: Id of the token that separates documents, if there is one.
    """

    name = "huggingface"

    def __init__(self, file: TokenizerFile, end_of_text: int | None) -> None:
        self._file = file
        self.end_of_text = end_of_text
        self.vocab_size = file.vocab_size

    @classmethod
    def from_path(cls, path: Path) -> HuggingFaceTokenizer:
        """Load the tokenizer of a model folder, or a tokenizer.json.

        Its end-of-text token is the `eos_token` of the tokenizer_config.json in the same folder.

        Raises:
            UserError: If it is missing, damaged or not supported.
        """
        path = path / TOKENIZER_FILE if path.is_dir() else path
        if not path.is_file():
            raise UserError(
                f"{path.parent} has no {TOKENIZER_FILE}; write it with transformers: "
                f"AutoTokenizer.from_pretrained(MODEL).save_pretrained({str(path.parent)!r})."
            )
        file = TokenizerFile.read(path)
        return cls(file, end_of_text_of(path.parent, file.special))

    @cached_property
    def _library(self) -> Any:
        try:
            from tokenizers import Tokenizer as Library
        except ImportError as error:
            raise UserError(
                "encoding text with a tokenizer.json needs Hugging Face tokenizers: pip install "
                "tokenizers"
            ) from error
        library = Library.from_str(json.dumps(self._file.plain()))
        library.encode_special_tokens = True  # texts of special tokens are ordinary text
        return library

    def _normalized(self, text: str) -> str:
        """The text after normalization."""
        text = unicodedata.normalize("NFC", text) if self._file.normalizes else text
        return text.replace("\u2581", " ") if self._file.spells_spaces else text

    def encode(self, text: str) -> np.ndarray:
        """Encode text as ids.

        Raises:
            UserError: If the `tokenizers` library is missing, or the tokens do not match the text.
        """
        text = self._normalized(text)
        # Of the library's calls, this one releases the GIL, so threads can encode in parallel.
        [encoding] = self._library.encode_batch_fast([text], add_special_tokens=False)
        ids = np.array(encoding.ids, dtype=token_dtype(self.vocab_size))
        spelled, wanted = self._bytes_of(ids), text.encode()
        if spelled != wanted:
            at = len(os.path.commonprefix([spelled, wanted]))
            raise UserError(
                f"the tokenizer turns {wanted[at : at + 20]!r} into {spelled[at : at + 20]!r}, so "
                "bits per byte would be wrong; use another tokenizer, or remove that text."
            )
        return ids

    def _bytes_of(self, ids: np.ndarray) -> bytes:
        return b"".join(map(self._file.bytes_by_id.__getitem__, ids.tolist()))

    def token_bytes(self) -> np.ndarray:
        return np.array([len(token) for token in self._file.bytes_by_id], dtype=np.uint16)

    def huggingface(self) -> dict[str, Any]:
        return self._file.plain()

    def to_meta(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self._file.sha256, "end_of_text": self.end_of_text}

    def files(self) -> dict[str, bytes]:
        return {TOKENIZER_FILE: self._file.content}


def tokenizer_called(name: str) -> Tokenizer:
    """Load a tokenizer by name or path, downloading its vocabulary if necessary.

    Args:
        name: bytes, a tiktoken encoding, or the path of a tokenizer.json or its folder.

    Raises:
        UserError: If there is no such tokenizer, or its vocabulary is not available.
    """
    known = (ByteTokenizer.name, CharTokenizer.name, *tiktoken.list_encoding_names())
    if name not in known and (os.path.exists(name) or name.endswith(".json")):
        return HuggingFaceTokenizer.from_path(Path(name))
    if name not in known:
        raise UserError(
            f"{unknown_name('tokenizer', name, known)} The folder of a Hugging Face tokenizer also "
            "works."
        )
    return tokenizer_from_meta({"name": name, "end_of_text": True}, download=True)


def tokenizer_from_meta(
    meta: dict[str, Any], folder: Path | None = None, *, download: bool = False
) -> Tokenizer:
    """Create a tokenizer from a description by `Tokenizer.to_meta`.

    Args:
        meta: `name`: bytes, chars, huggingface or a tiktoken encoding; for bytes, `end_of_text` is
            True if the vocabulary has that token; for chars, `characters`; for huggingface,
            `sha256` of the tokenizer.json and `end_of_text`, an id or None.
        folder: Folder of the tokenizer.json.
        download: Whether to download a tiktoken vocabulary if it is not cached.

    Raises:
        UserError: If the name is unknown, its vocabulary is not available, characters are missing,
            or the tokenizer.json is not the one described.
    """
    name = meta.get("name")
    if name == ByteTokenizer.name:
        return ByteTokenizer(end_of_text=meta.get("end_of_text") is True)
    if name == CharTokenizer.name:
        characters = meta.get("characters", "")
        return CharTokenizer(characters if isinstance(characters, str) else "")
    if name == HuggingFaceTokenizer.name and folder is not None:
        return _copied_tokenizer(meta, folder / TOKENIZER_FILE)
    return TiktokenTokenizer(str(name), download=download)


def _copied_tokenizer(meta: dict[str, Any], path: Path) -> HuggingFaceTokenizer:
    """Load a copy of a tokenizer.json. Raises UserError if it does not match `meta`."""
    file, expected = TokenizerFile.read(path), meta.get("sha256")
    if file.sha256 != expected:
        raise UserError(
            f"{path} has changed: its sha256 is {file.sha256}, but the tokenizer of this data has "
            f"{expected}; restore the file, or prepare the data again."
        )
    end = meta.get("end_of_text")
    known = type(end) is int and end in file.special.values()
    return HuggingFaceTokenizer(file, end if known else None)
