"""Workers under the real torchrun: restarts after a crash, no worker left without it, and two nodes
on one machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.integration.child import ROOT
from tests.integration.runs import Workshop, log_of
from tests.integration.torchrun import PATIENCE, Torchrun

pytestmark = pytest.mark.slow  # it imports torch in three processes

FLAGS = ("config/arch_gpt2.py", "--max_iters=600", "--eval_interval=50", "--resume=auto")


def final_loss(run: Path) -> float:
    return log_of(run)["eval_steps"][-1]["val_loss"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_whose_worker_is_killed_comes_back(
    workshop: Workshop, started: list[Torchrun], rank: int
) -> None:
    """From its last checkpoint, and it ends as one process that was left alone."""
    torchrun = Torchrun(workshop, "--max-restarts=1", flags=FLAGS)
    started.append(torchrun)
    torchrun.wait_for("checkpoint of step 100 saved")
    torchrun.worker(rank).kill()
    assert torchrun.process.wait(PATIENCE) == 0, torchrun.output
    assert "Resuming" in torchrun.output
    log = log_of(workshop.out_dir / "run")
    assert (log["status"], len(log["starts"])) == ("completed", 2)
    whole = workshop.train(*FLAGS, run_name="whole")
    assert final_loss(workshop.out_dir / "run") == pytest.approx(final_loss(whole), abs=1e-4)


def test_no_worker_outlives_torchrun(workshop: Workshop, started: list[Torchrun]) -> None:
    """They save and stop when it is killed."""
    torchrun = Torchrun(workshop, flags=FLAGS)
    started.append(torchrun)
    torchrun.wait_for("checkpoint of step 50 saved")
    workers = torchrun.workers
    assert len(workers) == 2
    torchrun.process.send_signal(signal.SIGKILL)
    torchrun.process.wait()
    gone, left = psutil.wait_procs(workers, timeout=PATIENCE)
    assert (len(gone), left) == (2, [])
    assert log_of(workshop.out_dir / "run")["status"] == "interrupted"


def test_no_worker_outlives_a_torchrun_killed_early(
    workshop: Workshop, started: list[Torchrun]
) -> None:
    """While a worker imports, the system does not tell it yet that its parent has gone."""
    torchrun = Torchrun(workshop, flags=FLAGS)
    started.append(torchrun)
    workers = [torchrun.worker(rank) for rank in (0, 1)]
    torchrun.process.send_signal(signal.SIGKILL)
    torchrun.process.wait()
    gone, left = psutil.wait_procs(workers, timeout=45)
    for worker in left:
        worker.kill()
    assert (len(gone), left) == (2, [])


def test_a_refusal_is_printed_once_and_uses_up_no_restart(
    workshop: Workshop, started: list[Torchrun]
) -> None:
    torchrun = Torchrun(workshop, "--max-restarts=3", flags=(*FLAGS, "--tensor_parallel=3"))
    started.append(torchrun)
    assert torchrun.process.wait(PATIENCE) == 1
    assert torchrun.output.count("1 config error:") == 1, torchrun.output
    assert not (workshop.out_dir / "run").exists()


ONE_FAILS = """
import os

from components.ffns import FFNS, StandardFFN
from errors import UserError


@FFNS.register("failing", label="Failing")
class Failing(StandardFFN):
    '''Raises a UserError on one worker, in its seventh step.'''

    calls = 0

    def forward(self, x, context):
        if self.training:
            Failing.calls += 1
            if Failing.calls == 7 and os.environ.get("RANK") == "THE_RANK":
                raise UserError("the disk is full, say")
        return super().forward(x, context)
"""


def one_fails(folder: Path, rank: int) -> tuple[str, ...]:
    """Flags of a run of which one worker raises a UserError."""
    plugin = folder / "failing.py"
    plugin.write_text(ONE_FAILS.replace("THE_RANK", str(rank)))
    own = ("--ffn_type=failing", f"--plugins={plugin}", "--gradient_accumulation_steps=2")
    return (*FLAGS, *own)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_worker_cannot_do_ends_all(
    workshop: Workshop, started: list[Torchrun], tmp_path: Path, rank: int
) -> None:
    """Its error is all that is said, and no restart is used up."""
    torchrun = Torchrun(workshop, "--max-restarts=3", flags=one_fails(tmp_path, rank))
    started.append(torchrun)
    assert torchrun.process.wait(PATIENCE) == 1
    assert torchrun.output.count("the disk is full, say") == 1, torchrun.output
    assert "RuntimeError" not in torchrun.output, torchrun.output  # of the other, left alone
    log = log_of(workshop.out_dir / "run")
    assert (log["status"], len(log["starts"])) == ("failed", 1)


LLAMA = ("config/arch_llama.py", "--n_layer=2", "--n_head=4", "--n_kv_head=2")
COURSE = ("--max_iters=20", "--eval_interval=10", "--batch_size=4", "--eval_tokens=0")


def nodes_of_this_machine() -> list[tuple[str, ...]]:
    """What tells two torchruns that they are nodes of one worker each, on the loopback; the c10d
    rendezvous numbers them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        endpoint = f"localhost:{free.getsockname()[1]}"
    shared = ("--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_id=test")
    return [(*shared, f"--rdzv_endpoint={endpoint}")] * 2


