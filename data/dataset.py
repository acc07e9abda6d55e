"""What training reads: a prepared dataset, the batch of each step, and the validation windows.

`data.dataset_writer` writes the dataset's folder; this module finds it, checks it and reads it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.dataset_writer import (
    META_FILE,
    SCHEMA_VERSION,
    SPLITS,
    TOKEN_BYTES_FILE,
    bin_file,
    fingerprint_of,
    sha256_of,
)
from data.tokenizers import NotCached, Tokenizer, token_dtype, tokenizer_from_meta
from errors import UserError, unknown_name
from safe_files import read_json

DATA_FOLDER = Path(__file__).resolve().parents[1] / "data"
PREPARE_FILE = "prepare.py"

# Splits up to this many tokens are checked whole when a dataset is opened (about 0.2 s); of a
# larger one, this many tokens spread over it.
CHECKED_TOKENS = 100_000_000
CHUNK_TOKENS = 2**20

Batch = tuple[Tensor, Tensor]


# Finding a dataset


def prepare_if_missing(dataset: str, *, may_run: bool) -> Path:
    """The folder of a prepared dataset, preparing it first if it is one of data/ and is not yet.

    A prepare script runs only where `dataset` is the plain name of a folder of data/ that holds it,
    neither of them a symbolic link. A path needs a prepared dataset.

    Args:
        dataset: Name of a folder of data/, or a path to a prepared dataset.
        may_run: Whether a prepare script may run: not where a checkpoint names the dataset.

    Raises:
        UserError: there is no such dataset, it is not prepared and may not or cannot prepare
            itself, or preparing it failed.
    """
    folder = DATA_FOLDER / dataset
    if not os.path.isdir(folder):
        folder = Path(dataset)
    if os.path.isfile(folder / META_FILE):
        return folder
    script = folder / PREPARE_FILE
    if may_run and _is_own_script(dataset, script):
        print(f"dataset {dataset!r} is not prepared yet: running {script}")
        _run_prepare(dataset, script)
        return folder
    if os.path.isfile(script):
        raise UserError(
            f"{folder} is not a prepared dataset: it has no {META_FILE}. Its script runs by itself "
            "only in a new run, and only in a folder of data/ that is given by its plain name; "
            f"here run it first: python {script}"
        )
    if os.path.isdir(folder):
        raise UserError(f"{folder} is not a prepared dataset: it has no {META_FILE}.")
    raise UserError(
        f"{unknown_name('dataset', dataset, _dataset_names())} A path to a prepared folder also "
        "serves; data/text/prepare.py prepares text of your own."
    )


def _is_own_script(dataset: str, script: Path) -> bool:
    """Whether a script is that of a folder of data/ itself, named without a path."""
    plain = dataset not in ("", ".", "..") and not set(dataset) & set("/\\:")
    own = plain and script.parent == DATA_FOLDER / dataset and script.is_file()
    return own and not script.is_symlink() and not script.parent.is_symlink()


def _dataset_names() -> list[str]:
    """Folders of data/ that are prepared or have a script."""
    marks = (META_FILE, PREPARE_FILE)
    folders = sorted(DATA_FOLDER.iterdir()) if DATA_FOLDER.is_dir() else []
    return [folder.name for folder in folders if any((folder / mark).is_file() for mark in marks)]


def _run_prepare(dataset: str, script: Path) -> None:
    spec = importlib.util.spec_from_file_location(f"prepare_{script.parent.name}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        module.main([])
    except SystemExit as stop:  # argparse: the script cannot do without arguments
        raise UserError(
            f"dataset {dataset!r} cannot prepare itself without arguments; see "
            f"python {script} --help, then give the name of what it prepared as dataset."
        ) from stop


# Opening a dataset


def read_meta(folder: Path) -> dict[str, Any]:
    """The meta data of a prepared dataset, as `data.dataset_writer.write_dataset` wrote it.

    Raises:
        UserError: it is missing, damaged, changed since it was prepared, or of another version.
    """
    path = folder / META_FILE
    try:
        meta = read_json(path, follow_links=True)
    except OSError as error:
        raise UserError(
            f"{folder} is not a prepared dataset: it has no {META_FILE} that can be read "
            f"({error.strerror})."
        ) from error
    version = meta.get("schema_version") if isinstance(meta, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema_version {version}, this code reads {SCHEMA_VERSION}; prepare the "
            "dataset again."
        )
    try:
        complete = (
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
        complete = False
    if not complete:
        raise UserError(f"{path} is damaged (not all keys are sound); prepare the dataset again.")
    fingerprint = fingerprint_of(meta["tokenizer"], meta["splits"])
    if meta["fingerprint"] != fingerprint:
        raise UserError(
            f"{path} has changed since the dataset was prepared: its fingerprint is "
            f"{meta['fingerprint'][:12]!r}, but its tokenizer and splits make "
            f"{fingerprint[:12]!r}; prepare the dataset again."
        )
    return meta


@dataclass(frozen=True, eq=False)
class Dataset:
    """A prepared dataset, checked and mapped into memory.

    Attributes:
        folder: Where it is.
        meta: Its `meta.json`.
        train, val: Token ids of the splits, read-only memory maps, shape (tokens,), uint16 or
            uint32.
        token_bytes: UTF-8 length of each token id, shape (vocab_size,), uint16.
    """

    folder: Path
    meta: dict[str, Any]
    train: np.ndarray
    val: np.ndarray
    token_bytes: np.ndarray

    @classmethod
    def open(cls, folder: Path | str, sequence_length: int) -> Dataset:
        """The dataset in `folder`, for training on sequences of `sequence_length` tokens.

        Checked here, before any training: the meta data; that each split has the size it should
        have, room for one sequence and its targets, and no token outside the vocabulary; and that
        it is what the fingerprint speaks of. The last two are checked on every token of splits up
        to 100 million tokens; in a larger split, the vocabulary on 100 million tokens spread
        evenly over it, and the fingerprint not. The bytes per token are those of the tokenizer.
        Where that would have to be downloaded, they are checked by the digest in the meta data,
        which datasets of older versions lack.

        Raises:
            UserError: one of these does not hold.
        """
        folder = Path(folder)
        meta = read_meta(folder)
        splits = {split: _open_split(folder, meta, split, sequence_length) for split in SPLITS}
        return cls(folder, meta, splits["train"], splits["val"], _open_token_bytes(folder, meta))

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
        """Made at first use: training itself does not need it."""
        return tokenizer_from_meta(self.meta["tokenizer"])


def _open_split(folder: Path, meta: dict[str, Any], split: str, sequence_length: int) -> np.ndarray:
    path = folder / bin_file(split)
    expected = meta["splits"][split]
    dtype = token_dtype(meta["vocab_size"])
    size = path.stat().st_size if path.is_file() else 0
    if size != expected["tokens"] * dtype.itemsize:
        raise UserError(
            f"{path} has {size} bytes, but {META_FILE} says {expected['tokens']} tokens of "
            f"{dtype.itemsize} bytes: it is truncated or of another dataset; prepare it again."
        )
    if expected["tokens"] < sequence_length + 1:
        raise UserError(
            f"{path} has {expected['tokens']} tokens, but one sequence and its targets take "
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
                f"{path} holds token {tokens[position]} at position {position}, outside the "
                f"vocabulary of {vocab_size}; prepare the dataset again."
            )
        digest.update(chunk)
    if whole and digest.hexdigest() != sha256:
        raise UserError(
            f"{path} has changed since it was prepared: its sha256 is {digest.hexdigest()}, "
            f"{META_FILE} says {sha256}; prepare the dataset again."
        )


def _open_token_bytes(folder: Path, meta: dict[str, Any]) -> np.ndarray:
    path = folder / TOKEN_BYTES_FILE
    token_bytes = _load_array(path)
    if token_bytes.shape != (meta["vocab_size"],) or token_bytes.dtype != np.uint16:
        raise UserError(
            f"{path} holds {token_bytes.dtype} of the shape {token_bytes.shape}, but the "
            f"vocabulary has {meta['vocab_size']} tokens, a uint16 for each; prepare the dataset "
            "again."
        )
    own = _own_token_bytes(meta)
    if own is None:
        same = sha256_of(token_bytes) == meta.get("token_bytes_sha256", sha256_of(token_bytes))
    else:
        same = np.array_equal(token_bytes, own)
    if not same:
        raise UserError(
            f"{path} has changed since it was prepared: it does not hold the bytes per token of "
            f"the tokenizer {meta['tokenizer']['name']!r}; prepare the dataset again."
        )
    return token_bytes


def _load_array(path: Path) -> np.ndarray:
    """The array in a .npy file, which is as large as its header says or is refused."""
    if not os.path.isfile(path):
        raise UserError(f"cannot read {path} (it is not a file); prepare the dataset again.")
    try:
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path} ({error}); prepare the dataset again.") from error


def _own_token_bytes(meta: dict[str, Any]) -> np.ndarray | None:
    """The bytes per token of a dataset's tokenizer; None where it would have to be downloaded."""
    try:
        tokenizer = tokenizer_from_meta(meta["tokenizer"])
    except NotCached:
        return None
    return tokenizer.token_bytes()


