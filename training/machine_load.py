"""Measure the CPU usage of other processes while a run trains.

The times of two runs are only comparable if each had the machine to itself, so the log records it.
"""

from __future__ import annotations

import contextlib
import os
import time

import psutil


class OtherLoad:
    """Measures the CPU time of other processes since this object was created.

    In a container, this covers the whole host. Child processes, such as compilers, count as this
    process.

    Args:
        of_parent: Whether all children of this process's parent count as this process; set it for
            workers started by torchrun.
    """

    def __init__(self, of_parent: bool = False) -> None:
        self._process = psutil.Process().parent() if of_parent else None
        self._process = self._process or psutil.Process()
        self._before = _cpu_seconds(self._process)
        self._share = 1.0

    def share(self) -> float:
        """CPU time of other processes as a fraction of the available CPU time, from 0 to 1; the
        last known value if the parent has ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._share = self._measured()
        return self._share

    def _measured(self) -> float:
        (start, busy, own), (now, busy_now, own_now) = self._before, _cpu_seconds(self._process)
        available = (now - start) * (os.cpu_count() or 1)
        others = (busy_now - busy) - (own_now - own)
        return min(max(others / available, 0.0), 1.0) if available > 0 else 0.0


def _cpu_seconds(process: psutil.Process) -> tuple[float, float, float]:
    """The current time; CPU seconds so far of all processes; and of one and its children."""
    times = psutil.cpu_times()
    busy = sum(times) - times.idle - getattr(times, "iowait", 0.0)
    # guest time is part of user time on Linux
    busy -= getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    own = 0.0
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it may have just ended
            spent = each.cpu_times()
            own += spent.user + spent.system
    ended = process.cpu_times()
    own += getattr(ended, "children_user", 0.0) + getattr(ended, "children_system", 0.0)
    return time.monotonic(), busy, own
