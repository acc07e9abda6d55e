"""The start command really runs: from the command line to results as if trained here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
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
import sys
from cli import run_cli
from cloud import runpod_deploy, watch
watch.POLL_SECONDS = 0.3
run_cli(runpod_deploy.main)
"""
"""The command, which looks at the pod more often."""


def start(folder: Path, *flags: str) -> subprocess.Popen:
    write_tiny_dataset(folder / "tiny") if not (folder / "tiny").exists() else None
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [
            *(sys.executable, "-c", DRIVER, str(REPOSITORY / "config/arch_llama.py")),
            *tiny_run_flags(folder / "tiny"),
            *("--run_name=tried", "--setup=true", *flags),
        ],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


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


def head() -> str:
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
