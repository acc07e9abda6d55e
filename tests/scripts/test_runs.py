"""Training in a process of its own, and the exit status of a script."""

from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path

import pytest

from scripts import runs
from scripts.runs import FAILED, PASSED, PROJECT, UNDECIDED, RunFailed, run_script, train


def is_command(path: Path) -> bool:
    """Whether a file says that it is run as `python scripts/NAME.py`, or of benchmarks/."""
    return f"python {path.parent.name}/{path.name}" in path.read_text(encoding="utf-8")


def imports_of_the_project(statement: ast.stmt) -> bool:
    names = [statement.module or ""] if isinstance(statement, ast.ImportFrom) else []
    if isinstance(statement, ast.Import):
        names = [alias.name for alias in statement.names]
    top = [name.partition(".")[0] for name in names]
    return any((PROJECT / name).is_dir() or (PROJECT / f"{name}.py").is_file() for name in top)


FILES = [*(PROJECT / "scripts").glob("*.py"), *(PROJECT / "benchmarks").glob("*.py")]


@pytest.mark.parametrize("path", [*filter(is_command, sorted(FILES))], ids=lambda path: path.stem)
def test_a_command_finds_the_project_before_it_imports_from_it(path):
    body = ast.parse(path.read_text(encoding="utf-8")).body
    found = next(i for i, one in enumerate(body) if "sys.path.insert(" in ast.unparse(one))
    assert not any(map(imports_of_the_project, body[:found]))
    assert any(map(imports_of_the_project, body[found:]))


@pytest.mark.slow
def test_a_run_leaves_its_log_in_the_folder_asked_for(tiny_training):
    folder, log = tiny_training
    assert (log["status"], log["run_name"]) == ("completed", folder.name)
    assert [record["iter"] for record in log["training_iterations"]] == [1, 2, 3]
    assert (folder / "checkpoints" / "step_00000003").is_dir()


@pytest.mark.slow
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


def test_a_command_that_trains_nothing_is_an_error(tmp_path, monkeypatch):
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(runs.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(RunFailed, match="drop --help and --print_config"):
        train(["--print_config"], tmp_path)


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
