"""The work of a sweep: `sweep.py` in the pod."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import configurator
from cloud.disk import disk_gb
from cloud.package import Contents, dataset_to_send, project_files
from cloud.redaction import Redactor
from cloud.request import Request
from cloud.sendable import code_note, gpu_check, in_pod, renamed_dataset, sendable, spelled
from cloud.work import Work
from errors import UserError
from training.provenance import PROJECT
from training.run_directory import refuse_locked

FILE_OPTIONS = ("--arms", "--baselines", "--plugins")
"""Options of a sweep that list files."""

NOT_IN_THE_CLOUD = ("--engine", "--slurm_options", "--json")
"""Options of a sweep that a pod cannot follow."""


def sweep_work(request: Request, redact: Redactor) -> Work:
    """The work of a request for a sweep.

    Raises:
        UserError: The sweep has errors, or what it needs cannot be sent.
    """
    plans = _plans(request.argv)
    asked = configurator.read(plans[0]["rest"])  # registers the parts of plugins
    settings = configurator.settings_from_dict(plans[0]["baseline"], asked.plugins)
    given, moved = sendable(asked.config_files, asked.value("plugins"), settings)
    given += [Path(path) for path in _listed(request.argv, ("--arms", "--baselines"))]
    dataset = dataset_to_send(settings.training.dataset)
    changed = moved | renamed_dataset(dataset, settings.training.dataset)
    folders = [_from_here(Path(plan["folder"])) for plan in plans]
    carried = {folder.name: folder for folder in folders if folder.is_dir()}
    for folder in carried.values():
        refuse_locked(folder)
    runs = sum(plan["runs"] for plan in plans)
    command = _command(request.argv, settings.training.out_dir, changed)
    contents = Contents(project_files(given, redact), dataset, carried)
    return Work(
        name=f"sweep-{plans[0]['name']}",
        results="sweeps",
        out_dir=folders[0].parents[1],
        parts=tuple(folder.name for folder in folders),
        settings=settings,
        runs=runs,
        runs_at_a_time=min(runs, _room(plans[0], request.gpu_count)),
        gpus_per_run=plans[0]["gpus_per_run"],
        flops=_total(plans, "flops"),
        minutes=_total(plans, "minutes"),
        steps=(
            ("setup", request.setup),
            *gpu_check(settings.training.device, request.gpu_count),
            ("smoke", [*command, "--dry_run"]),
            ("train", command),
        ),
        contents=contents,
        disk_gb=disk_gb(settings, runs, contents),
        note=code_note(),
    )


def _command(argv: Sequence[str], out_dir: str, changed: dict[str, str]) -> list[str]:
    """How sweep.py is called in the pod.

    Args:
        argv: Its arguments here.
        out_dir: The config key; "out" in the pod.
        changed: Flags that have other values in the pod.
    """
    flags = changed if out_dir == "out" else changed | {"out_dir": "out"}
    return ["python", "sweep.py", *_relative(_without(argv, flags)), *spelled(flags)]


def _plans(argv: Sequence[str]) -> list[dict[str, Any]]:
    """The plans of a sweep, from sweep.py. SLURM's engine asks nothing of this machine."""
    for argument in argv:
        if argument.partition("=")[0] in NOT_IN_THE_CLOUD:
            raise UserError(f"{argument} is not possible in the cloud; drop it.")
    command = [sys.executable, str(PROJECT / "sweep.py"), *argv]
    done = subprocess.run(
        [*command, "--engine=slurm", "--dry_run", "--json"], capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(done.stderr.strip()[-4000:] or "sweep.py could not plan the sweep.")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _from_here(path: Path) -> Path:
    """A path relative to the working directory, if it is in it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _room(plan: dict[str, Any], gpu_count: int) -> int:
    """How many runs train at a time, each on GPUs of its own."""
    gpus_per_run = plan["gpus_per_run"]
    if gpus_per_run > gpu_count:
        raise UserError(
            f"--gpus_per_run={gpus_per_run}, but the pod has {gpu_count} GPUs; use --gpu_count="
            f"{gpus_per_run} or more."
        )
    room = gpu_count // gpus_per_run
    return min(room, plan["workers"] or room)


def _total(plans: Sequence[dict[str, Any]], name: str) -> float | None:
    """The sum over the plans; None if one of them has no such number."""
    found = [plan[name] for plan in plans]
    return None if None in found else sum(found)


def _without(argv: Sequence[str], keys: Collection[str]) -> list[str]:
    """A sweep's arguments without some flags, written `--key=value` or `--key value`."""
    found, is_value = [], False
    for argument in argv:
        key, equals, _ = argument.removeprefix("--").partition("=")
        if argument.startswith("--"):
            is_value = key in keys and not equals
            if key not in keys:
                found.append(argument)
        elif is_value:
            is_value = False
        else:
            found.append(argument)
    return found


def _relative(argv: Sequence[str]) -> list[str]:
    """A sweep's arguments with its files relative to the project's directory."""
    files = {*_listed(argv, FILE_OPTIONS), *(word for word in argv if word.endswith(".py"))}
    places = {path: in_pod(path) for path in files}
    found = []
    for argument in argv:
        key, equals, text = (
            argument.rpartition("=") if argument.startswith("-") else ("", "", argument)
        )
        words = [places.get(word, word) for word in text.split(",")]
        found.append(f"{key}{equals}{','.join(words)}")
    return found


def _listed(argv: Sequence[str], options: Sequence[str]) -> list[str]:
    """The files that options list, as `--arms=a.py,b.py` or `--arms a.py,b.py`."""
    texts = [text for option, text in zip(argv, argv[1:], strict=False) if option in options]
    texts += [a.partition("=")[2] for a in argv if a.partition("=")[0] in options]
    return [path for text in texts for path in text.split(",") if path]
