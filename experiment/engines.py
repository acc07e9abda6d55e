"""Engines that run the jobs of a sweep: local processes, or a Ray cluster; see `slurm` for the
SLURM engine."""

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
    """Runs jobs, several at the same time."""

    workers: int

    def run(self, jobs: Sequence[Job], stops: Stops) -> Iterator[Outcome | None]:
        """Yield the outcome of each job as it ends, and None a few times a second in between.

        Once `stops()` is true, no more jobs are started, and running jobs are asked to save and
        stop. Jobs that were not started have no outcome.
        """


def available_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The CUDA devices of this machine, in the notation of CUDA_VISIBLE_DEVICES."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(GPUS, "").split(",") if name.strip()]
    return named[:count] if named else [str(index) for index in range(count)]


def gpu_groups(size: int) -> list[str]:
    """The CUDA devices of this machine in groups of `size`; devices that fill no group are omitted.

    Raises:
        UserError: If there are fewer devices.
    """
    gpus = visible_gpus()
    if size > len(gpus):
        raise UserError(
            f"--gpus_per_run={size}, but this machine has {len(gpus)} GPU{'s' * (len(gpus) != 1)}; "
            f"use --gpus_per_run={len(gpus)} or less, or --device=cpu."
        )
    return [",".join(gpus[end - size : end]) for end in range(size, len(gpus) + 1, size)]


def worker_environments(workers: int, device: str, processes: int = 1) -> list[dict[str, str]]:
    """The environment variables of the runs of each worker, which divide the machine among them.

    On CUDA, each process gets a GPU; if there are fewer, workers share them round-robin. Otherwise
    each process gets an equal part of the cores, unless OMP_NUM_THREADS is set. A single process
    gets everything.

    Args:
        workers: Number of concurrent runs.
        device: Device type of the runs.
        processes: Number of processes per run.

    Raises:
        UserError: If the machine has fewer GPUs than a run has processes.
    """
    if device == "cuda":
        groups = gpu_groups(processes)
        return [{GPUS: groups[worker % len(groups)]} for worker in range(workers)]
    everything = workers * processes
    if everything == 1 or THREADS in os.environ:
        return [{} for _ in range(workers)]
    return [{THREADS: str(max(1, available_cores() // everything))} for _ in range(workers)]


class LocalEngine:
    """Runs jobs in processes on this machine.

    Args:
        environments: The environment variables of the runs of each worker.
        processes: Number of processes per run.
    """

    def __init__(self, environments: Sequence[Mapping[str, str]], processes: int = 1):
        self.workers = len(environments)
        self._processes = processes
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
            return run_job(job, environment, lambda: self._urgency, self._processes)
        except OSError as error:  # e.g. a full disk; other runs may still save
            return Outcome(job, FAILED, 0.0, str(error))
        finally:
            self._free.put(environment)


def _outcomes(done: set[Future[Outcome | None]]) -> Iterator[Outcome]:
    yield from (outcome for outcome in (future.result() for future in done) if outcome)


class RayEngine:
    """Runs jobs as tasks on a Ray cluster that shares this machine's files and Python environment.

    Each task requests a GPU for each process of its run, or its part of the cores. Connects to the
    cluster in RAY_ADDRESS; otherwise starts one on this machine, which ends with this process.

    Args:
        folder: The folder of the sweep; a file in it signals the tasks to stop.
        workers: Number of concurrent tasks. None: as many as fit on the cluster.
        device: The `device` key of the runs; auto uses GPUs if the cluster has any.
        processes: Number of processes per run, on one machine.

    Raises:
        UserError: If Ray is not installed, or no machine of the cluster has room for a task.
    """

    def __init__(self, folder: Path, workers: int | None, device: str, processes: int = 1):
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
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        has_gpus = any(machine.get("GPU", 0) >= 1 for machine in machines)
        on_gpus = device == "cuda" or (device == "auto" and has_gpus)
        kind = "GPU" if on_gpus else "CPU"
        units = [int(machine.get(kind, 0)) for machine in machines]
        room = sum(count // processes for count in units)
        if not any(units):
            raise UserError(f"the Ray cluster has no {kind}; add a machine with one.")
        if not room:
            raise UserError(
                f"--gpus_per_run={processes}, but no machine of the Ray cluster has more than "
                f"{max(units)} {kind}{'s' * (max(units) > 1)}; use --gpus_per_run={max(units)} or "
                "less, or add a larger machine."
            )
        self.workers = min(workers or room, room)
        self._processes = processes
        of_each = min(max(units), sum(units) // self.workers) // processes
        threads = 1 if on_gpus else max(1, of_each)
        self._environment = {} if on_gpus else {THREADS: os.environ.get(THREADS, str(threads))}
        needs = {"num_cpus": threads * processes, "num_gpus": processes if on_gpus else 0}
        self._task = ray.remote(max_retries=0, **needs)(_run_on_ray)

    def run(self, jobs: Sequence[Job], stops: Stops) -> Iterator[Outcome | None]:
        left, running = list(jobs), {}
        try:
            while running or left:
                if stops():
                    self._stop_file.touch()
                    left = []
                for job in left[: self.workers - len(running)]:
                    task = self._task.remote(
                        job, self._environment, self._stop_file, self._processes
                    )
                    running[task] = left.pop(0)
                if running:
                    done, _ = self._ray.wait(list(running), timeout=POLL_SECONDS)
                    yield from (self._outcome(task, running.pop(task)) for task in done)
                yield None
        finally:
            if running:  # an error or a second Ctrl-C; no run may continue without its sweep
                self._stop_file.touch()
                patience = PATIENCE_SECONDS + 30  # the tasks notice the stop file later
                self._ray.wait(list(running), num_returns=len(running), timeout=patience)

    def _outcome(self, task: Any, job: Job) -> Outcome:
        """The result of a task; if its machine was lost, only this job fails."""
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            return Outcome(job, FAILED, 0.0, f"Ray lost its task: {error}")


def _run_on_ray(
    job: Job, environment: Mapping[str, str], stop_file: Path, processes: int
) -> Outcome:
    """Run a job in a Ray task, until it ends or the stop file exists."""
    if stop_file.exists():
        return Outcome(job, INTERRUPTED, 0.0)
    return run_job(job, environment, lambda: int(stop_file.exists()), processes)
