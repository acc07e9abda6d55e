"""What deployments cost over time: `metrics/cost_log.csv`, a row at changes and every 300 s."""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Callable
from pathlib import Path

from cloud.budget import Budget
from errors import UserError

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
    """Appends the rows of one deployment. A disk that does not take them ends nothing.

    Args:
        path: The file.
        deployment: Its ID.
        run: What it trains.
        budget: What it has spent.
        say: Told once if the file cannot be written.
    """

    def __init__(
        self, path: Path, deployment: str, run: str, budget: Budget, say: Callable[[str], None]
    ):
        self._path, self._deployment, self._run = path, deployment, run
        self._budget, self._say = budget, say
        self._state = ""
        self._written_at: float | None = None
        self._failed = False

    def note(self, state: str, projected: float) -> None:
        """Write a row if the state has changed or the last row is old."""
        elapsed = self._budget.elapsed()
        if state == self._state and elapsed - (self._written_at or 0.0) < EVERY_SECONDS:
            return
        self._state, self._written_at = state, elapsed
        try:
            self._append(elapsed, state, projected)
        except OSError as error:
            if not self._failed:
                self._say(f"cannot write {self._path}: {error.strerror}; costs are still counted.")
            self._failed = True

    def _append(self, elapsed: float, state: str, projected: float) -> None:
        now = datetime.datetime.now(datetime.UTC)
        row = (
            f"{now:%Y-%m-%dT%H:%M:%SZ}",
            f"{elapsed:.0f}",
            f"{self._budget.rate():.4f}",
            f"{self._budget.spent():.4f}",
            f"{projected:.4f}",
            state,
            self._deployment,
            self._run,
        )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self._path.exists():
            writer.writerow(COLUMNS)
        writer.writerow(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text.getvalue())


def costs(path: Path) -> list[dict[str, str]]:
    """The last row of every deployment, oldest first.

    Raises:
        UserError: The file is damaged.
    """
    if not path.exists():
        return []
    last: dict[str, dict[str, str]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                float(row["cumulative_usd"])
                last[row["deployment"]] = row
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{path} is damaged; move it away.") from error
    return list(last.values())
