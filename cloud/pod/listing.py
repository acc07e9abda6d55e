"""The list of the results: size and SHA-256 of every file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from typing import Any

from cloud.pod.place import PART_BYTES, Background

READING_SECONDS = 20.0
"""How long a request waits for the digests; a proxy gives up on slower replies."""


class Listing:
    """Lists the files of the results directory. Digests of unchanged files are kept.

    Args:
        folder: The results directory.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.reading: Background | None = None
        self._lock = threading.Lock()
        self._digests: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {}

    def whole(self) -> dict[str, Any]:
        """`{"files": {path: {"size": bytes, "sha256": hex}}}`, paths relative to the folder.

        Lock files, temporary files and hidden folders, such as a checkpoint that is being written,
        are not listed.
        """
        files = {}
        for folder, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = os.path.join(folder, name)
                if name == ".lock" or name.endswith(".tmp") or os.path.islink(path):
                    continue
                with contextlib.suppress(OSError):  # deleted since
                    files[os.path.relpath(path, self.folder)] = self._digest(path)
        return {"files": files}

    def soon(self) -> dict[str, Any] | None:
        """The list, or None while files are still being read."""
        with self._lock:
            if self.reading is None:
                self.reading = Background(self.whole)
            reading = self.reading
        reading.thread.join(READING_SECONDS)
        if reading.thread.is_alive():
            return None
        with self._lock:
            self.reading = None
        return reading.result

    def _digest(self, path: str) -> dict[str, Any]:
        about = os.stat(path)
        state = (about.st_size, about.st_mtime_ns, about.st_ino)
        known = self._digests.get(path)
        if known and known[0] == state:
            return known[1]
        size, sha256 = file_digest(path)
        found = {"size": size, "sha256": sha256}
        if size == about.st_size:
            self._digests[path] = (state, found)
        return found


def file_digest(path: str) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(PART_BYTES), b""):
            digest.update(part)
            size += len(part)
    return size, digest.hexdigest()
