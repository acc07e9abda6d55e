"""What is to be done in a pod: the commands, what is sent, where the results go."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import configurator
from cloud.package import Contents, dataset_to_send, in_project, project_files
from cloud.redaction import Redactor
from cloud.request import Request
from configurator import Settings
from errors import ConfigError, Problem, UserError
from model_builder import GPT
from training.checkpoint import runs_newest_first
from training.provenance import PROJECT, provenance

IMAGE_GB, INSTALLED_GB = 5, 15
"""Of the container disk, beside code, data and results: what is written of the image, torch."""

FILE_OPTIONS = ("--arms", "--baselines", "--plugins")
"""Options of a sweep that list files."""

SMOKE_FLAGS = {"max_iters": "2", "eval_tokens": "2048", "log_to": "default"}
"""What the smoke test does instead of the run: two steps, and an evaluation before and after."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What is to be done in the pod, and what it needs.

    Attributes:
        name: Of the deployment's folder in the pod, and for people.
        results: Folder of the results, in out/ of the pod and in `out_dir` here.
        out_dir: Where results go here.
        parts: Folders of the results that this work makes; "": the results themselves.
        settings: Of the run, or of a sweep's baseline.
        runs: How many runs.
        flops: Of all of them; None where minutes limit them.
        minutes: Of all of them, where that limits them.
        steps: (name, command) of what the pod does.
        contents: What is sent.
        note: A line on the code that is sent.
    """

    name: str
    results: str
    out_dir: Path
    parts: tuple[str, ...]
    settings: Settings
    runs: int
    flops: float | None
    minutes: float | None
    steps: tuple[tuple[str, list[str] | str], ...]
    contents: Contents
    note: str

    @property
    def target(self) -> Path:
        """Where the results go."""
        return self.out_dir / self.results

    def fetched_parts(self) -> dict[str, Path]:
        """What of the results is here, for another pod to go on with."""
        folders = {part: self.target / part for part in self.parts}
        return {part: folder for part, folder in folders.items() if folder.is_dir()}


def make_work(request: Request, redact: Redactor) -> Work:
    """What a request comes to.

    Raises:
        UserError: The config cannot be, or what it needs cannot be sent.
    """
    return _sweep_work(request, redact) if request.sweep else _run_work(request, redact)


def _run_work(request: Request, redact: Redactor) -> Work:
    asked = configurator.read(request.argv)
    if asked.print_config:
        raise UserError("--print_config is train.py's; see --dry_run.")
    settings = configurator.resolve(asked)
    arguments = configurator.split_arguments(request.argv)
    training = settings.training
    _refuse_resume(training.resume)
    name = training.run_name
    if name == "auto":
        name = f"{settings.arch_preset}-{_stamp()}"
    target = Path(training.out_dir) / name
    carried = target if target in runs_newest_first(Path(training.out_dir)) else None
    if carried is None and target.exists() and any(p.name != ".lock" for p in target.iterdir()):
        raise UserError(f"{target} exists and has no checkpoint; choose another --run_name.")
    given, moved = _sendable(arguments.files, asked.value("plugins"), settings)
    flags = dict(arguments.flags) | moved
    dataset = dataset_to_send(training.dataset)
    flags |= _renamed(dataset, training.dataset)
    flags |= {"run_name": name, "out_dir": "out", "resume": "auto"}
    train = [*_launcher(request.gpu_count), "train.py", *_files(arguments.files), *_spelled(flags)]
    smoke = flags | SMOKE_FLAGS | {"run_name": "smoke", "out_dir": "smoke_out", "resume": "none"}
    smoke_test = [*_launcher(request.gpu_count), "train.py", *_files(arguments.files)]
    contents = Contents(
        project_files(given, redact), dataset, {} if carried is None else {"": carried}
    )
    return Work(
        name=name,
        results=name,
        out_dir=Path(training.out_dir),
        parts=("",),
        settings=settings,
        runs=1,
        flops=None,
        minutes=training.max_minutes or None,
        steps=(
            ("setup", request.setup),
            ("smoke", [*smoke_test, *_spelled(smoke)]),
            ("train", train),
        ),
        contents=contents,
        note=_code_note(),
    )


def _sweep_work(request: Request, redact: Redactor) -> Work:
    plans = _plans_of_sweep(request.argv)
    asked = configurator.read(plans[0]["rest"])  # so that the parts of plugins are known
    settings = configurator.settings_from_dict(plans[0]["baseline"], asked.plugins)
    given, moved = _sendable(asked.config_files, asked.value("plugins"), settings)
    given += [Path(path) for path in _listed(request.argv, ("--arms", "--baselines"))]
    dataset = dataset_to_send(settings.training.dataset)
    changed = moved | _renamed(dataset, settings.training.dataset)
    if settings.training.out_dir != "out":
        changed["out_dir"] = "out"
    argv = [a for a in request.argv if a.partition("=")[0].removeprefix("--") not in changed]
    command = ["python", "sweep.py", *_relative(argv), *_spelled(changed)]
    folders = [Path(plan["folder"]) for plan in plans]
    carried = {folder.name: folder for folder in folders if folder.is_dir()}
    flops = [plan["flops"] for plan in plans]
    minutes = [plan["minutes"] for plan in plans]
    return Work(
        name=f"sweep-{plans[0]['name']}",
        results="sweeps",
        out_dir=folders[0].parents[1],
        parts=tuple(folder.name for folder in folders),
        settings=settings,
        runs=sum(plan["runs"] for plan in plans),
        flops=None if None in flops else sum(flops),
        minutes=None if None in minutes else sum(minutes),
        steps=(
            ("setup", request.setup),
            ("smoke", [*command, "--dry_run"]),
            ("train", command),
        ),
        contents=Contents(project_files(given, redact), dataset, carried),
        note=_code_note(),
    )


def _plans_of_sweep(argv: Sequence[str]) -> list[dict]:
    """What sweep.py says that its plans come to; SLURM's engine asks nothing of this machine."""
    for argument in argv:
        if argument.partition("=")[0] in ("--engine", "--slurm_options", "--json"):
            raise UserError(f"{argument} has no place in the cloud; drop it.")
    command = [sys.executable, str(PROJECT / "sweep.py"), *argv]
    done = subprocess.run(
        [*command, "--engine=slurm", "--dry_run", "--json"], capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(done.stderr.strip()[-4000:] or "sweep.py could not plan the sweep.")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _refuse_resume(resume: str) -> None:
    if resume not in ("none", "auto"):
        message = (
            f"resume={resume!r} has no effect in the cloud, where a run of the same run_name is "
            "resumed by itself; drop it."
        )
        raise ConfigError([Problem(("resume",), message)])


def _sendable(
    files: Sequence[str], plugins: str, settings: Settings
) -> tuple[list[Path], dict[str, str]]:
    """The files that a run needs beside the project's, and the flags that name them in the pod."""
    given = [Path(path) for path in (*files, *settings.plugins)]
    moved = {}
    if plugins:
        moved["plugins"] = ",".join(_in_pod(path) for path in plugins.split(",") if path)
    if settings.training.init_from != "none":
        given.append(Path(settings.training.init_from))
        moved["init_from"] = _in_pod(settings.training.init_from)
    return given, moved


def _renamed(dataset: tuple[Path, str] | None, name: str) -> dict[str, str]:
    """The flag of a dataset that has another name in the pod."""
    return {} if dataset is None or dataset[1] == name else {"dataset": dataset[1]}


def _in_pod(path: str) -> str:
    """A path as seen from the project's folder, in the pod."""
    return in_project(Path(path)).as_posix() if Path(path).exists() else path


def _files(files: Sequence[str]) -> list[str]:
    return [_in_pod(path) for path in files]


def _relative(argv: Sequence[str]) -> list[str]:
    """A sweep's arguments with its files as seen from the project's folder."""
    files = {*_listed(argv, FILE_OPTIONS), *(word for word in argv if word.endswith(".py"))}
    places = {path: _in_pod(path) for path in files}
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


def _spelled(flags: Mapping[str, str]) -> list[str]:
    return [f"--{key}={text}" for key, text in flags.items()]


def _launcher(gpu_count: int) -> list[str]:
    if gpu_count == 1:
        return ["python"]
    return ["torchrun", "--standalone", f"--nproc_per_node={gpu_count}"]


def _stamp() -> str:
    return f"{datetime.datetime.now():%Y%m%d-%H%M%S}"


def _code_note() -> str:
    code = provenance()
    if code["commit"] is None:
        return "the project's files as they are; they are in no commit"
    changed = ", with changes that are in no commit" if code["dirty"] else ""
    return f"commit {code['commit'][:12]}{changed}"


def disk_gb(work: Work) -> int:
    """The container disk that the work needs; RunPod's default is 10 GB."""
    state = 12 * _parameters(work.settings)  # weights and two moments
    keep = work.settings.training.keep_checkpoints
    checkpoints = state * (keep + 2) * work.runs
    code = sum(path.stat().st_size for path in work.contents.files.values())
    data = 3 * work.contents.data_bytes  # in the package, unpacked, and spare
    return IMAGE_GB + INSTALLED_GB + math.ceil((checkpoints + 3 * code + data) / 10**9)


def _parameters(settings: Settings) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in GPT(settings.model).parameters())
