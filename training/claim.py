"""A run's folder is its alone: a new one has a name of its own, and one process trains in it.

The mark is a lock of the operating system (flock) on `<run>/.lock`, which holds the number of the
process. It ends with the process, however that ends. Where a system or a file system has no such
locks, nothing is refused.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from errors import UserError, file_errors
from safe_files import refuse_irregular

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_FILE = ".lock"


def make_run_folder(name: str, out_dir: Path) -> Path:
    """Make and return a folder under `out_dir` that none has been: name, date and time, and a
    number where two runs start in one second."""
    stem = f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    with file_errors(f"make a run directory in {out_dir}"):
        out_dir.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            folder = out_dir / (stem if number == 1 else f"{stem}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
            else:
                return folder


@contextlib.contextmanager
def claimed(folder: Path, key: str = "run_name") -> Iterator[None]:
    """Keep every other process from training in a folder, which is made where it is missing.

    Args:
        folder: That of a run, or of a sweep.
        key: What names the folder on the command line.

    Raises:
        UserError: another process, or this one, trains in it already.
    """
    with file_errors(f"write in {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        refuse_irregular(folder / LOCK_FILE)
        lock = (folder / LOCK_FILE).open("a+", encoding="ascii")
    with lock as file:
        if not _lock(file):
            file.seek(0)
            raise UserError(_taken(folder, file.read(), key))
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            _unlock(file)  # closing would not do while a forked process has the file open, too


def refuse_claimed(folder: Path) -> None:
    """Raise UserError where a process trains in a folder now."""
    process = process_in(folder)
    if process is not None:
        raise UserError(_taken(folder, process, "run_name"))


def process_in(folder: Path) -> str | None:
    """The number of the process that trains in a folder now; None where none does."""
    refuse_irregular(folder / LOCK_FILE)
    with contextlib.suppress(FileNotFoundError), (folder / LOCK_FILE).open("r") as file:
        if not _lock(file, shared=True):  # so that two who ask do not hinder each other
            return file.read()
        _unlock(file)
    return None


def _lock(file: TextIO, *, shared: bool = False) -> bool:
    """Whether nobody else had the lock; then it is ours, where there are locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _unlock(file: TextIO) -> None:
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)


def _taken(folder: Path, process: str, key: str) -> str:
    return f"{folder} is being trained by process {process}; wait for it or choose another --{key}."
