"""Jobs, which are runs of train.py in separate processes: their commands, status and execution."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from comparison.json_checks import list_of, nullable, number, read_checked, record, text
from errors import UserError
from training.run_directory import process_in
from training_logger import METRICS_FILE, RUN_FILE, last_metrics, read_run

PROJECT = Path(__file__).resolve().parents[1]
TRAIN = PROJECT / "train.py"

TO_DO = "to do"
COMPLETED = "completed"
DIVERGED = "diverged"
INTERRUPTED = "interrupted"
FAILED = "failed"
ENDED = (COMPLETED, DIVERGED)
"""Statuses of jobs that need not run again."""

SOURCE_OF = "source of "
"""Prefix of an arm's entries with digests of plugin files."""

POLL_SECONDS = 0.2
PATIENCE_SECONDS = 120.0
"""Time for a run to finish its step and save after it was asked to stop, before it is killed."""


_EVALS = list_of(record({"val_loss": nullable(number())}), most=10_000_000)
_LOG = record({"status": text(), "eval_steps": _EVALS})


def status_of(folder: Path) -> str:
    """The status of the run in a folder according to its log: one of ENDED, or TO_DO."""
    log = _log_in(folder)
    return log["status"] if log and log["status"] in ENDED else TO_DO


def _log_in(folder: Path) -> dict[str, Any] | None:
    """The run.json in a folder; None if it is missing or damaged, which train.py reports."""
    try:
        return read_checked(folder / RUN_FILE, read_run, _LOG, "the log of a run")
    except UserError:
        return None


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to be trained.

    Attributes:
        arm: The name of its arm.
        title: Its title in messages, such as `ffn_type=swiglu, seed 1338`.
        folder: The run directory.
        arguments: Config files and flags for train.py, without those for the run directory.
        directory: The working directory, to which paths in the arguments are relative.
        files: The files that its settings depend on, path -> digest.
        cost: Relative duration, in any unit that all jobs share.
        length: The key of a metrics record that indicates progress, and its final value.
    """

    arm: str
    title: str
    folder: Path
    arguments: tuple[str, ...]
    directory: Path
    files: Mapping[str, str]
    cost: float
    length: tuple[str, float]

    @property
    def command(self) -> list[str]:
        """The command that trains the run in one process; see `launched`."""
        where = (f"--out_dir={self.folder.parent}", f"--run_name={self.folder.name}")
        return [sys.executable, str(TRAIN), *self.arguments, *where, "--resume=auto"]

    @property
    def changed_files(self) -> list[str]:
        """The files that have changed since the sweep was planned."""
        paths = ((path, self.directory / path) for path in self.files)
        return [
            name
            for name, path in paths
            if not path.is_file() or digest(path.read_bytes()) != self.files[name]
        ]

    @property
    def output(self) -> Path:
        """The file with the console output of the run."""
        return output_file(self.folder)

    @property
    def status(self) -> str:
        """The status according to the log: one of ENDED, or TO_DO if it can start or continue."""
        return status_of(self.folder)

    @property
    def loss(self) -> float | None:
        """The last validation loss in nats per token; None if missing or not finite."""
        log = _log_in(self.folder)
        return log["eval_steps"][-1]["val_loss"] if log and log["eval_steps"] else None

    @property
    def share_done(self) -> float:
        """Fraction of the run that is done, from 0 to 1, according to its last metrics record."""
        key, end = self.length
        check = nullable(record({key: number(0)}))
        try:
            last = read_checked(self.folder / METRICS_FILE, last_metrics, check, "the log of a run")
        except UserError:
            return 0.0
        return min(1.0, last[key] / end) if last else 0.0


def launched(command: Sequence[str], processes: int) -> list[str]:
    """The command that starts a Python command in `processes` processes, the workers of a run."""
    if processes == 1:
        return list(command)
    python, *rest = command
    torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")
    return [python, *torchrun, *rest]


def launch_environment() -> dict[str, str]:
    """The environment of a launched command: unbuffered output in UTF-8, and the same time to save
    after a signal with torchrun (2.13 or later) as without it."""
    patience = str(round(PATIENCE_SECONDS))
    return {
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": patience,
    }


def output_file(run_folder: Path) -> Path:
    """The file with the console output of a run of a sweep."""
    return run_folder.parents[1] / "output" / f"{run_folder.name}.txt"


def digest(content: bytes) -> str:
    """SHA-256 as a hexadecimal string."""
    return hashlib.sha256(content).hexdigest()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a job: status COMPLETED, DIVERGED, INTERRUPTED or FAILED; duration in seconds;
    and for a failed job, its last lines of output."""

    job: Job
    status: str
    seconds: float
    message: str = ""


