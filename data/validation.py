"""Validation data: the same windows in every evaluation of every run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np

from data.windows import Batch, inputs_and_targets, read_windows

BLOCK_BYTES = 4096
"""Size of a block of text in UTF-8 bytes, about the length of a document."""


class ValidationWindows:
    """A fixed part of a split, the same for every run: windows spread evenly over it.

    Iteration yields (inputs, targets), int64 tensors on the CPU of shape (batch_size, T), fewer
    rows in the last, with each window once and in order. Tokens after the last whole window of the
    split are not used.

    Args:
        tokens: The split, shape (tokens,), with at least sequence_length + 1 tokens.
        token_bytes: UTF-8 length of each token id, shape (vocab_size,).
        sequence_length: T, in tokens.
        batch_size: Windows per batch; does not change the result.
        eval_tokens: Number of targets, rounded up to whole windows and limited to the split; 0:
            all.

    Attributes:
        windows: Number of windows.
        tokens: Number of targets in all windows.
        bytes: UTF-8 bytes of the targets. The sum of their losses in nats, divided by ln 2 and by
            this, is the loss in bits per byte.
        fingerprint: SHA-256 of the windows; losses are exactly comparable if it is equal.
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
            yield read_windows(self._split, starts, self._sequence_length)

    def block_means(self, losses: np.ndarray) -> np.ndarray:
        """The mean losses of blocks of consecutive windows, shape (blocks,).

        Blocks have at least BLOCK_BYTES of text on average (one window, if that is longer), and
        their sizes differ by at most one window. Adjacent blocks are not independent.

        Args:
            losses: The loss of each window, shape (windows,).
        """
        blocks = min(max(self.bytes // BLOCK_BYTES, 1), len(losses))
        return np.array([own.mean(dtype=np.float64) for own in np.array_split(losses, blocks)])

    @property
    def windows(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Batch]:
        return map(inputs_and_targets, self._windows())

    def __len__(self) -> int:
        """Number of batches."""
        return math.ceil(len(self._starts) / self._batch_size)
