"""The pod's environment: its directories, its limits, its keys, and how its files are written."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

PART_BYTES = 1 << 23
"""Bytes that are read of a file at a time."""


def seconds_awake() -> float:
    """Seconds on a clock that ignores changes of the date and keeps running during suspend."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Place:
    """The pod's directories and limits, read from its environment variables.

    `home` is on the network volume if there is one, so its contents outlive the pod. `code` is on
    the pod's own disk.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.run = environment["NANOARCH_RUN"]
        self.deployment = environment["NANOARCH_DEPLOYMENT"]
        self.token = environment["NANOARCH_TOKEN"]
        self.port = int(environment["NANOARCH_PORT"])
        self.code = environment["NANOARCH_CODE"]
        self.home = os.path.join(environment["NANOARCH_HOME"], self.run)
        self.out = os.path.join(self.home, "out")
        self.results = os.path.join(self.out, environment["NANOARCH_RESULTS"])
        self.seconds = float(environment["NANOARCH_SECONDS"])
        self.deadline = float(environment["NANOARCH_DEADLINE"])
        self.dollars = float(environment["NANOARCH_DOLLARS"])
        self.pod = environment.get("RUNPOD_POD_ID", "")
        self.key = environment.get("RUNPOD_API_KEY", "")
        self.api = environment.get("RUNPOD_API_BASE_URL", "https://api.runpod.io")
        for folder in (self.code, self.home, self.out):
            with contextlib.suppress(OSError):  # on a full volume, go on with what works
                os.makedirs(folder, exist_ok=True)

    def path(self, name: str) -> str:
        """A file on the pod's own disk."""
        return os.path.join(self.code, name)


def write(path: str, content: str) -> bool:
    """Replace a file atomically. Returns False if it cannot be written, for example on a full
    disk."""
    try:
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            file.write(content)
        os.replace(path + ".tmp", path)
    except OSError:
        return False
    return True


def read(path: str) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing, damaged or holds something else."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class Background:
    """A call in a thread. `result` is its return value; None until then and after an error."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.result: Any = None
        self._call = call
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.result = self._call()
