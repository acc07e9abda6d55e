"""The two files of a run's log: how they are written, read and summed up.

`<run_dir>/metrics.jsonl`: one JSON object per line, flushed as it happens. A line is a record of
`run.json` with two more keys: `kind` ("train" or "eval") and `wall_seconds` (the time that the run
has taken so far, over all its sessions).

`<run_dir>/run.json`: the whole run as one object, replaced atomically at the start, at each
evaluation and checkpoint, and at the end, so that a reader never meets half a file.

Units are SI. An `iter` is the number of optimizer steps done. Losses are nats per token. Times of
day are UTC, ISO 8601. NaN and infinity, which JSON does not have, become null.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from errors import UserError

SCHEMA_VERSION = 1
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"

LIST_OF_KIND = {"train": "training_iterations", "eval": "eval_steps"}
"""Where run.json keeps the records of each kind of metrics line."""


# Writing and reading


def json_safe(value: Any) -> Any:
    """`value` with every NaN and infinity in it as None, and tuples as lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return value


def write_atomically(path: Path, text: str) -> None:
    """Replace the file; a kill at any moment leaves the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def metrics_line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def _parse_metrics_line(text: str) -> dict[str, Any] | None:
    """The object that a line of metrics.jsonl holds; None where the line is damaged."""
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return None
    whole = isinstance(line, dict) and line.get("kind") in LIST_OF_KIND
    return line if whole and {"iter", "wall_seconds"} <= line.keys() else None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, oldest first, without a last one that a kill cut short.

    Raises:
        UserError: A line before the last is damaged.
    """
    texts = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    lines = [_parse_metrics_line(text) for text in texts]
    if lines[-1] is None:
        lines.pop()
    if None in lines:
        raise UserError(
            f"{path}: line {lines.index(None) + 1} of {len(texts)} is damaged; "
            "restore the file or remove that line."
        )
    return lines


def last_metrics(path: Path) -> dict[str, Any] | None:
    """The last whole line of a metrics.jsonl, without reading what is before; None before any."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        texts = file.read().decode("utf-8", errors="replace").split("\n")[:-1]
    return _parse_metrics_line(texts[-1]) if texts else None


def read_run(path: Path) -> Any:
    """What a run.json holds, without parsing its log lines: `training_iterations` is left empty.

    Those lines are nine tenths of the file, and `summary` tells what they came to. `TrainingLogger`
    indents by one space, so a line that starts with ` ]` can only end a list of the top level; a
    file that is laid out otherwise is parsed whole.

    Raises:
        UserError: The file is no JSON.
    """
    text = path.read_bytes()
    before, key, lines = text.partition(b'\n "training_iterations": [\n')
    _, end, after = lines.partition(b"\n ]")
    return json.loads(before + key + end + after if end else text)


def records_of(lines: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The lines of one kind as the records that run.json holds."""
    own = ("kind", "wall_seconds")
    return [
        {key: value for key, value in line.items() if key not in own}
        for line in lines
        if line["kind"] == kind
    ]


# What a run came to


def best_record(eval_steps: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    finite = [record for record in eval_steps if record["val_loss"] is not None]
    return min(finite, key=lambda record: record["val_loss"], default=None)


def _median(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return statistics.median(numbers) if numbers else None


def summarize(
    training_iterations: Sequence[Mapping[str, Any]],
    eval_steps: Sequence[Mapping[str, Any]],
    *,
    flops_per_token: int,
    wall_seconds: float,
) -> dict[str, Any]:
    """What a run came to, so far; null where there is nothing to tell it from.

    The medians leave out the first log interval, which pays for warming up and compiling, unless
    it is the only one. `total_flops` counts training, by the full (not the causal) convention.
    """
    final = eval_steps[-1] if eval_steps else {}
    best = best_record(eval_steps) or {}
    steady = training_iterations[1:] or training_iterations
    seen = [record["tokens_seen"] for record in (*training_iterations, *eval_steps)]
    peaks = [record["memory"].get("peak") for record in training_iterations]
    total_tokens = max(seen, default=0)
    return {
        "final_val_loss": final.get("val_loss"),
        "final_val_bits_per_byte": final.get("val_bits_per_byte"),
        "best_val_loss": best.get("val_loss"),
        "best_val_bits_per_byte": best.get("val_bits_per_byte"),
        "best_val_iter": best.get("iter"),
        "total_tokens": total_tokens,
        "total_flops": total_tokens * flops_per_token,
        "wall_seconds": wall_seconds,
        "median_tokens_per_second": _median([r["tokens_per_second"] for r in steady]),
        "median_mfu_percent": _median([r["mfu"]["mfu_percent"] for r in steady]),
        "peak_memory_bytes": max((peak for peak in peaks if peak is not None), default=None),
        "bad_steps": training_iterations[-1]["bad_steps"] if training_iterations else 0,
    }


# Folders that hold a log


def refuse_existing_log(run_dir: Path) -> None:
    """Raise UserError where a folder holds the log of a run already."""
    present = [name for name in (RUN_FILE, METRICS_FILE) if (run_dir / name).exists()]
    if present:
        raise UserError(
            f"{run_dir} already holds a run ({', '.join(present)}); "
            "choose another --run_name, continue it with --resume, or remove the folder."
        )


def discard_unfinished_log(run_dir: Path) -> None:
    """Delete the log that a folder holds, unless it is of a run that completed."""
    run_file = run_dir / RUN_FILE
    if run_file.exists():
        status = json.loads(run_file.read_text(encoding="utf-8")).get("status")
        if status != "completed":
            run_file.unlink()
            (run_dir / METRICS_FILE).unlink(missing_ok=True)
