"""Build the report page of a run, and decide when to write it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from options import Role
from pages.rendering import IN_LOGS_ONLY, PAGE_FILE, render
from safe_files import write_atomically
from training.log_files import METRICS_FILE, RUN_FILE
from training.log_text import (
    format_bytes,
    format_count,
    format_duration,
    format_flops,
    format_number,
)
from training.run_page.series import PANELS, Panels

LEAST_SECONDS = 2.0
"""Minimum number of seconds between two versions of the page during training."""

MOST_SHARE = 0.005
"""Maximum fraction of the run's time spent writing the page; on a slow disk it is updated less
often."""

RUNNING = "running"
_HERE = Path(__file__).parent
_ROLES = {
    Role.ARCHITECTURE: "Architecture",
    Role.RECIPE: "Training recipe",
    Role.LENGTH: "Length",
    Role.DATA: "Data",
    Role.SEED: "Seeds",
    Role.EXECUTION: "Execution",
    Role.BOOKKEEPING: "Bookkeeping",
}


class RunPage:
    """Writes `report.html` of a run; failures never end the run.

    Args:
        run_dir: The run directory.
        say: Prints a message if the page can no longer be written.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        run_dir: Path,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self.path = run_dir / PAGE_FILE
        self._say = say
        self._clock = clock
        self._panels = Panels()
        self._last: dict[str, Mapping[str, Any]] = {}
        self._samples: list[Mapping[str, Any]] = []  # newest first
        self._due: float | None = None  # None: not written yet
        self._failed = False

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a record of metrics.jsonl."""
        self._panels.add(record)
        self._last[record["kind"]] = record
        if record["kind"] == "sample":
            self._samples.insert(0, record)

    def refresh(
        self, run: Mapping[str, Any], max_iters: int | None, seconds_left: float | None = None
    ) -> None:
        """Write the page, unless it was written very recently. The final version, of a run that has
        ended, is always written.

        Args:
            run: The object of run.json with its summary; its lists of records are not used.
            max_iters: Steps of the whole run; None if a time limit may end it earlier.
            seconds_left: Seconds until the run ends; None if unknown.
        """
        start = self._clock()
        is_first, early = self._due is None, start < (self._due or 0.0)
        if self._failed or (run["status"] == RUNNING and early and not is_first):
            return
        try:
            text = self._text(run, max_iters, seconds_left)
            page = text.encode("utf-8", "backslashreplace")
            write_atomically(self.path, [page], durable=False)
        except Exception as error:  # the page must never end a run
            self._failed = True
            reason = error.strerror if isinstance(error, OSError) else error
            self._say(f"{self.path} cannot be written ({reason}); the run continues without it.")
        now = self._clock()
        taken = 0.0 if is_first else now - start  # the first is written before training begins
        self._due = now + max(LEAST_SECONDS, taken / MOST_SHARE)

    def _text(
        self, run: Mapping[str, Any], max_iters: int | None, seconds_left: float | None
    ) -> str:
        running = run["status"] == RUNNING
        return render(
            _HERE,
            "run.html",
            ["run.js"],
            live=running,
            title=f"{run['run_name']}: {run['status']}",
            name=run["run_name"],
            run=run,
            running=running,
            facts=_facts(run),
            done=_share_done(self._last, max_iters),
            written=datetime.now(UTC).isoformat(timespec="seconds"),
            tiles=list(_tiles(run, self._last, max_iters, seconds_left)),
            panels=PANELS,
            samples=self._samples,
            blocks=list(_blocks(run)),
            files=(RUN_FILE, METRICS_FILE),
            data={**self._panels.data(), "live": running},
        )


def _facts(run: Mapping[str, Any]) -> list[str]:
    """Short facts that identify the run."""
    parameters = format_count(run["architecture"].get("parameters"))
    return [
        str(run["architecture"].get("name", "")),
        f"{parameters} parameters",
        str(run["data"].get("dataset", "")),
        str(run["environment"].get("device", "")),
    ]


def _share_done(last: Mapping[str, Mapping[str, Any]], max_iters: int | None) -> float | None:
    done = max((record["iter"] for record in last.values()), default=0)
    return min(done / max_iters, 1.0) if max_iters else None


@dataclasses.dataclass(frozen=True)
class Tile:
    """A number at the top of the page, with a note next to it."""

    name: str
    value: str
    detail: str = ""


def _tiles(
    run: Mapping[str, Any],
    last: Mapping[str, Mapping[str, Any]],
    max_iters: int | None,
    seconds_left: float | None,
) -> Iterator[Tile]:
    summary, train = run["summary"], last.get("train", {})
    best = format_number(summary["best_val_loss"], ".4f")
    yield Tile(
        "Validation loss",
        format_number(summary["final_val_loss"], ".4f"),
        f"best {best} at step {summary['best_val_iter']:,}" if best != "-" else "nats per token",
    )
    yield Tile("Training loss", format_number(train.get("loss"), ".4f"), "nats per token")
    steps = max((record["iter"] for record in last.values()), default=0)
    of = f"of {max_iters:,}, " if max_iters else ""
    yield Tile("Step", f"{steps:,}", f"{of}{format_count(summary['total_tokens'])} tokens")
    speed, mfu = summary["median_tokens_per_second"], summary["median_mfu_percent"]
    detail = f"tokens/s, {mfu:.1f} % MFU" if mfu is not None else "tokens/s"
    yield Tile("Median throughput", format_count(speed), detail)
    yield Tile("Peak memory", format_bytes(summary["peak_memory_bytes"]), "1 GB = 1e9 bytes")
    known = run["status"] == RUNNING and seconds_left is not None
    left = f"about {format_duration(seconds_left)} left" if known else "wall-clock"
    yield Tile("Time", format_duration(summary["wall_seconds"]), left)
    if summary["bad_steps"]:
        yield Tile("Skipped steps", f"{summary['bad_steps']:,}", "loss or gradient not finite")


@dataclasses.dataclass(frozen=True)
class Block:
    """Names and values under a title.

    Attributes:
        is_open: Whether it is expanded initially.
    """

    title: str
    pairs: Sequence[tuple[str, Any]]
    is_open: bool = False

    @property
    def shown(self) -> list[tuple[str, Any]]:
        """The pairs, with floats formatted to six significant digits."""
        return [
            (key, f"{value:.6g}" if isinstance(value, float) else value)
            for key, value in self.pairs
        ]


def _blocks(run: Mapping[str, Any]) -> Iterator[Block]:
    """Config by role, cost, data and environment."""
    roles, config, environment = run["roles"], _shown(run["config"]), _shown(run["environment"])
    for role, title in _ROLES.items():
        pairs = [(key, value) for key, value in config.items() if roles.get(key) == role]
        if pairs:
            yield Block(title, pairs, role in (Role.ARCHITECTURE, Role.RECIPE, Role.LENGTH))
    rest = [(key, value) for key, value in config.items() if key not in roles]
    if rest:
        yield Block("Other keys", rest, not roles)
    yield Block("Cost", list(_cost(run["architecture"])), True)
    yield Block("Dataset", list(run["data"].items()))
    yield Block("Environment", list(environment.items()))
    if run["plugins"]:
        yield Block("Plugins (SHA-256)", list(run["plugins"].items()))


def _shown(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key not in IN_LOGS_ONLY}


_COST_FORMATS: Mapping[str, Callable[[float | None], str]] = {
    "parameters": format_count,
    "active_parameters": format_count,
    "mtp_parameters": format_count,
    "flops_per_token": format_flops,
    "flops_per_token_causal": format_flops,
    "decoding_state_bytes": format_bytes,
    "optimizer_flops_per_step": format_flops,
}


def _cost(architecture: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in architecture.items():
        yield key, _COST_FORMATS[key](value) if key in _COST_FORMATS else value
