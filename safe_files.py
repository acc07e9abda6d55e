"""Read untrusted files (regular files only, JSON of limited size) and replace files atomically."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from errors import UserError

MAX_JSON_BYTES = 16 * 2**20
"""Maximum size of a JSON file; enough for a tokenizer of all Unicode characters, escaped."""

READERS_SECONDS = 2.0 if os.name == "nt" else 0.0
"""How long to wait for readers that prevent a file from being replaced, as on Windows."""


def open_regular(path: Path, *, follow_links: bool = False) -> BinaryIO:
    """Open a regular file for reading. FIFOs, devices and folders are refused without opening.

    Args:
        path: The file.
        follow_links: Whether `path` may be a symbolic link.

    Raises:
        UserError: If `path` is not a regular file.
        OSError: If `path` does not exist or cannot be read.
    """
    if not stat.S_ISREG(os.stat(path, follow_symlinks=follow_links).st_mode):
        raise _irregular(path)
    return open(path, "rb")


def refuse_irregular(path: Path, *, follow_links: bool = True) -> None:
    """Raise UserError if `path` exists but is not a regular file; opening a FIFO could block.

    Args:
        path: The file.
        follow_links: Whether `path` may be a symbolic link.
    """
    is_link = path.is_symlink() and not follow_links
    if is_link or (path.exists() and not path.is_file()):
        raise _irregular(path)


def _irregular(path: Path) -> UserError:
    return UserError(f"{path} is not a regular file; replace it with a regular file.")


def read_json(path: Path, *, follow_links: bool = False) -> Any:
    """Read a JSON file of at most MAX_JSON_BYTES.

    Raises:
        UserError: If `path` is not a regular file, is too large, or does not contain JSON.
        OSError: If `path` does not exist or cannot be read.
    """
    with open_regular(path, follow_links=follow_links) as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise UserError(f"{path} is larger than {MAX_JSON_BYTES:,} bytes and was not read.")
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
        raise UserError(f"{path} is damaged: {error}.") from error


def write_atomically(path: Path, parts: Iterable[str | bytes], *, durable: bool = True) -> None:
    """Replace a file atomically by the concatenated parts; text is encoded as UTF-8.

    If the process is killed at any moment, either the old or the new file remains intact; on an
    error, the old one. With `durable`, which waits for the disk, this also holds for power
    failures.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.writelines(own.encode() if isinstance(own, str) else own for own in parts)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        _replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def usual_permissions(path: Path) -> Iterator[None]:
    """A context in which a file is written by a library that would make it private; afterwards it
    has the permissions that `open` gives a new file."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    yield
    path.chmod(mode)


def _replace(temporary: Path, path: Path) -> None:
    """Replace a file by another, waiting for its readers if necessary."""
    deadline = time.monotonic() + READERS_SECONDS
    while True:
        try:
            return os.replace(temporary, path)
        except PermissionError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.02)
