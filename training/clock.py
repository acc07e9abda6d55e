"""The time that training takes, apart from validation and saving."""

from __future__ import annotations

import time

import torch

from training.hardware import synchronize


class Stopwatch:
    """Counts seconds while it runs; stopping waits for the work queued on the device.

    Attributes:
        device: Where the work is done.
        total: Seconds counted so far, up to the last stop or lap; `read` has those since.
    """

    def __init__(self, device: torch.device, total: float = 0.0):
        self.device = device
        self.total = total
        self._running_since: float | None = None
        self._lap_began = total

    def start(self) -> None:
        """Count from now on; does nothing where it runs already."""
        if self._running_since is None:
            self._running_since = time.perf_counter()

    def stop(self) -> None:
        """Count no further; does nothing where it does not run."""
        if self._running_since is not None:
            synchronize(self.device)
            self._count()
            self._running_since = None

    def read(self) -> float:
        """Seconds so far, without waiting for the device, which may lag behind."""
        if self._running_since is None:
            return self.total
        return self.total + time.perf_counter() - self._running_since

    def lap(self) -> float:
        """Seconds counted since the last lap. To be called when the device has been waited for."""
        if self._running_since is not None:
            self._count()
        seconds = self.total - self._lap_began
        self._lap_began = self.total
        return seconds

    def _count(self) -> None:
        now = time.perf_counter()
        self.total += now - self._running_since
        self._running_since = now
