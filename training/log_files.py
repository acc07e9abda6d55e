"""Write and read the two files of a run's log.

`<run_dir>/metrics.jsonl` has one record per line, a JSON object, appended during training. `kind`
is "train", "eval" or "sample"; `wall_seconds` is the wall time of the run so far over all its
starts.

`<run_dir>/run.json` describes the run as one object. It is replaced atomically, so that a reader
never sees a partial file. During the run, the records are only in metrics.jsonl, which keeps
run.json small: its lists `training_iterations`, `eval_steps` and `samples` are empty until the run
ends, completed or not. `read_log` reads both files.

Units are SI. `iter` is the number of optimizer steps done. Losses are in nats per token. Timestamps
are UTC, ISO 8601. NaN and infinity, which JSON lacks, become null.
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
"""The list in run.json that holds the records of each kind."""


# Writing


def json_safe(value: Any) -> Any:
    """Replace every NaN and infinity in `value` by None, and tuples by lists."""
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
        run: The object, with empty lists of records.
        records: Whether to fill the lists from metrics.jsonl.
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
    """Yield the records of a kind as the text of a JSON list, from after its `[` to its `]`."""
    separator = "\n  "
    for line, text in _whole_lines(metrics):
        if line["kind"] == kind:
            yield separator + text
            separator = ",\n  "
    yield "]" if separator == "\n  " else "\n ]"


class MetricsFile:
    """A metrics.jsonl opened for appending. Writes are unbuffered."""

    def __init__(self, path: Path):
        refuse_irregular(path)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115

    def append(self, line: Mapping[str, Any]) -> None:
        """Append a record; if an OSError is raised, the file is unchanged."""
        size = self._file.seek(0, os.SEEK_END)
        left = metrics_line(line).encode()
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            os.ftruncate(self._file.fileno(), size)
            raise

    def sync(self) -> None:
        """Flush all records to disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def metrics_line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


# Reading


def _parse_metrics_line(text: str) -> dict[str, Any] | None:
    """Parse a line of metrics.jsonl; returns None if it is damaged."""
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
    """Yield the records of a metrics.jsonl with their text, oldest first; see `read_metrics`."""
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
    """The records of a metrics.jsonl, oldest first; an incomplete last line is ignored.

    Raises:
        UserError: If a line before the last is damaged.
    """
    return [line for line, _ in _whole_lines(path)]


def last_metrics(path: Path) -> dict[str, Any] | None:
    """The last complete record of a metrics.jsonl, read from the end of the file; None if empty."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        texts = file.read().decode("utf-8", errors="replace").split("\n")[:-1]
    return _parse_metrics_line(texts[-1]) if texts else None


def read_run(path: Path) -> Any:
    """Read a run.json without parsing its training records: `training_iterations` is left empty.

    Those records are nine tenths of the file, and `summary` has the results. `write_run` indents by
    one space, so a line that starts with ` ]` can only end a top-level list; a file with another
    layout is parsed completely.

    Raises:
        ValueError: If the file is not valid JSON.
    """
    text = _content(path)
    before, key, lines = text.partition(b'\n "training_iterations": [\n')
    _, end, after = lines.partition(b"\n ]")
    return json.loads(before + key + end + after if end else text)


def read_log(run_dir: Path) -> dict[str, Any]:
    """The complete log of a run: run.json, with the records of metrics.jsonl if it has none.

    Raises:
        OSError: If there is no run.json.
        ValueError: If a file is damaged.
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
    """The records in run.json; empty if the file is missing or damaged."""
    try:
        log = json.loads(_content(run_dir / RUN_FILE))
        records = [line for name in LIST_OF_KIND.values() for line in log.get(name, [])]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [line for line in records if _parse_metrics_line(json.dumps(line))]


def _content(path: Path) -> bytes:
    with open_regular(path, follow_links=True) as file:
        return file.read()
