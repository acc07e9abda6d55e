"""The training loss of a group over a unit of budget, its spikes kept."""

from __future__ import annotations

import numpy as np

from comparison.bands import Band
from comparison.groups import Group


def training_bands(group: Group, most: int) -> dict[str, Band]:
    """By unit of budget, the training loss over the counted runs: none of it has a log of steps,
    no band.

    A budget is divided into at most `most` stretches. The mean is over the log intervals of all
    runs in a stretch, `low` and `high` are the lowest and the highest of them, so that a band
    shows every spike that was logged.
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
    """Losses gathered in stretches of equal width; stretches without one are left out."""
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
