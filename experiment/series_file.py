"""`series.json`: related sweeps, such as the rungs of a ladder or changes on several baselines.

Each sweep has its own folder; the file, in the folder of the series, lists them.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comparison.json_checks import list_of, number, read_checked, record, text, told
from errors import printable
from safe_files import read_json, write_atomically

SERIES_FILE = "series.json"

LADDER, BASELINES = "ladder", "baselines"
"""Kinds of series."""

MOST_MEMBERS = 100
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Member:
    """A sweep of a series.

    Attributes:
        label: `params=1M`, or the name of a baseline.
        folder: Folder of the sweep.
    """

    label: str
    folder: Path


@dataclasses.dataclass(frozen=True)
class Series:
    """A series of related sweeps.

    Attributes:
        kind: LADDER or BASELINES.
        members: In the order in which they are run and shown.
        command: The command that created it; empty if unknown.
    """

    kind: str
    members: tuple[Member, ...]
    command: str = ""


def write_series(folder: Path, series: Series) -> None:
    """Write the file, which contains the paths of the sweeps relative to the folder."""
    listed = [
        {"label": own.label, "sweep": Path(os.path.relpath(own.folder, folder)).as_posix()}
        for own in series.members
    ]
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "version": _VERSION,
        "kind": series.kind,
        "command": series.command,
        "sweeps": listed,
    }
    write_atomically(folder / SERIES_FILE, [json.dumps(found, indent=1), "\n"])


def read_series(folder: Path) -> Series:
    """Read the series in a folder.

    Raises:
        UserError: If the file is damaged.
    """
    found = read_checked(folder / SERIES_FILE, read_json, _CHECK, "a series of sweeps")
    members = [
        Member(printable(own["label"]), (folder / own["sweep"]).resolve())
        for own in found["sweeps"]
    ]
    return Series(found["kind"], tuple(members), printable(found.get("command", "")))


def _kind(value: Any) -> Sequence[str]:
    return () if value in (LADDER, BASELINES) else (f" is {told(value)}, not a kind of series",)


_CHECK = record(
    {
        "version": number(_VERSION, _VERSION, whole=True),
        "kind": _kind,
        "sweeps": list_of(
            record({"label": text(1000), "sweep": text(4096)}), fewest=1, most=MOST_MEMBERS
        ),
    },
    {"command": text()},
)
