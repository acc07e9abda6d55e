"""The pods of one deployment: the only place where a pod is created or removed.

All of them have names that begin alike and with no other deployment's. So a pod whose creation got
no reply is found by its name, and two deployments never remove each other's pods.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from cloud.budget import Budget
from cloud.failures import CloudError, NoCapacity, Refused, Transient
from cloud.runpod_api import Pod, PodSpec, RunPod
from cloud.timekeeping import Clock

TAG = "nanoarch-"
"""Begins the name of every pod that any deployment creates."""

SETTLE = (0.0, 3.0, 7.0, 20.0)
"""Seconds between looks for a pod whose creation got no reply, before another is created."""

LATE_SECONDS = 180.0
"""After a creation without a reply, within which its pod may show up: there is no end before."""

ENOUGH_ASKED = 3
"""Refusals to remove a pod that is in no list, after which there is none; or one reply."""

PATIENCE = 900.0
"""Seconds for which removal is tried again."""


class OwnPods:
    """Creates the pods of a deployment, one at a time, and removes them.

    Args:
        api: RunPod.
        deployment: The ID of the deployment, letters and digits.
        budget: Counts each pod from before its creation until it is seen to be gone.
        clock: The time.
        say: Told what happens, in a line.
    """

    def __init__(
        self,
        api: RunPod,
        deployment: str,
        budget: Budget,
        clock: Clock,
        say: Callable[[str], None],
    ):
        self.prefix = f"{TAG}{deployment}-"
        self._api = api
        self._budget = budget
        self._clock = clock
        self._say = say
        self._count = 0
        self._doubt_until = -math.inf
        self._unconfirmed: dict[str, str] = {}
        """ID -> name of every pod that was made and has not been seen to be gone."""
        self._asked: dict[str, int] = {}
        """Of pods how often their removal was asked for: none counts as gone before, since one that
        was just made may be in no list yet."""

    def create(self, make_spec: Callable[[str], PodSpec]) -> tuple[str, str]:
        """Create a pod after removing all others of the deployment; its ID and its name.

        Args:
            make_spec: The spec for a name. It is asked last, so that the pod's dead-man switch has
                what is left of the limits then.

        Raises:
            NoCapacity: There is no such GPU.
            Transient: It is not known what became of it, or others could not be removed; a pod that
                was created all the same has been removed, as far as that can be seen.
            Refused: RunPod will not create it.
        """
        if not self.remove_all(patience=60):
            raise Transient("a pod of before is not seen to be gone")
        self._count += 1
        spec = make_spec(f"{self.prefix}{self._count}")
        doubt_before = self._doubt_until
        self._budget.begin(spec.name, spec.offer.price)
        self._doubt_until = self._clock.now() + LATE_SECONDS
        try:
            with self._api.uninterrupted():  # to know the pod is worth the wait
                pod_id = self._api.create(spec)
        except (NoCapacity, Refused):
            self._doubt_until = doubt_before
            self._budget.cancel(spec.name)
            raise
        except Transient:
            self._settle()
            raise
        self._unconfirmed[pod_id] = spec.name
        self._doubt_until = doubt_before
        return pod_id, spec.name

    def _settle(self) -> None:
        """Remove a pod whose creation got no reply, if it shows up soon."""
        for seconds in SETTLE:
            self._clock.sleep(seconds)
            if not self.remove_all(patience=60):
                return

    def close(self) -> bool:
        """Remove every pod, also one whose creation got no reply; whether none is left."""
        if not self._count:
            return True
        none_left = self.remove_all()
        left = self._doubt_until - self._clock.now()
        if left > 0:
            self._say(f"waiting {left:.0f} s for a pod whose creation got no reply")
        while none_left and self._clock.now() < self._doubt_until:
            self._clock.sleep(min(10.0, self._doubt_until - self._clock.now()))
            none_left = self.remove_all()
        return none_left

    def others(self, pods: list[Pod], current: str) -> list[Pod]:
        """Pods of this deployment besides the current one, which showed up late."""
        return [pod for pod in pods if pod.name.startswith(self.prefix) and pod.id != current]

    def gone(self, pod_id: str) -> bool:
        """Whether a pod is in no list and not found by its ID. Transient if unknown."""
        return all(pod.id != pod_id for pod in self._api.pods()) and not self._api.exists(pod_id)

    def terminate(self, pod_id: str) -> None:
        """Ask for a pod's removal once; `remove_all` sees that it goes."""
        self._api.terminate(pod_id)

    def remove_all(self, patience: float = PATIENCE) -> bool:
        """Remove every pod of this deployment and see that it is gone.

        Args:
            patience: Seconds after which to give up.

        Returns:
            Whether none is left: False also where that could not be seen.
        """
        begun, pause = self._clock.now(), 1.0
        with self._api.uninterrupted():
            while True:
                try:
                    if self._none_left():
                        return True
                except (CloudError, Refused) as error:
                    self._say(f"removing pods: {error}")
                if self._clock.now() - begun > patience:
                    return False
                self._clock.sleep(pause * random.uniform(0.8, 1.2))
                pause = min(30.0, 2 * pause)

    def _none_left(self) -> bool:
        """Ask for the removal of what is left; True where nothing was. May raise CloudError."""
        failure: CloudError | Refused | None = None
        left = dict(self._unconfirmed)
        try:
            listed = self._api.pods()
        except (CloudError, Refused) as error:  # what is known can be removed all the same
            listed, failure = [], error
        left |= {pod.id: pod.name for pod in listed if pod.name.startswith(self.prefix)}
        rates = {pod.id: pod.cost_per_hour for pod in listed}
        for pod_id, name in left.items():
            is_gone = failure is None and pod_id not in rates and self._is_unknown(pod_id)
            if is_gone and self._asked.get(pod_id, 0) >= ENOUGH_ASKED:
                del self._unconfirmed[pod_id]
                self._budget.end(name)
                continue
            self._unconfirmed[pod_id] = name
            if not is_gone:
                self._budget.found(name, rates.get(pod_id))
            try:
                self._ask_for_removal(pod_id)
            except (CloudError, Refused) as error:
                failure = error if not is_gone or isinstance(error, CloudError) else failure
        if failure is not None:
            raise failure
        if self._unconfirmed:
            return False
        for name in self._budget.open:
            self._budget.end(name)
        return True

    def _ask_for_removal(self, pod_id: str) -> None:
        try:
            self._api.terminate(pod_id)
        except Refused:  # as for a pod that there is not, or for a key that is not accepted now
            self._asked[pod_id] = self._asked.get(pod_id, 0) + 1
            raise
        self._asked[pod_id] = ENOUGH_ASKED

    def _is_unknown(self, pod_id: str) -> bool:
        """Whether RunPod says that there is no such pod."""
        try:
            return not self._api.exists(pod_id)
        except (CloudError, Refused):
            return False
