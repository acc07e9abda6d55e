"""Record which code produced a run: commit, and digests of the project's source and plugins."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from source_files import PROJECT, local_imports, source_files
from user_files import module_name

CHANGES = ("status", "--porcelain", "--untracked-files=no", "--", ".", ":!metrics")
"""The git command for changes to tracked files, except in metrics/, where runs add results."""


def provenance() -> dict[str, Any]:
    """Identify the project's code; unknown values are None.

    `commit` is the commit of the project's own checkout, `dirty` whether tracked files outside
    metrics/ differ from it, and `source_sha256` the digest of the SOURCE files.
    """
    commit = _commit()
    return {
        "commit": commit,
        "dirty": _is_dirty() if commit else None,
        "source_sha256": source_digest(PROJECT),
    }


def source_digest(project: Path) -> str:
    """SHA-256 over the names and contents of the SOURCE files, as a hexadecimal string."""
    digest = hashlib.sha256()
    for path in source_files(project):
        digest.update(f"{path.relative_to(project).as_posix()} {text_digest(path)}\n".encode())
    return digest.hexdigest()


def text_digest(path: Path) -> str:
    """SHA-256 of a source file, independent of its line endings."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def plugin_digests(plugins: Mapping[str, str]) -> dict[str, str]:
    """The SHA-256 of each plugin's source, by file name, and of each local module that plugins
    import; `plugins` is path to source."""
    own = {Path(path).name: source_sha256(source) for path, source in plugins.items()}
    files = imported_by(plugins)
    return own | {import_key(name): text_digest(file) for name, file in files.items()}


def import_key(module: str) -> str:
    """How digests call a module that a plugin imports."""
    return f"import {module}"


def imported_by(plugins: Mapping[str, str]) -> dict[str, Path]:
    """The files of the local modules that plugins import, by name; see
    `source_files.local_imports`."""
    found: dict[str, Path] = {}
    for path, source in plugins.items():
        found |= local_imports(module_name(path), source)
    return found


def source_sha256(source: str) -> str:
    """SHA-256 of a plugin's source."""
    return hashlib.sha256(source.encode()).hexdigest()


def output_of(*command: str) -> str | None:
    """The output of a command; None if it is not installed, fails, or takes over 10 seconds."""
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _commit() -> str | None:
    root = _git("rev-parse", "--show-toplevel")
    if not root or Path(root).resolve() != PROJECT:
        return None  # a copy inside another project's checkout
    return _git("rev-parse", "HEAD")


def _is_dirty() -> bool | None:
    changes = _git(*CHANGES)
    return None if changes is None else bool(changes)


def _git(*arguments: str) -> str | None:
    return output_of("git", "-C", str(PROJECT), *arguments)
