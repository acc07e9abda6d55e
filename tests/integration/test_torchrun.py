"""Workers under the real torchrun: restarts after a crash, and no worker left without it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.child import ROOT
from tests.integration.runs import Workshop, log_of

pytestmark = pytest.mark.slow  # it imports torch in three processes

FLAGS = ("config/arch_gpt2.py", "--max_iters=600", "--eval_interval=50", "--resume=auto")
PATIENCE = 120.0  # seconds


class Torchrun:
    """torchrun with two workers of train.py; whatever is left of them is killed at the end."""

    def __init__(self, workshop: Workshop, *options: str):
        command = (
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node=2", *options, "train.py", *workshop.argv(*FLAGS)),
        )
        self._output = workshop.out_dir.parent / "torchrun.txt"
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=output, env={**os.environ}
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def workers(self) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [own for own in found if "train.py" in own.cmdline()]

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self.output:
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)


@pytest.fixture
def started() -> Iterator[list[Torchrun]]:
    runs: list[Torchrun] = []
    yield runs
    for own in runs:
        if own.process.poll() is None:
            left = [*own.workers, psutil.Process(own.process.pid)]
            for process in left:
                process.kill()


def final_loss(run: Path) -> float:
    return log_of(run)["eval_steps"][-1]["val_loss"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_whose_worker_is_killed_comes_back(
    workshop: Workshop, started: list[Torchrun], rank: int
) -> None:
    """From its last checkpoint, and it ends as one process that was left alone."""
    torchrun = Torchrun(workshop, "--max-restarts=1")
    started.append(torchrun)
    torchrun.wait_for("checkpoint of step 100 saved")
    [worker] = [own for own in torchrun.workers if own.environ()["RANK"] == str(rank)]
    worker.kill()
    assert torchrun.process.wait(PATIENCE) == 0, torchrun.output
    assert "Resuming" in torchrun.output
    log = log_of(workshop.out_dir / "run")
    assert (log["status"], len(log["starts"])) == ("completed", 2)
    whole = workshop.train(*FLAGS, run_name="whole")
    assert final_loss(workshop.out_dir / "run") == pytest.approx(final_loss(whole), abs=1e-4)


def test_no_worker_outlives_torchrun(workshop: Workshop, started: list[Torchrun]) -> None:
    """They save and stop when it is killed."""
    torchrun = Torchrun(workshop)
    started.append(torchrun)
    torchrun.wait_for("checkpoint of step 50 saved")
    workers = torchrun.workers
    assert len(workers) == 2
    torchrun.process.send_signal(signal.SIGKILL)
    torchrun.process.wait()
    gone, left = psutil.wait_procs(workers, timeout=PATIENCE)
    assert (len(gone), left) == (2, [])
    assert log_of(workshop.out_dir / "run")["status"] == "interrupted"
