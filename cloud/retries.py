"""Trying again what may work later."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from cloud.failures import Transient

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds; each pause is twice the one before, half of it by chance, so that several deployments
that were refused together do not come back together."""


def pause_before(attempt: int) -> float:
    """Seconds to wait before attempt 1, 2, ..., the first try being attempt 0."""
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1))
    return longest * random.uniform(0.5, 1.0)


def patiently(call: Callable[[], T], pause: Callable[[float], None], tries: int = 6) -> T:
    """What a call returns, tried again after a Transient failure; the last one is raised."""
    for attempt in range(1, tries):
        try:
            return call()
        except Transient:
            pause(pause_before(attempt))
    return call()
