"""Find a dataset by name or path, and prepare it if necessary."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from data.dataset_files import META_FILE
from data.text_files import TEXT_SUFFIXES
from errors import UserError, unknown_name

DATA_FOLDER = Path(__file__).resolve().parent
PREPARE_FILE = "prepare.py"


def prepare_if_missing(dataset: str, may_run: bool, quiet: bool = False) -> Path:
    """Find the folder of a dataset; if it is an unprepared dataset of data/, prepare it first.

    A prepare script only runs if `dataset` is the plain name of its folder in data/, and neither
    the folder nor the script is a symbolic link. A path must refer to a prepared dataset.

    Args:
        dataset: Name of a folder of data/, or path to a prepared dataset.
        may_run: Whether a prepare script may run; False if a checkpoint names the dataset.
        quiet: Whether to discard the output of the prepare script.

    Raises:
        UserError: If there is no such dataset, it is not prepared and its script may not or cannot
            run, or preparing it failed.
    """
    folder = _folder_of(dataset)
    if os.path.isfile(folder / META_FILE):
        return folder
    script = folder / PREPARE_FILE
    if may_run and _is_own_script(dataset, script):
        with _discarded_output() if quiet else contextlib.nullcontext():
            print(f"dataset {dataset!r} is not prepared yet: running\n  {script}")
            _run_prepare(dataset, script)
        return folder
    if os.path.isfile(script):
        raise UserError(
            f"{folder} is not a prepared dataset: it has no {META_FILE}. Its script runs "
            "automatically only for a new run on a folder of data/ given by its plain name; run "
            f"it first: python {script}"
        )
    raise UserError(why_unprepared(dataset))


def prepared_folder(dataset: str) -> Path | None:
    """The folder of a dataset, by its name or path; None if it is not prepared."""
    folder = _folder_of(dataset)
    return folder if os.path.isfile(folder / META_FILE) else None


def why_unprepared(dataset: str) -> str:
    """Say what an unprepared dataset is, with the command that prepares it or the closest name."""
    folder = _folder_of(dataset)
    if os.path.isfile(folder / PREPARE_FILE):
        return f"dataset={dataset!r} is not prepared; run: python {folder / PREPARE_FILE}."
    if os.path.isfile(dataset) or Path(dataset).suffix in TEXT_SUFFIXES:
        stem = Path(dataset).stem
        what = "is a file" if os.path.isfile(dataset) else "does not exist"
        command = shlex.join(
            ["python", "data/text/prepare.py", f"--name={stem}", f"--input={dataset}"]
        )
        return (
            f"dataset={dataset!r} {what}; prepare your text first: {command}; then use "
            f"--dataset={shlex.quote(stem)}."
        )
    if os.path.isdir(folder):
        return f"{folder} is not a prepared dataset: it has no {META_FILE}."
    return (
        f"{unknown_name('dataset', dataset, _dataset_names())} A path to a prepared dataset also "
        "works; data/text/prepare.py prepares your own text."
    )


def _folder_of(dataset: str) -> Path:
    folder = DATA_FOLDER / dataset
    return folder if os.path.isdir(folder) else Path(dataset)


def _is_own_script(dataset: str, script: Path) -> bool:
    """Whether a script belongs to a folder of data/ that is given by its plain name."""
    plain = dataset not in ("", ".", "..") and not set(dataset) & set("/\\:")
    own = plain and script.parent == DATA_FOLDER / dataset and script.is_file()
    return own and not script.is_symlink() and not script.parent.is_symlink()


def _dataset_names() -> list[str]:
    """The folders of data/ that are prepared or have a prepare script."""
    marks = (META_FILE, PREPARE_FILE)
    folders = sorted(DATA_FOLDER.iterdir()) if DATA_FOLDER.is_dir() else []
    return [folder.name for folder in folders if any((folder / mark).is_file() for mark in marks)]


@contextlib.contextmanager
def _discarded_output() -> Iterator[None]:
    """A context in which everything printed is discarded."""
    with (
        open(os.devnull, "w", encoding="utf-8") as sink,
        contextlib.redirect_stdout(sink),
        contextlib.redirect_stderr(sink),
    ):
        yield


def _run_prepare(dataset: str, script: Path) -> None:
    spec = importlib.util.spec_from_file_location(f"prepare_{script.parent.name}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        module.main([])
    except SystemExit as stop:  # from argparse: the script requires arguments
        raise UserError(
            f"dataset {dataset!r} cannot be prepared without arguments; see python {script} "
            "--help, then set dataset to the name of the result."
        ) from stop
