"""The start command really runs: from the command line to results as if trained here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import compare_architectures
from tests.cloud.fake_runpod import World
from tests.cloud.real_pod import RealPod, processes_of
from tests.prepared import REPOSITORY
from tests.tiny_data import tiny_run_flags, write_tiny_dataset


@pytest.fixture
def world(surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A RunPod whose pods run for real, in real time."""
    made = World(surroundings, RealPod)
    monkeypatch.setenv("RUNPOD_API_BASE_URL", made.address)
    monkeypatch.setenv("RUNPOD_POD_ADDRESS", made.address + "/pod/{pod}")
    yield made
    made.close()


DRIVER = """
from cli import run_cli
from cloud import plan, runpod_deploy, watch
watch.POLL_SECONDS = 0.3
plan.START_SECONDS = 0.0
run_cli(runpod_deploy.main)
"""
"""The command, which looks at the pod more often, and thinks that a pod starts at once."""


def start(folder: Path, *flags: str) -> subprocess.Popen:
    """Start the command on a run of three steps."""
    if not (folder / "tiny").exists():
        write_tiny_dataset(folder / "tiny")
    own = {flag.partition("=")[0] for flag in flags}
    run = [flag for flag in tiny_run_flags(folder / "tiny") if flag.partition("=")[0] not in own]
    command = [sys.executable, "-c", DRIVER, str(REPOSITORY / "config/arch_llama.py"), *run]
    return subprocess.Popen(
        [*command, "--run_name=tried", "--setup=true", *flags],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until(what: Callable[[], object], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


def test_a_real_run_comes_home_as_if_trained_here(world, surroundings, capsys):
    output = start(surroundings).communicate(timeout=120)[0]
    print(output)
    assert output.splitlines()[-1].startswith("done: validation loss 2.")
    assert world.alive == []
    assert processes_of(world.rented[0].id) == []
    run = json.loads((surroundings / "out/tried/run.json").read_text())
    assert run["status"] == "completed"
    assert run["environment"]["commit"] == head()
    assert compare_architectures.main([str(surroundings / "out/tried")]) in (0, None)
    assert "tried" in capsys.readouterr().out


def test_a_reclaimed_pod_is_replaced_and_the_volume_goes_on(world, surroundings):
    process = start(
        surroundings,
        *("--volumes=US-KS-2=vol1", "--spot", "--max_iters=4000", "--eval_interval=50"),
    )
    checkpoints = surroundings / "volumes/vol1/nanoarch/tried/out/tried/checkpoints"
    wait_until(lambda: checkpoints.is_dir() and len(list(checkpoints.glob("step_*"))) > 1)
    with world.lock:
        world.alive[0].inside.kill()
        world.alive[0].state = "EXITED"
    (surroundings / "volumes/vol1/nanoarch/tried/status.json").unlink()
    output = process.communicate(timeout=180)[0]
    print(output)
    assert output.splitlines()[-1].startswith("done: validation loss")
    assert "reclaimed or stopped (EXITED)" in output
    assert (world.alive, len(world.rented)) == ([], 2)
    run = json.loads((surroundings / "out/tried/run.json").read_text())
    assert (run["status"], run["training_iterations"][-1]["iter"]) == ("completed", 4000)
    assert len(run["environments"]) == 2
    iterations = [record["iter"] for record in run["training_iterations"]]
    assert iterations == sorted(set(iterations))


def test_after_kill_9_the_real_dead_man_switch_removes_the_pod(world, surroundings):
    """Also where the server is gone: nothing but the switch is needed."""
    hours = 12 / 3600
    process = start(surroundings, f"--max_hours={hours}", "--max_iters=1")
    wait_until(lambda: world.alive)
    process.kill()
    process.communicate()
    (pod,) = world.rented
    wait_until(lambda: processes_of(pod.id))
    for running in processes_of(pod.id):
        if "serve" in " ".join(running.cmdline()):
            running.kill()
    wait_until(lambda: not world.alive, 30)
    assert pod.removed_by == "itself"
    assert pod.ended - pod.begun <= 13
    assert processes_of(pod.id) == []


def head() -> str:
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
