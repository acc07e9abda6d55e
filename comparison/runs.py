"""Find, load and check the logs of runs."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from comparison.json_checks import (
    LONGEST_NAME,
    Check,
    all_printable,
    list_of,
    nullable,
    number,
    plain,
    read_checked,
    record,
    scalar,
    text,
    told,
)
from comparison.logged_keys import compared_by, role_of
from errors import UserError, printable
from options import Role
from saved_configs import current_name, upgraded
from training.text_losses import load_text_losses
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
"""In the folder of a sweep: its manifest, and the folder of its tuning runs."""


MOST_OTHER_LOAD = 0.1
"""Maximum fraction of a machine's CPUs used by other processes for a run's times to be compared."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """A run as described by its log; the fields are those of run.json, see training_logger.

    The records of log intervals are not kept in memory, so that thousands of runs can be loaded.

    Attributes:
        run_id: Identifies the run, even if its folder is copied; None if not logged.
        config: The config, with current key names; see `saved_configs.upgraded`.
        roles: The roles of keys, if logged.
        defaults: The options of components that have default values, if logged.
        plugins: The digest of each plugin file and of each module that plugins import; None if not
            logged.
        environments: The environment of each start of the run, if logged.
        earlier_plugins: The plugins of earlier starts that differ from the last.
        earlier_configs: For earlier starts, the keys that had other values, with these values.
        other_load: The largest fraction of the machine's CPUs that other processes used during a
            start; None unless logged for every start.
        arm: The name of its arm in its sweep.
        sweep: The folder of that sweep.
        trial: Whether it is a tuning trial of the sweep.
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
    run_id: str | None = None
    roles: dict[str, Any] = dataclasses.field(default_factory=dict)
    defaults: frozenset[str] = frozenset()
    plugins: dict[str, Any] | None = None
    environments: tuple[dict[str, Any], ...] = ()
    earlier_plugins: tuple[dict[str, Any], ...] = ()
    earlier_configs: tuple[dict[str, Any], ...] = ()
    other_load: float | None = None
    arm: str | None = None
    sweep: str | None = None
    trial: bool = False

    @cached_property
    def folder(self) -> str:
        """Its folder as printable text."""
        return printable(str(self.path.parent))

    @property
    def starts(self) -> Sequence[Mapping[str, Any]]:
        """The environment of each start; several if the run was resumed."""
        return self.environments or (self.environment,)

    @property
    def alone(self) -> bool:
        """Whether it had the machine to itself according to the log, so that its times count."""
        return self.other_load is not None and self.other_load <= MOST_OTHER_LOAD

    @cached_property
    def code(self) -> list[Any]:
        """Identifies the code of its starts: the digests of the project's source (or if one is
        missing, commits and whether there were uncommitted changes) and of plugins."""
        sources = {start.get("source_sha256") for start in self.starts}
        if None in sources:
            sources = {(start.get("commit"), start.get("dirty")) for start in self.starts}
        return [sorted(map(str, sources)), self.plugins, *self.earlier_plugins]

    @property
    def validation_tokens(self) -> Any:
        """The number of validation tokens, by which runs are compared if their logs lack the
        fingerprint of the validation set; None if they have it."""
        if self.data.get("val_fingerprint"):
            return None
        return self.data.get("val_tokens_read", self.data.get("val_tokens"))

    def resumed_with(self, *roles: Role) -> list[dict[str, Any]]:
        """The keys with these roles that were changed when the run was resumed, with their earlier
        values."""
        found = (
            {key: value for key, value in own.items() if role_of(key, self.roles) in roles}
            for own in self.earlier_configs
        )
        return [own for own in found if own]

    @cached_property
    def text_losses(self) -> np.ndarray | None:
        """The losses of the final weights on blocks of the validation text; None if missing or
        unreadable."""
        try:
            return load_text_losses(self.path.parent)
        except UserError:
            return None

    @property
    def training_losses(self) -> np.ndarray:
        """For each log interval with a finite loss: tokens seen, seconds of training, and the loss
        in nats per token; shape (intervals, 3). Read from the log at each call; empty if missing or
        unreadable."""
        points, seconds, before = [], 0.0, 0
        for line in self._records("train", _TRAINING):
            seconds += line["time_ms"] / 1000 * max(0, line["iter"] - before)
            before = line["iter"]
            if line["loss"] is not None:
                points.append((line["tokens_seen"], seconds, line["loss"]))
        return np.array(points, dtype=float).reshape(-1, 3)

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The text samples generated during training, with `iter`, `prompt` and `text`. Read from
        the log at each call; empty if missing or unreadable."""
        return self._records("sample", _SAMPLES)

    def _records(self, kind: str, check: Check) -> list[dict[str, Any]]:
        """The log records of a kind; empty if they do not pass a check."""
        path = self.path.with_name(METRICS_FILE)
        try:
            lines = read_checked(path, read_metrics, _EVERY_LINE, "the log of a run")
            found = records_of(lines, kind)
        except UserError:
            return []
        return [] if check(found) else found

    def having(self, *roles: Role) -> dict[str, Any]:
        """The config keys with these roles, and their values."""
        return {k: value for k, value in self.config.items() if role_of(k, self.roles) in roles}

    def came_to(self, key: str) -> Any:
        """The value that resulted from a key, by which runs are compared instead; None if it is not
        logged, or there is none for this key."""
        place = compared_by(key)
        return place and getattr(self, place[0]).get(place[1])

    @property
    def seeds(self) -> tuple[Any, Any]:
        """(seed, data_seed), by which runs of two groups are paired."""
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
        """The time limit in seconds of training; None if only the number of steps is limited."""
        return 60 * (self.config.get("max_minutes") or 0) or None

    @property
    def progress(self) -> float | None:
        """The fraction of its steps or of its minutes, whichever is larger, completed at the last
        evaluation; at most 1. None if unknown."""
        limits = (
            (self._last.get("iter"), self.config.get("max_iters")),
            (self.seconds, self.limit_seconds),
        )
        shares = [done / limit for done, limit in limits if limit and done is not None]
        return min(max(shares), 1.0) if shares else None

    @property
    def loss(self) -> float | None:
        """Validation loss at the last evaluation, in nats per token; None if not finite."""
        return self._last.get("val_loss")

    @property
    def diverged(self) -> bool:
        """Whether training failed: it was stopped after non-finite steps, or ended without a finite
        loss or with one that is not below that of its initial weights."""
        if self.status == "diverged":
            return True
        if not self.eval_steps:
            return False
        first = self.eval_steps[0]
        initial = first["val_loss"] if first["iter"] == 0 and self.status == "completed" else None
        return self.loss is None or (initial is not None and self.loss >= initial)


# Loading

# The schema of a log: the keys that are used and their allowed values. Other keys of config,
# architecture, environment and data are only shown, so they may have any plain value.

_COUNT = number(0)
_STEPS = nullable(number(0, 1e18))
_NAME = text(LONGEST_NAME)
_SEED = nullable(number(0, 2**64, whole=True))
_MOST_RECORDS = 10_000_000

_EVAL = {"iter": _STEPS, "val_loss": nullable(number(0, 1e30)), "tokens_seen": _COUNT}
_EVAL_OPTIONAL = {
    "val_bits_per_byte": nullable(number(0, 1e30)),
    "flops": nullable(_COUNT),
    "seconds": nullable(_COUNT),
}
_ENVIRONMENT = record(
    {},
    dict.fromkeys(
        (
            *("device", "device_count", "cpu_count", "threads", "host", "dtype", "torch"),
            *("source_sha256", "commit", "dirty"),
        ),
        scalar,
    ),
    others=plain,
)
_DATA = record(
    {},
    {
        **dict.fromkeys(("fingerprint", "tokenizer", "val_fingerprint", "val_tokens"), scalar),
        "val_tokens_read": nullable(_COUNT),
    },
    others=plain,
)
_RUN = record(
    {
        "run_name": _NAME,
        "status": _NAME,
        "start_time": _NAME,
        "config": record(
            {},
            {
                "seed": _SEED,
                "data_seed": _SEED,
                "arch_preset": scalar,
                "compile": scalar,
                "window_pattern": nullable(text()),
                "rope_pattern": nullable(text()),
                "max_iters": _STEPS,
                "max_minutes": nullable(_COUNT),
                "warmup_iters": _STEPS,
                "lr_decay_iters": _STEPS,
            },
            others=plain,
        ),
        "architecture": record(
            {"name": _NAME, "parameters": _COUNT, "flops_per_token": _COUNT},
            {
                "active_parameters": nullable(_COUNT),
                "mtp_parameters": _COUNT,
                "attention_ffn_ratio": nullable(number()),
            },
            others=plain,
        ),
        "environment": _ENVIRONMENT,
        "data": _DATA,
        "eval_steps": list_of(record(_EVAL, _EVAL_OPTIONAL), most=_MOST_RECORDS),
        "summary": record(
            {},
            {
                "final_val_bits_per_byte": nullable(number(0, 1e30)),
                "median_tokens_per_second": nullable(_COUNT),
                "median_mfu_percent": nullable(_COUNT),
                "peak_memory_bytes": nullable(_COUNT),
            },
        ),
    },
    {
        "run_id": nullable(text()),
        "plugins": record({}, others=scalar),
        "roles": record({}, others=scalar),
        "defaults": list_of(text(), most=_MOST_RECORDS),
        "starts": list_of(
            record(
                {"environment": _ENVIRONMENT},
                {
                    "other_cpu_share": nullable(number(0, 1)),
                    "plugins": record({}, others=scalar),
                    "config": record({}, others=plain),
                },
            ),
            most=_MOST_RECORDS,
        ),
    },
)
_LINE = {"iter": _STEPS, "wall_seconds": _COUNT}
_LINES: dict[str, Check] = {
    "sample": record(_LINE),
    "eval": record(_LINE | _EVAL, _EVAL_OPTIONAL),
    "train": record(
        {
            **_LINE,
            "tokens_seen": _COUNT,
            "tokens_per_second": nullable(_COUNT),
            "mfu": record({"mfu_percent": nullable(_COUNT)}),
            "memory": record({}, {"peak": nullable(_COUNT)}),
            "bad_steps": _COUNT,
        }
    ),
}


_TRAINING = list_of(
    record(
        {
            "iter": number(0, 1e18),
            "tokens_seen": _COUNT,
            "time_ms": _COUNT,
            "loss": nullable(number(-1e30, 1e30)),
        },
        others=plain,
    ),
    most=_MOST_RECORDS,
)
_SAMPLES = list_of(
    record({"iter": number(0, 1e18, whole=True), "prompt": text(), "text": text()}),
    most=_MOST_RECORDS,
)
_EVERY_LINE = list_of(record({}), most=_MOST_RECORDS)


def _check_run(document: Any) -> Sequence[str]:
    version = document.get("schema_version") if isinstance(document, dict) else SCHEMA_VERSION
    if version != SCHEMA_VERSION:
        return (f" has schema_version {told(version)}, this code reads {SCHEMA_VERSION}",)
    return _RUN(document)


def load_run(path: Path | str) -> LoggedRun:
    """Load the run in a folder, or that of a run.json or metrics.jsonl file.

    Control characters in its texts are escaped; see `errors.printable`.

    Raises:
        UserError: If the log is missing, damaged or another kind of file, or a value used by
            comparisons has the wrong type or size.
    """
    path = Path(path)
    if os.path.isdir(path):
        path = path / RUN_FILE
    elif path.name == METRICS_FILE:
        path = path.with_name(RUN_FILE)
    if not os.path.isfile(path):
        raise UserError(
            f"{path}: no such file; pass the folder of a run, or its {RUN_FILE} "
            f"(a {METRICS_FILE} alone does not contain the config)."
        )
    document = read_checked(path, read_run, _check_run, "the log of a run")
    starts = document.get("starts", ())
    loads = [start.get("other_cpu_share") for start in starts]
    shown = {key: all_printable(document[key]) for key in _SHOWN}
    run = LoggedRun(
        path=path,
        config=upgraded(shown.pop("config")),
        run_id=document.get("run_id"),
        roles={current_name(k): v for k, v in all_printable(document.get("roles", {})).items()},
        defaults=frozenset(map(current_name, all_printable(document.get("defaults", [])))),
        eval_steps=document["eval_steps"],
        summary=document["summary"],
        plugins=all_printable(document.get("plugins")),
        environments=tuple(all_printable([start["environment"] for start in starts])),
        earlier_plugins=_of_starts(starts, "plugins"),
        earlier_configs=_of_starts(starts, "config"),
        other_load=max(loads) if loads and None not in loads else None,
        **shown,
    )
    ended = run.status != "running" and run.eval_steps
    return run if ended else _up_to_date(run)


def _of_starts(starts: Sequence[Mapping[str, Any]], key: str) -> tuple[dict[str, Any], ...]:
    """The values that earlier starts had and the last one does not, without duplicates."""
    found: list[dict[str, Any]] = []
    for own in (all_printable(start[key]) for start in starts if key in start):
        if own not in found:
            found.append(own)
    return tuple(found)


_SHOWN = ("run_name", "status", "start_time", "config", "architecture", "environment", "data")


def _up_to_date(run: LoggedRun) -> LoggedRun:
    """Update a run with the records of its metrics.jsonl, which are added to run.json later."""
    path = run.path.with_name(METRICS_FILE)
    if not os.path.isfile(path):
        return run
    check = list_of(lambda line: _LINES[line["kind"]](line), most=_MOST_RECORDS)
    lines = read_checked(path, read_metrics, check, "the log of a run")
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
    """Yield the logs that command-line words refer to, each once: runs, globs, or folders with runs
    below them.

    A word that matches nothing is returned unchanged, so that `load_run` reports it.
    """
    seen = set()
    for word in expand(patterns):
        for path in _logs_at(Path(word)):
            identity = path.resolve()
            if identity not in seen:
                seen.add(identity)
                yield path


def expand(patterns: Iterable[str]) -> Iterator[str]:
    """Expand globs; words that match nothing are returned unchanged."""
    for pattern in patterns:
        if os.path.exists(pattern):
            yield pattern
        else:
            yield from sorted(glob.glob(pattern)) or [pattern]


def _logs_at(path: Path) -> list[Path]:
    if not os.path.isdir(path):
        return [path.with_name(RUN_FILE) if path.name == METRICS_FILE else path]
    here = path / RUN_FILE
    return [here] if os.path.exists(here) else logs_below(path) or [here]


def logs_below(folder: Path) -> list[Path]:
    """The logs in a folder and its subfolders, in order.

    Tuning trials of sweeps are excluded: the best of several trials was chosen by its loss, which
    is therefore biased.
    """
    trials = {sweep / TRIALS_FOLDER for sweep in sweeps_below(folder)}
    return [path for path in sorted(folder.rglob(RUN_FILE)) if trials.isdisjoint(path.parents)]


def sweeps_below(folder: Path) -> list[Path]:
    """The folders of sweeps, in order: the folder and its subfolders that contain a manifest."""
    return sorted(path.parent for path in folder.rglob(SWEEP_FILE) if os.path.isfile(path))


def load_runs(paths: Iterable[Path | str]) -> tuple[list[LoggedRun], list[str]]:
    """The runs that can be read, in order, and the problems of the other paths."""
    runs, problems = [], []
    for path in paths:
        try:
            runs.append(load_run(path))
        except UserError as error:
            problems.append(str(error))
    return runs, problems


def newest(runs: Iterable[LoggedRun], count: int) -> list[LoggedRun]:
    """The `count` runs that were started last, the newest first."""
    return sorted(runs, key=lambda run: run.start_time, reverse=True)[:count]
