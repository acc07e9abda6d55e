"""What deployments cost over time: `metrics/cost_log.csv`, a row at every change of state and at
least every 300 s."""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
from collections.abc import Callable
from pathlib import Path

from cloud.budget import Budget
from errors import file_errors

COST_LOG = Path("metrics/cost_log.csv")

COLUMNS = (
    "timestamp",
    "runtime_seconds",
    "cost_per_hour",
    "cumulative_usd",
    "projected_usd",
    "state",
    "deployment",
    "run",
)

EVERY_SECONDS = 300.0


class CostLog:
    """Appends the rows of one deployment. Failing to write is reported once and ends nothing.

    Args:
        path: The file.
        deployment: ID of the deployment.
        run: What it trains.
        budget: What it has spent.
        say: Prints a line.
    """

    def __init__(
        self, path: Path, deployment: str, run: str, budget: Budget, say: Callable[[str], None]
    ):
        self._path, self._deployment, self._run = path, deployment, run
        self._budget, self._say = budget, say
        self._state, self._projected = "", 0.0
        self._written_at = 0.0
        self._has_failed = False

    def note(self, state: str, projected: float) -> None:
        """Record a state; writes a row if it is new or the last row is old.

        Args:
            state: Of the deployment.
            projected: Dollars that it is expected to cost.
        """
        is_new = state != self._state
        self._state, self._projected = state, projected
        if is_new:
            self._write()
        else:
            self.repeat()

    def repeat(self) -> None:
        """Write a row if the last one is old, as during a long upload or download."""
        if self._state and self._budget.elapsed() - self._written_at >= EVERY_SECONDS:
            self._write()

    def _write(self) -> None:
        self._written_at = self._budget.elapsed()
        try:
            self._append(self._row())
        except OSError as error:
            if not self._has_failed:
                self._say(f"cannot write {self._path}: {error.strerror}; costs still count.")
            self._has_failed = True

    def _row(self) -> tuple[str, ...]:
        now = datetime.datetime.now(datetime.UTC)
        spent = self._budget.spent()
        return (
            f"{now:%Y-%m-%dT%H:%M:%SZ}",
            f"{self._budget.elapsed():.0f}",
            f"{self._budget.rate():.4f}",
            f"{spent:.4f}",
            f"{max(spent, self._projected):.4f}",
            self._state,
            self._deployment,
            self._run,
        )

    def _append(self, row: tuple[str, ...]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), self._path.open("x", encoding="utf-8") as file:
            file.write(_line(COLUMNS))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(row))


def _line(cells: tuple[str, ...]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def costs(path: Path) -> tuple[list[dict[str, str]], int]:
    """The last row of every deployment, oldest first, and how many rows cannot be read, such as one
    that a full disk cut short.

    Raises:
        UserError: The file cannot be read.
    """
    last: dict[str, dict[str, str]] = {}
    damaged = 0
    if not path.exists():
        return [], 0
    with file_errors(f"read {path}"), path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                float(row["cumulative_usd"]), float(row["runtime_seconds"])
                last[row["deployment"]] = {name: row[name] or "" for name in COLUMNS}
            except (KeyError, TypeError, ValueError):
                damaged += 1
    return list(last.values()), damaged
