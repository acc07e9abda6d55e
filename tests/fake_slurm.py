"""sbatch, squeue and scancel for tests: tasks of arrays are processes of this machine, and a folder
has a file for each that waits (`PENDING`) or runs (`RUNNING` and its process ID).

    install(folder)    executables in folder/bin, to be put first on PATH

`folder/calls` has the commands that were called. A file `folder/lose` makes every task vanish
before it begins, as tasks of a node that fails do; a file `folder/silent` makes squeue fail.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

POLL_SECONDS = 0.02


def install(folder: Path) -> Path:
    """The folder with the executables."""
    (folder / "bin").mkdir(parents=True)
    (folder / "tasks").mkdir()
    for name in ("sbatch", "squeue", "scancel"):
        path = folder / "bin" / name
        command = shlex.join([sys.executable, "-S", "-E", __file__, str(folder), name])
        path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        path.chmod(0o755)
    return folder / "bin"


class Cluster:
    """The state of the queue."""

    def __init__(self, folder: Path):
        self.folder = folder

    def sbatch(self, *arguments: str) -> None:
        *flags, script = arguments
        assert flags == ["--parsable"]
        options = read_options(Path(script).read_text(encoding="utf-8"))
        if options.get("--partition") == "none":
            sys.exit("sbatch: error: invalid partition specified: none")
        array = str(17 + len(list(self.folder.glob("*.sh"))))
        copied = self.folder / f"{array}.sh"
        copied.write_text(Path(script).read_text(encoding="utf-8"))
        last, _, limit = options["--array"].removeprefix("0-").partition("%")
        numbers = range(int(last) + 1)
        for number in numbers:
            self._file(array, number).write_text("PENDING")
        most = limit or str(len(numbers))
        output = options["--output"].replace("%A", array)
        subprocess.Popen(
            [sys.executable, "-S", "-E", __file__, str(self.folder), "work", array, most, output],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        print(array)

    def work(self, array: str, most: str, output: str) -> None:
        """Run the tasks of an array, so many at a time."""
        running: dict[Path, subprocess.Popen] = {}
        while True:
            for file in [file for file, task in running.items() if task.poll() is not None]:
                del running[file]
                file.unlink()
            waiting = [file for file, state in self._tasks(array) if state == ["PENDING"]]
            if (self.folder / "lose").exists():
                for file in waiting:
                    file.unlink()
            elif waiting and len(running) < int(most):
                running[waiting[0]] = self._begin(array, waiting[0], output)
            if not running and not waiting:
                return
            time.sleep(POLL_SECONDS)

    def _begin(self, array: str, file: Path, output: str) -> subprocess.Popen:
        number = file.name.partition("_")[2]
        with Path(output.replace("%a", number)).open("a", encoding="utf-8") as said:
            task = subprocess.Popen(
                ["bash", str(self.folder / f"{array}.sh")],
                stdout=said,
                stderr=said,
                env={**os.environ, "SLURM_ARRAY_TASK_ID": number, "SLURM_JOB_ID": array},
                start_new_session=True,
            )
        file.write_text(f"RUNNING {task.pid}", encoding="utf-8")
        return task

    def squeue(self, *arguments: str) -> None:
        assert {"--noheader", "--array", "--format=%F %K %T"} < set(arguments)
        if (self.folder / "silent").exists():
            sys.exit("slurm_load_jobs error: Unable to contact slurm controller")
        for file, state in self._tasks("*"):
            print(*file.name.split("_"), state[0])

    def scancel(self, *arguments: str) -> None:
        *flags, array = arguments
        pending_only = "--state=PENDING" in flags
        for file, state in self._tasks(array):
            if state[0] == "PENDING":
                if pending_only or not flags:
                    file.unlink()
            elif "--signal=TERM" in flags:
                assert "--batch" in flags  # the process of the script alone
                os.kill(int(state[1]), signal.SIGTERM)
            elif not flags:
                os.killpg(int(state[1]), signal.SIGKILL)

    def _tasks(self, array: str) -> Iterator[tuple[Path, list[str]]]:
        """The file and the state of each task that waits or runs."""
        files = (self.folder / "tasks").glob(f"{array}_*")
        for file in sorted(files, key=lambda file: int(file.name.partition("_")[2])):
            with contextlib.suppress(FileNotFoundError):  # it has just ended
                state = file.read_text().split()
                if state:  # else it is being written
                    yield file, state

    def _file(self, array: str, number: int) -> Path:
        return self.folder / "tasks" / f"{array}_{number}"


def read_options(script: str) -> dict[str, str]:
    """The #SBATCH lines; of an option that comes twice, the last."""
    found = re.findall(r"^#SBATCH (--?[\w-]+)[= ]?(.*)$", script, re.MULTILINE)
    return dict(found)


if __name__ == "__main__":
    folder, command, *rest = sys.argv[1:]
    with (Path(folder) / "calls").open("a") as calls:
        print(command, *rest, file=calls)
    getattr(Cluster(Path(folder)), command)(*rest)
