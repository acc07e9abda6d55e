"""Training batches, as a pure function of seed and step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from data.windows import Batch, inputs_and_targets, read_windows
from errors import UserError

FEISTEL_ROUNDS = 6


def permute(positions: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Apply a random permutation of range(size) to `positions`, in O(1) memory.

    A Feistel network permutes the numbers with 2h bits, the fewest that can represent `size`.
    Results outside range(size) are passed through the network again until they are inside (cycle
    walking, under four passes on average), which gives a permutation of range(size). Black and
    Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002.

    Args:
        positions: Shape (n,), in range(size).
        size: Size of the range, at most 2**62.
        keys: A random uint64 for each round, which select the permutation.

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
    """Hash uint64s with the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True)
class Shares:
    """How the sequences of a step are divided evenly among workers.

    Whole micro-batches are distributed as far as possible; workers that share one divide its
    sequences. With 4 micro-batches of 8 sequences, 2 workers get 2 micro-batches each, and 8
    workers get half a micro-batch each.

    Args:
        gradient_accumulation_steps: Micro-batches per step, over all workers.
        batch_size: Sequences per micro-batch.
        workers: Number of workers.
    """

    gradient_accumulation_steps: int
    batch_size: int
    workers: int

    @property
    def _apart(self) -> int:
        """Number of groups of workers; the workers of a group share micro-batches."""
        return math.gcd(self.gradient_accumulation_steps, self.workers)

    @property
    def _sharing(self) -> int:
        """Number of workers per group."""
        return self.workers // self._apart

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches per worker."""
        return self.gradient_accumulation_steps // self._apart

    @property
    def sequences(self) -> int:
        """Number of sequences per micro-batch of a worker."""
        return self.batch_size // self._sharing

    @property
    def problem(self) -> str:
        """Why the step cannot be divided, with the nearest valid values; empty if it can."""
        if self.batch_size % self._sharing == 0:
            return ""
        return (
            f"a step with gradient_accumulation_steps={self.gradient_accumulation_steps} x "
            f"batch_size={self.batch_size} sequences does not divide among {self.workers} workers; "
            f"use batch_size={_nearest(self.batch_size, self._sharing)}, or "
            "gradient_accumulation_steps="
            f"{_nearest(self.gradient_accumulation_steps, self.workers)}."
        )

    def of(self, rank: int) -> np.ndarray:
        """The indices of a worker's sequences in a step, in reading order; shape (micro_batches *
        sequences,)."""
        group, place = divmod(rank, self._sharing)
        rows = np.arange(self.micro_batches) + group * self.micro_batches
        columns = np.arange(self.sequences) + place * self.sequences
        return (rows[:, None] * self.batch_size + columns).reshape(-1)


def _nearest(value: int, divisor: int) -> str:
    """The nearest multiples of `divisor` below and above `value`: `4 or 8`."""
    below = value // divisor * divisor
    return f"{below} or {below + divisor}" if below else str(divisor)


@dataclass(frozen=True, eq=False)
class TrainingBatches:
    """The batch of every step, as a pure function of (data_seed, step), computed in O(1).

    Each epoch divides the split into disjoint windows and reads each once, in a random order. The
    windows are also shifted by a random offset per epoch, at the cost of one window per epoch (if
    there are two or more); tokens that do not fill a window are not read in that epoch. A step
    reads the next gradient_accumulation_steps x batch_size windows, across epochs if necessary;
    only the product matters for which windows are read.

    Args:
        tokens: The split, shape (tokens,), with at least sequence_length + 1 tokens.
        sequence_length: T, in tokens.
        batch_size: Sequences per micro-batch.
        gradient_accumulation_steps: Micro-batches per step, over all workers.
        data_seed: Seed of the orders and offsets.
        rank, world_size: Rank of this worker and number of workers; see `Shares`. Together the
            workers read exactly what a single worker would.

    Raises:
        UserError: If the sequences of a step do not divide among the workers.
    """

    tokens: np.ndarray
    sequence_length: int
    batch_size: int
    gradient_accumulation_steps: int
    data_seed: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        problem = self._shares.problem
        if problem:
            raise UserError(problem)

    @property
    def _shares(self) -> Shares:
        return Shares(self.gradient_accumulation_steps, self.batch_size, self.world_size)

    @property
    def windows_per_epoch(self) -> int:
        """Number of windows in an epoch."""
        return max(1, (len(self.tokens) - 1) // self.sequence_length - 1)

    def batch(self, step: int) -> Batch:
        """This worker's inputs and targets of a step (from 0); targets are shifted by one token.

        Returns:
            Two int64 tensors of shape (micro-batches, sequences, T): this worker's share.
        """
        shares = self._shares
        first = step * self.gradient_accumulation_steps * self.batch_size
        starts = self.window_starts(first + shares.of(self.rank))
        windows = read_windows(self.tokens, starts, self.sequence_length)
        inputs, targets = inputs_and_targets(windows)
        shape = (shares.micro_batches, shares.sequences, self.sequence_length)
        return inputs.view(shape), targets.view(shape)

    def window_starts(self, positions: np.ndarray) -> np.ndarray:
        """Start tokens of the windows at `positions` in the infinite order, both shape (n,)."""
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
