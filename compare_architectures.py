"""Puts runs side by side: what each architecture reached, and what it cost.

    python compare_architectures.py --latest 3         the newest runs found under out/
    python compare_architectures.py out/a out/b        these runs

A run that crashed, or is still going, counts as far as its metrics.jsonl got. Below the table
stands whatever differs between the runs besides the architecture, so that unlike things are not
compared unawares.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from training.config import TrainingConfig
from training_logger import (
    LINE_WIDTH,
    METRICS_FILE,
    RUN_FILE,
    SCHEMA_VERSION,
    format_bytes,
    format_count,
    format_flops,
    format_number,
    read_metrics,
    records_of,
    summarize,
)

DEFAULT_LATEST = 3

# Keys that are no part of the recipe: the name of the architecture, where a run is kept, and how
# closely it is watched.
_NOT_RECIPE = {
    "arch_preset",
    "out_dir",
    "run_name",
    "resume",
    "plugins",
    "log_interval",
    "checkpoint_minutes",
    "keep_checkpoints",
}
RECIPE_KEYS = tuple(
    field.name for field in dataclasses.fields(TrainingConfig) if field.name not in _NOT_RECIPE
)


# --- Loading --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run as its log tells it; the fields are those of run.json, see training_logger."""

    path: Path
    run_name: str
    status: str
    start_time: str
    config: dict[str, Any]
    architecture: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, Any]
    training_iterations: list[dict[str, Any]]
    eval_steps: list[dict[str, Any]]
    summary: dict[str, Any]


_LOGGED_FIELDS = {
    "run_name": str,
    "status": str,
    "start_time": str,
    "config": dict,
    "architecture": dict,
    "environment": dict,
    "data": dict,
    "training_iterations": list,
    "eval_steps": list,
    "summary": dict,
}


def load_run(path: Path | str) -> Run:
    """The run of a folder, or of a run.json.

    Raises:
        ValueError: There is none, it is damaged, or it is the file of something else.
    """
    path = Path(path)
    if path.is_dir():
        path = path / RUN_FILE
    if not path.is_file():
        raise ValueError(f"{path}: no such file; name the folder of a run, or its {RUN_FILE}.")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}).") from error
    _check_document(document, path)
    run = Run(path=path, **{name: document[name] for name in _LOGGED_FIELDS})
    return _up_to_date(run) if run.status == "running" else run


def _check_document(document: Any, path: Path) -> None:
    if not isinstance(document, dict):
        raise ValueError(f"{path}: not the log of a run (it holds no JSON object).")
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: not a log that can be read here "
            f"(schema_version {version}, not {SCHEMA_VERSION})."
        )
    bad = [key for key, kind in _LOGGED_FIELDS.items() if not isinstance(document.get(key), kind)]
    named = {"name", "parameters", "flops_per_token"}
    bad += [] if "architecture" in bad else sorted(named - document["architecture"].keys())
    if bad:
        raise ValueError(f"{path}: not the log of a run (missing or wrong: {', '.join(bad)}).")


def _up_to_date(run: Run) -> Run:
    """A run that has no end, as far as its metrics.jsonl got; run.json is only as new as the
    last evaluation."""
    metrics_path = run.path.with_name(METRICS_FILE)
    lines = read_metrics(metrics_path) if metrics_path.exists() else []
    if not lines:
        return run
    records = {
        "training_iterations": records_of(lines, "train"),
        "eval_steps": records_of(lines, "eval"),
    }
    summary = summarize(
        **records,
        flops_per_token=run.architecture["flops_per_token"],
        wall_seconds=lines[-1]["wall_seconds"],
    )
    return dataclasses.replace(run, **records, summary=summary)


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


# --- What differs ---------------------------------------------------------------------------------


def differences(runs: Sequence[Run]) -> list[str]:
    """One sentence for each thing besides the architecture in which the runs are not alike."""
    watched = [
        ("data fingerprint", lambda run: run.data.get("fingerprint")),
        ("validation tokens", lambda run: run.data.get("val_tokens")),
        ("training tokens seen", lambda run: run.summary.get("total_tokens")),
        ("device", lambda run: run.environment.get("device")),
    ]
    watched += [(key, lambda run, key=key: run.config.get(key)) for key in RECIPE_KEYS]
    found = (
        _difference(label, [(run.run_name, value(run)) for run in runs]) for label, value in watched
    )
    return [sentence for sentence in found if sentence]


