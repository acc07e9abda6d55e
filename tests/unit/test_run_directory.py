"""Run directories: names that no other has, and the lock of the process that trains."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from errors import UserError
from training import run_directory as module
from training.run_directory import (
    LOCK_FILE,
    locked,
    make_run_directory,
    process_in,
    refuse_locked,
    run_directory,
)


class Noon(module.datetime.datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls):
        return cls(2026, 1, 2, 12)


@pytest.fixture
def noon(monkeypatch):
    monkeypatch.setattr(module.datetime, "datetime", Noon)


@pytest.mark.usefixtures("noon")
def test_names_of_one_second_are_numbered(tmp_path):
    folders = [make_run_directory("llama", tmp_path / "out") for _ in range(3)]
    stem = "llama-20260102-120000"
    assert [folder.name for folder in folders] == [stem, f"{stem}-2", f"{stem}-3"]
    assert all(folder.is_dir() for folder in folders)


@pytest.mark.usefixtures("noon")
def test_a_name_that_another_takes_between_is_not_shared(tmp_path, monkeypatch):
    """Whoever makes the folder has it, whatever was seen before."""
    mkdir = module.Path.mkdir
    lost = []

    def outrun(folder, **options):
        if folder.name.startswith("llama") and not lost:
            lost.append(folder)
            mkdir(folder)
        mkdir(folder, **options)

    monkeypatch.setattr(module.Path, "mkdir", outrun)
    assert make_run_directory("llama", tmp_path).name == "llama-20260102-120000-2"


def test_out_dir_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot create a run directory in .*file: File exists"):
        make_run_directory("llama", tmp_path / "file")


def test_the_folder_is_made_where_the_clock_names_it(tmp_path):
    folder = run_directory(tmp_path, "auto", "llama")
    assert folder.name.startswith("llama-2")
    assert list(tmp_path.iterdir()) == [folder]
    assert run_directory(tmp_path, "mine", "llama") == tmp_path / "mine"
    assert list(tmp_path.iterdir()) == [folder]


# Locks


HOLDER = """
import sys, time
from pathlib import Path
from training.run_directory import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that trains in tmp_path."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=Path(module.__file__).parents[1],
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"locked\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_directory_that_another_process_trains_in_is_refused(tmp_path, holder):
    said = rf"is being trained by process {holder.pid}; wait for it or choose another --"
    with pytest.raises(UserError, match=f"{said}run_name"):
        refuse_locked(tmp_path)
    with pytest.raises(UserError, match=f"{said}name"), locked(tmp_path, "name"):
        pass
    assert process_in(tmp_path) == str(holder.pid)  # those who were refused took nothing away


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_lock_ends_with_its_process_however_that_ends(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert process_in(tmp_path) is None
    with locked(tmp_path):
        assert (tmp_path / LOCK_FILE).read_text() == str(os.getpid())


def test_this_process_cannot_lock_a_directory_twice(tmp_path):
    folder = tmp_path / "run"
    refuse_locked(folder)
    with locked(folder), pytest.raises(UserError, match=str(os.getpid())), locked(folder):
        pass
    refuse_locked(folder)


def test_an_error_frees_the_directory(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    refuse_locked(tmp_path)


def test_who_only_looks_is_not_in_the_way(tmp_path, monkeypatch):
    """A look holds the lock, too, for an instant, which others wait for."""
    with locked(tmp_path):
        pass
    unlock, looking = module.unlock_descriptor, threading.Event()

    def slowly(descriptor):
        looking.set()
        time.sleep(module.PATIENCE / 4)
        unlock(descriptor)

    monkeypatch.setattr(module, "unlock_descriptor", slowly)
    other = threading.Thread(target=process_in, args=(tmp_path,))
    other.start()
    assert looking.wait(5)
    assert process_in(tmp_path) is None
    other.join()


def test_a_look_leaves_no_file(tmp_path):
    assert process_in(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_lock_whose_process_is_not_written_yet_is_held(tmp_path):
    with locked(tmp_path):
        (tmp_path / LOCK_FILE).write_text("")
        assert process_in(tmp_path) == "unknown"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_lock_file_that_is_a_fifo_is_refused(tmp_path):
    os.mkfifo(tmp_path / LOCK_FILE)
    refused_in(tmp_path)


@pytest.mark.parametrize("there", [True, False])
def test_a_lock_file_that_is_a_link_is_refused(tmp_path, there):
    target, folder = tmp_path / "target", tmp_path / "run"
    folder.mkdir()
    if there:
        target.write_text("kept")
    (folder / LOCK_FILE).symlink_to(target)
    refused_in(folder)
    assert target.exists() == there
    assert not there or target.read_text() == "kept"


def refused_in(folder):
    for use in (refuse_locked, lambda folder: locked(folder).__enter__()):
        with pytest.raises(UserError, match="is not a regular file"):
            use(folder)


@pytest.mark.parametrize("reason", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EBADF])
def test_where_there_are_no_locks_nothing_is_refused(tmp_path, monkeypatch, reason):
    def unsupported(*_, **__):
        raise OSError(reason, os.strerror(reason))

    for name in ("lock_descriptor", "unlock_descriptor"):
        monkeypatch.setattr(module, name, unsupported)
    with locked(tmp_path), locked(tmp_path):
        refuse_locked(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_a_directory_that_cannot_be_written_is_refused_in_one_line(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "open", read_only)
    said = f"cannot write in {tmp_path}: Read-only file system."
    with pytest.raises(UserError, match=said), locked(tmp_path):
        pass


def test_a_lock_file_that_may_only_be_read_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with locked(tmp_path):
        assert process_in(tmp_path) == str(os.getpid())
    assert process_in(tmp_path) is None
