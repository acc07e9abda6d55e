"""One pod from its creation until its job is over or the pod is of no more use."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any, Protocol

from cloud.budget import Budget
from cloud.cost_log import CostLog
from cloud.failures import CloudError, Refused, Transient
from cloud.live_view import LiveView, Shown
from cloud.own_pods import OwnPods
from cloud.package import Package
from cloud.plan import Candidate
from cloud.pod_link import PodLink
from cloud.request import Request
from cloud.runpod_api import Pod, RunPod
from cloud.work import Work
from errors import printable

DONE, JOB_FAILED, BAD, LOST = "done", "failed", "bad", "lost"
"""The job is done; the job failed, and would elsewhere; the pod is of no use; the pod is gone."""

POLL_SECONDS = 20.0
"""Between two looks; at most 300, so that the cap is never passed by more."""

ACCOUNT_SECONDS = 120.0
"""Between two looks at the account's own figures."""

START_PATIENCE = 1200.0
"""Seconds that a pod may take until its server answers: the image is loaded first."""

LISTED_WITHIN = 120.0
"""Seconds after its creation within which a pod need not be in the list."""

CONTACT_PATIENCE = 900.0
"""Seconds that the server of a pod may be silent while RunPod says that the pod runs."""

FETCH_SECONDS = 600.0
"""Between two fetches of checkpoints that are nowhere but in the pod."""

LONGEST_LINE = 10_000
"""Bytes of a line of the log that is waited for."""

LOG_PARTS = 16
"""Of the log, read at each look at most."""

MOST_EXTRA = 1.25
"""Times the price asked that a pod may cost; one that costs more is not what was rented."""

RUNNING = ("RUNNING", "CREATED", "RESTARTING", "unknown")
"""States of a pod that is there; EXITED is one that was reclaimed or stopped."""

CONFIG_STATUS = 2
"""Exit status of train.py and sweep.py for a config error."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a pod, and in words."""

    kind: str
    words: str


class Owner(Protocol):
    """The deployment that a pod belongs to, see `deployment.Deployment`."""

    identity: str
    request: Request
    work: Work
    api: RunPod
    pods: OwnPods
    budget: Budget
    costs: CostLog
    view: LiveView
    around: Any
    kept_back: float

    def say(self, text: str) -> None:
        """Print a line without secrets."""
        ...

    def pause(self, seconds: float) -> None:
        """Wait; raises Interrupted or LimitReached when it is time to stop."""
        ...

    def fetch_checkpoint(self, watch: PodWatch) -> None:
        """Bring home what a new pod would go on with."""
        ...


