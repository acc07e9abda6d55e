"""The two files of a run's log: how they are written, read and summarized.

`<run_dir>/metrics.jsonl`: one JSON object per line, a record, written as it happens. `kind` is
"train" or "eval", `wall_seconds` the time that the run has taken so far over all its starts.

`<run_dir>/run.json`: the run as one object, replaced atomically, so that a reader never meets half
a file. While the run lasts, its records are in metrics.jsonl alone, and run.json holds what stays
small: its lists `training_iterations` and `eval_steps` are empty until the run ends, completed or
not. `read_log` reads both files.

Units are SI. An `iter` is the number of optimizer steps done. Losses are nats per token. Times of
day are UTC, ISO 8601. NaN and infinity, which JSON does not have, become null.
"""

from __future__ import annotations

import io
import json
import math
import os
from bisect import insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from errors import UserError, file_errors
from safe_files import open_regular, refuse_irregular

SCHEMA_VERSION = 1
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"

LIST_OF_KIND = {"train": "training_iterations", "eval": "eval_steps"}
"""Where run.json keeps the records of each kind."""


# Writing


def json_safe(value: Any) -> Any:
    """`value` with every NaN and infinity in it as None, and tuples as lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return value


def write_atomically(path: Path, texts: Iterable[str]) -> None:
    """Replace the file by these texts, one after the other.

    A kill at any moment leaves the old file or the new one, whole; an error leaves the old one.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(texts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_run(run_dir: Path, run: Mapping[str, Any], *, records: bool) -> None:
    """Write run.json.

    Args:
        run_dir: The run directory.
        run: The object, its lists of records empty.
        records: Whether to fill these lists from metrics.jsonl.
    """
    rest = json.dumps(run, indent=1, allow_nan=False) + "\n"
    texts = []
    for kind, name in LIST_OF_KIND.items() if records else ():
        before, empty, rest = rest.partition(f'\n "{name}": []')
        assert empty, f"{name} is not an empty list"
        texts.append([before, f'\n "{name}": ['])
        texts.append(_listed(run_dir / METRICS_FILE, kind))
    write_atomically(run_dir / RUN_FILE, (text for group in [*texts, [rest]] for text in group))


def _listed(metrics: Path, kind: str) -> Iterator[str]:
    """The records of a kind as the inside of a JSON list, up to and with its end."""
    separator = "\n  "
    for line, text in _whole_lines(metrics):
        if line["kind"] == kind:
            yield separator + text
            separator = ",\n  "
    yield "]" if separator == "\n  " else "\n ]"


class MetricsFile:
    """A metrics.jsonl that is being written. What `append` returns from has left the process."""

    def __init__(self, path: Path):
        refuse_irregular(path)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a record; an OSError leaves the file as it was."""
        size = self._file.seek(0, os.SEEK_END)
        left = metrics_line(line).encode()
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            os.ftruncate(self._file.fileno(), size)
            raise

    def sync(self) -> None:
        """Return when every record would survive a power cut."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def metrics_line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


# Reading


def _parse_metrics_line(text: str) -> dict[str, Any] | None:
    """The record that a line of metrics.jsonl holds; None where the line is damaged."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    whole = (
        isinstance(line, dict)
        and line.get("kind") in LIST_OF_KIND
        and isinstance(line.get("iter"), int)
        and isinstance(line.get("wall_seconds"), int | float)
    )
    return line if whole else None


def _whole_lines(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The records of a metrics.jsonl and their text, oldest first; see `read_metrics`."""
    if not path.exists():
        return
    with (
        open_regular(path, follow_links=True) as content,
        io.TextIOWrapper(content, encoding="utf-8", errors="replace", newline="\n") as file,
    ):
        damaged = None
        for number, text in enumerate(file, start=1):
            if damaged:
                raise UserError(
                    f"{path}: line {damaged} is damaged; restore the file or remove that line."
                )
            line = _parse_metrics_line(text)
            if line is None:
                damaged = number
            else:
                yield line, text.removesuffix("\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, oldest first, without a last line that a kill cut short.

    Raises:
        UserError: A line before the last is damaged.
    """
    return [line for line, _ in _whole_lines(path)]


def last_metrics(path: Path) -> dict[str, Any] | None:
    """The last whole line of a metrics.jsonl, without reading what is before; None before any."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        texts = file.read().decode("utf-8", errors="replace").split("\n")[:-1]
    return _parse_metrics_line(texts[-1]) if texts else None


def read_run(path: Path) -> Any:
    """What a run.json holds, without parsing its log lines: `training_iterations` is left empty.

    Those lines are nine tenths of the file, and `summary` tells what they came to. `write_run`
    indents by one space, so a line that starts with ` ]` can only end a list of the top level; a
    file that is laid out otherwise is parsed whole.

    Raises:
        ValueError: The file is no JSON.
    """
    text = _content(path)
    before, key, lines = text.partition(b'\n "training_iterations": [\n')
    _, end, after = lines.partition(b"\n ]")
    return json.loads(before + key + end + after if end else text)


def _content(path: Path) -> bytes:
    with open_regular(path, follow_links=True) as file:
        return file.read()


def read_log(run_dir: Path) -> dict[str, Any]:
    """The whole log of a run: run.json, with the records of metrics.jsonl while it has none.

    Raises:
        OSError: There is no run.json.
        ValueError: A file is damaged.
    """
    log = json.loads(_content(run_dir / RUN_FILE))
    if not any(log[name] for name in LIST_OF_KIND.values()):
        lines = read_metrics(run_dir / METRICS_FILE)
        log |= {name: records_of(lines, kind) for kind, name in LIST_OF_KIND.items()}
    return log


def records_of(lines: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The records of one kind."""
    return [dict(line) for line in lines if line["kind"] == kind]


# What a run came to


def best_record(eval_steps: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    finite = [record for record in eval_steps if record["val_loss"] is not None]
    return min(finite, key=lambda record: record["val_loss"], default=None)


class RunningMedian:
    """The median of the numbers added so far, which it keeps in order."""

    def __init__(self) -> None:
        self._ordered: list[float] = []

    def add(self, value: float | None) -> None:
        if value is not None:
            insort(self._ordered, value)

    @property
    def value(self) -> float | None:
        """None before any."""
        count = len(self._ordered)
        if not count:
            return None
        low, high = self._ordered[(count - 1) // 2], self._ordered[count // 2]
        return low if count % 2 else (low + high) / 2


class RunSummary:
    """What a run came to so far, record by record; null where there is nothing to tell it from.

    The medians leave out the first log interval, which pays for warming up and compiling, unless
    it is the only one. `total_flops` counts training, by the full (not the causal) convention.
    """

    def __init__(self, flops_per_token: int):
        self._flops_per_token = flops_per_token
        self._first_interval: Mapping[str, Any] | None = None
        self._last_interval: Mapping[str, Any] = {}
        self._final: Mapping[str, Any] = {}
        self.best: Mapping[str, Any] | None = None
        """The evaluation of the lowest loss."""
        self._total_tokens = 0
        self._peak_memory: int | None = None
        self._tokens_per_second = RunningMedian()
        self._mfu_percent = RunningMedian()

    def add(self, line: Mapping[str, Any]) -> None:
        """Take in a record of metrics.jsonl."""
        self._total_tokens = max(self._total_tokens, line["tokens_seen"])
        if line["kind"] == "eval":
            self._final = line
            self.best = best_record([line] if self.best is None else [self.best, line])
        else:
            self._add_interval(line)

    def _add_interval(self, line: Mapping[str, Any]) -> None:
        self._last_interval = line
        peaks = (self._peak_memory, line["memory"].get("peak"))
        self._peak_memory = max((peak for peak in peaks if peak is not None), default=None)
        if self._first_interval is None:
            self._first_interval = line
        else:
            self._tokens_per_second.add(line["tokens_per_second"])
            self._mfu_percent.add(line["mfu"]["mfu_percent"])

    def to_dict(self, wall_seconds: float) -> dict[str, Any]:
        """The summary as run.json has it."""
        best, only = self.best or {}, self._first_interval
        if only is not None and only is not self._last_interval:
            only = None
        return {
            "final_val_loss": self._final.get("val_loss"),
            "final_val_bits_per_byte": self._final.get("val_bits_per_byte"),
            "best_val_loss": best.get("val_loss"),
            "best_val_bits_per_byte": best.get("val_bits_per_byte"),
            "best_val_iter": best.get("iter"),
            "total_tokens": self._total_tokens,
            "total_flops": self._total_tokens * self._flops_per_token,
            "wall_seconds": wall_seconds,
            "median_tokens_per_second": (
                only["tokens_per_second"] if only else self._tokens_per_second.value
            ),
            "median_mfu_percent": only["mfu"]["mfu_percent"] if only else self._mfu_percent.value,
            "peak_memory_bytes": self._peak_memory,
            "bad_steps": self._last_interval.get("bad_steps", 0),
        }


def summarize(
    lines: Iterable[Mapping[str, Any]], *, flops_per_token: int, wall_seconds: float
) -> dict[str, Any]:
    """What the records of a metrics.jsonl came to; see `RunSummary`."""
    summary = RunSummary(flops_per_token)
    for line in lines:
        summary.add(line)
    return summary.to_dict(wall_seconds)


# Taking up the log of a run


def lines_to_resume(run_dir: Path, step: int, logged: int | None) -> list[dict[str, Any]]:
    """The records that a run had logged when it saved the checkpoint of a step, oldest first.

    They come from metrics.jsonl; where that lacks some, from run.json, which has them all once a
    run has ended.

    Args:
        run_dir: The run directory.
        step: Of the checkpoint.
        logged: How many records the checkpoint says there were; None for a checkpoint that does
            not say, whose records are those up to its step.

    Raises:
        UserError: records are missing, or there more than once.
    """
    metrics = run_dir / METRICS_FILE
    lines = read_metrics(metrics)
    if logged is None:
        lines = [line for line in lines if line["iter"] <= step]
    elif len(lines) < logged:
        lines = _merged(lines, _records_of_ended_run(run_dir))
    lines = lines[:logged]
    problem = _history_problem(lines, step, logged)
    if problem:
        raise UserError(
            f"{metrics} is not the log that the checkpoint of step {step} continues: {problem}. "
            f"Restore it, or remove it and {RUN_FILE} to resume with a log that starts at step "
            f"{step}."
        )
    return lines


def _records_of_ended_run(run_dir: Path) -> list[dict[str, Any]]:
    """The records that run.json holds; none where there is no such file or it is damaged."""
    try:
        log = json.loads(_content(run_dir / RUN_FILE))
        records = [line for name in LIST_OF_KIND.values() for line in log[name]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [line for line in records if _parse_metrics_line(json.dumps(line))]


def _merged(
    lines: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The records of both, each once, in the order of time."""
    records = {(line["kind"], line["iter"]): line for line in (*others, *lines)}
    return sorted(
        records.values(),
        key=lambda line: (line["wall_seconds"], line["iter"], line["kind"] != "train"),
    )


def _history_problem(lines: Sequence[Mapping[str, Any]], step: int, logged: int | None) -> str:
    """What is wrong with the records up to a step; empty where nothing is."""
    if logged is not None and len(lines) < logged:
        return f"it has {len(lines)} of {logged} records"
    for kind in LIST_OF_KIND:
        steps = [line["iter"] for line in lines if line["kind"] == kind]
        for before, after in zip(steps, steps[1:], strict=False):
            if after <= before:
                return f"its {kind!r} record of iter {after} comes after that of iter {before}"
    if lines and lines[-1]["iter"] > step:
        return f"its record {len(lines)} is of iter {lines[-1]['iter']}"
    return ""


# Run directories that hold a log


def refuse_existing_log(run_dir: Path) -> None:
    """Raise UserError where a directory holds the log of a run already."""
    present = [name for name in (RUN_FILE, METRICS_FILE) if (run_dir / name).exists()]
    if present:
        raise UserError(
            f"{run_dir} already holds a run ({', '.join(present)}); "
            "choose another --run_name, continue it with --resume, or remove the folder."
        )


def set_aside_unfinished_log(run_dir: Path) -> str | None:
    """Rename the log of a run that did not complete, and that nothing can resume.

    Returns:
        The new name of its run.json, `run.before-N.json`; None where there was no such log.
    """
    try:
        status = read_run(run_dir / RUN_FILE).get("status")
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError):
        status = None  # damaged; all the more reason to keep it
    if status == "completed":
        return None

    def renamed(name: str, number: int) -> Path:
        stem, suffix = name.split(".")
        return run_dir / f"{stem}.before-{number}.{suffix}"

    number = 1
    while renamed(RUN_FILE, number).exists():
        number += 1
    with file_errors(f"rename the log in {run_dir}"):
        for name in (METRICS_FILE, RUN_FILE):
            if (run_dir / name).exists():
                os.replace(run_dir / name, renamed(name, number))
    return renamed(RUN_FILE, number).name
