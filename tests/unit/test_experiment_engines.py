"""Running jobs, in place of train.py a script of the tests: environments, stops, failures."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import sweep
from errors import UserError
from experiment import engines
from experiment.engines import LocalEngine, RayEngine, visible_gpus, worker_environments
from experiment.jobs import COMPLETED, FAILED, INTERRUPTED, Job, Outcome, digest, run_job
from training.run_directory import locked

pytestmark = pytest.mark.usefixtures("_stand_in")


def at_once() -> int:
    return 0


# One job


def test_a_run_that_ends(make: Callable[..., Job]) -> None:
    outcome = run_job(make("end"), {}, at_once)
    assert (outcome.status, outcome.message) == (COMPLETED, "")
    assert outcome.job.loss == 2.5
    assert outcome.seconds > 0


def test_a_run_that_fails_says_what_it_said(make: Callable[..., Job], tmp_path: Path) -> None:
    outcome = run_job(make("fail"), {}, at_once)
    output = tmp_path / "sweep" / "output" / "a.txt"
    assert outcome.status == FAILED
    assert outcome.message == (f"exited with status 1; {output} ends with:\na first line\nno luck")


def test_a_run_that_is_to_stop(make: Callable[..., Job]) -> None:
    job = make("hang")
    outcome = run_job(job, {}, lambda: int((job.folder / "begun").exists()))
    assert outcome.status == INTERRUPTED
    assert outcome.seconds < 30
    assert "stopped politely" in job.output.read_text()


def test_no_run_goes_on_without_its_sweep(make: Callable[..., Job]) -> None:
    job = make("hang")

    def break_down() -> int:
        if (job.folder / "begun").exists():
            raise RuntimeError("the sweep is broken")
        return 0

    with pytest.raises(RuntimeError):
        run_job(job, {}, break_down)
    assert "stopped politely" not in job.output.read_text()  # killed


@pytest.mark.parametrize("deed", ["edited", "removed"])
def test_a_config_that_changed_begins_no_run(
    make: Callable[..., Job], tmp_path: Path, deed: str
) -> None:
    config = tmp_path / "arm.py"
    config.write_text("n_layer = 1\n")
    job = make("end", files={"arm.py": digest(config.read_bytes())})
    assert not job.changed_files
    if deed == "edited":
        config.write_text("n_layer = 2\n")
    else:
        config.unlink()
    outcome = run_job(job, {}, at_once)
    assert outcome.status == FAILED
    assert outcome.message.startswith("arm.py changed while the sweep was running")
    assert not job.folder.exists()


def test_a_run_that_another_process_trains(make: Callable[..., Job]) -> None:
    """As after a sweep was killed whose run lives on."""
    job = make("end")
    with locked(job.folder):
        outcome = run_job(job, {}, at_once)
    assert outcome.status == FAILED
    assert (
        f"is being trained by process {os.getpid()}, possibly left by a killed sweep"
        in outcome.message
    )
    assert not (job.folder / "begun").exists()


def test_the_command(make: Callable[..., Job], tmp_path: Path) -> None:
    job = make("end")
    assert job.command == [
        *(sys.executable, str(tmp_path / "stand_in.py"), "end"),
        *(f"--out_dir={job.folder.parent}", "--run_name=a", "--resume=auto"),
    ]


# One job in two processes


def pids(job: Job) -> list[int]:
    return [int((job.folder / f"pid{rank}").read_text()) for rank in (0, 1)]


def both_hang(job: Job) -> bool:
    return all((job.folder / f"hangs{rank}").exists() for rank in (0, 1))


@pytest.mark.slow
def test_a_run_of_two_processes_on_gpus_of_its_own(make: Callable[..., Job]) -> None:
    job = make("end")
    [outcome] = outcomes(LocalEngine([{"CUDA_VISIBLE_DEVICES": "3,5"}], 2), [job], never)
    assert (outcome.status, outcome.message) == (COMPLETED, "")
    assert [(job.folder / f"begun{rank}").read_text() for rank in (0, 1)] == ["3,5"] * 2


@pytest.mark.slow
def test_a_process_that_fails_ends_the_run_and_is_named(make: Callable[..., Job]) -> None:
    """What torchrun prints of itself is left out, and so is what an earlier session said."""
    job = make("fail second")
    job.output.parent.mkdir(parents=True)
    job.output.write_text("said earlier\n")
    outcome = run_job(job, {"OMP_NUM_THREADS": "1"}, at_once, processes=2)
    assert outcome.status == FAILED
    assert outcome.seconds < 25
    first, *said, last = outcome.message.splitlines()
    assert first == f"exited with status 1; {job.output} ends with:"
    assert set(said) == {"a first line", "no luck for the second"}
    assert last.startswith("torchrun: failed (exitcode: 1) local_rank: 1 (pid: ")


@pytest.mark.slow
def test_a_stop_reaches_all_processes_of_a_run(make: Callable[..., Job]) -> None:
    job = make("hang")
    outcome = run_job(job, {}, lambda: int(both_hang(job)), processes=2)
    assert outcome.status == INTERRUPTED
    assert job.output.read_text().count("stopped politely") == 2
    assert not any(map(psutil.pid_exists, pids(job)))


def test_no_process_of_a_run_outlives_its_sweep(make: Callable[..., Job]) -> None:
    """Not even one that ignores signals."""
    job = make("stubborn")

    def break_down() -> int:
        if both_hang(job):
            raise RuntimeError("the sweep is broken")
        return 0

    with pytest.raises(RuntimeError):
        run_job(job, {}, break_down, processes=2)
    deadline = time.monotonic() + 10  # to be reaped by what adopted them
    while any(map(alive, pids(job))):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


# On this machine


def outcomes(engine: engines.Engine, todo: list[Job], stops: Callable[[], bool]) -> list[Outcome]:
    return [outcome for outcome in engine.run(todo, stops) if outcome]


def never() -> bool:
    return False


def test_one_that_fails_does_not_stop_the_others(make: Callable[..., Job]) -> None:
    todo = [make("fail", "a"), make("end", "b"), make("end", "c")]
    found = {
        outcome.job.arm: outcome.status for outcome in outcomes(LocalEngine([{}]), todo, never)
    }
    assert found == {"a": FAILED, "b": COMPLETED, "c": COMPLETED}


def test_workers_work_at_the_same_time_each_in_its_own_environment(
    make: Callable[..., Job],
) -> None:
    environments = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in ("3", "5")]
    todo = [make("meet", "a"), make("meet", "b")]
    found = outcomes(LocalEngine(environments), todo, never)
    assert [outcome.status for outcome in found] == [COMPLETED] * 2
    assert {(job.folder / "begun").read_text() for job in todo} == {"3", "5"}


def test_a_stop_reaches_what_runs_and_begins_nothing_more(make: Callable[..., Job]) -> None:
    todo = [make("hang", "a"), make("end", "b")]
    found = outcomes(LocalEngine([{}]), todo, (todo[0].folder / "begun").exists)
    assert [(outcome.job.arm, outcome.status) for outcome in found] == [("a", INTERRUPTED)]
    assert not todo[1].folder.exists()


def test_an_error_ends_what_runs(make: Callable[..., Job]) -> None:
    job = make("hang")
    began = time.monotonic()
    running: Iterator[Outcome | None] = LocalEngine([{}]).run([job], never)
    for _ in running:
        if (job.folder / "begun").exists():
            break
    with pytest.raises(KeyboardInterrupt):
        running.throw(KeyboardInterrupt())
    assert time.monotonic() - began < 30


# Environments


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "available_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")


@pytest.mark.usefixtures("cores")
def test_workers_share_the_cores() -> None:
    assert worker_environments(1, "cpu") == [{}]
    assert worker_environments(3, "cpu") == [{"OMP_NUM_THREADS": "2"}] * 3
    assert worker_environments(16, "cpu") == [{"OMP_NUM_THREADS": "1"}] * 16


@pytest.mark.usefixtures("cores")
def test_threads_that_are_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert worker_environments(2, "cpu") == [{}, {}]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, ["0", "1"]), ("4,7", ["4", "7"]), (" GPU-a , GPU-b ,GPU-c", ["GPU-a", "GPU-b"])],
)
def test_gpus(monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[str]) -> None:
    monkeypatch.setattr(engines.torch.cuda, "device_count", lambda: 2)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == expected
    one, other, third = worker_environments(3, "cuda")
    assert [one, other] == [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in expected]
    assert third == one


@pytest.mark.usefixtures("cores")
def test_processes_of_runs_share_the_cores() -> None:
    assert worker_environments(1, "cpu", 2) == [{"OMP_NUM_THREADS": "4"}]
    assert worker_environments(2, "cpu", 2) == [{"OMP_NUM_THREADS": "2"}] * 2
    assert worker_environments(2, "cpu", 8) == [{"OMP_NUM_THREADS": "1"}] * 2


def test_runs_have_gpus_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.torch.cuda, "device_count", lambda: 5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,4,6,8")
    assert engines.gpu_groups(2) == ["0,2", "4,6"]
    assert engines.gpu_groups(5) == ["0,2,4,6,8"]
    expected = [{"CUDA_VISIBLE_DEVICES": gpus} for gpus in ("0,2", "4,6", "0,2")]
    assert worker_environments(3, "cuda", 2) == expected
    with pytest.raises(UserError, match="=6, but this machine has 5 GPUs; use --gpus_per_run=5 or"):
        worker_environments(1, "cuda", 6)


@pytest.mark.parametrize(
    ("device", "processes", "workers", "expected"),
    [
        *(("cuda", 1, None, 5), ("cuda", 2, None, 2), ("cuda", 2, 7, 7), ("cuda", 6, 7, "has 5 G")),
        *(("cpu", 6, None, 1), ("cpu", 6, 2, 2), ("mps", 1, None, 1), ("mps", 2, 1, "has 1 GPU;")),
    ],
)
def test_runs_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    processes: int,
    workers: int | None,
    expected: int | str,
) -> None:
    monkeypatch.setattr(engines.torch.cuda, "device_count", lambda: 5)
    monkeypatch.setattr(sweep, "local_device", lambda plan: device)
    options = argparse.Namespace(engine="local", gpus_per_run=processes, workers=workers)
    if isinstance(expected, int):
        assert sweep.runs_at_a_time(options, None) == expected
    else:
        with pytest.raises(UserError, match=f"--gpus_per_run={processes}, but .* {expected}"):
            sweep.runs_at_a_time(options, None)


def test_there_are_cores() -> None:
    assert engines.available_cores() >= 1


def test_without_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match="--engine=ray needs Ray: pip install ray."):
        RayEngine(tmp_path, None, "cpu")
