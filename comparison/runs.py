"""Runs as their logs tell them: found, loaded and checked."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from errors import UserError
from training_logger import (
    METRICS_FILE,
    RUN_FILE,
    SCHEMA_VERSION,
    read_metrics,
    read_run,
    records_of,
    summarize,
)

SWEEP_FILE, TRIALS_FOLDER = "sweep.json", "tuning"
"""In the folder of a sweep: its manifest, and the folder of the runs that only tuned."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run as its log tells it; the fields are those of run.json, see training_logger.

    Its log lines are not kept, since `summary` tells what they came to: a thousand runs fit.
    """

    path: Path
    run_name: str
    status: str
    start_time: str
    config: dict[str, Any]
    architecture: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, Any]
    eval_steps: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def seeds(self) -> tuple[Any, Any]:
        """(seed, data_seed): runs of two groups that share these are paired."""
        return self.config.get("seed"), self.config.get("data_seed")

    @property
    def _last(self) -> Mapping[str, Any]:
        return self.eval_steps[-1] if self.eval_steps else {}

    @property
    def tokens(self) -> int:
        """Training tokens seen at the last evaluation."""
        return self._last.get("tokens_seen", 0)

    @property
    def seconds(self) -> float | None:
        """Seconds of training up to the last evaluation."""
        return self._last.get("seconds")

    @property
    def flops(self) -> int:
        """Training FLOPs up to the last evaluation."""
        return self.tokens * self.architecture["flops_per_token"]

    @property
    def limit_seconds(self) -> float | None:
        """The seconds of training after which it was to end; None where only steps ended it."""
        return 60 * self.config.get("max_minutes", 0) or None

    @property
    def progress(self) -> float | None:
        """The share of its steps or of its minutes, whichever is larger, that the last evaluation
        came after; 1 at most. None where its log does not tell."""
        limits = (
            (self._last.get("iter"), self.config.get("max_iters")),
            (self.seconds, self.limit_seconds),
        )
        shares = [done / limit for done, limit in limits if limit and done is not None]
        return min(max(shares), 1.0) if shares else None

    @property
    def loss(self) -> float | None:
        """Validation loss at the last evaluation, nats per token; None where it is not finite."""
        return self._last.get("val_loss")

    @property
    def diverged(self) -> bool:
        """Whether it ended without a finite loss, or was given up after steps that were not."""
        return self.status == "diverged" or (bool(self.eval_steps) and self.loss is None)


_LOGGED_FIELDS = {
    "run_name": str,
    "status": str,
    "start_time": str,
    "config": dict,
    "architecture": dict,
    "environment": dict,
    "data": dict,
    "eval_steps": list,
    "summary": dict,
}


# Loading


def load_run(path: Path | str) -> Run:
    """The run of a folder, of a run.json, or of the metrics.jsonl beside one.

    Raises:
        UserError: There is none, it is damaged, or it is the file of something else.
    """
    path = Path(path)
    if path.is_dir():
        path = path / RUN_FILE
    elif path.name == METRICS_FILE:
        path = path.with_name(RUN_FILE)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; name the folder of a run, or its {RUN_FILE} "
            f"(a {METRICS_FILE} alone does not tell what was trained)."
        )
    try:
        document = read_run(path)
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}).") from error
    _check_document(document, path)
    run = Run(path=path, **{name: document[name] for name in _LOGGED_FIELDS})
    return _up_to_date(run) if run.status == "running" else run


def _check_document(document: Any, path: Path) -> None:
    if not isinstance(document, dict):
        raise UserError(f"{path}: not the log of a run (it holds no JSON object).")
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path}: not a log that can be read here "
            f"(schema_version {version}, not {SCHEMA_VERSION})."
        )
    bad = [key for key, kind in _LOGGED_FIELDS.items() if not isinstance(document.get(key), kind)]
    named = {"name", "parameters", "flops_per_token"}
    bad += [] if "architecture" in bad else sorted(named - document["architecture"].keys())
    if bad:
        raise UserError(f"{path}: not the log of a run (missing or wrong: {', '.join(bad)}).")


def _up_to_date(run: Run) -> Run:
    """A run that has no end, as far as its metrics.jsonl got; run.json is only as new as the
    last evaluation."""
    metrics_path = run.path.with_name(METRICS_FILE)
    lines = read_metrics(metrics_path) if metrics_path.exists() else []
    if not lines:
        return run
    eval_steps = records_of(lines, "eval")
    summary = summarize(
        lines,
        flops_per_token=run.architecture["flops_per_token"],
        wall_seconds=lines[-1]["wall_seconds"],
    )
    return dataclasses.replace(run, eval_steps=eval_steps, summary=summary)


# Finding


def find(patterns: Sequence[str]) -> Iterator[Path]:
    """What command-line words name, each log once: runs, globs, or folders with runs below them.

    A word that names nothing comes back as it is, for `load_run` to say what is wrong with it.
    """
    seen = set()
    for word in expand(patterns):
        for path in _logs_at(Path(word)):
            identity = path.resolve()
            if identity not in seen:
                seen.add(identity)
                yield path


def expand(patterns: Iterable[str]) -> Iterator[str]:
    """What exists for each glob; a word that names or matches nothing as it is."""
    for pattern in patterns:
        if Path(pattern).exists():
            yield pattern
        else:
            yield from sorted(glob.glob(pattern)) or [pattern]


def _logs_at(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path.with_name(RUN_FILE) if path.name == METRICS_FILE else path]
    here = path / RUN_FILE
    return [here] if here.exists() else logs_below(path) or [here]


def logs_below(folder: Path) -> list[Path]:
    """The logs in a folder and the folders below it, in order.

    Not those of a sweep's trials: the best of several was chosen for its loss, which is therefore
    no sample of an arm's.
    """
    paths = sorted(folder.rglob(RUN_FILE))
    return [path for path in paths if not _is_trial(path.relative_to(folder).parts, folder)]


def _is_trial(parts: Sequence[str], folder: Path) -> bool:
    """Whether a path below a folder leads through the trials of a sweep."""
    return any(
        part == TRIALS_FOLDER and folder.joinpath(*parts[:depth], SWEEP_FILE).exists()
        for depth, part in enumerate(parts)
    )


def load_runs(paths: Iterable[Path | str]) -> tuple[list[Run], list[str]]:
    """The runs that can be read, in order, and of each other path what is wrong with it."""
    runs, problems = [], []
    for path in paths:
        try:
            runs.append(load_run(path))
        except (OSError, ValueError) as error:
            problems.append(str(error))
    return runs, problems


def newest(runs: Iterable[Run], count: int) -> list[Run]:
    """The `count` runs that started last, the newest first."""
    return sorted(runs, key=lambda run: run.start_time, reverse=True)[:count]
