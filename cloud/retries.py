"""Retry calls that may succeed later."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from cloud.failures import Transient

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds. Pauses double; up to half of each is random, so that deployments that were rejected at
the same time do not retry at the same time."""


def pause_before(attempt: int) -> float:
    """Seconds to wait before retry 1, 2, ..."""
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1))
    return longest * random.uniform(0.5, 1.0)


def patiently(call: Callable[[], T], pause: Callable[[float], None], tries: int = 6) -> T:
    """Return what a call returns. Retries after Transient, and raises the last one.

    Args:
        call: The call to try.
        pause: Waits this many seconds; may raise.
        tries: Total number of attempts.
    """
    for attempt in range(1, tries):
        try:
            return call()
        except Transient:
            pause(pause_before(attempt))
    return call()
