"""How commands end: with their streams closed, and on an error of a user's own code."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest

import nanoarch.__main__
from cli import command_with, run_cli, trim_to_users_code
from configurator import run_plugins
from interop import huggingface

PROJECT = Path(__file__).resolve().parents[2]
COMMAND = "from cli import run_cli; run_cli(lambda argv: print('a line', flush=True))"


@pytest.mark.skipif(sys.platform == "win32", reason="the shell's `>&-`")
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_a_command_works_with_its_streams_closed(closed: str) -> None:
    shell = f'"$0" -c "$1" {closed}'
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable, COMMAND], cwd=PROJECT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


SLOW = ("torch.distributed.tensor", "torch._dynamo", "scipy.stats", "matplotlib", "transformers")
"""Modules that are slow to import and that few commands need."""


def test_commands_start_without_slow_modules() -> None:
    imports = "import sys, train, sample, sweep, compare_architectures"
    loaded = f"print([name for name in {SLOW} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{imports}; {loaded}"], cwd=PROJECT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "[]\n")


# Commands that are suggested


@pytest.mark.parametrize(
    ("program", "module", "expected"),
    [
        ("sample.py", None, "python sample.py"),
        (str(PROJECT / "sample.py"), None, "python sample.py"),
        ("nanoarch sample", "nanoarch.__main__", "nanoarch sample"),
        (str(PROJECT / "interop" / "x.py"), "interop.x", "python -m interop.x"),
    ],
)
def test_a_flag_is_added_to_what_the_user_typed(
    monkeypatch: pytest.MonkeyPatch, program: str, module: str | None, expected: str
) -> None:
    monkeypatch.chdir(PROJECT)
    spec = module and SimpleNamespace(name=module)
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec))
    for given in ([], ["--plugins=a.py"], ["--plugins", "a.py"]):
        monkeypatch.setattr("sys.argv", [program, *given, "--prompt=a b"])
        suggested = command_with("--plugins=saved")
        assert suggested == f"{expected} '--prompt=a b' --plugins=saved"


@pytest.mark.parametrize("command", ["train", "sweep", "compare", "sample", "export", "completion"])
def test_help_names_the_command_that_the_user_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setattr("sys.argv", ["nanoarch"])
    with contextlib.suppress(SystemExit):
        nanoarch.__main__.main([command, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"nanoarch {command} [" in said
    assert f"python {command}.py" not in said


def test_help_names_the_module_if_that_was_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [str(PROJECT / "interop" / "huggingface.py")])
    with pytest.raises(SystemExit):
        huggingface.main(["export", "--help"])
    assert "python -m interop.huggingface export [" in capsys.readouterr().out


# Errors of a user's own code


def call(function, *arguments):
    return function(*arguments)


def raised(path: Path, source: str) -> Exception:
    """What running a plugin raises."""
    path.write_text(source, encoding="utf-8")
    with pytest.raises(Exception, match=".") as error:
        call(run_plugins, str(path))
    return error.value


def test_a_traceback_begins_in_the_user_s_file(tmp_path: Path) -> None:
    """What it calls, of the project or a library, stays."""
    path = tmp_path / "plugin.py"
    error = raised(path, "import json\n\n\ndef read():\n    json.loads('{')\n\n\nread()\n")
    assert trim_to_users_code(error)
    frames = traceback.extract_tb(error.__traceback__)
    assert [frame.line for frame in frames[:2]] == ["read()", "json.loads('{')"]
    assert {frame.filename for frame in frames[:2]} == {str(path)}
    assert len(frames) > 2


def test_a_traceback_without_a_user_s_file_stays_whole() -> None:
    with pytest.raises(ZeroDivisionError) as error:
        call(lambda: 1 / 0)
    before = traceback.format_exception(error.value)
    assert not trim_to_users_code(error.value)
    assert traceback.format_exception(error.value) == before


def ended(capsys: pytest.CaptureFixture[str], path: Path, source: str) -> tuple[int, list[str]]:
    """The exit status of a command that runs a plugin, and what it prints."""
    path.write_text(source, encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        run_cli(lambda argv: run_plugins(str(path))["x"])
    return end.value.code, capsys.readouterr().err.splitlines()


def test_a_command_shows_the_user_s_line_first(tmp_path: Path, capsys) -> None:
    path = tmp_path / "plugin.py"
    status, lines = ended(capsys, path, "import torch\n\ntorch.zeros(2)[3]\n")
    assert status == 1
    assert lines[1:3] == [f'  File "{path}", line 3, in <module>', "    torch.zeros(2)[3]"]
    assert lines[-1].startswith("IndexError")
