"""A script of the project in a process of its own, for what only a process can show: signals, kills
and exit codes. Such processes are forked from one that has imported everything, which saves seconds
each."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
import torch._dynamo  # which the optimizer imports at its first use

import sample  # noqa: F401
import train  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])
_PATIENCE = 240.0  # seconds


def _run(
    script: str, argv: list[str], output: Path, errors: Path, environment: Mapping[str, str]
) -> None:
    os.environ.update(environment)
    for number, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    torch.set_num_threads(1)
    sys.argv = [script, *argv]
    runpy.run_path(str(ROOT / script), run_name="__main__")


class Child:
    """A running script; its output goes to files in `folder`, which nothing else writes to, or
    standard output to the file, terminal or pipe `output`. It has more environment variables than
    this process."""

    def __init__(
        self,
        script: str,
        argv: list[str],
        folder: Path,
        output: Path | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ):
        folder.mkdir(parents=True)
        self._files = (output or folder / "output", folder / "errors")
        for file in self._files:
            file.touch()
        self._process = _CONTEXT.Process(
            target=_run, args=(script, argv, *self._files, dict(environment))
        )
        self._process.start()

    @property
    def output(self) -> str:
        return self._files[0].read_text(errors="replace")

    @property
    def errors(self) -> str:
        return self._files[1].read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def wait_for(self, text: str) -> None:
        """Return when the script has printed `text`."""
        deadline = time.monotonic() + _PATIENCE
        while text not in self.output:
            given_up = not self.running or time.monotonic() > deadline
            assert not given_up, f"no {text!r} in:\n{self.output}{self.errors}"
            time.sleep(0.01)

    def send(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def finish(self) -> int:
        """The exit code, once it ends; minus the number of the signal that killed it."""
        self._process.join(_PATIENCE)
        assert not self.running, f"still running:\n{self.output}{self.errors}"
        return self._process.exitcode
