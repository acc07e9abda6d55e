"""Stopping a run by SIGINT (Ctrl-C), SIGTERM, SIGHUP (a terminal that closes), or on Windows
Ctrl-Break: the first signal asks it to finish and save, a second one ends it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from types import FrameType, TracebackType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


SAME_REQUEST_SECONDS = 0.3
"""Signals that follow the first this soon are no second thought: torchrun passes on what a terminal
sends to all, and Linux may tell a process more than once that its parent has gone."""


class StopRequest:
    """Whether the user asked to stop; a context manager that handles the signals, except those
    that are ignored (SIGHUP under nohup).

    The first signal sets `requested`, for the loop to act on, and is acknowledged on standard error
    at once; a second raises KeyboardInterrupt wherever the program is, unless it comes so soon that
    it is the same request. Leaving restores the handlers.

    Args:
        finishing: What the program does before it stops, for the acknowledgement.
        silent: Acknowledge nothing.
    """

    def __init__(self, finishing: str = "finishing this step", silent: bool = False) -> None:
        self.requested: str | None = None
        """The name of the signal received, or None."""
        self._finishing = finishing
        self._silent = silent

    def __enter__(self) -> StopRequest:
        handled = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._receive) for number in handled}
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if time.monotonic() - self._received < SAME_REQUEST_SECONDS:
                return
            raise KeyboardInterrupt
        self._received = time.monotonic()
        self.requested = signal.Signals(number).name
        if self._silent:
            return
        again = "press Ctrl-C again" if number == signal.SIGINT else "send another signal"
        text = f"\n{self.requested}: {self._finishing}; {again} to quit now\n"
        with contextlib.suppress(OSError, ValueError):  # no terminal is left to read it
            os.write(sys.stderr.fileno(), text.encode())  # Python's streams are not reentrant
