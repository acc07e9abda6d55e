"""One run of train.py: its command, how far it is, and running it in processes of its own."""

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
"""To run such a job again would change nothing."""

SOURCE_OF = "source of "
"""How an entry of an arm begins that has the digest of a file with parts."""

POLL_SECONDS = 0.2
PATIENCE_SECONDS = 120.0
"""What a run that was asked to stop has, to finish its step and save, before it is killed."""


_EVALS = list_of(record({"val_loss": nullable(number())}), most=10_000_000)
_LOG = record({"status": text(), "eval_steps": _EVALS})


def status_of(folder: Path) -> str:
    """How far the run in a folder is, by its log: one of ENDED, or TO_DO."""
    log = _log_in(folder)
    return log["status"] if log and log["status"] in ENDED else TO_DO


def _log_in(folder: Path) -> dict[str, Any] | None:
    """The run.json in a folder; None if there is none that can be read, which train.py reports."""
    try:
        return read_checked(folder / RUN_FILE, read_run, _LOG, "the log of a run")
    except UserError:
        return None


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to be trained.

    Attributes:
        arm: The name of the arm that it is a run of.
        title: What it is called in messages, `ffn_type=swiglu, seed 1338`.
        folder: The run's folder.
        arguments: Config files and flags for train.py; where the run goes is added to them.
        directory: The folder that paths in the arguments start from.
        files: Those that its settings come from, path -> digest: a run of others is another run.
        cost: How long it takes, in any unit that all jobs share.
        length: What of a line of its metrics tells how far it is, and what that is in the end.
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
        """What trains it in one process; see `launched`."""
        where = (f"--out_dir={self.folder.parent}", f"--run_name={self.folder.name}")
        return [sys.executable, str(TRAIN), *self.arguments, *where, "--resume=auto"]

    @property
    def changed_files(self) -> list[str]:
        """Those that are no longer what they were when the sweep was planned."""
        paths = ((path, self.directory / path) for path in self.files)
        return [
            name
            for name, path in paths
            if not path.is_file() or digest(path.read_bytes()) != self.files[name]
        ]

    @property
    def output(self) -> Path:
        """The file that keeps what the run prints."""
        return output_file(self.folder)

    @property
    def status(self) -> str:
        """How far it is, by its log: TO_DO where it can go on or begin."""
        return status_of(self.folder)

    @property
    def loss(self) -> float | None:
        """The last validation loss, nats per token; None where there is none or it is infinite."""
        log = _log_in(self.folder)
        return log["eval_steps"][-1]["val_loss"] if log and log["eval_steps"] else None

    @property
    def share_done(self) -> float:
        """How much of the run is done, from 0 to 1, by the last line of its metrics."""
        key, end = self.length
        check = nullable(record({key: number(0)}))
        try:
            last = read_checked(self.folder / METRICS_FILE, last_metrics, check, "the log of a run")
        except UserError:
            return 0.0
        return min(1.0, last[key] / end) if last else 0.0


def launched(command: Sequence[str], processes: int) -> list[str]:
    """The command that starts a Python command in so many processes, the workers of one run."""
    if processes == 1:
        return list(command)
    python, *rest = command
    torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")
    return [python, *torchrun, *rest]


def launch_environment() -> dict[str, str]:
    """What a launched command has set: output in UTF-8 that is never behind, and of torchrun (2.13
    or later) as long to save after a signal as without it."""
    patience = str(round(PATIENCE_SECONDS))
    return {
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": patience,
    }


def output_file(run_folder: Path) -> Path:
    """The file that keeps what a run of a sweep prints."""
    return run_folder.parents[1] / "output" / f"{run_folder.name}.txt"


def digest(content: bytes) -> str:
    """SHA-256, as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job went: COMPLETED, DIVERGED, INTERRUPTED or FAILED; seconds that it took; for a
    failed one the last lines that it printed."""

    job: Job
    status: str
    seconds: float
    message: str = ""


Urgency = Callable[[], int]
"""How a run is to stop: 0 not at all, 1 once its step is done and saved, 2 at once."""


_APART: dict[str, Any] = (
    {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    if sys.platform == "win32"
    else {"start_new_session": True}
)
"""Starts a process so that Ctrl-C reaches it once, through this process."""

_STOP = signal.CTRL_BREAK_EVENT if sys.platform == "win32" else signal.SIGTERM
"""What asks it to save and stop; on Windows, SIGTERM would end it at once."""


def run_job(
    job: Job, environment: Mapping[str, str], urgency: Urgency, processes: int = 1
) -> Outcome:
    """Train a job to its end in processes of its own, from where it is.

    Args:
        job: The run.
        environment: Variables set for it beside those of this process.
        urgency: Asked a few times a second.
        processes: The workers that train it together; torchrun starts them if there are several.
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
    told = last_lines(job.output, said_before)
    message = f"exited with status {process.returncode}; {job.output} ends with:\n{told}"
    return Outcome(job, FAILED, seconds, message)


def _wait(process: subprocess.Popen, urgency: Urgency) -> bool:
    """Wait for the end of a process; whether it was asked to stop."""
    asked, deadline = 0, math.inf
    try:
        while True:
            try:
                process.wait(POLL_SECONDS)
                return asked > 0
            except subprocess.TimeoutExpired:
                pass
            while asked < urgency():
                process.send_signal(_STOP)  # train.py stops at once by the second;
                # torchrun passes both on
                asked, deadline = asked + 1, time.monotonic() + PATIENCE_SECONDS
            if time.monotonic() > deadline:
                _kill(process)
    finally:
        if process.poll() is None:  # an error here; no run may go on without its sweep
            _kill(process)
            process.wait()


def _kill(process: subprocess.Popen) -> None:
    """Kill a process and those that it started: torchrun, killed alone, leaves its workers."""
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for worker in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()


def refusal_of(job: Job) -> str:
    """Why a job must not be started now; empty if it may be."""
    if job.changed_files:
        return _changed(job.changed_files)
    other = process_in(job.folder)
    return "" if other is None else _orphaned(job, other)


def _changed(files: Sequence[str]) -> str:
    return (
        f"{' and '.join(files)} changed while the sweep ran, so that this run would differ from "
        "those before it; it was not begun. Undo the change and repeat the command, or repeat it "
        "as it is for a sweep of its own."
    )


def _orphaned(job: Job, process: str) -> str:
    return (
        f"{job.folder} is being trained by process {process}, which a sweep that was killed may "
        "have left; wait until it ends, or end it, and repeat the command."
    )


_REPORT_OF_TORCHRUN = re.compile(r"[EW]\d{4} .*/elastic/multiprocessing/api\.py:\d+\] (.*)")
"""How the lines begin that torchrun prints once a worker has failed; a traceback of its own, which
says nothing of the run, follows."""


def last_lines(output: Path, start: int) -> str:
    """What a failed run said last, and which of its workers failed where torchrun says so.

    Args:
        output: What it printed, beneath what earlier sessions of it did.
        start: How many bytes those left.
    """
    with output.open("rb") as file:
        file.seek(start)
        said = file.read().decode("utf-8", errors="replace").splitlines()
    reports = [_REPORT_OF_TORCHRUN.match(line) for line in said]
    end = next((n for n, report in enumerate(reports) if report), len(said))
    failures = [report[1] for report in reports if report and "exitcode" in report[1]]
    own = [line for line in said[:end][-5:] if line.strip()]
    return "\n".join([*own, *(f"torchrun: {failure}" for failure in failures)])
