"""Stopping a run by SIGINT (Ctrl-C), SIGTERM, or SIGHUP (a terminal that closes): politely at
first, at once the second time."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class StopRequest:
    """Whether the user asked to stop; a context manager that catches the signals, but for those
    that are ignored (SIGHUP under nohup).

    The first signal sets `requested`, for the loop to act on after the step at hand; a second
    raises KeyboardInterrupt wherever the program is. Leaving restores the handlers.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        """The name of the signal received, or None."""

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
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
