"""The budget of a deployment: dollars and hours spent and left."""

from __future__ import annotations

import dataclasses

from cloud.timekeeping import Clock


@dataclasses.dataclass
class _Bill:
    """The cost of one pod, from before its creation until it is known to be gone."""

    begun: float
    rate: float
    ended: float | None = None


class Budget:
    """Counts every pod of a deployment by this machine's clock, so that no failed query raises the
    cap.

    Args:
        dollars: Cost cap.
        hours: Time limit, from now on.
        clock: The clock.
    """

    def __init__(self, dollars: float, hours: float, clock: Clock):
        self.cap = dollars
        self._clock = clock
        self._begun = clock.now()
        self._seconds = 3600 * hours
        self._bills: dict[str, _Bill] = {}

    # Pods

    def begin(self, name: str, rate: float) -> None:
        """Count a pod that is about to be created, at a rate in dollars per hour."""
        self._bills[name] = _Bill(self._clock.now(), rate)

    def cancel(self, name: str) -> None:
        """Do not count a pod that was not created."""
        self._bills.pop(name, None)

    def found(self, name: str, rate: float | None) -> None:
        """Count a pod that is there, even if it was thought to be gone or not to exist."""
        bill = self._bills.setdefault(name, _Bill(self._clock.now(), 0.0))
        bill.ended = None
        bill.rate = max(bill.rate, rate or 0.0)

    def set_rate(self, name: str, rate: float) -> None:
        """Count a pod at this rate from its beginning."""
        if name in self._bills:
            self._bills[name].rate = rate

    def set_uptime(self, name: str, seconds: float) -> None:
        """Count a pod for at least the seconds that RunPod says it has run."""
        bill = self._bills.get(name)
        if bill is not None and bill.ended is None:
            bill.begun = min(bill.begun, self._clock.now() - seconds)

    def end(self, name: str) -> None:
        """Stop counting a pod that is gone."""
        bill = self._bills.get(name)
        if bill is not None and bill.ended is None:
            bill.ended = self._clock.now()

    @property
    def open(self) -> list[str]:
        """The pods that still count."""
        return [name for name, bill in self._bills.items() if bill.ended is None]

    # Sums

    def rate(self) -> float:
        """Dollars per hour now."""
        return sum(bill.rate for bill in self._bills.values() if bill.ended is None)

    def spent(self) -> float:
        """Dollars so far."""
        now = self._clock.now()
        return sum(
            bill.rate * ((now if bill.ended is None else bill.ended) - bill.begun) / 3600
            for bill in self._bills.values()
        )

    def elapsed(self) -> float:
        """Seconds since the deployment began."""
        return self._clock.now() - self._begun

    def wall_seconds_left(self) -> float:
        """Seconds until the time limit."""
        return self._seconds - self.elapsed()

    def dollars_left(self) -> float:
        """Dollars until the cap."""
        return self.cap - self.spent()

    def seconds_left(self, rate: float | None = None) -> float:
        """Seconds until the first limit.

        Args:
            rate: Dollars per hour; None: the present rate.
        """
        rate = self.rate() if rate is None else rate
        by_cost = 3600 * self.dollars_left() / rate if rate > 0 else float("inf")
        if self.dollars_left() <= 0:
            by_cost = 0.0
        return min(self.wall_seconds_left(), by_cost)

    def projected(self, seconds: float) -> float:
        """Dollars spent after this many more seconds at the current rate."""
        return self.spent() + self.rate() * seconds / 3600

    def limit(self) -> str:
        """The limit that is reached first, as text."""
        if self.wall_seconds_left() <= self.seconds_left():
            return f"the time limit of {self._seconds / 3600:g} h"
        return f"the cost cap of ${self.cap:.2f}"
