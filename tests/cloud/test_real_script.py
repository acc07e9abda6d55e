"""The start command really runs: from the command line to results as if trained here."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import compare_architectures
from cloud import plan, runpod_deploy, watch
from tests.cloud.conftest import Ended
from tests.cloud.fake_runpod import World
from tests.cloud.real_pod import RealPod, processes_of
from tests.prepared import REPOSITORY
from tests.tiny_data import tiny_run_flags, write_tiny_dataset

PATIENCE = 240.0
"""Seconds; a machine that is busy with other things takes long to import torch."""


@pytest.fixture
def world(surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A RunPod whose pods run for real, in real time; the deployer looks at them more often."""
    made = World(surroundings, RealPod)
    monkeypatch.setenv("RUNPOD_API_BASE_URL", made.address)
    monkeypatch.setenv("RUNPOD_POD_ADDRESS", made.address + "/pod/{pod}")
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.3)
    monkeypatch.setattr(plan, "START_SECONDS", 0.0)
    yield made
    made.close()


def arguments(folder: Path, *flags: str) -> list[str]:
    """Of the command, for a run of three steps."""
    write_tiny_dataset(folder / "tiny")
    own = {flag.partition("=")[0] for flag in flags}
    run = [flag for flag in tiny_run_flags(folder / "tiny") if flag.partition("=")[0] not in own]
    setup = [] if "--setup" in own else ["--setup=true"]
    return [str(REPOSITORY / "config/arch_llama.py"), *run, "--run_name=tried", *setup, *flags]


def deploy(folder: Path, *flags: str) -> Ended:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = runpod_deploy.main(arguments(folder, *flags))
    return Ended(status, output.getvalue().splitlines())


def wait_until(what: Callable[[], object], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_real_run_comes_home_as_if_trained_here(world, surroundings, capsys):
    ended = deploy(surroundings)
    assert (ended.status, ended.last.startswith("done: validation loss 2.")) == (0, True), ended
    assert world.alive == []
    wait_until(lambda: not processes_of(world.rented[0].id))
    run = json.loads((surroundings / "out/tried/run.json").read_text())
    assert run["status"] == "completed"
    assert run["environment"]["commit"] == head()
    assert compare_architectures.main([str(surroundings / "out/tried")]) in (0, None)
    assert "tried" in capsys.readouterr().out


def head() -> str:
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_a_reclaimed_pod_is_replaced_and_the_volume_goes_on(world, surroundings):
    checkpoints = surroundings / "volumes/vol1/nanoarch/tried/out/tried/checkpoints"

    def reclaim() -> None:
        wait_until(lambda: len(list(checkpoints.glob("step_*"))) > 1)
        with world.lock:
            world.alive[0].inside.kill()
            world.alive[0].state = "EXITED"

    thread = threading.Thread(target=reclaim)
    thread.start()
    flags = ("--volumes=US-KS-2=vol1", "--spot", "--max_iters=600", "--eval_interval=30")
    ended = deploy(surroundings, *flags)
    thread.join()
    assert (ended.status, ended.last.startswith("done: validation loss")) == (0, True), ended
    assert "reclaimed or stopped (EXITED)" in ended.text
    assert (world.alive, len(world.rented)) == ([], 2)
    run = json.loads((surroundings / "out/tried/run.json").read_text())
    iterations = [record["iter"] for record in run["training_iterations"]]
    assert (run["status"], iterations) == ("completed", list(range(1, 601)))
    assert len(run["starts"]) == 2


DRIVER = """
from cloud import plan, runpod_deploy
plan.START_SECONDS = 0.0
runpod_deploy.main({arguments})
"""


@pytest.mark.slow
def test_after_kill_9_the_real_dead_man_switch_removes_the_pod(world, surroundings):
    """Also where the server in the pod is gone: nothing but the switch is needed."""
    seconds = 10
    given = arguments(surroundings, f"--max_hours={seconds / 3600}", "--setup=sleep 600")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", DRIVER.format(arguments=given)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    wait_until(lambda: world.alive)
    process.kill()
    process.wait()
    (pod,) = world.rented
    wait_until(lambda: world.alive == [] or any(map(is_server, processes_of(pod.id))))
    for running in filter(is_server, processes_of(pod.id)):
        running.kill()
    wait_until(lambda: not world.alive)
    assert pod.removed_by == "itself"
    assert pod.ended - pod.begun <= seconds + 5
    wait_until(lambda: not processes_of(pod.id))


def is_server(process) -> bool:
    try:
        return process.cmdline()[-1:] == ["serve"]
    except Exception:  # gone meanwhile
        return False


@pytest.mark.slow
def test_a_sweep_comes_home(world, surroundings, capsys):
    sweep = ("--sweep", "--vary", "normalization=layernorm,rmsnorm", "--seeds=2", "--name=norms")
    given = [flag for flag in arguments(surroundings, *sweep) if "run_name" not in flag]
    assert runpod_deploy.main(given) == 0
    assert world.alive == []
    runs = sorted((surroundings / "out/sweeps/norms").rglob("run.json"))
    assert [json.loads(run.read_text())["status"] for run in runs] == ["completed"] * 4
    assert compare_architectures.main([str(surroundings / "out/sweeps/norms")]) in (0, None)


@pytest.mark.slow
def test_several_gpus_train_under_torchrun(world, surroundings):
    ended = deploy(surroundings, "--gpu_count=2", "--gpus=A100")
    assert (ended.status, ended.last.startswith("done: validation loss 2.")) == (0, True), ended
    run = json.loads((surroundings / "out/tried/run.json").read_text())
    assert run["environment"]["device_count"] == 2
