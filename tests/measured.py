"""Numbers compared within a tolerance, and how far apart they really were.

The difference that a test finds is worth more than that it passed: `scripts/verification.py`
runs the tests while `observing` and writes the largest of each into `docs/verification.md`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_observers: list[list[Measurement]] = []


class Measurement(NamedTuple):
    """A difference and what it was allowed to be."""

    error: float
    tolerance: float


@contextlib.contextmanager
def observing() -> Iterator[list[Measurement]]:
    """Gather what is measured in the meantime."""
    seen: list[Measurement] = []
    _observers.append(seen)
    try:
        yield seen
    finally:
        _observers.remove(seen)


def assert_within(error: float, tolerance: float, what: str = "the difference") -> None:
    """Fail where `error` exceeds `tolerance`, or is not a number."""
    for observer in _observers:
        observer.append(Measurement(error, tolerance))
    assert error <= tolerance, f"{what} is {error:.3g}; {tolerance:g} is allowed"


def assert_close(
    actual: Tensor, expected: Tensor, tolerance: float, what: str = "the difference"
) -> None:
    """Fail where the shapes differ, or the values by more than `tolerance` x the largest."""
    assert actual.shape == expected.shape, f"{what}: {actual.shape} is not {expected.shape}"
    assert_within(relative_error(actual, expected), tolerance, what)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected magnitude; 0 where both are 0."""
    actual, expected = actual.detach().double(), expected.detach().double()
    difference = (actual - expected).abs().max()
    return torch.where(difference == 0, 0.0, difference / expected.abs().max()).item()
