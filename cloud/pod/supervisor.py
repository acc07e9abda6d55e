"""The pod's own supervision: it updates status.json, saves before its time is up, and removes the
pod if nobody fetches the results."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from cloud.pod.dead_man import Remaining, finish
from cloud.pod.job import Job
from cloud.pod.place import Place, seconds_awake, write
from cloud.pod.progress import progress

STOP_BEFORE = 60.0
"""Seconds before the dead-man switch at which training is asked to save; at most a tenth of the
pod's time."""

LOST_CONTACT = 3600.0
"""Seconds without a request after which a pod whose job is over removes itself."""


class Supervisor:
    """Watches one job from inside the pod.

    Attributes:
        contact: When the last request came, by `seconds_awake`.
    """

    def __init__(self, place: Place, job: Job) -> None:
        self._place, self._job = place, job
        self._remaining = Remaining(place)
        self._written: tuple[Any, ...] | None = None
        self.contact = seconds_awake()

    def status(self) -> dict[str, Any]:
        """The state of the job, which is the content of status.json."""
        return {
            "run": self._place.run,
            "deployment": self._place.deployment,
            "phase": self._job.phase,
            "over": self._job.over,
            "exit_code": self._job.exit_code,
            "error": self._job.error,
            "seconds": self._remaining.elapsed(),
            "seconds_left": self._remaining.seconds(),
            **progress(self._place.results),
        }

    def supervise(self) -> None:
        """Check every second. An error in one check does not end the loop."""
        while True:
            try:
                self.look()
            except Exception as error:
                print(f"supervisor: {type(error).__name__}: {error}", flush=True)
            time.sleep(1)

    def look(self) -> None:
        """Write status.json if it has changed, and stop the job or the pod if due."""
        status = self.status()
        if self._remaining.seconds() < min(STOP_BEFORE, self._place.seconds / 10):
            self._job.stop()
        over_since = self._job.over_since
        if over_since is not None:
            quiet = seconds_awake() - max(self.contact, over_since)
            if quiet > LOST_CONTACT:
                finish(self._place)
        state = (status["evaluated"], status["phase"])
        if state != self._written:
            self._written = state
            write(os.path.join(self._place.home, "status.json"), json.dumps(status))
