"""Copy runs that were sent with the code to where training continues them."""

from __future__ import annotations

import os
import shutil

from cloud.pod.progress import METRICS, newest_step


def place_carried(carried: str, results: str, aside: str) -> None:
    """Copy the carried runs to the results.

    A network volume may hold a later state of a run, which is kept. An earlier state, or another
    run of the same name, is set aside.

    Args:
        carried: Directory of a run, or of sweeps.
        results: The results directory.
        aside: Suffix of the names of directories that are set aside.
    """
    for folder, folders, names in os.walk(carried):
        target = os.path.normpath(os.path.join(results, os.path.relpath(folder, carried)))
        if "run.json" in names or "checkpoints" in folders:
            folders.clear()
            _place_run(folder, target, aside)
            continue
        os.makedirs(target, exist_ok=True)
        for name in names:
            if not os.path.exists(os.path.join(target, name)):
                shutil.copyfile(os.path.join(folder, name), os.path.join(target, name))


def _place_run(run: str, target: str, aside: str) -> None:
    if os.path.isdir(target):
        is_same = _first_record(run) == _first_record(target) != b""
        if is_same and newest_step(target) >= newest_step(run):
            return
        shutil.move(target, target + aside)
    shutil.copytree(run, target)


def _first_record(run: str) -> bytes:
    """The first line of a run's log, which has the time and so differs between runs."""
    try:
        with open(os.path.join(run, METRICS), "rb") as file:
            return file.readline()
    except OSError:
        return b""
