"""How a deployment can end: its exit status and the text of its last line."""

from __future__ import annotations

import dataclasses

TRAINED, FAILED, CONFIG_ERROR, LIMIT, PODS_LEFT = 0, 1, 2, 3, 4
"""Exit statuses; that of a signal is 128 + its number."""


@dataclasses.dataclass(frozen=True)
class Ending:
    """The exit status of a deployment, and what its last line says."""

    status: int
    words: str


DONE, JOB_FAILED, BAD, LOST = "done", "failed", "bad", "lost"
"""The job is done; it failed and would fail elsewhere; the pod is unusable; the pod is gone."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a pod: its kind and a description."""

    kind: str
    words: str
