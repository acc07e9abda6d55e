"""A run's folder is its alone: names that no other has, and the lock of the process that trains."""

from __future__ import annotations

import os

import pytest

from configurator import load
from errors import UserError
from training import claim
from training.claim import LOCK_FILE, claimed, make_run_folder, refuse_claimed, run_folder


class Noon(claim.datetime.datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls):
        return cls(2026, 1, 2, 12)


@pytest.fixture
def noon(monkeypatch):
    monkeypatch.setattr(claim.datetime, "datetime", Noon)


@pytest.mark.usefixtures("noon")
def test_names_of_one_second_are_numbered(tmp_path):
    folders = [make_run_folder("llama", tmp_path / "out") for _ in range(3)]
    stem = "llama-20260102-120000"
    assert [folder.name for folder in folders] == [stem, f"{stem}-2", f"{stem}-3"]
    assert all(folder.is_dir() for folder in folders)


@pytest.mark.usefixtures("noon")
def test_a_name_that_another_takes_between_is_not_shared(tmp_path, monkeypatch):
    """Whoever makes the folder has it, whatever was seen before."""
    mkdir = claim.Path.mkdir
    lost = []

    def outrun(folder, **options):
        if folder.name.startswith("llama") and not lost:
            lost.append(folder)
            mkdir(folder)
        mkdir(folder, **options)

    monkeypatch.setattr(claim.Path, "mkdir", outrun)
    assert make_run_folder("llama", tmp_path).name == "llama-20260102-120000-2"


def test_out_dir_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make a run directory in .*file: File exists"):
        make_run_folder("llama", tmp_path / "file")


def test_the_folder_of_new_settings_is_made_where_the_clock_names_it(tmp_path):
    folder = run_folder(load(["config/arch_llama.py", f"--out_dir={tmp_path}"]))
    assert folder.name.startswith("llama-2")
    assert list(tmp_path.iterdir()) == [folder]
    assert run_folder(load(["--run_name=mine", f"--out_dir={tmp_path}"])) == tmp_path / "mine"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_lock_that_is_a_fifo_is_refused(tmp_path):
    os.mkfifo(tmp_path / LOCK_FILE)
    for use in (refuse_claimed, lambda folder: claimed(folder).__enter__()):
        with pytest.raises(UserError, match="is not a regular file"):
            use(tmp_path)


needs_locks = pytest.mark.skipif(claim.fcntl is None, reason="this system has no flock")


@needs_locks
def test_a_claimed_folder_is_refused_and_free_again_after_it(tmp_path):
    folder = tmp_path / "run"
    refuse_claimed(folder)
    with claimed(folder):
        said = rf"run is being trained by process {os.getpid()}; wait .* another --run_name"
        with pytest.raises(ValueError, match=said):
            refuse_claimed(folder)
        with pytest.raises(ValueError, match=said), claimed(folder):
            pass
        with pytest.raises(ValueError, match=said):  # those who were refused took nothing away
            refuse_claimed(folder)
    refuse_claimed(folder)
    with claimed(folder):
        assert (folder / LOCK_FILE).read_text() == str(os.getpid())


@needs_locks
def test_an_error_frees_the_folder(tmp_path):
    with pytest.raises(RuntimeError), claimed(tmp_path):
        raise RuntimeError
    refuse_claimed(tmp_path)


@needs_locks
def test_a_file_system_without_locks_refuses_nothing(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(claim.fcntl, "flock", unsupported)
    with claimed(tmp_path), claimed(tmp_path):
        refuse_claimed(tmp_path)


def test_a_system_without_locks_refuses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "fcntl", None)
    with claimed(tmp_path), claimed(tmp_path):
        refuse_claimed(tmp_path)
