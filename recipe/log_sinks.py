"""Log sinks: send the log of a run to CSV, TensorBoard or Weights & Biases: `log_to`.

The JSON files remain the authoritative log; a sink copies their records for other tools. A sink
that fails during training is disabled with a message, and the run continues.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import importlib.util
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from components.registry import Registry
from errors import UserError
from options import Role, option
from safe_files import write_atomically

CSV_FILE = "metrics.csv"
TENSORBOARD_FOLDER = "tensorboard"
WANDB_PROJECT = "nanoarch"

TAGS = {
    "loss": "loss/train",
    "val_loss": "loss/val",
    "val_bits_per_byte": "loss/val_bits_per_byte",
    "lr": "optimizer/lr",
    "gradients/norm": "optimizer/gradient_norm",
    "bad_steps": "optimizer/bad_steps",
    "time_ms": "speed/ms_per_step",
    "tokens_per_second": "speed/tokens_per_second",
    "mfu/mfu_percent": "speed/mfu_percent",
    "memory/allocated": "memory/allocated_bytes",
    "memory/resident": "memory/resident_bytes",
    "memory/peak": "memory/peak_bytes",
    "memory/reserved": "memory/reserved_bytes",
    "tokens_seen": "spent/tokens",
    "flops": "spent/flops",
    "seconds": "spent/seconds",
}
"""The curves of trackers: maps a key of a flat record to the name of its curve."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beginning:
    """Information for a sink when a run starts or resumes.

    Attributes:
        run_dir: The run directory.
        run_name: The name of the run.
        start_time: When the run first started; together with the name it identifies the run.
        config: All config keys and values of the run.
        lines: The records of metrics.jsonl up to the checkpoint that the run resumes from.
    """

    run_dir: Path
    run_name: str
    start_time: str
    config: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]


class Sink:
    """An output for the records of a log. It is opened when it is created from a `Beginning`.

    The values of its options are in `Beginning.config`.
    """

    package: ClassVar[str | None] = None
    """The pip package that it needs; None if none."""

    @classmethod
    def keys_in_sweep(cls, sweep: str) -> dict[str, Any]:
        """Defaults of the sink's options for the runs of a sweep with this name."""
        return {}

    def __init__(self, beginning: Beginning):
        """Open the sink. An exception prevents the run from starting."""

    def record(self, line: Mapping[str, Any]) -> None:
        """Write a record that was just appended to metrics.jsonl."""
        raise NotImplementedError

    def close(self, *, failed: bool) -> None:
        """Close the sink at the end of the run; `failed`: whether the run failed."""


LOG_SINKS = Registry(
    "log_to",
    "Log sink",
    variable="LOG_SINKS",
    base=Sink,
    made_with="beginning",
    role=Role.BOOKKEEPING,
)


