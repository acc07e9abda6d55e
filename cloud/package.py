"""The package sent to a pod: the local code, its commit, the data, and a run to continue.

It is a single tarball sent to the pod's port, so no repository, token or URL is needed.

    code/      the project's files, except those that git ignores; config files and plugins given
    code/.git  the present commit without history or contents of files, for the log of a run
    code/data  the prepared dataset, if it is prepared here
    carried/   the run directory, if there is a run to continue
"""

from __future__ import annotations

import dataclasses
import fnmatch
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
"""Maximum size in bytes of a dataset that is sent; larger ones are prepared in the pod."""

LEFT_OUT = (
    *("*.env", ".env*", "*.pem", "*.key", "id_rsa", "id_ecdsa", "id_ed25519"),
    *(".netrc", ".npmrc", ".pypirc", "credentials.json", ".git-credentials"),
)
"""Names of files that may hold secrets; they are not sent."""

LARGEST_CODE = 2 * 10**8
"""Maximum size in bytes of the project's files."""


@dataclasses.dataclass(frozen=True)
class Package:
    """A tarball.

    Attributes:
        path: Where it is.
        size: In bytes.
        sha256: As hexadecimal digits.
    """

    path: Path
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Contents:
    """What goes into a package.

    Attributes:
        files: The project's files, by path in `code/`.
        dataset: Directory of the dataset to send and its name in the pod; None: the pod prepares
            it.
        carried: Directories of runs to continue, by their place in the results; "": the results
            themselves.
    """

    files: dict[PurePosixPath, Path]
    dataset: tuple[Path, str] | None
    carried: dict[str, Path]

    @property
    def data_bytes(self) -> int:
        """Size of the dataset's files."""
        return sum(path.stat().st_size for path in self.data_files())

    def data_files(self) -> Iterator[Path]:
        if self.dataset is not None:
            folder = self.dataset[0]
            for name in dataset_files(folder):
                if (folder / name).is_file():
                    yield folder / name


def project_files(given: Iterable[Path], redact: Redactor) -> dict[PurePosixPath, Path]:
    """The files to send, by path in the project: all but those that git ignores; outside a git
    checkout, Python files and requirements.

    Args:
        given: Further files and directories, such as config files that git ignores.
        redact: Knows the secrets.

    Raises:
        UserError: A file contains a secret, a given file is outside the project's directory, or
            the files are too large.
    """
    own = [path for path in _own_files() if _may_be_sent(path)]
    _refuse_large(own)
    for path in given:
        own += filter(_may_be_sent, [path] if path.is_file() else path.rglob("*"))
    found = {PurePosixPath(in_project(path).as_posix()): path for path in own}
    for name, path in found.items():
        if redact.found_in(path.read_bytes()):
            raise UserError(f"{name} contains a secret and would be sent to the pod; remove it.")
    return found


def _own_files() -> Iterator[Path]:
    names = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if names is not None:
        yield from (PROJECT / name for name in names.split("\0") if name)
        return
    for pattern in ("*.py", "*/**/*.py", "requirements*.txt"):
        yield from PROJECT.glob(pattern)


def _may_be_sent(path: Path) -> bool:
    """Whether a path is a file that is sent: no secrets, nothing from the project's out/."""
    is_output = "out" in path.parts[len(PROJECT.parts) :][:1]
    names = (path.name, path.resolve().name)  # of a link and of its target
    is_secret = any(fnmatch.fnmatch(name, pattern) for name in names for pattern in LEFT_OUT)
    return path.is_file() and not is_output and not is_secret


def _refuse_large(paths: Iterable[Path]) -> None:
    """Raise UserError if the project's files are too large for code."""
    sizes = {path: path.stat().st_size for path in paths}
    if sum(sizes.values()) > LARGEST_CODE:
        largest = in_project(max(sizes, key=lambda path: sizes[path]))
        raise UserError(
            f"the project's files have {sum(sizes.values()):,} bytes, but at most "
            f"{LARGEST_CODE:,} are sent; add files that are not code, such as {largest}, to "
            ".gitignore."
        )


def in_project(path: Path) -> Path:
    """A path relative to the project's directory. Raises UserError if it is outside."""
    whole = Path(os.path.abspath(path))
    if not whole.is_relative_to(PROJECT):
        raise UserError(f"{path} is not in {PROJECT}; only files there are sent. Copy it.")
    return whole.relative_to(PROJECT)


def dataset_to_send(dataset: str) -> tuple[Path, str] | None:
    """The directory of a dataset that is sent, with its name in the pod; None: the pod prepares it.

    Raises:
        UserError: It can neither be sent nor be prepared there.
    """
    folder = prepared_folder(dataset)
    can_prepare = (DATA_FOLDER / dataset / PREPARE_FILE).is_file()
    if folder is None:
        if can_prepare:
            return None
        raise UserError(f"dataset={dataset!r} is not prepared and has no prepare script in data/.")
    size = sum((folder / bin_file(split)).stat().st_size for split in SPLITS)
    if size > LARGEST_DATA:
        if can_prepare:
            return None
        raise UserError(
            f"dataset={dataset!r} has {size:,} bytes, but at most {LARGEST_DATA:,} are sent; add a "
            "prepare script to data/."
        )
    inside = folder.resolve().is_relative_to(DATA_FOLDER)
    name = folder.resolve().relative_to(DATA_FOLDER).as_posix() if inside else folder.name
    if not inside and (DATA_FOLDER / name).exists():
        raise UserError(f"dataset={dataset!r}: data/ has another one named {name}; rename it.")
    return folder, name


def make_package(contents: Contents, path: Path) -> Package:
    """Write the tarball. Raises UserError if it cannot be written."""
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
    """Files and directories without their owner; no lock files, links or devices."""
    if not (entry.isfile() or entry.isdir()) or PurePosixPath(entry.name).name == ".lock":
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _commit_alone(folder: Path) -> Path | None:
    """A `.git` with the present commit and the names and digests of its files, without history,
    contents, remotes and their tokens, and hooks; None if the project is not a git checkout.

    It is all that `git rev-parse` and `git status` need.
    """
    if _git("rev-parse", "--verify", "HEAD") is None:
        return None
    clone = folder / "clone"
    upload = "git -c uploadpack.allowFilter=true upload-pack"
    steps: Sequence[Sequence[str]] = (
        (
            *("clone", "--quiet", "--depth=1", "--no-checkout", "--filter=blob:none"),
            *("--template=", f"--upload-pack={upload}", f"file://{PROJECT}", str(clone)),
        ),
        ("-C", str(clone), "remote", "remove", "origin"),
        ("-C", str(clone), "read-tree", "HEAD"),
    )
    for step in steps:
        if subprocess.run(["git", *step], capture_output=True, timeout=600).returncode:
            return None
    return clone / ".git"


def _git(*arguments: str) -> str | None:
    """The output of git for the project; None if it is not a checkout of its own."""
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
