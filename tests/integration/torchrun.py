"""The real torchrun, with workers of train.py."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time

import psutil

from tests.integration.child import ROOT
from tests.integration.runs import Workshop

PATIENCE = 120.0  # seconds

TWO_WORKERS = ("--standalone", "--nproc_per_node=2")


class Torchrun:
    """torchrun with workers of train.py.

    Args:
        workshop: Where the run is.
        options: torchrun's, beside those in `nodes`.
        nodes: How many workers there are, and on which machines.
        flags: Those of train.py.
        output: The file in which all output is, beside the folder of runs.
    """

    def __init__(
        self,
        workshop: Workshop,
        *options: str,
        flags: tuple[str, ...],
        nodes: tuple[str, ...] = TWO_WORKERS,
        output: str = "torchrun.txt",
    ):
        command = (
            *(sys.executable, "-m", "torch.distributed.run", *nodes, *options),
            *("train.py", *workshop.argv(*flags)),
        )
        self._output = workshop.out_dir.parent / output
        with self._output.open("w") as file:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    @property
    def workers(self) -> list[psutil.Process]:
        found = []
        for own in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                if "train.py" in own.cmdline():
                    found.append(own)
        return found

    def worker(self, rank: int) -> psutil.Process:
        """The worker of a rank, once it is started."""
        deadline = time.monotonic() + PATIENCE
        while True:
            for own in self.workers:
                with contextlib.suppress(psutil.Error):
                    if own.environ().get("RANK") == str(rank):
                        return own
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            ended = self.process.poll() is not None
            if text in self.output:
                return
            waits = not ended and time.monotonic() < deadline
            assert waits, f"no {text!r} in:\n{self.output}"
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill whatever is left of it."""
        if self.process.poll() is None:
            for process in [*self.workers, psutil.Process(self.process.pid)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait()
