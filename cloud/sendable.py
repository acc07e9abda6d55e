"""Paths and flags of a command line, as they are in the pod."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cloud.package import in_project
from configurator import Settings
from errors import UserError
from interop.own_runs import is_run, settings_of_run
from training.provenance import imported_by, provenance

GPU_CHECK = (
    "import sys, torch; found = torch.cuda.device_count() if torch.cuda.is_available() else 0; "
    "sys.exit(None if found >= {count} else f'torch {{torch.__version__}} finds {{found}} GPUs of "
    "{count}')"
)
"""Ends with an error where torch cannot use the GPUs, as with a driver that is too old for its
CUDA: `device=auto` would train on the CPU."""


def gpu_check(device: str, count: int) -> list[tuple[str, list[str]]]:
    """The step that checks the GPUs; none if the run does not use them.

    Args:
        device: The config key.
        count: GPUs of the pod.
    """
    if device not in ("auto", "cuda"):
        return []
    return [("gpu", ["python", "-c", GPU_CHECK.format(count=count)])]


def sendable(
    files: Sequence[str], plugins: str, settings: Settings
) -> tuple[list[Path], dict[str, str]]:
    """The files that a run needs besides the project's own, and the flags that name them in the
    pod.

    Args:
        files: Config files.
        plugins: The flag's text; may be empty.
        settings: Of the run.

    Raises:
        UserError: If the model of `init_from` would be incomplete in the pod.
    """
    given = [Path(path) for path in (*files, *settings.plugins)]
    given += imported_by(settings.plugins).values()  # git may ignore them, like plugins
    moved = {}
    if plugins:
        moved["plugins"] = ",".join(in_pod(path) for path in plugins.split(",") if path)
    if settings.training.init_from != "none":
        _refuse_run(Path(settings.training.init_from), settings)
        given.append(Path(settings.training.init_from))
        moved["init_from"] = in_pod(settings.training.init_from)
    return given, moved


def _refuse_run(folder: Path, settings: Settings) -> None:
    """Raise UserError if `init_from` is a run that cannot be sent as it is."""
    fix = f"export it, for example: nanoarch export {folder} model; then use init_from=model."
    if is_run(folder) and settings_of_run(folder, settings.plugins).training.adapter != "none":
        raise UserError(f"init_from={folder} has adapters, and their base is not sent; {fix}")
    if in_project(folder).parts[:1] == ("out",):
        raise UserError(f"init_from={folder} is in out/, of which nothing is sent; {fix}")


def renamed_dataset(dataset: tuple[Path, str] | None, name: str) -> dict[str, str]:
    """The flag for a dataset that has another name in the pod."""
    return {} if dataset is None or dataset[1] == name else {"dataset": dataset[1]}


def in_pod(path: str) -> str:
    """A path relative to the project's directory, as in the pod."""
    return in_project(Path(path)).as_posix() if Path(path).exists() else path


def spelled(flags: Mapping[str, str]) -> list[str]:
    """Flags as arguments."""
    return [f"--{key}={text}" for key, text in flags.items()]


def code_note() -> str:
    """What code is sent, in words."""
    code = provenance()
    if code["commit"] is None:
        return "the project's files as they are, not a git checkout"
    changed = ", with uncommitted changes" if code["dirty"] else ""
    return f"commit {code['commit'][:12]}{changed}"
