"""Bringing the results home: every file checked by its SHA-256, then put in its place.

What a pod says is not trusted: its paths stay inside the folder of the results, and a file counts
only when size and digest are those of the manifest.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from cloud.failures import Transient
from errors import file_errors

PART_BYTES = 2**23

LONGEST_MANIFEST = 200_000
"""Files."""


class Source(Protocol):
    """Where results are read from: a pod (`PodLink`) or a volume (`VolumeFiles`)."""

    def manifest(self) -> dict[str, Any]:
        """Size and SHA-256 of every file."""
        ...

    def read(self, path: str, offset: int, length: int) -> bytes:
        """A part of a file."""
        ...


def fetch(source: Source, target: Path, scratch: Path, pause: Callable[[float], None]) -> int:
    """Bring the results of a source into a folder; files that are there already are not sent.

    Args:
        source: Where they are.
        target: The folder, which may hold an earlier state of the same results.
        scratch: A folder for files that are not whole; what an earlier call left there is used.
        pause: Called between parts; may raise to end it.

    Returns:
        How many files were sent.

    Raises:
        Transient: A file changed while it was read, or the source did not answer.
        UserError: A file cannot be written here.
    """
    files = _checked(source.manifest())
    with file_errors(f"write the results in {target}"):
        fetched = {
            path: _fetched(source, path, about, target, scratch, pause)
            for path, about in files.items()
        }
        for path in sorted(files, key=_order):
            if fetched[path] is not None:
                _place(fetched[path], target / path)
        _drop_old_checkpoints(target, set(files))
    return sum(file is not None for file in fetched.values())


def _order(path: str) -> tuple[bool, str]:
    """Logs last, so that they never speak of a checkpoint that is not there."""
    return PurePosixPath(path).name in ("run.json", "metrics.jsonl"), path


def _checked(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    files = manifest.get("files")
    if not isinstance(files, dict) or len(files) > LONGEST_MANIFEST:
        raise Transient("the list of results makes no sense")
    for path, about in files.items():
        parts = PurePosixPath(path).parts
        sound = (
            parts
            and not PurePosixPath(path).is_absolute()
            and not {"..", ".", ""} & set(parts)
            and path.isprintable()
            and "\\" not in path
            and ":" not in path
            and isinstance(about, dict)
            and type(about.get("size")) is int
            and about["size"] >= 0
            and re.fullmatch(r"[0-9a-f]{64}", str(about.get("sha256")))
        )
        if not sound:
            raise Transient("the list of results makes no sense")
    return files


def _fetched(
    source: Source,
    path: str,
    about: Mapping[str, Any],
    target: Path,
    scratch: Path,
    pause: Callable[[float], None],
) -> Path | None:
    """A file of the results in the scratch folder; None if the target has it already."""
    if _is(target / path, about):
        return None
    file = scratch / about["sha256"]
    if _is(file, about):
        return file
    scratch.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with file.open("wb") as out:
        offset = 0
        while offset < about["size"]:
            pause(0)
            length = min(PART_BYTES, about["size"] - offset)
            part = source.read(path, offset, length)
            if not part or len(part) > length:
                raise Transient(f"{path} ended early")
            digest.update(part)
            out.write(part)
            offset += len(part)
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != about["sha256"]:
        file.unlink()
        raise Transient(f"{path} changed, or was damaged on its way")
    return file


def _is(path: Path, about: Mapping[str, Any]) -> bool:
    """Whether a file is what the manifest says."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != about["size"]:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest() == about["sha256"]


def _place(file: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.copyfile(file, temporary)
    os.replace(temporary, path)


def _drop_old_checkpoints(target: Path, files: set[str]) -> None:
    """Remove checkpoints that the run no longer keeps: those in a folder of which others came."""
    places = {PurePosixPath(path).parts for path in files}
    kept = {
        parts[: index + 2]
        for parts in places
        for index, part in enumerate(parts[:-1])
        if part == "checkpoints"
    }
    for folder in {parts[:-1] for parts in kept}:
        for entry in target.joinpath(*folder).iterdir():
            if (*folder, entry.name) not in kept and entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
