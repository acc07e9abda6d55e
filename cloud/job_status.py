"""The status of a job as reported by the pod's server."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from cloud.failures import Transient
from errors import printable

LARGEST = 10**15
"""Upper bound of the numbers accepted from a pod."""

KINDS: dict[str, Any] = {
    "phase": str,
    "over": bool,
    "exit_code": int | None,
    "error": str,
    "iter": int | None,
    "val_loss": float | int | None,
    "checkpoint": str | None,
    "runs": int | None,
}


@dataclasses.dataclass(frozen=True)
class JobStatus:
    """The state of a job.

    Attributes:
        phase: "waiting", "unpack", the name of a step, "done", "failed" or "stopped"; "starting"
            before the server answers.
        over: Whether the job has ended.
        exit_code: Exit status of the last step that ended.
        error: Why it failed.
        iter: Steps done.
        val_loss: Last validation loss in nats per token; None if it is not finite.
        checkpoint: Name of the newest checkpoint.
        runs: Completed runs of a sweep.
    """

    phase: str = "starting"
    over: bool = False
    exit_code: int | None = None
    error: str = ""
    iter: int | None = None
    val_loss: float | None = None
    checkpoint: str | None = None
    runs: int | None = None

    @property
    def trains(self) -> bool:
        """Whether there is something to save."""
        return self.phase == "train"

    @property
    def newest(self) -> str | int | None:
        """A value that changes when there is something new to download."""
        return self.checkpoint or self.runs


def job_status(reply: dict[str, Any], deployment: str) -> JobStatus:
    """The status in a reply.

    Raises:
        Transient: If it is from another pod, or not a status.
    """
    if reply.get("deployment") != deployment:
        raise Transient("another pod answers")
    found = {name: reply.get(name) for name in KINDS}
    for name, value in found.items():
        if not isinstance(value, KINDS[name]) or _is_too_large(value):
            raise Transient(f"the pod's status has no valid {name}")
    for name in ("phase", "error"):
        found[name] = printable(found[name])[:500]
    if found["val_loss"] is not None and not math.isfinite(found["val_loss"]):
        found["val_loss"] = None
    return JobStatus(**found)


def _is_too_large(value: Any) -> bool:
    return isinstance(value, int | float) and LARGEST < abs(value) != math.inf
