"""The work of a single run: `train.py` in the pod."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import configurator
from cloud.disk import disk_gb
from cloud.package import Contents, dataset_to_send, project_files
from cloud.redaction import Redactor
from cloud.request import Request
from cloud.sendable import code_note, gpu_check, in_pod, renamed_dataset, sendable, spelled
from cloud.work import Work
from errors import ConfigError, Problem, UserError
from interop.starting_model import new_settings
from training.checkpoint import runs_newest_first
from training.run_directory import LOCK_FILE, refuse_locked

SMOKE_FLAGS = {"max_iters": "2", "eval_tokens": "2048", "log_to": "default"}
"""Flags of the smoke test: two steps, with a validation before and after."""


def run_work(request: Request, redact: Redactor) -> Work:
    """The work of a request for one run.

    Raises:
        UserError: The config has errors, or what it needs cannot be sent.
    """
    asked = configurator.read(request.argv)
    if asked.print_config:
        raise UserError("--print_config is an option of train.py; use --dry_run here.")
    settings = new_settings(asked)
    arguments = configurator.split_arguments(request.argv)
    training = settings.training
    _refuse_resume(training.resume)
    name = training.run_name
    if name == "auto":
        name = f"{settings.arch_preset}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    given, moved = sendable(arguments.files, asked.value("plugins"), settings)
    dataset = dataset_to_send(training.dataset)
    flags = dict(arguments.flags) | moved | renamed_dataset(dataset, training.dataset)
    contents = Contents(
        project_files(given, redact), dataset, _run_to_continue(Path(training.out_dir), name)
    )
    return Work(
        name=name,
        results=name,
        out_dir=Path(training.out_dir),
        parts=("",),
        settings=settings,
        runs=1,
        runs_at_a_time=1,
        gpus_per_run=request.gpu_count,
        flops=None,
        minutes=training.max_minutes or None,
        steps=(
            ("setup", request.setup),
            *gpu_check(training.device, request.gpu_count),
            *_train_steps(request.gpu_count, arguments.files, flags, name),
        ),
        contents=contents,
        disk_gb=disk_gb(settings, 1, contents),
        note=code_note(),
    )


def _train_steps(
    gpu_count: int, files: Sequence[str], flags: Mapping[str, str], name: str
) -> Iterator[tuple[str, list[str]]]:
    """The smoke test, and the run itself."""
    launcher = ["python"]
    if gpu_count > 1:
        launcher = ["torchrun", "--standalone", f"--nproc_per_node={gpu_count}"]
    command = [*launcher, "train.py", *map(in_pod, files)]
    smoke = {**SMOKE_FLAGS, "run_name": "smoke", "out_dir": "smoke_out", "resume": "none"}
    yield "smoke", [*command, *spelled({**flags, **smoke})]
    run = {"run_name": name, "out_dir": "out", "resume": "auto"}
    yield "train", [*command, *spelled({**flags, **run})]


def _run_to_continue(out_dir: Path, name: str) -> dict[str, Path]:
    """The run of that name, if there is one here to continue."""
    target = out_dir / name
    if target.is_dir():
        refuse_locked(target)
    if target in runs_newest_first(out_dir):
        return {"": target}
    if target.exists() and any(path.name != LOCK_FILE for path in target.iterdir()):
        raise UserError(f"{target} exists and has no checkpoint; choose another --run_name.")
    return {}


def _refuse_resume(resume: str) -> None:
    if resume not in ("none", "auto"):
        message = (
            f"resume={resume!r} has no effect in the cloud, where a run continues the one of the "
            "same run_name; drop it."
        )
        raise ConfigError([Problem(("resume",), message)])
