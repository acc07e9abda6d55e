"""What is sent to a pod: the code as it is here, its commit, the data, and a run to go on with.

One tarball, sent over the pod's own port, so that no repository, no token and no URL is needed.

    code/      the project's files that git tracks or would, and config files and plugins given
    code/.git  the present commit alone, so that a run's log says what it was trained with
    code/data  the prepared dataset, where it is prepared here
    carried/   the run directory, where there is one to go on with
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from cloud.redaction import Redactor
from data.dataset_files import SPLITS, bin_file, dataset_files
from data.dataset_lookup import DATA_FOLDER, PREPARE_FILE, prepared_folder
from errors import UserError, file_errors
from training.provenance import PROJECT

LARGEST_DATA = 2 * 10**9
"""Bytes of a dataset that is sent; a larger one is prepared in the pod."""

LEFT_OUT = (".env", ".pem", ".key")
"""How names end of files that may hold secrets; they are not sent."""

LARGEST_CODE = 2 * 10**8
"""Bytes of the files that git tracks or would."""


@dataclasses.dataclass(frozen=True)
class Package:
    """A tarball that was made.

    Attributes:
        path: Where it is.
        size: Bytes.
        sha256: Of it.
    """

    path: Path
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Contents:
    """What goes into a package.

    Attributes:
        files: The project's files, by path in `code/`.
        dataset: Folder of the dataset to send and its name in the pod; None: the pod prepares it.
        carried: Folders to go on with, by their place in the results; "": the results themselves.
    """

    files: dict[PurePosixPath, Path]
    dataset: tuple[Path, str] | None
    carried: dict[str, Path]

    @property
    def data_bytes(self) -> int:
        """Of the dataset's files."""
        return sum(path.stat().st_size for path in self.data_files())

    def data_files(self) -> Iterator[Path]:
        if self.dataset is not None:
            folder = self.dataset[0]
            for name in dataset_files(folder):
                if (folder / name).is_file():
                    yield folder / name


def project_files(given: Iterable[Path], redact: Redactor) -> dict[PurePosixPath, Path]:
    """The files to send: those that git tracks or would, else all that look like source.

    Args:
        given: Further files and folders, such as config files that git ignores.
        redact: Knows the secrets.

    Raises:
        UserError: A file holds a secret, or a given file is not in the project's folder.
    """
    names = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if names is None:
        paths = [
            path
            for pattern in ("*.py", "*/**/*.py", "requirements*.txt")
            for path in PROJECT.glob(pattern)
        ]
    else:
        paths = [PROJECT / name for name in names.split("\0") if name]
    refuse_large(path for path in paths if path.is_file())
    for path in given:
        paths += [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    found: dict[PurePosixPath, Path] = {}
    for path in paths:
        if (
            not path.is_file()
            or path.name.endswith(LEFT_OUT)
            or "out" in path.parts[len(PROJECT.parts) :][:1]
        ):
            continue
        found[PurePosixPath(in_project(path).as_posix())] = path
    for name, path in found.items():
        if redact.found_in(path.read_bytes()):
            raise UserError(f"{name} holds a secret; it would be sent to the pod. Take it out.")
    return found


def refuse_large(paths: Iterable[Path]) -> None:
    """Raise UserError where the project's own files are more than code can be."""
    sizes = {path: path.stat().st_size for path in paths}
    if sum(sizes.values()) > LARGEST_CODE:
        largest = in_project(max(sizes, key=lambda path: sizes[path]))
        raise UserError(
            f"the project's folder has {sum(sizes.values()):,} bytes to be sent, and at most "
            f"{LARGEST_CODE:,} are; have git ignore what is no code, such as {largest}."
        )


def in_project(path: Path) -> Path:
    """A path as seen from the project's folder; UserError where it is not in it."""
    whole = Path(os.path.abspath(path))
    if not whole.is_relative_to(PROJECT):
        raise UserError(f"{path} is not in {PROJECT}, and only what is there is sent; copy it.")
    return whole.relative_to(PROJECT)


def dataset_to_send(dataset: str) -> tuple[Path, str] | None:
    """The folder of a dataset that is sent, with its name in the pod; None: the pod prepares it.

    Raises:
        UserError: It can be neither sent nor prepared there.
    """
    folder = prepared_folder(dataset)
    can_prepare = (DATA_FOLDER / dataset / PREPARE_FILE).is_file()
    if folder is None:
        if can_prepare:
            return None
        raise UserError(f"dataset={dataset!r} is not prepared here, and has no script to be sent.")
    size = sum((folder / bin_file(split)).stat().st_size for split in SPLITS)
    if size > LARGEST_DATA:
        if can_prepare:
            return None
        raise UserError(
            f"dataset={dataset!r} has {size:,} bytes, and at most {LARGEST_DATA:,} are sent; put a "
            f"script into data/, or the dataset on a network volume."
        )
    inside = folder.resolve().is_relative_to(DATA_FOLDER)
    name = folder.resolve().relative_to(DATA_FOLDER).as_posix() if inside else folder.name
    if not inside and (DATA_FOLDER / name).exists():
        raise UserError(f"dataset={dataset!r}: data/ has another of the name {name}; rename it.")
    return folder, name


def make_package(contents: Contents, path: Path) -> Package:
    """Write the tarball. Raises UserError where that cannot be done."""
    with file_errors(f"write {path}"), tempfile.TemporaryDirectory() as scratch:
        with (
            path.open("wb") as raw,
            gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=3, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w") as archive,
        ):
            for name, file in sorted(contents.files.items()):
                archive.add(file.resolve(), f"code/{name}", filter=_plain)
            commit = _commit_alone(Path(scratch))
            if commit is not None:
                archive.add(commit, "code/.git", filter=_plain)
            if contents.dataset is not None:
                for file in contents.data_files():
                    archive.add(file, f"code/data/{contents.dataset[1]}/{file.name}", filter=_plain)
            for place, folder in contents.carried.items():
                archive.add(folder, f"carried/{place}".rstrip("/"), filter=_plain)
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while part := file.read(2**20):
                digest.update(part)
        return Package(path, path.stat().st_size, digest.hexdigest())


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Files and folders without an owner; no locks."""
    if not (entry.isfile() or entry.isdir()) or PurePosixPath(entry.name).name == ".lock":
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _commit_alone(folder: Path) -> Path | None:
    """A `.git` with the present commit, without history, remotes and their tokens; None where the
    project is no checkout."""
    if _git("rev-parse", "--verify", "HEAD") is None:
        return None
    clone = folder / "clone"
    steps: Sequence[Sequence[str]] = (
        ("clone", "--quiet", "--depth=1", "--no-checkout", f"file://{PROJECT}", str(clone)),
        ("-C", str(clone), "remote", "remove", "origin"),
        ("-C", str(clone), "read-tree", "HEAD"),
    )
    for step in steps:
        if subprocess.run(["git", *step], capture_output=True, timeout=600).returncode:
            return None
    return clone / ".git"


def _git(*arguments: str) -> str | None:
    """What git says of the project; None where it is no checkout of its own."""
    top = _output("rev-parse", "--show-toplevel")
    if top is None or Path(top.strip()).resolve() != PROJECT:
        return None  # a copy inside another project's checkout
    return _output(*arguments)


def _output(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(PROJECT), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
