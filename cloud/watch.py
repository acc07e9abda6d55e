"""Watch a pod from its creation until its job is over or the pod is unusable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from cloud.endings import BAD, DONE, JOB_FAILED, LOST, Outcome
from cloud.failures import Transient
from cloud.job_status import JobStatus, job_status
from cloud.live_view import Shown
from cloud.package import Package
from cloud.parts import Parts
from cloud.placement import Rented
from cloud.pod_link import PodLink
from cloud.pod_log import PodLog
from cloud.rental import Rental

POLL_SECONDS = 20.0
"""Seconds between two polls; the cap is exceeded by at most their cost."""

START_PATIENCE = 1200.0
"""Seconds that a pod may take until its server answers; the image is loaded first."""

CONTACT_PATIENCE = 900.0
"""Seconds that the server of a pod may be silent while RunPod says that the pod runs."""

FETCH_SECONDS = 600.0
"""Seconds between two downloads of checkpoints that exist only in the pod."""

CONFIG_STATUS = 2
"""Exit status of train.py and sweep.py for a config error."""


class PodWatch:
    """Watches one pod.

    Attributes:
        rental: The pod as RunPod sees it.
        link: The link to the pod's server.
        status: The last status from the server.

    Args:
        parts: The deployment.
        rented: The pod.
        link: The link to its server.
        package: The code to send to it.
        fetch_checkpoint: Downloads the files from which another pod would continue.
    """

    def __init__(
        self,
        parts: Parts,
        rented: Rented,
        link: PodLink,
        package: Package,
        fetch_checkpoint: Callable[[PodLink], None],
    ):
        self._parts = parts
        self.rental = Rental(parts, rented)
        self.link = link
        self.status = JobStatus()
        self._package = package
        self._fetch_checkpoint = fetch_checkpoint
        self._log = PodLog(link, parts.around.folder / "pod.log", parts.around.redact)
        self._contact: float | None = None
        self._trouble = ""
        self._fetched_at = self._now()
        self._fetched: str | int | None = None

    def _now(self) -> float:
        return self._parts.around.clock.now()

    def until_over(self) -> Outcome:
        """Poll the pod until it has an outcome.

        Raises:
            Interrupted, LimitReached: If it is time to stop.
        """
        stopping = self._parts.stopping
        while True:
            outcome = self.rental.look() or self._look_at_job()
            self._show()
            if outcome is not None:
                return outcome
            left = self._parts.budget.seconds_left() - stopping.kept_back
            stopping.pause(max(0.1, min(POLL_SECONDS, left)))

    def stop(self, seconds: float) -> None:
        """Ask the job to save, and wait for at most this many seconds until it has."""
        self.link.stop()
        end = self._now() + seconds
        while self._now() < end and not self.link.status().get("over"):
            self._parts.stopping.pause(1)

    def log_tail(self, lines: int = 20) -> list[str]:
        """The last lines of the log."""
        self._log.read(to_end=True)
        return self._log.lines[-lines:]

    # The job

    def _look_at_job(self) -> Outcome | None:
        """Query the pod's server, and send the code if it is waiting for it."""
        try:
            self.status = job_status(self.link.status(), self._parts.identity)
            if self.status.phase == "waiting":
                self._send()
            self._log.read(to_end=self.status.over)
        except Transient as error:
            self._trouble = f"the pod: {error}"
            return self._silent()
        self._trouble = ""
        self._contact = self._now()
        if self.status.over:
            return self._outcome()
        self._fetch_if_due()
        return None

    def _silent(self) -> Outcome | None:
        """Give up a pod that has not responded for a long time, unless RunPod does not respond
        either, in which case this machine is probably offline."""
        if self.rental.trouble:
            return None
        since = self.rental.begun if self._contact is None else self._contact
        patience = START_PATIENCE if self._contact is None else CONTACT_PATIENCE
        if self._now() - since < patience:
            return None
        return Outcome(BAD, f"its server has not answered for {patience / 60:g} minutes")

    def _send(self) -> None:
        self._parts.say(f"pod {self.rental.pod_id}: sending {self._package.size / 1e6:.1f} MB")
        self._log.restart()
        self.link.send_package(self._package.path, self._parts.stopping.pause)
        self.link.start(self._package.sha256, list(self._parts.work.steps))
        self.status = dataclasses.replace(self.status, phase="unpack")

    def _outcome(self) -> Outcome:
        """The outcome of a job that is over."""
        status = self.status
        if status.phase == "done":
            return Outcome(DONE, "trained")
        if status.phase == "stopped":
            return Outcome(LOST, "stopped by itself")
        if not status.error.startswith("train") and status.exit_code != CONFIG_STATUS:
            return Outcome(BAD, f"{status.error}: {' / '.join(self._log.lines[-3:])}")
        return Outcome(JOB_FAILED, status.error)

    def _fetch_if_due(self) -> None:
        """Download checkpoints that exist only in the pod."""
        newest = self.status.newest
        due = self._now() - self._fetched_at >= FETCH_SECONDS
        if self._parts.request.volumes or newest == self._fetched or not due:
            return
        self._fetch_checkpoint(self.link)
        self._fetched_at, self._fetched = self._now(), newest

    # Output

    def _show(self) -> None:
        status, sweep = self.status, self._parts.request.sweep
        has_begun = self._contact is not None  # before, silence is normal
        troubles = (self.rental.trouble, self._trouble if has_begun else "")
        self._parts.view.show(
            Shown(
                phase=status.phase,
                step=None if sweep else status.iter,
                steps=self._parts.work.settings.training.max_iters,
                val_loss=None if sweep else status.val_loss,
                runs=status.runs if sweep else None,
                trouble="; ".join(filter(None, troubles)),
                log=self._log.lines[-1][:100] if self._log.lines else "",
            )
        )
        self._parts.costs.note(status.phase, self._projected())

    def _projected(self) -> float:
        """Projected dollars at the end, from the progress so far or from the estimate."""
        done, steps = self.status.iter, self._parts.work.settings.training.max_iters
        elapsed = self._now() - self.rental.begun
        left = 3600 * self.rental.candidate.hours - elapsed
        if done and done > 1 and self.status.trains and not self._parts.request.sweep:
            left = elapsed * (steps - done) / done
        return self._parts.budget.projected(max(0.0, left))
