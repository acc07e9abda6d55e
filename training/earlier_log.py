"""The log that a run directory holds already: continued from a checkpoint, refused, or renamed."""

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


# For a run that continues


@dataclasses.dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that a run continues from.

    Attributes:
        step: Optimizer steps done.
        logged: Records in metrics.jsonl when it was saved; None if the checkpoint does not say.
        run_id: The run that it belongs to; None if the checkpoint does not say.
    """

    step: int
    logged: int | None = None
    run_id: str | None = None


def earlier_run(run_dir: Path, resume: ResumePoint) -> dict[str, Any] | None:
    """What run.json holds so far, without its records; None if there is no such file.

    Raises:
        UserError: If it is damaged, or belongs to another run than the checkpoint.
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
            "start time and the list of checkpoints that it held."
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
    """What run.json keeps of the starts before: what the start that continues does not determine.

    Args:
        earlier: The run.json of the earlier starts.
        run: That of the start that continues.
        step: Of the checkpoint that it continues from.
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
    """The starts that a run.json lists; an older one has one environment for all of them."""
    if "starts" in run:
        return run["starts"]
    environment = run.get("environment", {})
    starts = [{"step": 0, "time": run.get("start_time")}, *run.get("resumed", [])]
    return [start | {"environment": environment} for start in starts]


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
                return f"its {kind!r} record of iter {after} follows that of iter {before}"
    if lines and lines[-1]["iter"] > step:
        return f"its record {len(lines)} is from iter {lines[-1]['iter']}"
    return ""