@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_two_nodes_train_as_one_process(
    workshop: Workshop, started: list[Torchrun], parallelism: str
) -> None:
    """Each has one worker, the first of its machine; one of them logs and saves."""
    flags = (*LLAMA, *COURSE, "--gradient_accumulation_steps=2")
    for number, nodes in enumerate(nodes_of_this_machine()):
        own = (*flags, f"--parallelism={parallelism}")
        started.append(Torchrun(workshop, nodes=nodes, flags=own, output=f"node{number}.txt"))
    ends = [node.process.wait(PATIENCE) for node in started]
    assert ends == [0, 0], "".join(node.output for node in started)
    said = [node.output for node in started]
    assert sum("completed in" in text for text in said) == 1
    log = log_of(workshop.out_dir / "run")
    assert log["environment"]["device_count"] == 2
    whole = log_of(workshop.train(*flags, run_name="whole"))
    for kind, key in (("training_iterations", "loss"), ("eval_steps", "val_loss")):
        expected = [record[key] for record in whole[kind]]
        assert [record[key] for record in log[kind]] == pytest.approx(expected, abs=1e-5)
        assert len(expected) > 1


def test_a_node_whose_worker_is_killed_comes_back(
    workshop: Workshop, started: list[Torchrun]
) -> None:
    """Both nodes restart from the last checkpoint."""
    for number, nodes in enumerate(nodes_of_this_machine()):
        own = {"nodes": nodes, "flags": FLAGS, "output": f"n{number}.txt"}
        started.append(Torchrun(workshop, "--max-restarts=3", **own))
    logging = first_to_say("checkpoint of step 100 saved", started)
    [other] = [node for node in started if node is not logging]
    [worker] = other.workers
    assert worker.environ()["LOCAL_WORLD_SIZE"] == "1"
    worker.kill()
    ends = [node.process.wait(PATIENCE) for node in started]
    assert ends == [0, 0], "".join(node.output for node in started)
    assert any("Resuming" in node.output for node in started)
    log = log_of(workshop.out_dir / "run")
    assert (log["status"], len(log["starts"])) == ("completed", 2)


def on_both_nodes(started: list[Torchrun], workshop: Workshop, flags: tuple[str, ...]) -> str:
    """What is said on two nodes that both fail."""
    for number, nodes in enumerate(nodes_of_this_machine()):
        own = {"nodes": nodes, "flags": flags, "output": f"node{number}.txt"}
        started.append(Torchrun(workshop, "--max-restarts=3", **own))
    assert [node.process.wait(PATIENCE) for node in started] == [1, 1]
    return "".join(node.output for node in started)


def test_a_refusal_ends_both_nodes(workshop: Workshop, started: list[Torchrun]) -> None:
    said = on_both_nodes(started, workshop, (*FLAGS, "--tensor_parallel=3"))
    assert said.count("1 config error:") == 1, said


@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_node_cannot_do_ends_both(
    workshop: Workshop, started: list[Torchrun], tmp_path: Path, rank: int
) -> None:
    said = on_both_nodes(started, workshop, one_fails(tmp_path, rank))
    assert said.count("the disk is full, say") == 1, said
    assert len(log_of(workshop.out_dir / "run")["starts"]) == 1


def first_to_say(text: str, nodes: list[Torchrun]) -> Torchrun:
    """The one of the nodes that prints a text, once it has."""
    deadline = time.monotonic() + PATIENCE
    while True:
        for node in nodes:
            if text in node.output:
                return node
        assert time.monotonic() < deadline, "".join(node.output for node in nodes)
        time.sleep(0.1)


# scripts/train.slurm

SCONTROL = """#!/bin/sh
[ "$*" = "show hostnames two" ] && echo localhost
"""

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for node in $(seq "$SLURM_NNODES"); do "$@" & done
status=0
for node in $(jobs -p); do wait "$node" || status=$?; done
exit $status
"""
"""Starts a command on every node of a job, which here are all this machine."""


def batch_script(workshop: Workshop, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """What SLURM does with the script on two nodes, with the commands of a cluster as stand-ins."""
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    python = Path(sys.executable).parent
    job = {"SLURM_JOB_NODELIST": "two", "SLURM_NNODES": "2", "SLURM_JOB_ID": "17"}
    return subprocess.run(
        ["bash", "scripts/train.slurm", *workshop.argv(*flags, run_name=None)],
        cwd=ROOT,
        env={**os.environ, **job, "PATH": f"{folder}:{python}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_the_batch_script(workshop: Workshop, tmp_path: Path) -> None:
    flags = ("config/arch_gpt2.py", "--max_iters=4", "--gradient_accumulation_steps=2")
    done = batch_script(workshop, tmp_path, *flags, "--run_name=run")
    assert done.returncode == 0, done.stdout + done.stderr
    log = log_of(workshop.out_dir / "run")
    assert (log["status"], log["environment"]["device_count"]) == ("completed", 2)


def test_the_batch_script_needs_the_name_of_a_run(workshop: Workshop, tmp_path: Path) -> None:
    done = batch_script(workshop, tmp_path, "config/arch_gpt2.py")
    assert done.returncode == 2
    assert done.stderr.startswith("train.slurm needs --run_name=NAME")
