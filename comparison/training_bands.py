"""The training loss of a group over a unit of budget, with its spikes preserved."""

from __future__ import annotations

import numpy as np

from comparison.bands import Band
from comparison.groups import Group


def training_bands(group: Group, most: int) -> dict[str, Band]:
    """By unit of budget, the training loss of the included runs; empty if one has no step records.

    The log intervals of each run, in order, are divided into at most `most` bins. The last interval
    is a bin of its own, so a curve ends with the last loss at its own budget. The mean is over the
    log intervals of all runs in a bin; `low` and `high` are the lowest and highest of them, so a
    band shows every logged spike.
    """
    logs = [run.training_losses for run in group.counted]
    if not logs or any(len(log) == 0 for log in logs):
        return {}
    count = min(most, *map(len, logs))
    bins = [_bins(len(log), count) for log in logs]
    tokens, seconds = (_means([log[:, column] for log in logs], bins) for column in (0, 1))
    losses = [log[:, 2] for log in logs]
    mean, every = _means(losses, bins), list(zip(losses, bins, strict=True))
    low, high = (
        np.min([np.minimum.reduceat(own, starts) for own, starts in every], axis=0),
        np.max([np.maximum.reduceat(own, starts) for own, starts in every], axis=0),
    )
    spent = {
        "tokens": tokens,
        "flops": tokens * group.architecture["flops_per_token"],
        "seconds": seconds,
    }
    loss = {"mean": mean.tolist(), "low": low.tolist(), "high": high.tolist()}
    return {unit: Band(budgets=of.tolist(), **loss) for unit, of in spent.items()}


def _bins(length: int, count: int) -> np.ndarray:
    """The first indices of `count` bins of nearly equal size; the last has one element."""
    return np.r_[np.arange(count - 1) * (length - 1) // max(count - 1, 1), length - 1]


def _means(columns: list[np.ndarray], bins: list[np.ndarray]) -> np.ndarray:
    """The mean over all runs of their means in each bin."""
    means = [
        np.add.reduceat(own, starts) / np.diff(starts, append=len(own))
        for own, starts in zip(columns, bins, strict=True)
    ]
    return np.mean(means, axis=0)
