"""The clock, the signals that ask to stop, and time limits for calls."""

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
"""Seconds within which a signal is noticed."""

Bounded = Callable[[Callable[[], Any], float, Callable[[], bool]], Any]
"""The type of `bounded`."""


class Clock:
    """A clock that ignores changes of the date and keeps running while the machine is suspended."""

    def now(self) -> float:
        """Seconds since some moment."""
        kinds = ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC")  # the latter runs during suspend on macOS
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
    """Records SIGINT, SIGTERM and SIGHUP instead of raising; a context manager.

    No signal ends the program directly, since the pod must be removed first. The first asks to
    save, download and end, the second to end without the download; later ones change nothing.
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
        text = "removing the pod"
        if self.count == 1:
            text = (
                f"{self.first.name}: saving, downloading, removing the pod; repeat to skip the "
                "download"
            )
        with contextlib.suppress(OSError, ValueError):  # the terminal may be closed
            os.write(sys.stderr.fileno(), f"\n{text}\n".encode())


def bounded(call: Callable[[], Any], seconds: float, given_up: Callable[[], bool]) -> Any:
    """Return what `call` returns; raise Transient if it takes too long. A server can keep a
    connection open forever by sending a byte now and then, which no socket timeout ends.

    Args:
        call: Runs in its own thread, which is abandoned when the time is up.
        seconds: The time limit.
        given_up: Polled while waiting; Interrupted is raised once it returns True.
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
            raise Interrupted("a signal arrived while waiting for a reply")
        if time.monotonic() > end:
            raise Transient(f"no reply within {seconds:g} s")
