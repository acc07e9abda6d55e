"""The two files of a run's log: how they are written and read.

`<run_dir>/metrics.jsonl`: one JSON object per line, a record, written as it happens. `kind` is
"train", "eval" or "sample", `wall_seconds` the time that the run has taken so far over all its
starts.

`<run_dir>/run.json`: the run as one object, replaced atomically, so that a reader never meets half
a file. While the run lasts, its records are in metrics.jsonl alone, and run.json holds what stays
small: its lists `training_iterations`, `eval_steps` and `samples` are empty until the run ends,
completed or not. `read_log` reads both files.

Units are SI. An `iter` is the number of optimizer steps done. Losses are nats per token. Times of
day are UTC, ISO 8601. NaN and infinity, which JSON does not have, become null.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from errors import UserError
from safe_files import open_regular, refuse_irregular, write_atomically

SCHEMA_VERSION = 1
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"

LIST_OF_KIND = {"train": "training_iterations", "eval": "eval_steps", "sample": "samples"}
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


def read_log(run_dir: Path) -> dict[str, Any]:
    """The whole log of a run: run.json, with the records of metrics.jsonl while it has none.

    Raises:
        OSError: There is no run.json.
        ValueError: A file is damaged.
    """
    log = json.loads(_content(run_dir / RUN_FILE))
    if not any(log.get(name) for name in LIST_OF_KIND.values()):
        lines = read_metrics(run_dir / METRICS_FILE)
        log |= {name: records_of(lines, kind) for kind, name in LIST_OF_KIND.items()}
    return log


def records_of(lines: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The records of one kind."""
    return [dict(line) for line in lines if line["kind"] == kind]


def records_in_run_file(run_dir: Path) -> list[dict[str, Any]]:
    """The records that run.json holds; none where there is no such file or it is damaged."""
    try:
        log = json.loads(_content(run_dir / RUN_FILE))
        records = [line for name in LIST_OF_KIND.values() for line in log.get(name, [])]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [line for line in records if _parse_metrics_line(json.dumps(line))]


def _content(path: Path) -> bytes:
    with open_regular(path, follow_links=True) as file:
        return file.read()