class PodWatch:
    """Watches one pod.

    Args:
        deployment: Whose it is: its budget, view and pauses.
        pod_id: The pod.
        name: Its name.
        candidate: Where it is, and at what price.
        link: To its server.
        package: What to send to it.
        other_spending: Dollars per hour that the account spent before besides pods; None: unknown.
    """

    def __init__(
        self,
        deployment: Owner,
        pod_id: str,
        name: str,
        candidate: Candidate,
        link: PodLink,
        package: Package,
        other_spending: float | None,
    ):
        self._deployment = deployment
        self._budget = deployment.budget
        self.pod_id, self._name = pod_id, name
        self.candidate, self.link = candidate, link
        self._package = package
        self._other_spending = other_spending
        self._begun = self._now()
        self._contact: float | None = None
        self._absent = 0
        self._asked_account_at = -math.inf
        self._extra_rate = 0.0
        self._fetched_at = self._now()
        self._fetched_checkpoint: str | int | None = None
        self._log_offset = 0
        self._log_rest = b""
        self._log: list[str] = []
        self._pod: Pod | None = None
        self._status: dict[str, Any] = {}
        self._troubles: dict[str, str] = {}

    def _now(self) -> float:
        return self._deployment.around.clock.now()

    @property
    def trains(self) -> bool:
        """Whether there is something to be saved."""
        return self._status.get("phase") == "train"

    def until_over(self) -> Outcome:
        """Look at the pod until something becomes of it. Raises Interrupted, LimitReached."""
        while True:
            outcome = self._look_at_pod() or self._look_at_job()
            self._show()
            if outcome is not None:
                return outcome
            left = self._budget.seconds_left() - self._deployment.kept_back
            self._deployment.pause(max(0.1, min(POLL_SECONDS, left)))

    def stop(self, seconds: float) -> None:
        """Ask the job to save, and wait until it has, at most so long."""
        self.link.stop()
        end = self._now() + seconds
        while self._now() < end and not self.link.status().get("over"):
            self._deployment.pause(1)

    def is_gone(self) -> bool:
        """Whether RunPod says that there is no such pod; False if it says nothing."""
        try:
            return self._deployment.pods.gone(self.pod_id)
        except (Transient, Refused):
            return False

    def log_tail(self, lines: int = 20) -> list[str]:
        """The end of the log."""
        self._read_log()
        return self._log[-lines:]

    # RunPod's side

    def _look_at_pod(self) -> Outcome | None:
        """What RunPod says of the pod and of others of this deployment."""
        try:
            pods = self._deployment.api.pods()
        except (Transient, Refused) as error:  # the key may be revoked: the pod's switch stays
            return self._trouble("RunPod", error)
        self._trouble("RunPod", None)
        self._remove_others(pods)
        mine = next((pod for pod in pods if pod.id == self.pod_id), None)
        if mine is None:
            return self._missing()
        self._absent = 0
        if self._pod is None or self._pod.state != mine.state:
            self._deployment.say(f"pod {self.pod_id}: {mine.state}")
        self._pod = mine
        if mine.state not in RUNNING:
            return Outcome(LOST, f"reclaimed or stopped ({mine.state})")
        return self._account_for(mine, pods)

    def _remove_others(self, pods: list[Pod]) -> None:
        for pod in self._deployment.pods.others(pods, self.pod_id):
            self._deployment.say(f"pod {pod.id}: showed up late; removing it")
            self._budget.found(pod.name, pod.cost_per_hour)
            with contextlib.suppress(CloudError, Refused):
                self._deployment.pods.terminate(pod.id)
        if self._deployment.pods.others(pods, self.pod_id):
            return
        for name in self._budget.open:
            if name != self._name:
                self._budget.end(name)

    def _missing(self) -> Outcome | None:
        """A pod counts as gone when it is in no list twice, and cannot be found by its ID."""
        self._absent += 1
        if self._absent < 2:
            return None
        if self._pod is None and self._now() - self._begun < LISTED_WITHIN:
            return None
        if not self.is_gone():
            return None
        return Outcome(LOST, "gone; RunPod does not list it any more")

    def _account_for(self, mine: Pod, pods: list[Pod]) -> Outcome | None:
        """Count the pod at what it costs, by RunPod's figures if they are higher than ours."""
        asked = self.candidate.offer.price
        cost = mine.cost_per_hour or asked
        if cost > MOST_EXTRA * asked:
            self._budget.set_rate(self._name, cost)
            return Outcome(BAD, f"costs ${cost:.2f}/h, and ${asked:.2f}/h was asked")
        if self._now() - self._asked_account_at >= ACCOUNT_SECONDS:
            self._asked_account_at = self._now()
            self._ask_account(pods)
        self._budget.set_rate(self._name, cost + self._extra_rate)
        self._budget.set_uptime(self._name, mine.uptime)
        return None

    def _ask_account(self, pods: list[Pod]) -> None:
        """What the account spends beyond the prices of its pods is this pod's, if it was not spent
        before: disks, or a price that RunPod does not say."""
        if self._other_spending is None:
            return
        try:
            spending = self._deployment.api.account().spend_per_hour
        except (Transient, Refused):
            return
        prices = sum(pod.cost_per_hour or 0.0 for pod in pods if pod.state == "RUNNING")
        extra = spending - prices - self._other_spending
        self._extra_rate = extra if extra > 0.001 else 0.0

    # The pod's side

    def _look_at_job(self) -> Outcome | None:
        """What the pod's server says of the job; send the code when it is wanted."""
        try:
            status = self.link.status()
            if status.get("deployment") != self._deployment.identity:
                raise Transient("another pod answers")
            self._status = _checked(status)
            if self._status["phase"] == "waiting":
                self._send()
            self._read_log()
        except Transient as error:
            self._trouble("the pod", error)
            return self._silent()
        self._trouble("the pod", None)
        self._contact = self._now()
        outcome = self._outcome()
        if outcome is None:
            self._fetch_if_due()
        return outcome

    def _silent(self) -> Outcome | None:
        """Whether a pod that does not answer is given up. Not if RunPod does not answer either:
        then it is more likely that this machine has no network."""
        if "RunPod" in self._troubles:
            return None
        since = self._begun if self._contact is None else self._contact
        patience = START_PATIENCE if self._contact is None else CONTACT_PATIENCE
        if self._now() - since < patience:
            return None
        return Outcome(BAD, f"its server has been silent for {patience / 60:g} minutes")

    def _send(self) -> None:
        self._deployment.say(f"pod {self.pod_id}: sending {self._package.size / 1e6:.1f} MB")
        self._log_offset, self._log_rest = 0, b""
        self.link.send_package(self._package.path, self._deployment.pause)
        self.link.start(self._package.sha256, list(self._deployment.work.steps))

    def _outcome(self) -> Outcome | None:
        if not self._status["over"]:
            return None
        phase, error = self._status["phase"], self._status["error"]
        if phase == "done":
            return Outcome(DONE, "trained")
        if phase == "stopped":
            return Outcome(LOST, "stopped by itself")
        before_training = error.startswith(("unpack", "setup", "smoke"))
        if before_training and self._status["exit_code"] != CONFIG_STATUS:
            return Outcome(BAD, f"{error}: {' / '.join(self._log[-3:])}")
        return Outcome(JOB_FAILED, error)

    def _read_log(self) -> None:
        """Keep the log here, and its last lines in memory."""
        redact = self._deployment.around.redact
        with contextlib.suppress(Transient):
            for _ in range(LOG_PARTS):
                part = self.link.log(self._log_offset)
                self._log_offset += len(part)
                self._log_rest += part.replace(b"\r", b"\n")
                if not part:
                    break
        whole, _, rest = self._log_rest.rpartition(b"\n")
        if len(rest) > LONGEST_LINE or self._status.get("over"):
            whole, rest = self._log_rest, b""
        self._log_rest = rest  # a secret may be cut in two there
        text = redact(whole.decode("utf-8", errors="replace"))
        lines = [printable(line) for line in text.splitlines() if line.strip()]
        self._log = [*self._log, *lines][-200:]
        path = self._deployment.around.folder / "pod.log"
        with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)

    def _fetch_if_due(self) -> None:
        """Bring home checkpoints that are nowhere but in the pod."""
        newest = self._status["checkpoint"] or self._status["runs"]  # the latter of a sweep
        due = self._now() - self._fetched_at >= FETCH_SECONDS
        if self._deployment.request.volumes or newest == self._fetched_checkpoint or not due:
            return
        self._deployment.fetch_checkpoint(self)
        self._fetched_at, self._fetched_checkpoint = self._now(), newest

    # What is told

    def _trouble(self, who: str, error: Exception | None) -> None:
        """Note that somebody does not answer, or does again."""
        if error is None:
            self._troubles.pop(who, None)
        else:
            self._troubles[who] = f"{who}: {error}"

    def _show(self) -> None:
        phase = self._status.get("phase", "starting")
        deployment = self._deployment
        sweep = deployment.request.sweep
        deployment.view.show(
            Shown(
                phase=phase,
                step=None if sweep else self._status.get("iter"),
                steps=deployment.work.settings.training.max_iters,
                val_loss=None if sweep else self._status.get("val_loss"),
                runs=self._status.get("runs") if sweep else None,
                trouble="; ".join(self._shown_troubles()),
                log=self._log[-1][:100] if self._log else "",
            )
        )
        deployment.costs.note(phase, self._projected())

    def _shown_troubles(self) -> list[str]:
        """What does not answer, apart from a pod that has not started yet."""
        return [told for who, told in self._troubles.items() if who == "RunPod" or self._contact]

    def _projected(self) -> float:
        """Dollars at the end: what remains by the steps done so far, or by the estimate."""
        done, steps = self._status.get("iter"), self._deployment.work.settings.training.max_iters
        elapsed = self._now() - self._begun
        left = 3600 * self.candidate.hours - elapsed
        if done and not self._deployment.request.sweep and self.trains:
            left = max(left, 0.0) if done < 2 else elapsed * (steps - done) / done
        return self._budget.projected(max(0.0, left))


def _checked(status: dict[str, Any]) -> dict[str, Any]:
    """A status of the kinds that are relied on; Transient where it is another."""
    kinds: dict[str, Any] = {
        "phase": str,
        "over": bool,
        "exit_code": int | None,
        "error": str,
        "iter": int | None,
        "val_loss": float | int | None,
        "checkpoint": str | None,
        "runs": int | None,
    }
    for name, kind in kinds.items():
        if not isinstance(status.get(name), kind):
            raise Transient(f"the pod's status has no sound {name}")
    shown = {name: printable(status[name])[:500] for name in ("phase", "error")}
    return status | shown
