"""The pods of one deployment: the only place where its pods are created and removed.

Their names start with a prefix that no other deployment has. So a pod whose creation got no reply
is found by its name, and deployments never remove each other's pods.
"""

from __future__ import annotations

import contextlib
import math
import random
import re
from collections.abc import Callable

from cloud.budget import Budget
from cloud.failures import (
    CloudError,
    KeyRefused,
    NoCapacity,
    NoSuchPod,
    Refused,
    Transient,
    Unclear,
)
from cloud.runpod_api import RunPod
from cloud.runpod_types import Pod, PodSpec
from cloud.timekeeping import Clock

TAG = "nanoarch-"
"""Start of the name of every pod that a deployment creates."""

NAME = re.compile(rf"{TAG}([0-9a-f]{{10}})-\d+")
"""Such a name; the group is the ID of the deployment."""

SETTLE = (0.0, 3.0, 7.0, 20.0)
"""Seconds between looks for a pod whose creation got no reply, before another is created."""

LATE_SECONDS = 180.0
"""Seconds after a creation without a reply in which its pod may appear. A deployment does not end
before."""

ENOUGH_ASKED = 3
"""Rejected removals of a pod that is in no list, after which it counts as gone. One accepted
removal is enough."""

PATIENCE = 900.0
"""Seconds for which removal is retried."""


def deployment_of(pod: Pod) -> str | None:
    """The ID of the deployment that created a pod, by its name; None for other pods."""
    found = NAME.fullmatch(pod.name)
    return found[1] if found else None


