"""A rented pod as RunPod sees it: whether it is there, and what it costs."""

from __future__ import annotations

import math

from cloud.endings import BAD, LOST, Outcome
from cloud.failures import CloudError, Refused, Transient
from cloud.parts import Parts
from cloud.placement import Rented
from cloud.runpod_types import Pod

ACCOUNT_SECONDS = 120.0
"""Between two looks at the account's own figures."""

LISTED_WITHIN = 120.0
"""Seconds after its creation within which a pod need not be in the list."""

MOST_EXTRA = 1.25
"""Times the price asked for that a pod may cost."""

LEAST_EXTRA = 0.001
"""Dollars per hour; less is rounding."""

RUNNING = ("RUNNING", "CREATED", "RESTARTING", "unknown")
"""States of a pod that is there; EXITED means reclaimed or stopped."""


class Rental:
    """Asks RunPod about one pod.

    Attributes:
        trouble: Why RunPod does not answer now; empty if it does.

    Args:
        parts: The deployment.
        rented: The pod.
    """

    def __init__(self, parts: Parts, rented: Rented):
        self._parts, self._rented = parts, rented
        self.pod_id, self.candidate = rented.pod_id, rented.candidate
        self.trouble = ""
        self.begun = parts.around.clock.now()
        self._state = ""
        self._absent = 0
        self._asked_account_at = -math.inf
        self._extra_rates = (0.0, 0.0)

    def is_gone(self) -> bool:
        """Whether RunPod says that there is no such pod; False if it does not answer."""
        try:
            return self._parts.pods.gone(self.pod_id)
        except (CloudError, Refused):
            return False

    def look(self) -> Outcome | None:
        """Ask for the pods of the account; the outcome if this one is gone or of no use."""
        try:
            pods = self._parts.api.pods()
        except (Transient, Refused) as error:  # a revoked key leaves the pod's dead-man switch
            self.trouble = f"RunPod: {error}"
            return None
        self.trouble = ""
        self._parts.pods.remove_others(pods, self.pod_id, self._rented.name)
        own = next((pod for pod in pods if pod.id == self.pod_id), None)
        if own is None:
            return self._missing()
        self._absent = 0
        if own.state != self._state:
            self._parts.say(f"pod {self.pod_id}: {own.state}")
        self._state = own.state
        if own.state not in RUNNING:
            return Outcome(LOST, f"reclaimed or stopped ({own.state})")
        return self._count(own, pods)

    def _missing(self) -> Outcome | None:
        """A pod counts as gone when it was missing from the list twice and is not found by its
        ID."""
        self._absent += 1
        is_new = not self._state and self._parts.around.clock.now() - self.begun < LISTED_WITHIN
        if self._absent < 2 or is_new or not self.is_gone():
            return None
        return Outcome(LOST, "gone; RunPod no longer lists it")

    def _count(self, own: Pod, pods: list[Pod]) -> Outcome | None:
        """Count what the pod costs, by RunPod's figures if they are higher than ours."""
        asked, name, budget = self.candidate.offer.price, self._rented.name, self._parts.budget
        cost = own.cost_per_hour or asked
        if cost > MOST_EXTRA * asked:
            budget.set_rate(name, cost)
            return Outcome(BAD, f"costs ${cost:.2f}/h instead of ${asked:.2f}/h")
        now = self._parts.around.clock.now()
        if now - self._asked_account_at >= ACCOUNT_SECONDS:
            self._asked_account_at = now
            self._ask_account(pods)
        budget.set_rate(name, cost + min(self._extra_rates))
        budget.set_uptime(name, own.uptime)
        return None

    def _ask_account(self, pods: list[Pod]) -> None:
        """What the account spends beyond the prices of its pods, and did not spend before, is this
        pod's: a disk, or a price that RunPod does not list. It counts when seen twice, since other
        pods start and end between the two queries."""
        if self._rented.other_spending is None:
            return
        try:
            spending = self._parts.api.account().spend_per_hour
        except (Transient, Refused):
            return
        prices = sum(pod.cost_per_hour or 0.0 for pod in pods if pod.state == "RUNNING")
        extra = spending - prices - self._rented.other_spending
        self._extra_rates = (self._extra_rates[1], extra if extra > LEAST_EXTRA else 0.0)
