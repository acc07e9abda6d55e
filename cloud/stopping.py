"""When a deployment has to stop: a signal, the cost cap or the time limit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from cloud.budget import Budget
from cloud.failures import Interrupted, LimitReached
from cloud.timekeeping import NOTICED_WITHIN, Clock, StopSignals


class Stopping:
    """Waits, and raises Interrupted or LimitReached when it is time to stop.

    Attributes:
        kept_back: Seconds of the limits that are reserved for saving and downloading.
        on_wait: Called at every check.

    Args:
        clock: The clock.
        signals: The signals received.
        budget: The limits and the amounts spent.
    """

    def __init__(self, clock: Clock, signals: StopSignals, budget: Budget):
        self._clock, self._signals, self._budget = clock, signals, budget
        self._signals_allowed = 0
        self._is_limited = True
        self.kept_back = 0.0
        self.on_wait: Callable[[], None] = lambda: None

    def interrupted(self) -> bool:
        """Whether a signal asks to stop the current activity."""
        return self._signals.count > self._signals_allowed

    def allow_signals(self, at_least: int = 0) -> None:
        """Ignore the signals so far, or the first `at_least` if these are more."""
        self._signals_allowed = max(self._signals.count, at_least)

    @contextlib.contextmanager
    def unlimited(self) -> Iterator[None]:
        """Ignore the limits, while no pod runs."""
        self._is_limited = False
        try:
            yield
        finally:
            self._is_limited = True

    def check(self) -> None:
        """Raise Interrupted or LimitReached if it is time to stop."""
        self.on_wait()
        if self.interrupted():
            raise Interrupted("a signal asked to stop")
        if self._is_limited and self._budget.seconds_left() <= self.kept_back:
            raise LimitReached(self._budget.limit())

    def pause(self, seconds: float) -> None:
        """Wait this many seconds, checking before and meanwhile."""
        end = self._clock.now() + seconds
        self.check()
        while (left := end - self._clock.now()) > 0:
            self._clock.sleep(min(left, NOTICED_WITHIN))
            self.check()
