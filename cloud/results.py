"""Download results; every file is verified by its SHA-256 before it is moved to its place.

Pods are not trusted: paths stay inside the directory of the results, a file is only accepted if its
size and digest match the list, and no other run is overwritten.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from cloud.failures import AnotherRun, Transient
from errors import file_errors
from training_logger import METRICS_FILE, RUN_FILE

PART_BYTES = 2**23
"""Bytes of a file per request."""

MOST_FILES = 200_000

CHECKPOINTS = "checkpoints"


class Source(Protocol):
    """Where results are read from: a pod (`PodLink`) or a volume (`VolumeFiles`)."""

    def manifest(self) -> dict[str, Any]:
        """`{"files": {path: {"size": bytes, "sha256": hex}}}`."""
        ...

    def read(self, path: str, offset: int, length: int) -> bytes:
        """A part of a file."""
        ...


Files = dict[str, dict[str, Any]]


def fetch(
    source: Source,
    target: Path,
    parts: Collection[str],
    scratch: Path,
    pause: Callable[[float], None],
) -> int:
    """Download the results of a source into a directory. Files that are there already are skipped.

    Args:
        source: Where they are.
        target: The directory; it may hold an earlier state of the same results.
        parts: Subdirectories that the work writes; everything else is ignored. "": all.
        scratch: Directory for incomplete downloads. What an earlier call left there is reused.
        pause: Called between parts of a file; may raise to stop.

    Returns:
        The number of files downloaded.

    Raises:
        Transient: A file changed while it was read, or the source did not answer.
        AnotherRun: The results are not a later state of the run in `target`.
        UserError: A file cannot be written.
    """
    files = _of_parts(_checked(source.manifest()), parts)
    with file_errors(f"write the results in {target}"):
        fetched = {
            path: _fetched(source, path, about, target, scratch, pause)
            for path, about in files.items()
        }
        _refuse_another_run(fetched, target)
        for path in sorted(files, key=_order):
            if (file := fetched[path]) is not None:
                _place(file, target / path)
        _remove_old_checkpoints(target, files)
    return sum(file is not None for file in fetched.values())


def _of_parts(files: Files, parts: Collection[str]) -> Files:
    """The files that are in these subdirectories; "": all."""
    return {
        path: about
        for path, about in files.items()
        if "" in parts or PurePosixPath(path).parts[0] in parts
    }


def _order(path: str) -> tuple[bool, str]:
    """Logs last, so that they never name a checkpoint that is not there."""
    return PurePosixPath(path).name in (RUN_FILE, METRICS_FILE), path


# Validating the list


def _checked(manifest: Mapping[str, Any]) -> Files:
    files = manifest.get("files")
    if not isinstance(files, dict) or len(files) > MOST_FILES:
        raise Transient("the list of results is not valid")
    if not all(_is_safe(path) and _is_described(about) for path, about in files.items()):
        raise Transient("the list of results is not valid")
    return files


def _is_safe(path: str) -> bool:
    """Whether a path stays inside the directory of the results, on any system."""
    parts = PurePosixPath(path).parts
    return (
        bool(parts)
        and not PurePosixPath(path).is_absolute()
        and not {"..", ".", ""} & set(parts)
        and path.isprintable()
        and not set("\\:") & set(path)
    )


def _is_described(about: Any) -> bool:
    return (
        isinstance(about, dict)
        and type(about.get("size")) is int
        and about["size"] >= 0
        and re.fullmatch(r"[0-9a-f]{64}", str(about.get("sha256"))) is not None
    )


# Downloading


def _fetched(
    source: Source,
    path: str,
    about: Mapping[str, Any],
    target: Path,
    scratch: Path,
    pause: Callable[[float], None],
) -> Path | None:
    """A file of the results in the scratch directory; None if the target already has it."""
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
                raise Transient(f"{path} is incomplete")
            digest.update(part)
            out.write(part)
            offset += len(part)
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != about["sha256"]:
        file.unlink()
        raise Transient(f"{path} has changed or was damaged during the download")
    return file


def _is(path: Path, about: Mapping[str, Any]) -> bool:
    """Whether a file is the one that the list describes."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != about["size"]:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest() == about["sha256"]


# Moving files into place


def _refuse_another_run(fetched: Mapping[str, Path | None], target: Path) -> None:
    """Raise AnotherRun if a log would replace that of another run which has checkpoints. The first
    record of a log has the time, so it differs between runs."""
    for path, file in fetched.items():
        log = target / path
        if file is None or log.name != METRICS_FILE or not log.is_file():
            continue
        has_checkpoint = any((log.parent / CHECKPOINTS).glob("step_*"))
        if has_checkpoint and _first_line(log) != _first_line(file):
            raise AnotherRun(
                f"{log.parent} holds another run than the pod under the same name; it was not "
                "overwritten. Choose another --run_name."
            )


def _first_line(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.readline()


def _place(file: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.copyfile(file, temporary)
    os.replace(temporary, path)


def _remove_old_checkpoints(target: Path, files: Collection[str]) -> None:
    """Remove checkpoints that the run no longer keeps: in folders whose others were listed."""
    kept = {
        parts[: index + 2]
        for parts in (PurePosixPath(path).parts for path in files)
        for index, part in enumerate(parts[:-1])
        if part == CHECKPOINTS
    }
    for folder in {parts[:-1] for parts in kept}:
        for entry in target.joinpath(*folder).iterdir():
            if (*folder, entry.name) not in kept and entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
