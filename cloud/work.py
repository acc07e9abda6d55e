"""The work of a pod: its commands, the files sent to it, and the location of the results."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cloud.package import Contents
from configurator import Settings


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of a pod, and the files it needs.

    Attributes:
        name: Name of the deployment's folder in the pod, also used in messages.
        results: Directory of the results, in `out/` of the pod and in `out_dir` on this machine.
        out_dir: Directory for the results on this machine.
        parts: Subdirectories of the results that this work writes; "": all of them.
        settings: Settings of the run, or of a sweep's baseline.
        runs: Number of runs.
        runs_at_a_time: Number of concurrent runs in the pod.
        gpus_per_run: Number of GPUs per run.
        flops: FLOPs of all runs of a sweep; None for a single run, or if minutes limit them.
        minutes: Minutes of all runs, if these limit them.
        steps: (name, command) of each step in the pod.
        contents: The files that are sent.
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
        """The directory of the results."""
        return self.out_dir / self.results

    def fetched_parts(self) -> dict[str, Path]:
        """The parts of the results on this machine, from which another pod can continue."""
        folders = {part: self.target / part for part in self.parts}
        return {part: folder for part, folder in folders.items() if folder.is_dir()}
