"""The job of a pod: unpack the code, then run the steps that the deployer ordered."""

from __future__ import annotations

import contextlib
import json
import os
import tarfile
import threading
from typing import Any

from cloud.pod.carried import place_carried
from cloud.pod.listing import Listing
from cloud.pod.place import Place, read, seconds_awake, write
from cloud.pod.steps import Steps, end_leftover

WAITING, UNPACK, DONE, FAILED, STOPPED = "waiting", "unpack", "done", "failed", "stopped"
"""Phases, besides the names of the steps."""


class Job:
    """One job, from the order to its end.

    Attributes:
        phase: WAITING, UNPACK, the name of a step, DONE, FAILED or STOPPED.
        exit_code: Exit status of the last step that ended.
        error: Why the job failed; otherwise empty.
        over_since: When it ended, by `seconds_awake`; None before.

    Args:
        place: The pod.
        listing: The list of the results.
    """

    def __init__(self, place: Place, listing: Listing) -> None:
        self._place, self._listing = place, listing
        self._lock = threading.Lock()
        self._steps = Steps(place)
        self._thread: threading.Thread | None = None
        self.phase, self.exit_code, self.error = WAITING, None, ""
        self.over_since: float | None = None
        self._take_up()

    @property
    def over(self) -> bool:
        return self.over_since is not None

    @property
    def begun(self) -> bool:
        return self._thread is not None

    def _take_up(self) -> None:
        """Continue where an earlier container or an earlier server of this pod was."""
        done = read(os.path.join(self._place.home, "done.json"))
        is_own = done.get("deployment") == self._place.deployment
        # The failure of another pod on the same volume does not end this one.
        if is_own and (done.get("phase") == DONE or done.get("pod") == self._place.pod):
            self.exit_code, self.error = done.get("exit_code"), done.get("error", "")
            self._end(done.get("phase", FAILED))
            return
        steps = read(self._place.path("started.json")).get("steps")
        if steps:
            end_leftover(self._place)
            self.start(steps)

    def start(self, steps: list) -> None:
        """Start the job; does nothing if it was started before.

        Args:
            steps: Pairs of a name and a command: a list of arguments, or text for bash.
        """
        with self._lock:
            if self.begun or self.phase != WAITING:
                return
            self._thread = threading.Thread(target=self._run, args=(steps,), daemon=True)
            self.phase = UNPACK
        write(self._place.path("started.json"), json.dumps({"steps": steps}))
        self._thread.start()

    def stop(self) -> None:
        """Ask training to save and end. Repeated calls do nothing: a second signal would end
        train.py before it has saved."""
        with self._lock:
            if self._steps.stopping or self.over:
                return
            self._steps.ask_to_stop()
            has_begun = self.begun
        if not has_begun:
            self._finish(STOPPED)

    def _run(self, steps: list) -> None:
        try:
            self._unpack()
            phase = self._run_steps(steps)
        except Exception as error:  # of any kind: the deployer must learn that the job is over
            self.exit_code, phase = 1, FAILED
            self.error = f"{self.phase}: {type(error).__name__}: {error}"
        self._finish(phase)

    def _run_steps(self, steps: list) -> str:
        """Run the steps up to the first that fails; returns the final phase of the job."""
        for name, command in steps:
            if not self._steps.stopping:
                self.phase = name
                self.exit_code = self._steps.run(name, command)
            if self._steps.stopping:
                return STOPPED
            if self.exit_code:
                self.error = f"{name} ended with exit status {self.exit_code}"
                return FAILED
        return DONE

    def _unpack(self) -> None:
        """Unpack the code, and put a run that came with it where it continues."""
        tree = self._place.path("tree")
        with tarfile.open(self._place.path("package.tar.gz")) as package:
            if hasattr(tarfile, "data_filter"):
                package.extractall(tree, filter="data")
            else:
                package.extractall(tree)
        carried = os.path.join(tree, "carried")
        if os.path.isdir(carried):
            place_carried(carried, self._place.results, f".before-{self._place.deployment}")
        link = os.path.join(tree, "code", "out")
        if not os.path.islink(link):
            os.symlink(self._place.out, link)

    def _finish(self, phase: str) -> None:
        """Write the list of the results and the done marker, on the volume if there is one."""
        done: dict[str, Any] = {
            "deployment": self._place.deployment,
            "pod": self._place.pod,
            "phase": phase,
            "exit_code": self.exit_code,
            "error": self.error,
        }
        with contextlib.suppress(Exception):  # the deployer must learn that the job is over
            listed = json.dumps(self._listing.whole())
            write(os.path.join(self._place.home, "manifest.json"), listed)
        write(os.path.join(self._place.home, "done.json"), json.dumps(done))
        self._end(phase)

    def _end(self, phase: str) -> None:
        self.phase = phase
        self.over_since = seconds_awake()
