"""Run the entries of the suite, each within its time limit, all within the budget."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psutil

from benchmarks.suite.entry import (
    FAILED,
    NOT_RUN,
    PASSED,
    SKIPPED,
    TIMED_OUT,
    Command,
    Entry,
    NothingToRun,
    Numbers,
    Outcome,
)
from scripts.runs import PROJECT

OUTPUT_LINES = 20
"""Number of output lines of a failed command that the results keep."""

PATIENCE, PATIENCE_IF_TINY = 3.0, 15.0
"""The time limit of an entry is this multiple of its expected time, plus LEAST_LIMIT; the expected
time is for an H100, and tiny sizes run on slower machines."""
LEAST_LIMIT = 20.0
KILL_SECONDS = 10.0
"""Seconds for killed processes to free their memory before the next entry starts."""


class CommandFailed(Exception):
    """Raised if a command of an entry has a nonzero exit status or exceeds the time limit.

    Attributes:
        status: FAILED or TIMED_OUT.
        output: Its last lines.
    """

    def __init__(self, status: str, reason: str, output: str):
        super().__init__(reason)
        self.status = status
        self.output = output


def run_entries(
    entries: Iterable[Entry], folder: Path, seconds: float, *, tiny: bool
) -> Iterator[Outcome]:
    """Yield the outcome of each entry when it ends. Entries that do not fit into the rest of
    `seconds` are not run."""
    deadline = time.monotonic() + seconds
    patience = PATIENCE_IF_TINY if tiny else PATIENCE
    for index, entry in enumerate(entries):
        left = deadline - time.monotonic()
        limit = min(left, patience * entry.expected + LEAST_LIMIT)
        if entry.lacking:
            yield Outcome(entry, SKIPPED, reason=entry.lacking)
        elif left < entry.expected:
            reason = f"expected to take {entry.expected:.0f} s, but {max(left, 0):.0f} s are left"
            yield Outcome(entry, NOT_RUN, reason=reason)
        else:
            yield run_entry(entry, folder / f"output-{index}", limit, tiny=tiny)


def run_entry(entry: Entry, folder: Path, limit: float, *, tiny: bool) -> Outcome:
    """Run the commands of an entry, read its numbers, and compare them with its goals.

    Args:
        folder: The folder for the output of the commands.
        limit: Seconds after which its processes are killed.
        tiny: Whether to apply only the goals that hold at any size.
    """
    began = time.monotonic()
    try:
        for index, commands in enumerate(entry.stages):
            run_stage(commands, folder / str(index), began + limit)
    except CommandFailed as error:
        seconds = time.monotonic() - began
        return Outcome(entry, error.status, seconds, {}, str(error), error.output)
    seconds = time.monotonic() - began
    try:
        numbers = entry.read()
    except NothingToRun as why:
        return Outcome(entry, SKIPPED, seconds, reason=str(why))
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = f"its results cannot be read: {type(error).__name__}: {error}"
        return Outcome(entry, FAILED, seconds, reason=reason)
    return judged(entry, seconds, numbers | {"seconds": round(seconds, 2)}, tiny=tiny)


def judged(entry: Entry, seconds: float, numbers: Numbers, *, tiny: bool) -> Outcome:
    """The outcome: passed, or failed if goals are missed."""
    missed = [
        str(goal)
        for goal in entry.goals
        if (goal.at_any_size or not tiny) and not goal.met(numbers)
    ]
    status = FAILED if missed else PASSED
    reason = f"goal missed: {'; '.join(missed)}" if missed else ""
    return Outcome(entry, status, seconds, numbers, reason)


def run_stage(commands: Sequence[Command], folder: Path, deadline: float) -> None:
    """Run commands concurrently; none is still running when this returns or raises.

    Raises:
        CommandFailed: For the first command that failed or was still running at the deadline.
    """
    folder.mkdir(parents=True)
    outputs = [folder / f"{index}.txt" for index in range(len(commands))]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for command, output in zip(commands, outputs, strict=True):
            running.append(_started(command, output))
        for process, output in zip(running, outputs, strict=True):
            _wait(process, output, deadline)
    finally:
        for process in running:
            _kill_with_children(process)


def _started(command: Command, output: Path) -> subprocess.Popen[bytes]:
    with output.open("wb") as file:
        return subprocess.Popen(
            command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )


def _wait(process: subprocess.Popen[bytes], output: Path, deadline: float) -> None:
    try:
        status = process.wait(timeout=max(deadline - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(TIMED_OUT, "killed at its time limit", last_lines(output)) from error
    if status:
        raise CommandFailed(FAILED, f"exit status {status}", last_lines(output))


def _kill_with_children(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, if it still runs, and its children, such as the workers of torchrun."""
    if process.poll() is not None:
        return
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.kill()
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()
    psutil.wait_procs(family, timeout=KILL_SECONDS)


def last_lines(output: Path) -> str:
    """The last lines of the output of a command."""
    text = output.read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.replace("\r", "\n").splitlines()[-OUTPUT_LINES:])
