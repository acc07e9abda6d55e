"""Measure training time, excluding validation and saving."""

from __future__ import annotations

import time

import torch

from training.hardware import synchronize


class Stopwatch:
    """A stopwatch that counts seconds; stopping it waits for the work queued on the device.

    Attributes:
        device: The device that does the work.
        total: Seconds counted up to the last stop or lap; `read` includes those since.
    """

    def __init__(self, device: torch.device, total: float = 0.0):
        self.device = device
        self.total = total
        self._running_since: float | None = None
        self._lap_began = total

    def start(self) -> None:
        """Start counting; does nothing if already running."""
        if self._running_since is None:
            self._running_since = time.perf_counter()

    def stop(self) -> None:
        """Stop counting; does nothing if not running."""
        if self._running_since is not None:
            synchronize(self.device)
            self._count()
            self._running_since = None

    def read(self) -> float:
        """Seconds so far, without waiting for work still queued on the device."""
        if self._running_since is None:
            return self.total
        return self.total + time.perf_counter() - self._running_since

    def lap(self) -> float:
        """Seconds counted since the last lap. Synchronize the device before calling it."""
        if self._running_since is not None:
            self._count()
        seconds = self.total - self._lap_began
        self._lap_began = self.total
        return seconds

    def _count(self) -> None:
        now = time.perf_counter()
        self.total += now - self._running_since
        self._running_since = now