# Windows: sequences of T inputs and their T targets, T + 1 tokens


def _read_windows(tokens: np.ndarray, starts: np.ndarray, sequence_length: int) -> np.ndarray:
    """The windows that begin at `starts`, shape (windows, T + 1)."""
    return np.stack([tokens[start : start + sequence_length + 1] for start in starts])


def _inputs_and_targets(windows: np.ndarray) -> Batch:
    """Windows (B, T + 1) as int64 inputs (B, T) and, one token on, targets (B, T)."""
    inputs, targets = windows[:, :-1], windows[:, 1:]
    return torch.from_numpy(inputs.astype(np.int64)), torch.from_numpy(targets.astype(np.int64))


# The order of training

FEISTEL_ROUNDS = 6


def permute(positions: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Where a random permutation of range(size) takes `positions`, in O(1) memory.

    A Feistel network permutes the numbers of 2h bits, the fewest that hold `size`; what falls
    outside range(size) is sent through again until it falls inside (cycle walking: under four
    times on average), which leaves a permutation of range(size).
    Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002.

    Args:
        positions: Shape (n,), in range(size).
        size: Of the range, at most 2**62.
        keys: Which permutation: a random uint64 for each round.

    Returns:
        Shape (n,), int64, in range(size).
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)

    def network(values: np.ndarray) -> np.ndarray:
        left, right = values >> half, values & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        return (left << half) | right

    values = network(positions.astype(np.uint64))
    while (outside := values >= size).any():
        values[outside] = network(values[outside])
    return values.astype(np.int64)


