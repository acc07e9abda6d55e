"""Sweeps on a local Ray of two cores: the same runs as without it, and a stop reaches them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

import sweep
from experiment import engines
from experiment.engines import RayEngine
from experiment.jobs import COMPLETED, FAILED, INTERRUPTED, Job
from tests.integration.runs import Workshop, assert_same_course, log_of

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def jobs_of(workshop: Workshop, *arguments: str, seeds: int = 1) -> list[Job]:
    asked = ("--vary", "normalization=rmsnorm", f"--seeds={seeds}", "--name=it", *arguments)
    options, rest = sweep.parser().parse_known_args(workshop.argv(*asked, run_name=None))
    plan = sweep.make_plan(sweep.read_request(options, rest), workshop.out_dir)
    return plan.final_jobs(plan.tuned())


@pytest.mark.usefixtures("_cluster")
def test_the_runs_are_those_of_this_machine(
    workshop: Workshop, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("--vary", "normalization=rmsnorm", "--seeds=2", "--name=it", "--max_iters=6")
    assert sweep.main([*workshop.argv(*command, run_name=None), "--engine=ray"]) == 0
    said = capsys.readouterr()
    assert said.out.count("val loss ") >= 4
    assert not said.err
    here = Workshop(dataset, tmp_path / "here")
    assert sweep.main([*here.argv(*command, run_name=None), "--workers=2"]) == 0
    runs = sorted((here.out_dir / "sweeps/it/runs").iterdir())
    assert len(runs) == 4
    for run in runs:
        assert_same_course(workshop.out_dir / "sweeps/it/runs" / run.name, run, 6)


@pytest.mark.usefixtures("_cluster")
def test_a_stop_reaches_the_tasks(workshop: Workshop) -> None:
    jobs = jobs_of(workshop, "--max_iters=100000", "--eval_interval=50000", seeds=2)
    folder = jobs[0].folder.parents[1]
    folder.mkdir(parents=True)
    engine = RayEngine(folder, 1, "cpu")
    metrics = jobs[0].folder / "metrics.jsonl"

    def trains() -> bool:
        return metrics.exists() and '"kind": "train"' in metrics.read_text(encoding="utf-8")

    found = [outcome for outcome in engine.run(jobs, trains) if outcome]
    assert [(outcome.job.title, outcome.status) for outcome in found] == [
        (jobs[0].title, INTERRUPTED)
    ]
    assert list((jobs[0].folder / "checkpoints").glob("step_*"))
    assert not jobs[1].folder.exists()


@pytest.mark.usefixtures("_cluster")
def test_a_task_that_ray_loses_fails_alone(workshop: Workshop) -> None:
    lost, *jobs = jobs_of(workshop, "--max_iters=2")
    folder = lost.folder.parents[1]
    folder.mkdir(parents=True)
    engine = RayEngine(folder, None, "cpu")
    lost = dataclasses.replace(lost, directory=folder / "absent")  # where no process can start
    todo = [lost, *jobs]
    found = {o.job.title: o for o in engine.run(todo, lambda: False) if o}
    assert found[lost.title].status == FAILED
    assert found[lost.title].message.startswith("Ray lost its task: ")
    assert [found[job.title].status for job in jobs] == [COMPLETED]


@pytest.mark.usefixtures("_cluster")
def test_a_cluster_without_gpus(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the Ray cluster has no GPU; add a machine with one"):
        RayEngine(tmp_path, None, "cuda")


@pytest.mark.usefixtures("_cluster")
def test_a_run_of_two_processes(workshop: Workshop) -> None:
    jobs = jobs_of(workshop, "--max_iters=2")
    folder = jobs[0].folder.parents[1]
    folder.mkdir(parents=True)
    engine = RayEngine(folder, None, "cpu", 2)
    assert engine.workers == 1  # of two cores
    found = [outcome for outcome in engine.run(jobs[:1], lambda: False) if outcome]
    assert [outcome.status for outcome in found] == [COMPLETED]
    assert log_of(jobs[0].folder)["environment"]["device_count"] == 2


@pytest.mark.usefixtures("_cluster")
def test_more_processes_than_a_machine_has_cores(tmp_path: Path) -> None:
    message = "--gpus_per_run=3, but no machine of the Ray cluster has more than 2 CPUs; use"
    with pytest.raises(ValueError, match=message):
        RayEngine(tmp_path, None, "cpu", 3)


@pytest.mark.usefixtures("_cluster")
def test_workers_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(engines.THREADS)
    for workers, threads in ((1, "2"), (2, "1"), (None, "1"), (9, "1")):
        engine = RayEngine(tmp_path, workers, "auto")
        assert engine.workers == min(workers or 2, 2)
        assert engine._environment == {engines.THREADS: threads}
