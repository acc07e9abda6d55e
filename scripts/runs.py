"""Run `train.py` in a separate process and read its log; shared by the scripts in this directory.

Each script exits with PASSED, FAILED (what it checks does not hold) or UNDECIDED (an error
prevented the check).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cli import run_cli
from errors import UserError
from training_logger import RUN_FILE

PROJECT = Path(__file__).resolve().parents[1]
CONFIG = PROJECT / "config"

PASSED, FAILED, UNDECIDED = 0, 1, 2


class RunFailed(UserError):
    """A training run did not complete."""


def train(arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """Train in a separate process, with its own peak memory, threads and random generators.

    Its output is printed.

    Args:
        arguments: Config files and flags, as `train.py` takes them.
        folder: The run directory; it must not exist yet.

    Returns:
        The log of the run, as in its run.json.

    Raises:
        RunFailed: If the run does not complete.
    """
    where = (f"--out_dir={folder.parent}", f"--run_name={folder.name}")
    command = [sys.executable, str(PROJECT / "train.py"), *arguments, *where]
    status = subprocess.run(command, check=False).returncode
    if status:
        raise RunFailed(f"the training run exited with status {status}; see its error above.")
    if not (folder / RUN_FILE).is_file():
        raise RunFailed("nothing was trained; drop --help and --print_config.")
    log = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    if log["status"] != "completed":
        raise RunFailed(f"the training run was {log['status']}; let it complete.")
    return log


def run_script(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a script's `main` as a command; a UserError or OSError exits with UNDECIDED."""

    def run(argv: list[str]) -> int:
        try:
            return main(argv)
        except (OSError, UserError) as error:
            print(f"error: {error}", file=sys.stderr)
            return UNDECIDED

    run_cli(run)
