"""The training loss of a group over a unit of budget, with its spikes preserved."""

from __future__ import annotations

import numpy as np

from comparison.bands import Band
from comparison.groups import Group


def training_bands(group: Group, most: int) -> dict[str, Band]:
    """By unit of budget, the training loss of the included runs; empty if none has step records.

    The budget is divided into at most `most` bins. The mean is over the log intervals of all runs
    in a bin; `low` and `high` are the lowest and highest of them, so a band shows every logged
    spike.
    """
    logs = [run.training_losses for run in group.counted]
    if not logs or any(len(log) == 0 for log in logs):
        return {}
    stretches = min(most, *map(len, logs))
    tokens = [log[:, 0] for log in logs]
    losses = np.concatenate([log[:, 2] for log in logs])
    per_token = group.architecture["flops_per_token"]
    spent = {
        "tokens": np.concatenate(tokens),
        "flops": np.concatenate(tokens) * per_token,
        "seconds": np.concatenate([log[:, 1] for log in logs]),
    }
    return {unit: _binned(of, losses, stretches) for unit, of in spent.items()}


def _binned(spent: np.ndarray, losses: np.ndarray, stretches: int) -> Band:
    """Losses in bins of equal width; empty bins are omitted."""
    width = spent.max() / stretches or 1.0
    index = np.clip(np.ceil(spent / width).astype(int) - 1, 0, stretches - 1)
    order = np.argsort(index, kind="stable")
    starts = np.flatnonzero(np.diff(index[order], prepend=-1))
    counts = np.diff(starts, append=len(order))
    spent, losses = spent[order], losses[order]
    return Band(
        budgets=(np.add.reduceat(spent, starts) / counts).tolist(),
        mean=(np.add.reduceat(losses, starts) / counts).tolist(),
        low=np.minimum.reduceat(losses, starts).tolist(),
        high=np.maximum.reduceat(losses, starts).tolist(),
    )
