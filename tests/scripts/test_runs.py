"""Training in a process of its own, and the exit status of a script."""

from __future__ import annotations

import json
import subprocess

import pytest

from scripts import runs
from scripts.runs import FAILED, PASSED, UNDECIDED, RunFailed, run_script, train


def test_a_run_leaves_its_log_in_the_folder_asked_for(tmp_path, tiny_run):
    log = train(tiny_run, tmp_path / "somewhere" / "run")
    assert (log["status"], log["run_name"]) == ("completed", "run")
    assert [record["iter"] for record in log["training_iterations"]] == [1, 2, 3]
    assert (tmp_path / "somewhere" / "run" / "checkpoints" / "step_00000003").is_dir()


def test_a_run_that_cannot_start_is_an_error(tmp_path, capfd):
    with pytest.raises(RunFailed, match="exited with status 2"):
        train(["--n_layers=2"], tmp_path / "run")
    assert "n_layer" in capfd.readouterr().err


def test_a_run_that_was_stopped_is_an_error(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"status": "interrupted"}))
    stopped = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(runs.subprocess, "run", lambda *_, **__: stopped)
    with pytest.raises(RunFailed, match="interrupted"):
        train([], folder)


def raising(error: Exception):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "status"),
    [
        (lambda argv: PASSED, 0),
        (lambda argv: FAILED, 1),
        (raising(RunFailed("no end")), UNDECIDED),
        (raising(OSError("no disk")), UNDECIDED),
    ],
)
def test_the_exit_status_says_how_it_went(main, status, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_script(main)
    assert stopped.value.code == status
    assert capsys.readouterr().err == ("" if status < UNDECIDED else f"error: {_told(main)}\n")


def _told(main) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        main([])
    return str(caught.value)


def test_an_error_of_ours_keeps_its_traceback():
    with pytest.raises(KeyError):
        run_script(raising(KeyError("ours")))
