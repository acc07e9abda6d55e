"""An entry of the GPU suite: its commands, the numbers read from their results, and its goals."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Command = tuple[str, ...]
Number = float | int | None
Numbers = dict[str, Number]

CHECK, BENCHMARK = "check", "benchmark"

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
TIMED_OUT, NOT_RUN = "timed out", "not run"
STATUSES = (PASSED, FAILED, SKIPPED, TIMED_OUT, NOT_RUN)

PYTHON = sys.executable


class NothingToRun(Exception):
    """Raised if nothing in an entry applies to this machine; the message says why."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the suite runs, and at which size.

    Attributes:
        folder: A temporary folder for the output of the entries.
        data: A prepared dataset of bytes, for the checks.
        device: The type of the device: cuda, mps or cpu.
        tiny: Whether every entry has sizes that a CPU trains in seconds.
        against: A checkout of nanoGPT; None if there is none.
    """

    folder: Path
    data: Path
    device: str
    tiny: bool
    against: Path | None = None


@dataclasses.dataclass(frozen=True)
class Goal:
    """A bound on a number of an entry.

    Attributes:
        number: Its name among the numbers of the entry; "seconds" is the wall time of its commands.
        at_least: The lowest value that passes; None: no lower bound.
        at_most: The highest value that passes; None: no upper bound.
        at_any_size: Whether it also applies to tiny sizes; true for agreement, false for speed.
    """

    number: str
    at_least: float | None = None
    at_most: float | None = None
    at_any_size: bool = False

    def met(self, numbers: Mapping[str, Number]) -> bool:
        """Whether the number is within the bounds; false if it was not measured."""
        value = numbers.get(self.number)
        if value is None:
            return False
        high_enough = self.at_least is None or value >= self.at_least
        return high_enough and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        bounds = ((">=", self.at_least), ("<=", self.at_most))
        return ", ".join(f"{self.number} {sign} {b:g}" for sign, b in bounds if b is not None)


def no_numbers() -> Numbers:
    """Reads no numbers, for entries that only need an exit status."""
    return {}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A check or a benchmark.

    Attributes:
        name: Its name in the results and the table.
        kind: CHECK or BENCHMARK.
        expected: Estimated seconds on an H100, for scheduling; not a measurement.
        stages: The commands to run: those of a stage concurrently, the stages one after another.
        read: Returns its numbers after all commands exited with status 0.
        goals: Bounds on the numbers.
        lacking: Why this machine cannot run it; empty if it can.
        note: A note for readers of the results.
    """

    name: str
    kind: str
    expected: float
    stages: tuple[tuple[Command, ...], ...]
    read: Callable[[], Numbers] = no_numbers
    goals: tuple[Goal, ...] = ()
    lacking: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of an entry.

    Attributes:
        status: One of STATUSES.
        seconds: The wall time of its commands, including the start of processes.
        reason: Why it was skipped, was not run or failed.
        output: The last lines of a command that failed or timed out.
    """

    entry: Entry
    status: str
    seconds: float = 0.0
    numbers: Numbers = dataclasses.field(default_factory=dict)
    reason: str = ""
    output: str = ""

    def to_dict(self, *, tiny: bool) -> dict[str, Any]:
        """The outcome as an object for the results file."""
        return {
            "name": self.entry.name,
            "kind": self.entry.kind,
            "status": self.status,
            "seconds": round(self.seconds, 2),
            "numbers": self.numbers,
            "goals": [
                {
                    "goal": str(goal),
                    "applied": goal.at_any_size or not tiny,
                    "met": goal.met(self.numbers) if self.numbers else None,
                }
                for goal in self.entry.goals
            ],
            "note": self.entry.note,
            "reason": self.reason,
            "output": self.output,
        }
