"""Reading files that others may have made: regular files only, and JSON of a bounded size; and
replacing a file in one step."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from errors import UserError

MAX_JSON_BYTES = 16 * 2**20
"""Enough for a tokenizer of every character of Unicode, escaped."""

READERS_SECONDS = 2.0 if os.name == "nt" else 0.0
"""How long a reader may keep a file from being replaced: on Windows, it can."""


def open_regular(path: Path, *, follow_links: bool = False) -> BinaryIO:
    """Open a regular file for reading. A FIFO, a device or a folder is refused, not opened.

    Args:
        path: The file.
        follow_links: Whether `path` may be a symbolic link.

    Raises:
        UserError: `path` is not a regular file.
        OSError: `path` does not exist or cannot be read.
    """
    if not stat.S_ISREG(os.stat(path, follow_symlinks=follow_links).st_mode):
        raise _irregular(path)
    return open(path, "rb")


def refuse_irregular(path: Path, *, follow_links: bool = True) -> None:
    """Raise UserError if `path` exists and is not a regular file; opening a FIFO could block.

    Args:
        path: The file.
        follow_links: Whether `path` may be a symbolic link.
    """
    is_link = path.is_symlink() and not follow_links
    if is_link or (path.exists() and not path.is_file()):
        raise _irregular(path)


def _irregular(path: Path) -> UserError:
    return UserError(f"{path} is not a regular file; replace it with one.")


def read_json(path: Path, *, follow_links: bool = False) -> Any:
    """The content of a JSON file of at most MAX_JSON_BYTES.

    Raises:
        UserError: `path` is not a regular file, is too large, or does not hold JSON.
        OSError: `path` does not exist or cannot be read.
    """
    with open_regular(path, follow_links=follow_links) as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise UserError(f"{path} is larger than {MAX_JSON_BYTES:,} bytes; it is not read.")
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # the latter where it is nested too deeply
        raise UserError(f"{path} is damaged: {error}.") from error


def write_atomically(path: Path, parts: Iterable[str | bytes], *, durable: bool = True) -> None:
    """Replace the file by these parts, one after the other; text is encoded as UTF-8.

    A kill at any moment leaves the old file or the new one, whole; an error leaves the old one.
    A power cut does so, too, if the file is `durable`, which takes a wait for the disk.
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


def _replace(temporary: Path, path: Path) -> None:
    """Put a file in the place of another, for which readers of that one may have to be waited."""
    deadline = time.monotonic() + READERS_SECONDS
    while True:
        try:
            return os.replace(temporary, path)
        except PermissionError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.02)