Urgency = Callable[[], int]
"""Returns how a run should stop: 0: not at all; 1: after finishing its step and saving; 2: at
once."""


_APART: dict[str, Any] = (
    {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    if sys.platform == "win32"
    else {"start_new_session": True}
)
"""Options to start a process that receives Ctrl-C only once, from this process."""

_STOP = signal.CTRL_BREAK_EVENT if sys.platform == "win32" else signal.SIGTERM
"""The signal to save and stop; on Windows, SIGTERM would end the process at once."""


def run_job(
    job: Job, environment: Mapping[str, str], urgency: Urgency, processes: int = 1
) -> Outcome:
    """Train a job to its end in separate processes, resuming it if it was started before.

    Args:
        job: The run.
        environment: Environment variables in addition to those of this process.
        urgency: Called a few times a second.
        processes: Number of processes; torchrun starts them if there are several.
    """
    refusal = refusal_of(job)
    if refusal:
        return Outcome(job, FAILED, 0.0, refusal)
    began = time.monotonic()
    job.output.parent.mkdir(parents=True, exist_ok=True)
    with job.output.open("a", encoding="utf-8") as output:
        said_before = output.tell()
        process = subprocess.Popen(
            launched(job.command, processes),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=job.directory,
            env={**os.environ, **launch_environment(), **environment},
            **_APART,
        )
        stopped = _wait(process, urgency)
    seconds = time.monotonic() - began
    status = job.status
    if status in ENDED:
        return Outcome(job, status, seconds)
    if stopped:
        return Outcome(job, INTERRUPTED, seconds)
    ending = last_lines(job.output, said_before)
    message = f"exited with status {process.returncode}; {job.output} ends with:\n{ending}"
    return Outcome(job, FAILED, seconds, message)


def _wait(process: subprocess.Popen, urgency: Urgency) -> bool:
    """Wait until a process ends; returns whether it was asked to stop."""
    asked, deadline = 0, math.inf
    try:
        while True:
            try:
                process.wait(POLL_SECONDS)
                return asked > 0
            except subprocess.TimeoutExpired:
                pass
            while asked < urgency():
                process.send_signal(_STOP)  # a second one stops train.py at once;
                # torchrun forwards both
                asked, deadline = asked + 1, time.monotonic() + PATIENCE_SECONDS
            if time.monotonic() > deadline:
                _kill(process)
    finally:
        if process.poll() is None:  # after an error here; no run may continue without its sweep
            _kill(process)
            process.wait()


def _kill(process: subprocess.Popen) -> None:
    """Kill a process and its children, because killing only torchrun leaves its workers running."""
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for worker in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()


def refusal_of(job: Job) -> str:
    """Why a job must not be started now; empty if it may."""
    if job.changed_files:
        return _changed(job.changed_files)
    other = process_in(job.folder)
    return "" if other is None else _orphaned(job, other)


def _changed(files: Sequence[str]) -> str:
    return (
        f"{' and '.join(files)} changed while the sweep was running, so this run would differ from "
        "earlier ones and was not started. Undo the change and repeat the command, or repeat the "
        "command without undoing it to start a separate sweep."
    )


def _orphaned(job: Job, process: str) -> str:
    return (
        f"{job.folder} is being trained by process {process}, possibly left by a killed sweep; "
        "wait until it ends, or end it, and repeat the command."
    )


_REPORT_OF_TORCHRUN = re.compile(r"[EW]\d{4} .*/elastic/multiprocessing/api\.py:\d+\] (.*)")
"""Matches the lines that torchrun prints once a worker has failed, before a traceback of its own,
which is not informative."""


def last_lines(output: Path, start: int) -> str:
    """The last lines of output of a failed run, and the failed workers reported by torchrun.

    Args:
        output: The file with the console output, which starts with that of earlier sessions.
        start: Size in bytes of the output of earlier sessions.
    """
    with output.open("rb") as file:
        file.seek(start)
        said = file.read().decode("utf-8", errors="replace").splitlines()
    reports = [_REPORT_OF_TORCHRUN.match(line) for line in said]
    end = next((n for n, report in enumerate(reports) if report), len(said))
    failures = [report[1] for report in reports if report and "exitcode" in report[1]]
    own = [line for line in said[:end][-5:] if line.strip()]
    return "\n".join([*own, *(f"torchrun: {failure}" for failure in failures)])
