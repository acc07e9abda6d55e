"""Stop a run on SIGINT (Ctrl-C), SIGTERM, SIGHUP (the terminal was closed), or on Windows
Ctrl-Break: the first signal makes it finish and save, a second one ends it at once."""

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
"""Signals this soon after the first one are part of the same request: torchrun forwards signals
that the terminal sends to all processes anyway, and Linux may report the death of a parent
repeatedly."""


class StopRequest:
    """A context manager that records signals to stop, except those that are ignored (SIGHUP under
    nohup).

    The first signal sets `requested`, which the training loop checks, and is acknowledged on
    standard error at once. A second one raises KeyboardInterrupt, unless it comes so soon that it
    is part of the same request. The handlers are restored on exit.

    Args:
        finishing: What the program does before it stops, for the acknowledgement.
        silent: Whether to omit the acknowledgement.
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
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
            os.write(sys.stderr.fileno(), text.encode())  # Python's streams are not reentrant
