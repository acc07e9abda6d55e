"""Running the steps of a job as processes, one after the other."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from typing import BinaryIO

from cloud.pod.place import Place, read, seconds_awake, write

HIDDEN = ("NANOARCH_TOKEN", "RUNPOD_API_KEY")
"""Environment variables that training does not get."""

PATIENCE = {signal.SIGTERM: 60.0, signal.SIGKILL: 10.0}
"""Seconds that a leftover process has to end after each signal."""


class Steps:
    """Runs one command at a time in the code's directory and appends its output to the log."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self.stopping = False

    def run(self, name: str, command: str | list[str]) -> int:
        """Run a step and return its exit status; 1 without running it after `ask_to_stop`.

        Args:
            name: Of the step, for the log.
            command: Arguments, or text for bash.
        """
        arguments = ["bash", "-c", command] if isinstance(command, str) else list(command)
        with open(self._place.path("pod.log"), "ab") as log:
            log.write(f"\n[{name}]\n".encode())
            log.flush()
            with self._lock:
                if self.stopping:
                    return 1
                self._process = self._start(arguments, log)
        write(self._place.path("step.json"), json.dumps({"process": self._process.pid}))
        return self._process.wait()

    def _start(self, arguments: list[str], log: BinaryIO) -> subprocess.Popen:
        return subprocess.Popen(
            arguments,
            cwd=os.path.join(self._place.path("tree"), "code"),
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the running step, and start no other."""
        with self._lock:
            self.stopping = True
            process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGTERM)

    def _environment(self) -> dict[str, str]:
        environment = {name: text for name, text in os.environ.items() if name not in HIDDEN}
        tools = self._place.path("venv/bin")
        environment["PATH"] = os.pathsep.join((tools, os.environ.get("PATH", os.defpath)))
        environment["NANOARCH_DEPLOYMENT"] = self._place.deployment
        return environment


def end_leftover(place: Place) -> None:
    """End a step that outlived the server that started it: two must not train at once."""
    process = read(place.path("step.json")).get("process")
    if not isinstance(process, int):
        return
    for number, seconds in PATIENCE.items():
        if not _is_step(process, place):
            return
        with contextlib.suppress(OSError):
            os.killpg(process, number)
        end = seconds_awake() + seconds
        while seconds_awake() < end and _is_step(process, place):
            time.sleep(0.1)


def _is_step(process: int, place: Place) -> bool:
    """Whether a process is a step of this deployment, not one that has got its ID since."""
    try:
        with open(f"/proc/{process}/environ", "rb") as file:
            own = f"NANOARCH_DEPLOYMENT={place.deployment}".encode() in file.read().split(b"\0")
        return own and os.getsid(process) == process != os.getsid(0)
    except OSError:
        return False
