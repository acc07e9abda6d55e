"""The time that passes, signals that ask to stop, and calls that must not take forever."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from cloud.failures import Interrupted, Transient

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)

NOTICED_WITHIN = 0.5
"""Seconds after which a signal is noticed at the latest."""


class Clock:
    """Seconds, counted on while the machine is suspended, and not moved by changes of the date."""

    def now(self) -> float:
        """Seconds since some moment."""
        kinds = ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC")  # the latter counts on macOS
        for kind in kinds:
            if hasattr(time, kind):
                return time.clock_gettime(getattr(time, kind))
        return time.monotonic()

    def date(self) -> float:
        """Seconds since 1970; may jump."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class StopSignals:
    """Signals that ask to stop, noted and never raised: a context manager.

    No signal ends the program by itself, since the pod must be removed first. The first asks to
    save, fetch and end, the second to end without the results; any further changes nothing.
    """

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        self.count = 0

    def __enter__(self) -> StopSignals:
        handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._receive) for number in handled}
        return self

    def __exit__(self, *about: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.first = self.first or signal.Signals(number)
        if self.count == 1:
            text = f"\n{self.first.name}: saving, fetching and removing the pod; again: no fetching"
        else:
            text = "\nremoving the pod"
        with contextlib.suppress(OSError, ValueError):  # no terminal is left to read it
            os.write(sys.stderr.fileno(), f"{text}\n".encode())


def bounded(call: Callable[[], Any], seconds: float, given_up: Callable[[], bool]) -> Any:
    """What `call` returns, or Transient if it takes longer: a server can keep a connection alive
    for ever by a byte now and then.

    Args:
        call: Runs in a thread of its own, which is left behind if it takes too long.
        seconds: How long it may take.
        given_up: Asked now and then; Interrupted is raised once it is True.
    """
    done: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((True, call()))
        except BaseException as error:
            done.put((False, error))

    threading.Thread(target=run, daemon=True).start()
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(queue.Empty):
            worked, result = done.get(timeout=NOTICED_WITHIN)
            if worked:
                return result
            raise result
        if given_up():
            raise Interrupted("a signal came while waiting for a reply")
        if time.monotonic() > end:
            raise Transient(f"no reply within {seconds:g} s")
