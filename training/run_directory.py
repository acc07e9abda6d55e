"""Run directories: create one with an unused name, and lock it for one process at a time.

A process that trains locks the file `<run>/.lock` and writes its process ID to it. The operating
system releases the lock when the process ends for any reason; the file remains. If the system or
the file system does not support locks, locking always succeeds.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from filelock import lock_descriptor, unlock_descriptor

from errors import UserError, file_errors
from safe_files import refuse_irregular

LOCK_FILE = ".lock"

PATIENCE = 0.2
"""Seconds to wait for a lock. Processes that only check whether it is free hold it for less."""


def run_directory(out_dir: Path, name: str, stem: str) -> Path:
    """The run directory called `name`; for "auto", a new one named after `stem`, which is
    created."""
    return make_run_directory(stem, out_dir) if name == "auto" else out_dir / name


def make_run_directory(name: str, out_dir: Path) -> Path:
    """Create a run directory in `out_dir`, named after `name`, date and time, and numbered if that
    exists, for example because two runs start in the same second."""
    stem = f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    with file_errors(f"create a run directory in {out_dir}"):
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
def locked(folder: Path, key: str = "run_name") -> Iterator[None]:
    """Lock a directory, so that no other process trains there.

    Args:
        folder: The directory of a run or a sweep; created if it does not exist.
        key: The flag that names it on the command line.

    Raises:
        UserError: If another process, or this one, already holds the lock.
    """
    with file_errors(f"write in {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        refuse_irregular(folder / LOCK_FILE, follow_links=False)
        lock_file = (folder / LOCK_FILE).open("a+", encoding="ascii")
    with lock_file:
        if not _lock(lock_file):
            raise UserError(_taken(folder, _holder(lock_file), key))
        lock_file.truncate(0)
        lock_file.write(str(os.getpid()))
        lock_file.flush()
        try:
            yield
        finally:
            _unlock(lock_file)  # closing is not enough while a forked process has the file open


def refuse_locked(folder: Path) -> None:
    """Raise UserError if a process is training in a directory."""
    process = process_in(folder)
    if process is not None:
        raise UserError(_taken(folder, process, "run_name"))


def process_in(folder: Path) -> str | None:
    """The ID of the process that is training in a directory, or None. Needs read access only."""
    path = folder / LOCK_FILE
    refuse_irregular(path, follow_links=False)
    mode = "r+" if os.access(path, os.W_OK) else "r"  # NFS locks writable files only
    with (
        file_errors(f"read {path}"),
        contextlib.suppress(FileNotFoundError),
        path.open(mode, encoding="ascii") as lock_file,
    ):
        if not _lock(lock_file):
            return _holder(lock_file)
        _unlock(lock_file)
    return None


def _lock(file: TextIO) -> bool:
    """Try to lock a file. Returns False if another process holds the lock; True if locks are not
    supported."""
    deadline = time.monotonic() + PATIENCE
    try:
        while not lock_descriptor(file.fileno(), blocking=False):
            if time.monotonic() > deadline:
                return False
            time.sleep(PATIENCE / 20)
    except OSError:  # a system or a file system without locks
        pass
    return True


def _unlock(file: TextIO) -> None:
    with contextlib.suppress(OSError):
        unlock_descriptor(file.fileno())


def _holder(file: TextIO) -> str:
    """The process ID in a lock file; `unknown` if it is not written yet, or cannot be read while
    the file is locked, as on Windows."""
    with contextlib.suppress(OSError):
        file.seek(0)
        return file.read() or "unknown"
    return "unknown"


def _taken(folder: Path, process: str, key: str) -> str:
    return f"{folder} is being trained by process {process}; wait for it or choose another --{key}."
