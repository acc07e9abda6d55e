"""Stopping a run by SIGINT (Ctrl-C) or SIGTERM: politely at first, at once the second time."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether the user asked to stop; a context manager that catches the signals.

    The first signal sets `requested`, for the loop to act on after the step at hand; a second
    raises KeyboardInterrupt wherever the program is. Leaving restores the handlers.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        """The name of the signal received, or None."""

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
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
