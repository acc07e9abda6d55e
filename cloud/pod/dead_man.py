"""The dead-man switch: it removes the pod when its time is up, even if everything else is dead."""

from __future__ import annotations

import json
import math
import os
import time

from cloud.pod.place import Place, read, seconds_awake, write
from cloud.pod.removal import price_of_pod, remove_pod

PRICE_EVERY = 60.0
"""Seconds between questions for the pod's price, until it is known."""


class Remaining:
    """The seconds left for this pod, by the strictest of its clocks.

    Time counts from the pod's first start, which a file keeps across container restarts, on a
    clock that only moves forward and by the date; in addition there is a fixed end date. A wrong
    clock ends the pod too early, never too late.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._awake = seconds_awake()
        self._first = _first_start(place)
        self._before = max(0.0, time.time() - self._first)
        self.limit = place.seconds

    def elapsed(self) -> float:
        """Seconds since the pod's first start."""
        return max(self._before + seconds_awake() - self._awake, time.time() - self._first)

    def seconds(self) -> float:
        """Seconds left."""
        return min(self.limit - self.elapsed(), self._place.deadline - time.time())

    def shorten_to_price(self, dollars_per_hour: float) -> None:
        """End when the dollars are spent, if the pod costs more than expected."""
        if dollars_per_hour > 0:
            self.limit = min(self.limit, 3600 * self._place.dollars / dollars_per_hour)


def _first_start(place: Place) -> float:
    """When this pod first started, by the date."""
    path = place.path("first-start.json")
    about = read(path)
    first = about.get("time")
    if about.get("pod") == place.pod and isinstance(first, float) and math.isfinite(first):
        return first
    now = time.time()
    write(path, json.dumps({"pod": place.pod, "time": now}))
    return now


def dead_man(place: Place) -> None:
    """Wait until the time is up or the job is finished, then remove the pod."""
    remaining = Remaining(place)
    ask_price_at, price = 0.0, None
    while remaining.seconds() > 0 and not os.path.exists(place.path("finish")):
        if price is None and remaining.elapsed() >= ask_price_at:
            ask_price_at = remaining.elapsed() + PRICE_EVERY
            price = price_of_pod(place)
            remaining.shorten_to_price(price or 0.0)
        time.sleep(min(5.0, max(0.05, remaining.seconds()), 0.2 + remaining.seconds() / 10))
    remove_pod(place)


def finish(place: Place) -> None:
    """Have the dead-man switch remove the pod now; remove it from here if the file that tells the
    switch cannot be written."""
    if not write(place.path("finish"), "{}"):
        remove_pod(place)
