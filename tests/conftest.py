"""What all tests share: one thread per process, their own and those that they start."""

from __future__ import annotations

import os

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    """Tiny models are slower on several threads, and the order of sums depends on their number."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
