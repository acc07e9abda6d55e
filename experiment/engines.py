"""Where the jobs of a sweep run: in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

import torch

from errors import UserError
from experiment.jobs import (
    FAILED,
    INTERRUPTED,
    PATIENCE_SECONDS,
    POLL_SECONDS,
    PROJECT,
    Job,
    Outcome,
    run_job,
)

THREADS = "OMP_NUM_THREADS"
GPUS = "CUDA_VISIBLE_DEVICES"

Stops = Callable[[], bool]


class Engine(Protocol):
    """Runs jobs, several at a time."""

    workers: int

    def run(self, jobs: Sequence[Job], stops: Stops) -> Iterator[Outcome | None]:
        """The outcome of each job as it ends, and None a few times a second in between.

        Once `stops()` is true no job is begun, and those that run are asked to save and stop;
        jobs that were never begun have no outcome.
        """


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The CUDA devices of this machine, as CUDA_VISIBLE_DEVICES spells them."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(GPUS, "").split(",") if name.strip()]
    return named[:count] if named else [str(index) for index in range(count)]


def worker_environments(workers: int, device: str) -> list[dict[str, str]]:
    """What each of a number of workers sets, so that they share the machine.

    On CUDA a GPU each, in turn where there are fewer; elsewhere an equal part of the cores, unless
    OMP_NUM_THREADS says how many each has. A single worker has all there is.
    """
    if device == "cuda":
        gpus = visible_gpus()
        return [{GPUS: gpus[worker % len(gpus)]} for worker in range(workers)]
    if workers == 1 or THREADS in os.environ:
        return [{} for _ in range(workers)]
    return [{THREADS: str(max(1, available_cores() // workers))} for _ in range(workers)]


class LocalEngine:
    """Processes of this machine.

    Args:
        environments: Of each worker, the variables that its runs have set.
    """

    def __init__(self, environments: Sequence[Mapping[str, str]]):
        self.workers = len(environments)
        self._free: queue.SimpleQueue[Mapping[str, str]] = queue.SimpleQueue()
        for environment in environments:
            self._free.put(environment)
        self._urgency = 0

    def run(self, jobs: Sequence[Job], stops: Stops) -> Iterator[Outcome | None]:
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                waiting = {pool.submit(self._work, job) for job in jobs}
                while waiting:
                    done, waiting = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
                    yield from _outcomes(done)
                    yield None
                    if stops():
                        self._urgency = max(self._urgency, 1)
            except BaseException:
                self._urgency = 2
                raise

    def _work(self, job: Job) -> Outcome | None:
        if self._urgency:
            return None
        environment = self._free.get()
        try:
            return run_job(job, environment, lambda: self._urgency)
        except OSError as error:  # a full disk, say: others may still save
            return Outcome(job, FAILED, 0.0, str(error))
        finally:
            self._free.put(environment)


def _outcomes(done: set[Future[Outcome | None]]) -> Iterator[Outcome]:
    yield from (outcome for outcome in (future.result() for future in done) if outcome)


class RayEngine:
    """Tasks of a Ray cluster whose machines share this one's files and Python environment.

    Each task asks for a GPU, or for its part of the cores. Joins the cluster that RAY_ADDRESS
    names, else starts one on this machine, which ends with this process.

    Args:
        folder: The sweep's; a file in it tells the tasks to stop.
        workers: Tasks at a time; None: as many as the cluster has room for.
        device: The key of the runs: auto takes GPUs where the cluster has any.

    Raises:
        UserError: Ray is not installed, or the cluster has no room for a single task.
    """

    def __init__(self, folder: Path, workers: int | None, device: str):
        try:
            import ray
        except ImportError as error:
            raise UserError("--engine=ray needs Ray: pip install ray.") from error
        self._ray = ray
        self._stop_file = folder / ".stop"
        self._stop_file.unlink(missing_ok=True)
        path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
        ray.init(
            ignore_reinit_error=True,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": path}},
        )
        room = ray.cluster_resources()
        on_gpus = device == "cuda" or (device == "auto" and room.get("GPU", 0) >= 1)
        there = int(room.get("GPU" if on_gpus else "CPU", 0))
        if there < 1:
            raise UserError("the Ray cluster has no GPU; add a machine that has one.")
        self.workers = min(workers or there, there)
        largest = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
        threads = 1 if on_gpus else max(1, min(largest, there // self.workers))
        self._environment = {} if on_gpus else {THREADS: os.environ.get(THREADS, str(threads))}
        needs = {"num_cpus": threads, "num_gpus": 1 if on_gpus else 0}
        self._task = ray.remote(max_retries=0, **needs)(_run_on_ray)

    def run(self, jobs: Sequence[Job], stops: Stops) -> Iterator[Outcome | None]:
        left, running = list(jobs), {}
        try:
            while running or left:
                if stops():
                    self._stop_file.touch()
                    left = []
                for job in left[: self.workers - len(running)]:
                    task = self._task.remote(job, self._environment, self._stop_file)
                    running[task] = left.pop(0)
                if running:
                    done, _ = self._ray.wait(list(running), timeout=POLL_SECONDS)
                    yield from (self._outcome(task, running.pop(task)) for task in done)
                yield None
        finally:
            if running:  # an error or a second Ctrl-C; no run may go on without its sweep
                self._stop_file.touch()
                patience = PATIENCE_SECONDS + 30  # of the tasks, which begin later
                self._ray.wait(list(running), num_returns=len(running), timeout=patience)

    def _outcome(self, task: Any, job: Job) -> Outcome:
        """What a task returned; a machine that was lost fails its job alone."""
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            return Outcome(job, FAILED, 0.0, f"Ray lost its task: {error}")


def _run_on_ray(job: Job, environment: Mapping[str, str], stop_file: Path) -> Outcome:
    """What a task does; it sees the file that the sweep leaves once it is to stop."""
    if stop_file.exists():
        return Outcome(job, INTERRUPTED, 0.0)
    return run_job(job, environment, lambda: int(stop_file.exists()))
