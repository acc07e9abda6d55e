"""What is to be done in a pod: the commands, what is sent, where the results go."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cloud.package import Contents
from configurator import Settings


@dataclasses.dataclass(frozen=True)
class Work:
    """What a pod does, and what it needs for it.

    Attributes:
        name: Of the deployment's folder in the pod, and for people.
        results: Directory of the results, in `out/` of the pod and in `out_dir` here.
        out_dir: Where the results go here.
        parts: Subdirectories of the results that this work writes; "": all of them.
        settings: Of the run, or of a sweep's baseline.
        runs: Number of runs.
        runs_at_a_time: How many share the pod.
        gpus_per_run: GPUs that one run trains on.
        flops: Of all runs of a sweep; None for a single run, or if minutes limit them.
        minutes: Of all runs, if that limits them.
        steps: (name, command) of what the pod does.
        contents: What is sent.
        disk_gb: Size of the container disk.
        note: A line about the code that is sent.
    """

    name: str
    results: str
    out_dir: Path
    parts: tuple[str, ...]
    settings: Settings
    runs: int
    runs_at_a_time: int
    gpus_per_run: int
    flops: float | None
    minutes: float | None
    steps: tuple[tuple[str, list[str] | str], ...]
    contents: Contents
    disk_gb: int
    note: str

    @property
    def target(self) -> Path:
        """Where the results go."""
        return self.out_dir / self.results

    def fetched_parts(self) -> dict[str, Path]:
        """The parts of the results that are here, for another pod to continue."""
        folders = {part: self.target / part for part in self.parts}
        return {part: folder for part, folder in folders.items() if folder.is_dir()}
