"""Finding a GPU: the candidates are tried in order until a pod is created."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from cloud import plan
from cloud.failures import CloudError, LimitReached, NoCapacity, Refused, Transient
from cloud.parts import Parts
from cloud.plan import Candidate, Estimates, choose, refuse_if_none
from cloud.pod_environment import pod_spec
from cloud.retries import patiently, pause_before

MOST_FAILED_CREATIONS = 8
"""Creations without a clear reply while looking for one pod."""

ROUND_SECONDS = 60.0
"""Between two rounds over all candidates."""

REPLACE_SECONDS = 600.0
"""For which a replacement of a lost pod is looked for, also without --wait."""


@dataclasses.dataclass(frozen=True)
class Rented:
    """A pod that was created.

    Attributes:
        pod_id: Its ID.
        name: Its name.
        candidate: Where it is, and at what price.
        other_spending: Dollars per hour that the account spent before on other things than running
            pods; None if unknown.
    """

    pod_id: str
    name: str
    candidate: Candidate
    other_spending: float | None


class Placement:
    """Finds a GPU and creates a pod there, as often as needed.

    Attributes:
        region: The only data center to look in, once a volume there has the run; None: all.

    Args:
        parts: The deployment.
        token: What the pod's server expects of requests.
    """

    def __init__(self, parts: Parts, token: str):
        self._parts = parts
        self._token = token
        self._estimates = Estimates(parts.work, parts.request)
        self._rented: Candidate | None = None
        self._failures = 0
        self.region: str | None = None

    def find(self) -> Rented:
        """Create a pod on the best candidate available.

        Raises:
            CloudError: No candidate is available.
        """
        now = self._parts.around.clock.now
        begun, patience = now(), self._parts.request.max_wait
        if self._rented:
            patience = max(patience, REPLACE_SECONDS)
        self._failures = 0
        while True:
            rented, tried = self._round()
            if rented is not None:
                return rented
            waited = now() - begun
            if waited >= patience:
                hint = "" if self._parts.request.max_wait else "; --wait keeps looking"
                raise CloudError(f"no capacity in {tried} places{hint}")
            self._parts.costs.note("waiting for a GPU", self._parts.budget.spent())
            self._parts.stopping.pause(min(ROUND_SECONDS, max(1.0, patience - waited)))

    def _round(self) -> tuple[Rented | None, int]:
        """Try every candidate once; the pod, if any, and how many were tried."""
        others, tried = self._other_spending(), 0
        for candidate in self._candidates():
            self._parts.stopping.check()
            tried += 1
            try:
                return self._try(candidate, others), tried
            except NoCapacity as error:
                self._parts.say(f"{candidate.offer.where}: no capacity ({error})")
            except Transient as error:
                self._parts.say(f"{candidate.offer.where}: {error}")
                self._failures += 1
                if self._failures >= MOST_FAILED_CREATIONS:
                    raise
                self._parts.stopping.pause(pause_before(self._failures))
        return None, tried

    def _candidates(self) -> Iterator[Candidate]:
        """The candidates at the present prices that fit in what is left of the limits."""
        request, budget = self._parts.request, self._parts.budget
        may_wait = request.max_wait > 0 or self._rented is not None
        try:
            offers = patiently(
                lambda: self._parts.api.offers(
                    request.gpu_count, not request.community, request.spot
                ),
                self._parts.stopping.pause,
            )
        except Transient as error:
            if not may_wait:
                raise
            self._parts.say(f"RunPod does not answer: {error}")
            return
        choice = choose(offers, request, self._estimates)
        if not may_wait:
            refuse_if_none(choice, request)
        fitting = [candidate for candidate in choice.candidates if self._fits(candidate)]
        if choice.candidates and not fitting:
            raise LimitReached(f"{budget.limit()}: what is left is too short for any GPU")
        yield from filter(self._can_continue, fitting)

    def _can_continue(self, candidate: Candidate) -> bool:
        """Whether the run can continue there: where its volume is, and in the same dtype, since
        dtype=auto depends on the GPU."""
        if self.region not in (None, candidate.offer.region):
            return False
        return self._rented is None or candidate.dtype == self._rented.dtype

    def _fits(self, candidate: Candidate) -> bool:
        """Whether a run would end within what is left of the limits. One that has begun needs less
        than was estimated, but at least the time to start."""
        left = self._parts.budget.seconds_left(candidate.offer.price)
        return left > (plan.START_SECONDS if self._rented else 3600 * candidate.hours)

    def _try(self, candidate: Candidate, others: float | None) -> Rented:
        parts = self._parts
        parts.say(f"{candidate.offer.where}: renting at ${candidate.offer.price:.2f}/h")
        pod_id, name = parts.pods.create(lambda name: pod_spec(name, candidate, parts, self._token))
        self._rented = candidate
        parts.costs.note("starting", candidate.dollars)
        return Rented(pod_id, name, candidate, others)

    def _other_spending(self) -> float | None:
        """Dollars per hour that the account spends on other things than running pods; None if
        unknown."""
        try:
            pods = self._parts.api.pods()
            spending = self._parts.api.account().spend_per_hour
        except (Transient, Refused):
            return None
        return spending - sum(pod.cost_per_hour or 0.0 for pod in pods if pod.state == "RUNNING")
