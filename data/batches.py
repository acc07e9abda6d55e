"""The batch of each training step, as a pure function of the seed and the step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.windows import Batch, inputs_and_targets, read_windows
from errors import UserError

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
        windows = read_windows(self.tokens, starts, self.sequence_length)
        inputs, targets = inputs_and_targets(windows)
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
