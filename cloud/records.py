"""Records of deployments from this directory, one folder each in `out/.cloud/`."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cloud.work import Work
from errors import UserError, file_errors
from safe_files import read_json, write_atomically
from training.run_directory import locked, process_in

PLACE = Path("out/.cloud")
"""Contains the record, the package and the pod's log of each deployment, and `runs/` with locks."""

KEYS = ("deployment", "run", "process", "begun")
"""Required keys of a record."""


@contextlib.contextmanager
def recorded(identity: str, work: Work, argv: Sequence[str]) -> Iterator[Path]:
    """The folder of a new deployment. Locks the run on this machine, so that it is neither deployed
    twice nor trained locally meanwhile. Deletes the package and incomplete downloads at the end.

    Raises:
        UserError: The run is locked, or the folder cannot be written.
    """
    with contextlib.ExitStack() as locks:
        locks.enter_context(locked(PLACE / "runs" / work.name))
        for folder in work.contents.carried.values():
            locks.enter_context(locked(folder))
        place = PLACE / identity
        with file_errors(f"write {place}"):
            place.mkdir(parents=True, mode=0o700)
            about = {
                "deployment": identity,
                "run": work.name,
                "target": str(work.target),
                "process": os.getpid(),
                "begun": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "command": list(argv),
            }
            write_atomically(place / "deployment.json", [json.dumps(about, indent=1)])
        try:
            yield place
        finally:
            shutil.rmtree(place / "incoming", ignore_errors=True)
            with contextlib.suppress(OSError):
                (place / "package.tar.gz").unlink(missing_ok=True)


def known_deployments() -> list[dict[str, Any]]:
    """The records of this directory, oldest first; damaged ones are omitted."""
    found = []
    for path in PLACE.glob("*/deployment.json"):
        with contextlib.suppress(OSError, UserError):
            about = read_json(path)
            if isinstance(about, dict) and set(KEYS) <= set(about):
                found.append(about)
    return sorted(found, key=lambda about: str(about["begun"]))


def is_live(about: dict[str, Any]) -> bool:
    """Whether the command of a deployment is still running."""
    folder = PLACE / "runs" / str(about["run"])
    return folder.is_dir() and process_in(folder) == str(about["process"])