def flat(line: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a record: `{"memory": {"peak": 1}}` becomes `{"memory/peak": 1}`."""
    found: dict[str, Any] = {}
    for key, value in line.items():
        nested = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}/") if nested else {prefix + key: value}
    return found


def curves_of(line: Mapping[str, Any]) -> dict[str, float]:
    """The values of a record by the names of their curves, without None."""
    return {
        TAGS[key]: value for key, value in flat(line).items() if key in TAGS and value is not None
    }


# The sinks


@LOG_SINKS.register("csv", label="CSV")
class CsvSink(Sink):
    """`metrics.csv` in the run directory, with a row for each record of metrics.jsonl.

    If a record adds a column, the file is rewritten. Missing values are empty cells.
    """

    def __init__(self, beginning: Beginning):
        self._path = beginning.run_dir / CSV_FILE
        self._write_all(beginning.lines)

    def _write_all(self, lines: Iterable[Mapping[str, Any]]) -> None:
        rows = [flat(line) for line in lines]
        self._columns = list(dict.fromkeys(column for row in rows for column in row))
        header = dict(zip(self._columns, self._columns, strict=True))
        write_atomically(self._path, self._text([header, *rows] if rows else []))

    def _rows(self) -> list[dict[str, str]]:
        """The rows written so far, without empty cells."""
        with open(self._path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [{column: cell for column, cell in row.items() if cell} for row in rows]

    def _text(self, rows: Iterable[Mapping[str, Any]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(rows)
        return text.getvalue()

    def record(self, line: Mapping[str, Any]) -> None:
        row = flat(line)
        if not row.keys() <= set(self._columns):
            self._write_all([*self._rows(), row])
            return
        with open(self._path, "a", encoding="utf-8", newline="") as file:
            file.write(self._text([row]))


@LOG_SINKS.register("tensorboard", label="TensorBoard")
class TensorBoardSink(Sink):
    """Curves over `iter` in `tensorboard/` of the run directory, and the config as text.

    Each start of the run purges the curves and writes them from the beginning, so they match
    metrics.jsonl no matter how often the run was resumed.
    """

    package = "tensorboard"

    def __init__(self, beginning: Beginning):
        from torch.utils.tensorboard import SummaryWriter

        self._started = datetime.fromisoformat(beginning.start_time).timestamp()
        self._writer = SummaryWriter(str(beginning.run_dir / TENSORBOARD_FOLDER), purge_step=0)
        rows = "\n".join(f"| {key} | {value} |" for key, value in beginning.config.items())
        self._writer.add_text("config", f"| key | value |\n|---|---|\n{rows}", 0)
        for line in beginning.lines:
            self._add(line)

    def _add(self, line: Mapping[str, Any]) -> None:
        time = self._started + line["wall_seconds"]
        for curve, value in curves_of(line).items():
            self._writer.add_scalar(curve, value, line["iter"], time)

    def record(self, line: Mapping[str, Any]) -> None:
        self._add(line)
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        self._writer.close()


@LOG_SINKS.register("wandb", label="W&B")
class WandbSink(Sink):
    """A Weights & Biases run with the same curves over `iter`, and the config.

    A resumed run continues its curves. Repeated steps keep their first values, because Weights &
    Biases does not accept a step twice. Local files are in `wandb/` of the run directory.
    """

    class Options:
        wandb_project: str | None = option(
            None, "W&B project; none: the environment variable WANDB_PROJECT, else nanoarch"
        )
        wandb_group: str | None = option(
            None, "W&B group of the run; none: the name of its sweep, if it has one"
        )

    package = "wandb"

    @classmethod
    def keys_in_sweep(cls, sweep: str) -> dict[str, Any]:
        """See `Sink.keys_in_sweep`."""
        return {"wandb_group": sweep}

    def __init__(self, beginning: Beginning):
        import wandb

        identity = f"{beginning.run_name} {beginning.start_time}"
        self._run = wandb.init(
            project=beginning.config.get("wandb_project")
            or os.environ.get("WANDB_PROJECT", WANDB_PROJECT),
            group=beginning.config.get("wandb_group"),
            name=beginning.run_name,
            id=hashlib.sha256(identity.encode()).hexdigest()[:16],
            resume="allow",
            config=dict(beginning.config),
            dir=str(beginning.run_dir),
        )
        for line in () if self._run.resumed else beginning.lines:
            self.record(line)

    def record(self, line: Mapping[str, Any]) -> None:
        self._run.log(curves_of(line), step=line["iter"])

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def missing_packages(names: Iterable[str]) -> list[str]:
    """The packages that the sinks need but that are not installed."""
    needed = [LOG_SINKS[name].package for name in names]
    return [name for name in needed if name and importlib.util.find_spec(name) is None]


class OpenSinks:
    """The open sinks of a run.

    Args:
        names: Names in LOG_SINKS.
        beginning: Passed to each sink.
        say: Prints a message if a sink is disabled.

    Raises:
        UserError: If a sink cannot be opened.
    """

    def __init__(self, names: Iterable[str], beginning: Beginning, say: Callable[[str], None]):
        self._say = say
        self._open: dict[str, Sink] = {}
        for name in names:
            try:
                self._open[name] = LOG_SINKS[name](beginning)
            except Exception as error:  # trackers raise anything, for the user to fix
                for sink in self._open.values():
                    with contextlib.suppress(Exception):
                        sink.close(failed=True)
                raise UserError(
                    f"log_to={name!r} cannot start ({_described(error)}); fix that, or change "
                    "log_to."
                ) from error

    def record(self, line: Mapping[str, Any]) -> None:
        self._each(lambda sink: sink.record(line))

    def close(self, *, failed: bool) -> None:
        self._each(lambda sink: sink.close(failed=failed))
        self._open.clear()

    def _each(self, act: Callable[[Sink], None]) -> None:
        for name, sink in list(self._open.items()):
            try:
                act(sink)
            except Exception as error:  # a tracker must never end a run
                del self._open[name]
                self._say(f"log_to={name!r} failed ({_described(error)}) and is disabled.")


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
