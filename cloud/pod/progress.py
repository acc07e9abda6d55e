"""The progress of training, read from its result files."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

from cloud.pod.place import read

METRICS = "metrics.jsonl"

LAST_BYTES = 1 << 16
"""Bytes at the end of metrics.jsonl that are read for the last step and the last validation."""


def progress(results: str) -> dict[str, Any]:
    """Steps done, last validation loss and its step, newest checkpoint; for a sweep the number of
    completed runs. Unknown values are None.

    Args:
        results: Directory of a run or of sweeps.
    """
    found: dict[str, Any] = dict.fromkeys(("iter", "val_loss", "evaluated", "checkpoint", "runs"))
    lines = _last_lines(os.path.join(results, METRICS))
    if lines is None:
        return {**found, "runs": _completed_runs(results)}
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            found["iter"] = record["iter"]
            if record["kind"] == "eval":
                found["val_loss"], found["evaluated"] = record["val_loss"], record["iter"]
    with contextlib.suppress(OSError):
        names = os.listdir(os.path.join(results, "checkpoints"))
        found["checkpoint"] = max((name for name in names if name[0] != "."), default=None)
    return found


def newest_step(results: str) -> int:
    """The step of the newest checkpoint of a run; -1 if there is none."""
    try:
        names = os.listdir(os.path.join(results, "checkpoints"))
    except OSError:
        return -1
    steps = (name.partition("_")[2] for name in names if name.startswith("step_"))
    return max((int(step) for step in steps if step.isdigit()), default=-1)


def _last_lines(path: str) -> list[bytes] | None:
    """The last lines of a file, the first of them possibly cut; None if there is no file."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_BYTES))
            return file.read().split(b"\n")
    except OSError:
        return None


def _completed_runs(results: str) -> int:
    return sum(
        read(os.path.join(folder, "run.json")).get("status") == "completed"
        for folder, _, names in os.walk(results)
        if "run.json" in names
    )