class OwnPods:
    """Creates the pods of a deployment, one at a time, and removes them.

    Args:
        api: RunPod.
        deployment: ID of the deployment: ten hexadecimal digits.
        budget: Counts each pod from before its creation until it is known to be gone.
        clock: The clock.
        say: Prints a line.
        on_wait: Called before each pause.
    """

    def __init__(
        self,
        api: RunPod,
        deployment: str,
        budget: Budget,
        clock: Clock,
        say: Callable[[str], None],
        on_wait: Callable[[], None],
    ):
        self.prefix = f"{TAG}{deployment}-"
        self._api = api
        self._budget = budget
        self._clock = clock
        self._say = say
        self._on_wait = on_wait
        self._count = 0
        self._may_have_created = False
        self._doubt_until = -math.inf
        self._unconfirmed: dict[str, str] = {}
        """ID -> name of every pod that was created and is not known to be gone."""
        self._asked: dict[str, int] = {}
        """ID -> how often its removal was asked for. A pod never counts as gone before, since one
        that was just created may be in no list yet."""

    # Creation

    def create(self, make_spec: Callable[[str], PodSpec]) -> tuple[str, str]:
        """Create a pod after removing all others of the deployment. Returns its ID and name.

        Args:
            make_spec: Returns the spec for a name. It is called last, so that the dead-man switch
                gets what is left of the limits then.

        Raises:
            NoCapacity: There is no such GPU.
            Transient: It is not known whether there is a pod, or others could not be removed. A
                pod that was created has been removed, as far as that can be seen.
            Unclear: Likewise.
            Refused: RunPod rejects the request.
        """
        if not self.remove_all(patience=60):
            raise Transient("an earlier pod is not known to be gone")
        self._count += 1
        spec = make_spec(f"{self.prefix}{self._count}")
        doubt_before, self._doubt_until = self._doubt_until, self._clock.now() + LATE_SECONDS
        self._budget.begin(spec.name, spec.offer.price)
        pod_id = self._create(spec, doubt_before)
        self._unconfirmed[pod_id] = spec.name
        self._doubt_until = doubt_before
        return pod_id, spec.name

    def _create(self, spec: PodSpec, doubt_before: float) -> str:
        may_have_created, self._may_have_created = self._may_have_created, True
        try:
            with self._api.uninterrupted():  # the pod's ID is worth the wait
                return self._api.create(spec)
        except (Transient, Unclear):
            self._settle()
            raise
        except (NoCapacity, Refused) as error:
            if isinstance(error, KeyRefused):
                self._may_have_created = may_have_created
            self._doubt_until = doubt_before
            self._budget.cancel(spec.name)
            raise

    def _settle(self) -> None:
        """Remove a pod whose creation got no clear reply, if it appears soon."""
        for seconds in SETTLE:
            self._clock.sleep(seconds)
            if not self.remove_all(patience=60):
                return

    # One pod

    def gone(self, pod_id: str) -> bool:
        """Whether a pod is in no list and not found by its ID. Raises CloudError or Refused if that
        is not known."""
        return all(pod.id != pod_id for pod in self._api.pods()) and not self._api.exists(pod_id)

    def remove_others(self, pods: list[Pod], current_id: str, current_name: str) -> None:
        """Ask for the removal of pods of this deployment other than the current one, such as one
        that has appeared late, and count them until they are gone.

        Args:
            pods: All pods of the account now.
            current_id: ID of the pod that trains.
            current_name: Its name.
        """
        others = [pod for pod in pods if pod.name.startswith(self.prefix) and pod.id != current_id]
        for pod in others:
            self._say(f"pod {pod.id}: appeared late; removing it")
            self._budget.found(pod.name, pod.cost_per_hour)
            self._budget.set_uptime(pod.name, pod.uptime)
            with contextlib.suppress(CloudError, Refused):
                self._api.terminate(pod.id)
        if not others:
            for name in self._budget.open:
                if name != current_name:
                    self._budget.end(name)

    # All pods

    def close(self) -> bool:
        """Remove every pod, and wait for one whose creation got no reply. Returns whether none is
        left."""
        if not self._may_have_created:
            return True
        none_left = self.remove_all()
        left = self._doubt_until - self._clock.now()
        if left > 0:
            self._say(f"waiting {left:.0f} s for a pod whose creation got no clear reply")
        while none_left and self._clock.now() < self._doubt_until:
            self._clock.sleep(min(10.0, self._doubt_until - self._clock.now()))
            none_left = self.remove_all()
        return none_left

    def remove_all(self, patience: float = PATIENCE) -> bool:
        """Remove every pod of this deployment and check that it is gone.

        Args:
            patience: Seconds after which to give up.

        Returns:
            Whether none is left; False also if that could not be found out.
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
                with contextlib.suppress(Exception):  # no bug may end the removal
                    self._on_wait()
                self._clock.sleep(pause * random.uniform(0.8, 1.2))
                pause = min(30.0, 2 * pause)

    def _none_left(self) -> bool:
        """Ask for the removal of every pod that may be left; True if there was none.

        Raises:
            CloudError, Refused: It is not known whether one is left.
        """
        failure: CloudError | Refused | None = None
        listed: list[Pod] = []
        try:
            listed = [pod for pod in self._api.pods() if pod.name.startswith(self.prefix)]
        except (CloudError, Refused) as error:  # known pods can be removed all the same
            failure = error
        is_listed = failure is None
        rates = {pod.id: pod.cost_per_hour for pod in listed}
        for pod_id, name in (self._unconfirmed | {pod.id: pod.name for pod in listed}).items():
            is_gone = is_listed and pod_id not in rates and self._is_unknown(pod_id)
            if is_gone and self._asked.get(pod_id, 0) >= ENOUGH_ASKED:
                del self._unconfirmed[pod_id]
                self._budget.end(name)
                continue
            self._unconfirmed[pod_id] = name
            if not is_gone:
                self._budget.found(name, rates.get(pod_id))
            failure = self._ask_for_removal(pod_id) or failure
        if failure is not None:
            raise failure
        if self._unconfirmed:
            return False
        for name in self._budget.open:
            self._budget.end(name)
        return True

    def _ask_for_removal(self, pod_id: str) -> CloudError | Refused | None:
        """Ask once; the failure, if any."""
        try:
            self._api.terminate(pod_id)
        except (NoSuchPod, Refused) as error:
            self._asked[pod_id] = self._asked.get(pod_id, 0) + 1
            return None if isinstance(error, NoSuchPod) else error
        except CloudError as error:
            return error
        self._asked[pod_id] = ENOUGH_ASKED
        return None

    def _is_unknown(self, pod_id: str) -> bool:
        """Whether RunPod says that there is no such pod."""
        try:
            return not self._api.exists(pod_id)
        except (CloudError, Refused):
            return False
