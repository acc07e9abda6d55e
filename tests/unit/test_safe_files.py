"""Replacing a file that others read: on Windows, a reader keeps it from being replaced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import safe_files
from safe_files import usual_permissions, write_atomically


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch):
    """Let os.replace fail so many times, as Windows does while a file is read."""

    def arrange(count: int) -> list[int]:
        left, replace = [count], os.replace

        def refuse(source: Path, target: Path) -> None:
            if left[0]:
                left[0] -= 1
                raise PermissionError(13, "Access is denied")
            replace(source, target)

        monkeypatch.setattr(safe_files.os, "replace", refuse)
        return left

    return arrange


def test_a_reader_is_waited_for(tmp_path: Path, refusals, monkeypatch) -> None:
    monkeypatch.setattr(safe_files, "READERS_SECONDS", 20.0)
    left = refusals(3)
    write_atomically(tmp_path / "run.json", ["new"])
    assert ((tmp_path / "run.json").read_text("utf-8"), left) == ("new", [0])


def test_a_reader_that_stays_is_an_error(tmp_path: Path, refusals, monkeypatch) -> None:
    monkeypatch.setattr(safe_files, "READERS_SECONDS", 0.1)
    refusals(10**6)
    (tmp_path / "run.json").write_text("old", encoding="utf-8")
    with pytest.raises(PermissionError):
        write_atomically(tmp_path / "run.json", ["new"])
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert (tmp_path / "run.json").read_text("utf-8") == "old"


@pytest.mark.skipif(os.name == "nt", reason="there, a reader is waited for")
def test_nothing_is_waited_for_elsewhere(tmp_path: Path, refusals) -> None:
    left = refusals(2)
    with pytest.raises(PermissionError):
        write_atomically(tmp_path / "run.json", ["new"])
    assert left == [1]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_files_of_private_writers_get_the_usual_permissions(tmp_path: Path) -> None:
    private, usual = tmp_path / "private", tmp_path / "usual"
    usual.touch()
    with usual_permissions(private):
        draft = tmp_path / "draft"
        draft.touch(0o600)
        draft.replace(private)
    assert private.stat().st_mode == usual.stat().st_mode