def _difference(label: str, values: Sequence[tuple[str, Any]]) -> str | None:
    groups: dict[str, list[str]] = {}
    for run_name, value in values:
        groups.setdefault(str(value), []).append(run_name)
    if len(groups) < 2:
        return None
    sides = "; ".join(f"{value} ({', '.join(names)})" for value, names in groups.items())
    return f"{label}: {sides}"


# --- The table ------------------------------------------------------------------------------------

HEADER = (
    "params",
    "FLOPs/token",
    "val loss",
    "bits/byte",
    "best loss",
    "tokens/s",
    "MFU",
    "memory",
    "seconds",
)


def table_row(run: Run) -> tuple[str, ...]:
    """The numbers of a run, a cell for each column of HEADER; `-` where one is unknown."""
    summary = run.summary
    mfu = format_number(summary.get("median_mfu_percent"), ".1f")
    return (
        format_count(run.architecture["parameters"]),
        format_flops(run.architecture["flops_per_token"]),
        format_number(summary.get("final_val_loss"), ".4f"),
        format_number(summary.get("final_val_bits_per_byte"), ".4f"),
        format_number(summary.get("best_val_loss"), ".4f"),
        format_count(summary.get("median_tokens_per_second")),
        mfu if mfu == "-" else f"{mfu}%",
        format_bytes(summary.get("peak_memory_bytes")),
        format_number(summary.get("wall_seconds"), ",.1f"),
    )


def format_table(runs: Sequence[Run]) -> str:
    """Two lines for each run: what it is, in full, and its numbers, aligned under HEADER."""
    rows = [table_row(run) for run in runs]
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    lines = ["run: architecture (status)", _align(HEADER, widths)]
    lines.append("-" * len(lines[-1]))
    for run, row in zip(runs, rows, strict=True):
        title = f"{run.run_name}: {run.architecture['name']} ({run.status})"
        lines += _wrap(title)
        lines.append(_align(row, widths))
    return "\n".join(lines)


def _align(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  " + "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, LINE_WIDTH, subsequent_indent="    ", break_on_hyphens=False)


def format_comparison(runs: Sequence[Run]) -> Iterator[str]:
    """The table, what its numbers mean, and in what the runs are not alike."""
    yield format_table(runs)
    yield ""
    yield "Losses in nats per token; tokens/s and MFU are medians; 1 GB = 1e9 bytes."
    notes = differences(runs)
    if notes:
        yield "These runs are not alike:"
        for note in notes:
            yield "\n".join(_wrap(f"  {note}"))


# --- Command line ---------------------------------------------------------------------------------


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare runs: what each architecture reached, and what it cost."
    )
    parser.add_argument("runs", nargs="*", help=f"folders of runs, or their {RUN_FILE}")
    parser.add_argument(
        "--latest",
        type=int,
        metavar="N",
        help=f"the newest N runs (default {DEFAULT_LATEST}, where no runs are named)",
    )
    parser.add_argument(
        "--out_dir", default="out", help="folder searched for the newest runs (default: out)"
    )
    arguments = parser.parse_args(argv)
    if arguments.runs and arguments.latest is not None:
        parser.error("name runs or ask for the --latest ones, not both")
    if arguments.latest is not None and arguments.latest < 1:
        parser.error(f"--latest={arguments.latest} must be at least 1")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the comparison; returns 0, or 1 where no run could be read."""
    arguments = parse_arguments(argv)
    if arguments.runs:
        runs, problems = load_runs(arguments.runs)
    else:
        runs, problems = load_runs(sorted(Path(arguments.out_dir).rglob(RUN_FILE)))
        runs = newest(runs, arguments.latest or DEFAULT_LATEST)
    for problem in problems:
        print(f"skipped {problem}", file=sys.stderr)
    if not runs:
        where = "among those named" if arguments.runs else f"under {arguments.out_dir}/"
        print(f"No run found {where}. Train one first: python train.py", file=sys.stderr)
        return 1
    print("\n".join(format_comparison(runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
