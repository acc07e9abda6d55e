"""Sweeps through sbatch from end to end, with tests/fake_slurm.py as the cluster."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import sweep
from errors import UserError
from experiment import slurm
from tests import fake_slurm
from tests.integration.runs import Workshop, assert_same_course, log_of

ARMS = ("--vary", "normalization=rmsnorm", "--seeds=1", "--name=it")
COURSE = ("--max_iters=6", "--eval_interval=6")
PATIENCE = 60.0  # seconds


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a fake SLURM that is on PATH."""
    bin_folder = fake_slurm.install(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "QUEUE_SECONDS", 0.2)
    monkeypatch.setattr(slurm, "SETTLING_SECONDS", 1.0)
    return tmp_path / "slurm"


@pytest.fixture
def on_slurm(workshop: Workshop, cluster: Path) -> Callable[..., int]:
    def run(*arguments: str) -> int:
        return sweep.main([*workshop.argv(*arguments, run_name=None), "--engine=slurm"])

    return run


def submitted(cluster: Path) -> int:
    return len(list(cluster.glob("*.sh")))


@pytest.mark.slow
def test_a_sweep_ends_with_its_comparison(
    on_slurm: Callable[..., int],
    workshop: Workshop,
    cluster: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert on_slurm(*ARMS, *COURSE, "--slurm_options=--partition=gpu --time=1:00:00") == 0
    said = capsys.readouterr()
    assert said.out.count("val loss ") >= 2
    assert "the baseline" in said.out  # the comparison
    assert not said.err
    assert submitted(cluster) == 1
    [script] = cluster.glob("*.sh")
    assert fake_slurm.read_options(script.read_text())["--time"] == "1:00:00"
    runs = (workshop.out_dir / "sweeps/it/runs").iterdir()
    assert [log_of(run)["status"] for run in runs] == ["completed"] * 2
    assert on_slurm(*ARMS, *COURSE) == 0
    assert "all of 2 runs are already done." in capsys.readouterr().out
    assert submitted(cluster) == 1


BREAKS = '''
from components.norms import NORMS, RMSNorm


@NORMS.register("breaks", label="Breaks")
class Breaks(RMSNorm):
    """Raises an error for sequences that are longer than those of the check before a run."""

    def forward(self, x):
        if x.shape[1] > 8:
            raise RuntimeError("out of luck")
        return super().forward(x)
'''


@pytest.mark.slow
def test_a_task_that_fails_is_reported(
    on_slurm: Callable[..., int],
    workshop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plugin = tmp_path / "breaks.py"
    plugin.write_text(BREAKS)
    vary = ("--vary", "normalization=breaks", f"--plugins={plugin}", "--match=none")
    assert on_slurm(*vary, *ARMS[2:], *COURSE) == 1
    said = capsys.readouterr()
    assert "FAILED: normalization=breaks, seed 1337\ntask 17_1 left the queue before" in said.err
    assert "RuntimeError: out of luck" in said.err
    assert "baseline, seed 1337  val loss" in said.out
    assert "the baseline" in said.out  # the comparison


@pytest.mark.slow
def test_ctrl_c_lets_runs_save_and_the_same_command_goes_on(
    on_slurm: Callable[..., int],
    workshop: Workshop,
    cluster: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = workshop.out_dir / "sweeps/it"
    run = folder / "runs/baseline-s1337"
    slow = ("--max_iters=400", "--eval_interval=400")

    def press_ctrl_c() -> None:
        metrics, deadline = run / "metrics.jsonl", time.monotonic() + PATIENCE
        while not (metrics.exists() and metrics.read_text().count("\n") > 2):
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press_ctrl_c)
    presser.start()
    assert on_slurm(*ARMS, *slow, "--workers=1") == 1
    presser.join()
    assert "SIGINT received: sweep stopped" in capsys.readouterr().out
    assert log_of(run)["status"] == "interrupted"
    assert list((run / "checkpoints").glob("step_*"))
    assert not list((cluster / "tasks").iterdir())
    assert len(list((folder / "runs").iterdir())) == 1

    assert on_slurm(*ARMS, *slow) == 0
    assert [start["step"] > 0 for start in log_of(run)["starts"]] == [False, True]


@pytest.mark.slow
def test_an_array_for_each_round_and_the_runs_of_this_machine(
    on_slurm: Callable[..., int], workshop: Workshop, cluster: Path, dataset: Path, tmp_path: Path
) -> None:
    tuned = (*ARMS, *COURSE, "--tune", "learning_rate=1e-6,1e-2")
    assert on_slurm(*tuned) == 0
    assert submitted(cluster) == 2
    here = Workshop(dataset, tmp_path / "here")
    assert sweep.main(here.argv(*tuned, run_name=None)) == 0
    runs = sorted((here.out_dir / "sweeps/it/runs").iterdir())
    assert len(runs) == 2
    for run in runs:
        assert log_of(run)["config"]["learning_rate"] == 1e-2
        assert_same_course(workshop.out_dir / "sweeps/it/runs" / run.name, run, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engine=local", "--slurm_options=-p gpu"), "--slurm_options needs --engine=slurm, not"),
        (("--engine=slurm", "--slurm_options=-p gpu -N 2"), "-N is set by the sweep itself; drop"),
        (("--engine=slurm", "--gpus_per_run=3"), "batch_size=2 sequences does not divide among 3"),
    ],
)
def test_refusals(workshop: Workshop, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as error:
        sweep.main([*workshop.argv(*ARMS, *COURSE, run_name=None), *arguments])
    assert message in str(error.value)
    assert not (workshop.out_dir / "sweeps").exists()


def test_runs_ask_for_gpus_that_this_machine_need_not_have(
    workshop: Workshop, cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (*ARMS, *COURSE, "--device=cuda", "--dtype=bfloat16", "--dry_run")
    argv = workshop.argv(*arguments, "--engine=slurm", "--gpus_per_run=2", run_name=None)
    assert sweep.main(argv) == 0
    assert "Each run uses 2 processes" in " ".join(capsys.readouterr().out.split())
