"""Windows of T + 1 tokens, which contain a sequence of T inputs and its T targets."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, int64, of the same shape."""


def read_windows(tokens: np.ndarray, starts: np.ndarray, sequence_length: int) -> np.ndarray:
    """The windows that start at `starts`, shape (windows, T + 1)."""
    return np.stack([tokens[start : start + sequence_length + 1] for start in starts])


def inputs_and_targets(windows: np.ndarray) -> Batch:
    """Convert windows (B, T + 1) to int64 inputs (B, T) and targets (B, T), shifted by one."""
    inputs, targets = windows[:, :-1], windows[:, 1:]
    return torch.from_numpy(inputs.astype(np.int64)), torch.from_numpy(targets.astype(np.int64))
