"""The engine for SLURM, with tests/fake_slurm.py as the cluster and a script of the tests in place
of train.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from errors import ConfigError, UserError
from experiment import slurm
from experiment.jobs import COMPLETED, FAILED, INTERRUPTED, Job, Outcome, digest
from experiment.slurm import SlurmEngine, array_script, parse_slurm_options
from tests import fake_slurm

pytestmark = pytest.mark.usefixtures("_stand_in")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a fake SLURM that is on PATH."""
    bin_folder = fake_slurm.install(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(slurm, "QUEUE_SECONDS", 0.1)
    monkeypatch.setattr(slurm, "SETTLING_SECONDS", 0.3)
    return tmp_path / "slurm"


@pytest.fixture
def engine(cluster: Path, tmp_path: Path) -> Callable[..., SlurmEngine]:
    def make_engine(
        workers: int | None = None, device: str = "cpu", *settings: object
    ) -> SlurmEngine:
        return SlurmEngine(tmp_path / "sweep", workers, device, *settings)

    return make_engine


def never() -> bool:
    return False


def outcomes(
    engine: SlurmEngine, jobs: list[Job], stops: Callable[[], bool] = never
) -> dict[str, Outcome]:
    return {outcome.job.arm: outcome for outcome in engine.run(jobs, stops) if outcome}


def calls(cluster: Path, command: str) -> list[str]:
    lines = (cluster / "calls").read_text().splitlines()
    return [line for line in lines if line.startswith(command)]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Running


def test_a_task_for_each_run(
    engine: Callable[..., SlurmEngine], make: Callable[..., Job], cluster: Path
) -> None:
    found = outcomes(engine(), [make("meet", "a"), make("meet", "b")])
    assert [found[arm].status for arm in "ab"] == [COMPLETED] * 2
    assert found["a"].job.loss == 2.5
    assert len(calls(cluster, "sbatch")) == 1


def test_a_limit_of_tasks_at_a_time(
    engine: Callable[..., SlurmEngine], make: Callable[..., Job], tmp_path: Path
) -> None:
    assert outcomes(engine(2), [make("end", "a")])["a"].status == COMPLETED
    assert "#SBATCH --array=0-0%2\n" in (tmp_path / "sweep" / "slurm" / "17.sh").read_text()


def test_more_runs_than_an_array_may_have(
    engine: Callable[..., SlurmEngine],
    make: Callable[..., Job],
    cluster: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slurm, "MOST_TASKS", 2)
    found = outcomes(engine(), [make("end", arm) for arm in "abc"])
    assert {outcome.status for outcome in found.values()} == {COMPLETED}
    assert len(calls(cluster, "sbatch")) == 2


def test_a_task_that_fails_is_reported_and_the_others_go_on(
    engine: Callable[..., SlurmEngine], make: Callable[..., Job]
) -> None:
    failing = make("fail", "a")
    failing.output.parent.mkdir(parents=True)
    failing.output.write_text("of an earlier session\n")
    found = outcomes(engine(), [failing, make("end", "b")])
    assert (found["a"].status, found["b"].status) == (FAILED, COMPLETED)
    assert found["a"].message == (
        f"task 17_0 left the queue before its run ended; {failing.output} ends with:\n"
        "a first line\nno luck"
    )


def test_a_task_that_vanishes(
    engine: Callable[..., SlurmEngine], make: Callable[..., Job], cluster: Path
) -> None:
    (cluster / "lose").touch()
    found = outcomes(engine(), [make("end", "a")])
    assert found["a"].status == FAILED
    assert found["a"].message == (
        "task 17_0 left the queue before its run ended and printed nothing"
    )


def test_what_slurm_says_of_a_task_is_told(
    engine: Callable[..., SlurmEngine], make: Callable[..., Job], tmp_path: Path
) -> None:
    """The folder that the script goes to is gone, so the run has no output."""
    job = make("end", "a", directory=tmp_path / "absent")
    found = outcomes(engine(), [job])
    assert found["a"].status == FAILED
    assert "absent: No such file or directory" in found["a"].message


@pytest.mark.parametrize("when", ["before", "while it waits"])
def test_a_config_that_changed_begins_no_run(
    engine: Callable[..., SlurmEngine],
    make: Callable[..., Job],
    cluster: Path,
    tmp_path: Path,
    when: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tmp_path / "an arm.py"
    config.write_text("n_layer = 1\n")
    jobs = [
        make("end", name, files={"an arm.py": digest(config.read_bytes())}) for name in ("a", "b")
    ]
    assert outcomes(engine(), jobs[1:])["b"].status == COMPLETED
    if when == "before":
        config.write_text("n_layer = 2\n")
    else:
        monkeypatch.setattr(slurm, "array_script", edited_after(config))
    found = outcomes(engine(), jobs[:1])
    assert found["a"].status == FAILED
    assert "changed while the" in found["a"].message
    assert "an arm.py" in found["a"].message
    assert not jobs[0].folder.exists()


def edited_after(config: Path) -> Callable[..., str]:
    def script(*arguments: object) -> str:
        text = array_script(*arguments)
        config.write_text("n_layer = 2\n", encoding="utf-8")
        return text

    return script


@pytest.mark.slow
def test_a_run_of_two_processes(
    engine: Callable[..., SlurmEngine], make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    job = make("end", "a")
    assert outcomes(engine(None, "cpu", 2), [job])["a"].status == COMPLETED
    assert {path.name for path in job.folder.glob("begun*")} == {"begun0", "begun1"}
    assert "OMP_NUM_THREADS" not in job.output.read_text()  # torchrun warns where it is unset


def test_squeue_may_fail_for_a_while(
    engine: Callable[..., SlurmEngine],
    make: Callable[..., Job],
    cluster: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ready = engine()
    silent = cluster / "silent"
    silent.touch()
    running = ready.run([make("end", "a")], never)
    while len(calls(cluster, "squeue")) < 4:
        assert next(running) is None
    silent.unlink()
    assert [o.status for o in running if o] == [COMPLETED]
    monkeypatch.setattr(slurm, "SILENCE_SECONDS", 0.2)
    silent.touch()
    with pytest.raises(UserError, match="squeue has failed for 0 minutes: slurm_load_jobs error"):
        list(ready.run([make("hang", "b")], never))
    assert calls(cluster, "scancel") == ["scancel 18"]


# Stopping


def test_a_stop_reaches_what_runs_and_begins_nothing_more(
    engine: Callable[..., SlurmEngine], make: Callable[..., Job], cluster: Path
) -> None:
    jobs = [make("hang", "a"), make("end", "b")]
    found = outcomes(engine(1), jobs, (jobs[0].folder / "hangs").exists)
    assert {arm: outcome.status for arm, outcome in found.items()} == {"a": INTERRUPTED}
    assert "stopped politely" in jobs[0].output.read_text()
    assert not jobs[1].folder.exists()
    assert not list((cluster / "tasks").iterdir())


def test_a_task_that_does_not_stop_is_killed(
    engine: Callable[..., SlurmEngine], make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "PATIENCE_SECONDS", 0.5)
    job = make("stubborn", "a")
    found = outcomes(engine(), [job], (job.folder / "hangs").exists)
    assert found["a"].status == INTERRUPTED


def test_an_error_cancels_the_array(
    engine: Callable[..., SlurmEngine], make: Callable[..., Job], cluster: Path
) -> None:
    job = make("stubborn", "a")
    running: Iterator[Outcome | None] = engine().run([job], never)
    for _ in running:
        if (job.folder / "hangs").exists():
            break
    with pytest.raises(KeyboardInterrupt):
        running.throw(KeyboardInterrupt())
    wait_until(lambda: not list((cluster / "tasks").iterdir()))


def test_an_array_of_a_sweep_that_was_killed_is_left_alone(
    engine: Callable[..., SlurmEngine], make: Callable[..., Job], cluster: Path, tmp_path: Path
) -> None:
    running = engine().run([make("hang", "a")], never)
    next(running)
    script = tmp_path / "sweep" / "slurm" / "17.sh"
    with pytest.raises(UserError, match="array 17 of this sweep is already in the queue, possibly"):
        engine()
    running.close()
    wait_until(lambda: not list((cluster / "tasks").iterdir()))
    assert script.exists()
    engine()


# What is submitted


def script_of(job: Job, *settings: object) -> str:
    return array_script([job], None, *settings)


def test_the_script(make: Callable[..., Job]) -> None:
    text = script_of(make("end"), True, 4, ("--gres=gpu:a100:4", "-p gpu"))
    options = fake_slurm.read_options(text)
    assert options["--gres"] == "gpu:a100:4"
    assert (options["-p"], options["--cpus-per-task"], options["--signal"]) == (
        *("gpu", "4"),
        "B:TERM@120",
    )
    assert "--nproc_per_node=4" in text
    assert "OMP_NUM_THREADS" not in text
    lines = text.splitlines()
    last = max(n for n, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert lines[:1] == ["#!/bin/bash"]
    assert all(line.startswith("#SBATCH") for line in lines[1 : last + 1])


def test_gpus_are_asked_for_unless_runs_are_on_cpus(make: Callable[..., Job]) -> None:
    assert "#SBATCH --gres=gpu:2\n" in script_of(make("end"), True, 2, ())
    assert "--gres" not in script_of(make("end"), False, 2, ())
    assert "torch.distributed.run" not in script_of(make("end"), True, 1, ())


@pytest.mark.parametrize(
    ("given", "set_already", "expected"),
    [("8", None, "4"), ("1", None, "1"), (None, None, "1"), ("8", "3", "3")],
)
def test_processes_share_the_cores_of_a_task(
    make: Callable[..., Job], given: str | None, set_already: str | None, expected: str
) -> None:
    text = script_of(make("end"), False, 2, ()).replace('exec "${command[@]}"', "")
    text = text.replace("exec < /dev/null", "true")
    own = {"SLURM_CPUS_PER_TASK": given, "OMP_NUM_THREADS": set_already}
    environment = {key: value for key, value in os.environ.items() if key not in own}
    environment |= {key: value for key, value in own.items() if value is not None}
    shown = subprocess.run(
        ["bash", "-c", f"{text}\necho $OMP_NUM_THREADS"],
        env={**environment, "SLURM_ARRAY_TASK_ID": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == f"{expected}\n"


def test_options_of_sbatch() -> None:
    text = "--partition=gpu -t 4:00:00 --account 'a b' --exclusive --gres=gpu:2,tmp:8"
    assert parse_slurm_options(text, 2) == (
        *("--partition=gpu", "-t 4:00:00", "--account 'a b'", "--exclusive"),
        "--gres=gpu:2,tmp:8",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot parse --slurm_options=''; write --slurm_options=\"--partition=gpu"),
        ("partition=gpu", "cannot parse --slurm_options='partition=gpu'; write"),
        ("--account='a", "cannot parse --slurm_options (No closing quotation); write"),
        ("-p gpu\nrm -r /", "cannot parse --slurm_options='-p gpu\\nrm -r /'; write"),
        ("-p gpu --array=0-9", "--slurm_options: --array is set by the sweep itself; drop it."),
        ("-a0-9", "-a0-9 is set by the sweep itself; drop it."),
        ("-n 4", "-n is set by the sweep itself; drop it."),
        ("--gpus=4", "drop it, or use --gres=gpu:TYPE:2 to choose a GPU type."),
        ("--gres=gpu:a100:4", "--gres=gpu:a100:4 requests 4 GPUs, but --gpus_per_run=2; use the"),
        ("--gres gpu:a100", "--gres gpu:a100 requests 1 GPU, but --gpus_per_run=2; use the same"),
    ],
)
def test_options_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_slurm_options(text, 2)
    assert message in str(error.value)


def test_options_that_sbatch_refuses(
    engine: Callable[..., SlurmEngine], make: Callable[..., Job]
) -> None:
    refuses = engine(None, "auto", 1, ("--partition=none",))
    with pytest.raises(UserError) as error:
        list(refuses.run([make("end", "a")], never))
    told = "sbatch: error: invalid partition specified: none; change --slurm_options, or use --dev"
    assert told in str(error.value)


def test_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "squeue").symlink_to(shutil.which("true"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="scancel, but PATH has no sbatch, scancel; start"):
        SlurmEngine(tmp_path / "sweep", None, "cpu")