def _mix(values: np.ndarray) -> np.ndarray:
    """Scramble uint64s; the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True, eq=False)
class TrainingBatches:
    """The batch of every step: a pure function of (data_seed, step), computed in O(1).

    An epoch cuts the split into disjoint windows and goes through each once, in an order of its
    own. It also shifts all the cuts by an offset of its own, for which one window per epoch is
    given up (where there are two or more); what does not fill a window is not read in that epoch.
    A step takes the next gradient_accumulation_steps x batch_size windows, across the end of an
    epoch where need be; how that product is made up does not change which.

    Args:
        tokens: The split, shape (tokens,), at least sequence_length + 1 long.
        sequence_length: T, in tokens.
        batch_size: Sequences of a micro-batch.
        gradient_accumulation_steps: Micro-batches of a step, over all workers.
        data_seed: Seed of the order and the offsets.
        rank, world_size: This worker, and how many there are; each gets its share of the
            micro-batches, and all together exactly what a single worker would.

    Raises:
        UserError: the micro-batches of a step do not divide among the workers.
    """

    tokens: np.ndarray
    sequence_length: int
    batch_size: int
    gradient_accumulation_steps: int
    data_seed: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.gradient_accumulation_steps % self.world_size:
            raise UserError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} micro-batches do "
                f"not divide among {self.world_size} workers; make it a multiple of "
                f"{self.world_size}."
            )

    @property
    def windows_per_epoch(self) -> int:
        """Windows that an epoch reads, each once."""
        return max(1, (len(self.tokens) - 1) // self.sequence_length - 1)

    def batch(self, step: int) -> Batch:
        """This worker's inputs and targets of step `step` (from 0), targets one token on.

        Returns:
            Two int64 tensors, shape (micro-batches of this worker, batch_size, T).
        """
        share = self.gradient_accumulation_steps // self.world_size
        first = (step * self.gradient_accumulation_steps + self.rank * share) * self.batch_size
        starts = self.window_starts(np.arange(first, first + share * self.batch_size))
        windows = _read_windows(self.tokens, starts, self.sequence_length)
        inputs, targets = _inputs_and_targets(windows)
        shape = (share, self.batch_size, self.sequence_length)
        return inputs.view(shape), targets.view(shape)

    def window_starts(self, positions: np.ndarray) -> np.ndarray:
        """First tokens of the windows at `positions` of the endless order, both shape (n,)."""
        epochs, indices = np.divmod(positions, self.windows_per_epoch)
        starts = np.empty_like(positions)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            starts[now] = self._epoch_starts(int(epoch), indices[now])
        return starts

    def _epoch_starts(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        sequence = np.random.SeedSequence(self.data_seed, spawn_key=(epoch,))
        *keys, random = sequence.generate_state(FEISTEL_ROUNDS + 1, np.uint64)
        windows = permute(indices, self.windows_per_epoch, np.array(keys))
        slack = len(self.tokens) - 1 - self.windows_per_epoch * self.sequence_length
        return int(random) % (slack + 1) + windows * self.sequence_length


# Off the critical path


PREFETCH_DEPTH = 4
"""Batches made ahead of their use."""


class Prefetcher:
    """Goes through batches a few ahead of its reader, on a thread of its own.

    For CUDA the thread puts batches into pinned memory, so that the copy to the device waits for
    nothing. What the thread raises, the reader gets raised. Leaving the `with` ends the thread.

    Args:
        batches: What to go through; only the thread touches it.
        device: Where the reader gets the tensors.
        depth: Batches made ahead.
    """

    def __init__(
        self, batches: Iterable[Batch], device: torch.device | str, depth: int = PREFETCH_DEPTH
    ):
        self._batches = batches
        self._device = torch.device(device)
        if self._device.type == "cuda" and self._device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._ready: SimpleQueue[Batch | BaseException] = SimpleQueue()
        self._room = threading.Semaphore(depth - 1)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        end: BaseException = StopIteration()
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)  # a thread starts at device 0
            for batch in self._batches:
                self._ready.put(self._pinned(batch))
                self._room.acquire()
                if self._closed.is_set():
                    return
        except BaseException as error:
            end = error
        self._ready.put(end)

    def _pinned(self, batch: Batch) -> Batch:
        if self._device.type != "cuda":
            return batch
        inputs, targets = batch
        return inputs.pin_memory(), targets.pin_memory()

    def __iter__(self) -> Prefetcher:
        return self

    def __next__(self) -> Batch:
        if self._closed.is_set():
            raise StopIteration
        item = self._ready.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        self._room.release()
        inputs, targets = item
        return (
            inputs.to(self._device, non_blocking=True),
            targets.to(self._device, non_blocking=True),
        )

    def close(self) -> None:
        """End the thread, after the batch it is making; may be called again."""
        self._closed.set()
        self._room.release()
        self._thread.join()

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prefetch(
    batches: TrainingBatches, first_step: int, end_step: int, device: torch.device | str
) -> Prefetcher:
    """The batches of the steps [first_step, end_step), on `device`, made ahead of their use."""
    return Prefetcher(map(batches.batch, range(first_step, end_step)), device)


# Validation


class ValidationWindows:
    """A fixed part of a split, the same for every run: windows spread evenly over it.

    Going through it gives (inputs, targets), int64 on the CPU, shape (batch_size, T) or fewer rows
    in the last, each window once and in order. The tokens after the last whole window of the split
    are not used.

    Args:
        tokens: The split, shape (tokens,), at least sequence_length + 1 long.
        token_bytes: UTF-8 length of each token id, shape (vocab_size,).
        sequence_length: T, in tokens.
        batch_size: Windows at a time; changes nothing else.
        eval_tokens: Targets to read, rounded up to whole windows, at most what the split has;
            0: all of it.

    Attributes:
        tokens: Targets in all windows.
        bytes: UTF-8 bytes of those targets; the sum of their losses in nats, divided by ln 2 and
            by this, is the loss in bits per byte.
        fingerprint: SHA-256 of the windows; losses compare exactly where it is equal.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        token_bytes: np.ndarray,
        sequence_length: int,
        batch_size: int,
        eval_tokens: int = 0,
    ) -> None:
        available = (len(tokens) - 1) // sequence_length
        wanted = min(available, math.ceil(eval_tokens / sequence_length) or available)
        self._split = tokens
        self._starts = np.arange(wanted) * available // wanted * sequence_length
        self._sequence_length = sequence_length
        self._batch_size = batch_size
        self.tokens = wanted * sequence_length
        self.bytes = 0
        digest = hashlib.sha256(f"{sequence_length} {self._starts.tolist()}".encode("ascii"))
        for windows in self._windows():
            self.bytes += int(token_bytes[windows[:, 1:]].sum(dtype=np.int64))
            digest.update(windows.tobytes())
        self.fingerprint = digest.hexdigest()

    def _windows(self) -> Iterator[np.ndarray]:
        for first in range(0, len(self._starts), self._batch_size):
            starts = self._starts[first : first + self._batch_size]
            yield _read_windows(self._split, starts, self._sequence_length)

    def __iter__(self) -> Iterator[Batch]:
        return map(_inputs_and_targets, self._windows())

    def __len__(self) -> int:
        """Batches."""
        return math.ceil(len(self._starts) / self._batch_size)
