"""Tokenize documents into the files of a prepared dataset.

Documents are streamed, so memory use is bounded for any input size.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from data.dataset_files import (
    META_FILE,
    SCHEMA_VERSION,
    SPLITS,
    TOKEN_BYTES_FILE,
    bin_file,
    dataset_files,
    fingerprint_of,
    sha256_of,
)
from data.tokenizer_json import TOKENIZER_FILE
from data.tokenizers import Tokenizer, token_dtype
from errors import UserError

# Characters per tokenization task: large enough for the overhead of a task to be negligible, small
# enough that a few dozen in flight need little memory.
TASK_CHARACTERS = 2**20

Task = TypeVar("Task")
Result = TypeVar("Result")


class Document(NamedTuple):
    """A text and its split.

    The text consists of pieces, so that it never needs to be in memory as a whole. Pieces are
    tokenized separately, so cut them where the tokenizer would, like `data.text_files.read_pieces`.
    """

    split: str
    pieces: Iterable[str]


def split_by_hash(identity: str, val_fraction: float) -> str:
    """Choose the split of a document only by its identity, such as a path or its own text.

    The split does not depend on the order or on other documents. If the identity is the text, exact
    copies of a document never end up in different splits.
    """
    digest = hashlib.blake2b(identity.encode("utf-8"), digest_size=8).digest()
    return "val" if int.from_bytes(digest, "big") < val_fraction * 2**64 else "train"


def write_dataset(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    name: str,
    source: str,
    separate: bool,
    workers: int = 1,
    total_bytes: int | None = None,
) -> dict[str, Any]:
    """Tokenize documents into a dataset folder. The result does not depend on `workers`.

    An interrupted call leaves a folder without `meta.json`, or the previous dataset.

    Args:
        documents: The documents; read once, in order, only as fast as they are tokenized.
        tokenizer: The tokenizer, which the metadata describes.
        folder: Folder of the dataset; created if missing.
        name: Name of the dataset, for the metadata.
        source: Description of the source of the text, for the metadata.
        separate: Whether to end each document with the tokenizer's end-of-text token, if any.
        workers: Number of tokenizer threads.
        total_bytes: UTF-8 bytes of all documents, if known, for the progress bar.

    Returns:
        The metadata, as written.

    Raises:
        UserError: If a split has no tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".preparing-", dir=folder) as temporary:
        draft = Path(temporary)
        token_bytes = tokenizer.token_bytes()
        splits = _write_splits(
            _tokenized(documents, tokenizer, separate, workers), token_bytes, draft, total_bytes
        )
        _check_not_empty(splits)
        np.save(draft / TOKEN_BYTES_FILE, token_bytes)
        meta = {
            "schema_version": SCHEMA_VERSION,
            "dataset": name,
            "source": source,
            "python_version": platform.python_version(),
            "tokenizer": tokenizer.to_meta(),
            "vocab_size": tokenizer.vocab_size,
            "dtype": token_dtype(tokenizer.vocab_size).name,
            "documents_end_with": tokenizer.end_of_text if separate else None,
            "token_bytes_sha256": sha256_of(token_bytes),
            "splits": splits,
            "fingerprint": fingerprint_of(tokenizer.to_meta(), splits),
        }
        for file, content in tokenizer.files().items():
            (draft / file).write_bytes(content)
        (draft / META_FILE).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        _publish(draft, folder)
    print(f"{name}: {_in_words(splits)}, saved in\n  {folder}")
    return meta


def _in_words(splits: dict[str, dict[str, Any]]) -> str:
    return ", ".join(f"{splits[split]['tokens']:,} {split} tokens" for split in SPLITS)


def _publish(draft: Path, folder: Path) -> None:
    """Move the finished files into place, so that meta.json never describes other files."""
    (folder / META_FILE).unlink(missing_ok=True)
    (folder / TOKENIZER_FILE).unlink(missing_ok=True)
    for file in dataset_files(draft):
        os.replace(draft / file, folder / file)


# Documents to tokens, in order, with several threads


class _Part(NamedTuple):
    """The result of a task for one split."""

    split: str
    tokens: np.ndarray
    documents: int


def _tasks(documents: Iterable[Document]) -> Iterator[list[tuple[str, str | None]]]:
    """Yield lists of (split, piece) with about TASK_CHARACTERS; a piece of None ends a document."""
    task: list[tuple[str, str | None]] = []
    characters = 0
    for document in documents:
        for piece in document.pieces:
            task.append((document.split, piece))
            characters += len(piece)
            if characters >= TASK_CHARACTERS:
                yield task
                task, characters = [], 0
        task.append((document.split, None))
    yield task


def _tokenized(
    documents: Iterable[Document], tokenizer: Tokenizer, separate: bool, workers: int
) -> Iterator[list[_Part]]:
    """Yield the tokens of each task, in document order."""
    end = [tokenizer.end_of_text] if separate and tokenizer.end_of_text is not None else []
    separator = np.array(end, dtype=token_dtype(tokenizer.vocab_size))

    def tokenize(task: list[tuple[str, str | None]]) -> list[_Part]:
        parts = []
        for split in SPLITS:
            pieces = [piece for of, piece in task if of == split]
            if pieces:
                tokens = [separator if p is None else tokenizer.encode(p) for p in pieces]
                parts.append(_Part(split, np.concatenate(tokens), pieces.count(None)))
        return parts

    return ordered_map(tokenize, _tasks(documents), workers)


def ordered_map(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Iterator[Result]:
    """`map(function, tasks)` with threads, with at most 2 x workers + 1 tasks at a time."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque = deque()
        for task in tasks:
            pending.append(pool.submit(function, task))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


# Tokens to files


def _write_splits(
    tokenized: Iterable[list[_Part]],
    token_bytes: np.ndarray,
    folder: Path,
    total_bytes: int | None,
) -> dict[str, dict[str, Any]]:
    """Write the file of each split; returns the metadata entry of each split."""
    counts = {split: {"tokens": 0, "bytes": 0, "documents": 0} for split in SPLITS}
    digests = {split: hashlib.sha256() for split in SPLITS}
    with ExitStack() as stack:
        files = {
            split: stack.enter_context(open(folder / bin_file(split), "wb")) for split in SPLITS
        }
        progress = stack.enter_context(
            tqdm(total=total_bytes, unit="B", unit_scale=True, desc="tokenizing", disable=None)
        )
        for part in itertools.chain.from_iterable(tokenized):
            content = part.tokens.tobytes()
            files[part.split].write(content)
            digests[part.split].update(content)
            text_bytes = int(token_bytes[part.tokens].sum(dtype=np.int64))
            counts[part.split]["tokens"] += len(part.tokens)
            counts[part.split]["bytes"] += text_bytes
            counts[part.split]["documents"] += part.documents
            progress.update(text_bytes)
    return {split: counts[split] | {"sha256": digests[split].hexdigest()} for split in SPLITS}


def _check_not_empty(splits: dict[str, dict[str, Any]]) -> None:
    documents = sum(splits[split]["documents"] for split in SPLITS)
    for split in SPLITS:
        if splits[split]["tokens"] == 0:
            raise UserError(
                f"the {split} split has no text after {documents} documents; provide more "
                "documents, or change the validation fraction."
            )
