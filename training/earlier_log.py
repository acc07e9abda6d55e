"""An existing log in a run directory: continue it from a checkpoint, refuse it, or rename it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from errors import UserError, file_errors
from training.log_files import (
    LIST_OF_KIND,
    METRICS_FILE,
    RUN_FILE,
    read_metrics,
    read_run,
    records_in_run_file,
)

# For a new run


def refuse_existing_log(run_dir: Path) -> None:
    """Raise UserError if a directory already contains the log of a run."""
    present = [name for name in (RUN_FILE, METRICS_FILE) if (run_dir / name).exists()]
    if present:
        raise UserError(
            f"{run_dir} already contains a run ({', '.join(present)}); "
            "choose another --run_name, continue it with --resume, or remove the folder."
        )


def set_aside_unfinished_log(run_dir: Path) -> str | None:
    """Rename the log of a run that did not complete and has no checkpoint to resume from.

    Returns:
        The new name of its run.json, `run.before-N.json`; None if there was no such log.
    """
    try:
        status = read_run(run_dir / RUN_FILE).get("status")
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError):
        status = None  # damaged, but worth keeping
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


# For a run that continues


@dataclasses.dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that a run continues from.

    Attributes:
        step: Optimizer steps done.
        logged: Number of records in metrics.jsonl when it was saved; None if not recorded.
        run_id: The run that it belongs to; None if not recorded.
    """

    step: int
    logged: int | None = None
    run_id: str | None = None


def earlier_run(run_dir: Path, resume: ResumePoint) -> dict[str, Any] | None:
    """Read run.json without its records; None if there is no such file.

    Raises:
        UserError: If it is damaged, or belongs to a different run than the checkpoint.
    """
    path = run_dir / RUN_FILE
    try:
        earlier = read_run(path)
        run_id = earlier.get("run_id")
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); restore it, or remove it to continue without the "
            "start time and the list of checkpoints that it contained."
        ) from error
    if run_id and resume.run_id and run_id != resume.run_id:
        raise UserError(
            f"the checkpoint of step {resume.step} belongs to the run with run_id {resume.run_id}, "
            f"but {path} has run_id {run_id}: it was copied here from another run. Resume it "
            "in the directory of its own run."
        )
    return earlier


def kept_of_earlier_run(
    earlier: Mapping[str, Any], run: Mapping[str, Any], step: int
) -> dict[str, Any]:
    """The entries of run.json that a continued run keeps from its earlier starts.

    Args:
        earlier: The run.json of the earlier starts.
        run: The run.json of the new start.
        step: Step of the checkpoint that the run continues from.
    """
    checkpoints = earlier.get("checkpoints", [])
    return {
        "run_id": earlier.get("run_id", run["run_id"]),
        "start_time": earlier.get("start_time", run["start_time"]),
        "starts": [*(_then(start, earlier, run) for start in _starts_of(earlier)), *run["starts"]],
        "checkpoints": [saved for saved in checkpoints if saved["step"] <= step],
    }


def _then(
    start: Mapping[str, Any], earlier: Mapping[str, Any], run: Mapping[str, Any]
) -> dict[str, Any]:
    """An earlier start with the plugins and the keys of the config that it had, where they are not
    those of the start that continues."""
    plugins = start.get("plugins", earlier.get("plugins"))
    config = {**earlier.get("config", {}), **start.get("config", {})}
    now = run["config"]
    changed = {key: old for key, old in config.items() if key in now and now[key] != old}
    found = {key: value for key, value in start.items() if key not in ("plugins", "config")}
    if plugins is not None and plugins != run["plugins"]:
        found["plugins"] = plugins
    return found | ({"config": changed} if changed else {})


def _starts_of(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The starts listed in a run.json; older versions have one environment for all starts."""
    if "starts" in run:
        return run["starts"]
    environment = run.get("environment", {})
    starts = [{"step": 0, "time": run.get("start_time")}, *run.get("resumed", [])]
    return [start | {"environment": environment} for start in starts]


def lines_to_resume(run_dir: Path, step: int, logged: int | None) -> list[dict[str, Any]]:
    """The records that a run had logged when it saved a checkpoint, oldest first.

    They are read from metrics.jsonl. If it lacks some, they come from run.json, which contains all
    records once a run has ended.

    Args:
        run_dir: The run directory.
        step: Step of the checkpoint.
        logged: Number of records according to the checkpoint; None if it was not recorded, in which
            case the records up to `step` are returned.

    Raises:
        UserError: If records are missing or duplicated.
    """
    metrics = run_dir / METRICS_FILE
    lines = read_metrics(metrics)
    if logged is None:
        lines = [line for line in lines if line["iter"] <= step]
    elif len(lines) < logged:
        lines = _merged(lines, records_in_run_file(run_dir))
    lines = lines[:logged]
    problem = _history_problem(lines, step, logged)
    if problem:
        raise UserError(
            f"{metrics} is not the log that the checkpoint of step {step} continues: {problem}. "
            f"Restore it, or remove it and {RUN_FILE} to resume with a log that starts at step "
            f"{step}."
        )
    return lines


def _merged(
    lines: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Merge two lists of records in chronological order, without duplicates."""
    records = {(line["kind"], line["iter"]): line for line in (*others, *lines)}
    return sorted(
        records.values(),
        key=lambda line: (line["wall_seconds"], line["iter"], line["kind"] != "train"),
    )


def _history_problem(lines: Sequence[Mapping[str, Any]], step: int, logged: int | None) -> str:
    """Describe what is wrong with the records up to a step; empty if nothing is."""
    if logged is not None and len(lines) < logged:
        return f"it has {len(lines)} of {logged} records"
    for kind in LIST_OF_KIND:
        steps = [line["iter"] for line in lines if line["kind"] == kind]
        for before, after in zip(steps, steps[1:], strict=False):
            if after <= before:
                return f"its {kind!r} record of iter {after} follows that of iter {before}"
    if lines and lines[-1]["iter"] > step:
        return f"its record {len(lines)} is from iter {lines[-1]['iter']}"
    return ""
