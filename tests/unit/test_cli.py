"""How commands end where their streams are closed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
