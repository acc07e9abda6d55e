"""Run directories: a new one gets an unused name, and only one process at a time trains in one.

A process that trains locks the lock file `<run>/.lock` (flock) and writes its process ID there. The
operating system releases the lock when the process ends, however it ends. Where the system or the
file system has no such locks, nothing is refused.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from configurator import Settings
from errors import UserError, file_errors
from safe_files import refuse_irregular

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_FILE = ".lock"


def run_folder(settings: Settings) -> Path:
    """The run directory of new settings; where run_name is "auto", a new one, made here."""
    out_dir, name = Path(settings.training.out_dir), settings.training.run_name
    return make_run_folder(settings.arch_preset, out_dir) if name == "auto" else out_dir / name


def make_run_folder(name: str, out_dir: Path) -> Path:
    """Make and return a new run directory in `out_dir`: name, date and time, and a number if that
    exists, as when two runs start in the same second."""
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
    """Hold the lock file of a directory, so that no other process trains there.

    Args:
        folder: The directory of a run or a sweep; created if it does not exist.
        key: The flag that names it on the command line.

    Raises:
        UserError: If another process, or this one, holds the lock already.
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
            _unlock(file)  # closing is not enough while a forked process has the file open


def refuse_claimed(folder: Path) -> None:
    """Raise UserError if a process is training in a directory."""
    process = process_in(folder)
    if process is not None:
        raise UserError(_taken(folder, process, "run_name"))


def process_in(folder: Path) -> str | None:
    """The ID of the process that is training in a directory, or None."""
    refuse_irregular(folder / LOCK_FILE)
    with contextlib.suppress(FileNotFoundError), (folder / LOCK_FILE).open("r") as file:
        if not _lock(file, shared=True):  # so that two readers do not block each other
            return file.read()
        _unlock(file)
    return None


def _lock(file: TextIO, *, shared: bool = False) -> bool:
    """Try to lock a file; False if another process holds it. True where there are no locks."""
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
