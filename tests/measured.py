"""Numbers compared within a tolerance, and how far apart they really were.

The difference that a test finds is worth more than that it passed: `scripts/verification.py`
runs the tests while `observing` and writes the largest of each into `docs/verification.md`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

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


@contextlib.contextmanager
def observing_torch() -> Iterator[None]:
    """Let `torch.allclose` and `torch.testing.assert_close`, imported in the meantime, report the
    differences of tensors that they find close."""
    allclose, assert_torch_close = torch.allclose, torch.testing.assert_close

    def observed_allclose(actual: Tensor, expected: Tensor, *given: Any, **keys: Any) -> bool:
        close = allclose(actual, expected, *given, **keys)
        if close:
            _report(actual, expected, keys.get("rtol", 1e-5))
        return close

    def observed_assert_close(actual: Any, expected: Any, **keys: Any) -> None:
        assert_torch_close(actual, expected, **keys)
        _report(actual, expected, keys.get("rtol"))

    torch.allclose, torch.testing.assert_close = observed_allclose, observed_assert_close
    try:
        yield
    finally:
        torch.allclose, torch.testing.assert_close = allclose, assert_torch_close


TORCH_TOLERANCES = {torch.float64: 1e-7, torch.float32: 1.3e-6, torch.float16: 1e-3}
"""Relative tolerances of `torch.testing.assert_close` by default."""


def _report(actual: Any, expected: Any, tolerance: float | None) -> None:
    """Tell the observers of the differences of tensors, also in mappings and sequences."""
    if isinstance(expected, Mapping):
        _report([actual[key] for key in expected], [*expected.values()], tolerance)
    elif isinstance(expected, Sequence):
        for own, other in zip(actual, expected, strict=True):
            _report(own, other, tolerance)
    elif isinstance(actual, Tensor) and actual.numel() and actual.shape == expected.shape:
        allowed = TORCH_TOLERANCES.get(actual.dtype, 0.016) if tolerance is None else tolerance
        for observer in _observers:
            observer.append(Measurement(relative_error(actual, expected), allowed))


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
