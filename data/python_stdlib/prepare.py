"""Prepare the source code of this Python's standard library, byte by byte. No download.

Files are assigned to training or validation (about 5 % of them) by the hash of their path. Tests,
installed packages, files that differ between machines with the same Python, and files that are not
UTF-8 are excluded. An end-of-text token ends each file. The library depends on the Python version:
compare runs only if their data fingerprints match.
"""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cli import run_cli
from data.dataset_lookup import DATA_FOLDER
from data.dataset_writer import Document, split_by_hash, write_dataset
from data.prepare_scripts import prepare_parser
from data.tokenizers import ByteTokenizer

NAME = "python_stdlib"
VAL_FRACTION = 0.05
TEST_FOLDERS = {"test", "tests", "idle_test"}
PACKAGE_FOLDERS = {"site-packages", "dist-packages"}
# Build configuration, and additions by an administrator or a distribution.
MACHINE_PREFIXES = ("config-", "_sysconfigdata", "sitecustomize", "usercustomize")


def source_files(library: Path) -> list[Path]:
    """The .py files of the standard library that go into the dataset, sorted by path."""
    found = []
    for folder, subfolders, files in os.walk(library):
        subfolders[:] = [
            name
            for name in subfolders
            if name not in TEST_FOLDERS | PACKAGE_FOLDERS and not name.startswith(MACHINE_PREFIXES)
        ]
        found += [
            Path(folder, name)
            for name in files
            if name.endswith(".py") and not name.startswith(MACHINE_PREFIXES)
        ]
    return sorted(found, key=lambda path: path.relative_to(library).as_posix())


def documents(library: Path) -> Iterator[Document]:
    """Yield each UTF-8 source file as a document."""
    for path in source_files(library):
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue
        identity = path.relative_to(library).as_posix()
        yield Document(split_by_hash(identity, VAL_FRACTION), (text,))


def main(argv: list[str]) -> None:
    args = prepare_parser(__doc__, DATA_FOLDER / NAME).parse_args(argv)
    library = Path(sysconfig.get_paths()["stdlib"])
    write_dataset(
        documents(library),
        ByteTokenizer(),
        args.out,
        name=NAME,
        source=f"standard library of Python {platform.python_version()}",
        separate=True,
        workers=args.workers,
    )


if __name__ == "__main__":
    run_cli(main)
