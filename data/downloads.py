"""Download text: datasets of the Hugging Face Hub, and Tiny Shakespeare."""

from __future__ import annotations

import hashlib
import itertools
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from data.dataset_writer import Document, split_by_hash
from errors import UserError

TINY_SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

DOWNLOAD_TIMEOUT_SECONDS = 60


def hub_documents(
    repository: str,
    val_fraction: float,
    configuration: str | None = None,
    *,
    max_documents: int | None = None,
) -> Iterator[Document]:
    """Stream the documents (field `text`) of a dataset's training split on the Hugging Face Hub.

    Each document is assigned to a split by the hash of its text.

    Raises:
        UserError: If the package `datasets` is not installed, or the download fails.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{repository} is streamed with the datasets package: pip install datasets"
        ) from error
    try:
        rows = datasets.load_dataset(repository, name=configuration, split="train", streaming=True)
        for row in itertools.islice(rows, max_documents):
            text = row["text"]
            yield Document(split_by_hash(text, val_fraction), (text,))
    except OSError as error:  # base class of the errors of the Hub's client and its network layer
        raise UserError(
            f"cannot load {repository} from the Hugging Face Hub ({error}). Check the network and "
            "try again, or prepare local files with data/text/prepare.py."
        ) from error


def tiny_shakespeare(given: Path | None, folder: Path) -> Path:
    """The file of Tiny Shakespeare: the given one, else a copy in `folder`, else a download there.

    Raises:
        UserError: If the file is not exactly Tiny Shakespeare, or is not available.
    """
    if given is not None and not given.is_file():
        raise UserError(f"file not found: {given}.")
    path = given or folder / "input.txt"
    if not path.is_file():
        _download(TINY_SHAKESPEARE_URL, path, TINY_SHAKESPEARE_SHA256)
    found = _sha256(path.read_bytes())
    if found != TINY_SHAKESPEARE_SHA256:
        raise UserError(
            f"{path} is not Tiny Shakespeare: its sha256 is {found}, not "
            f"{TINY_SHAKESPEARE_SHA256}. Use the unchanged file, or remove {folder / 'input.txt'} "
            "and drop --input to download it; data/text/prepare.py prepares your own text."
        )
    return path


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _download(url: str, path: Path, sha256: str) -> None:
    """Download a small file and verify it; `path` is only written if that succeeds."""
    print(f"downloading\n  {url}")
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
            content = response.read()
    except OSError as error:
        raise UserError(
            f"cannot download {url} ({error}). Without a network, download that file on another "
            f"machine and copy it to {path}, or run:\n"
            f"  python {path.with_name('prepare.py')} --input=FILE"
        ) from error
    if _sha256(content) != sha256:
        raise UserError(
            f"{url} returned a file with the sha256 {_sha256(content)}, not {sha256}; nothing was "
            f"saved. Try again, or copy the correct file to {path}."
        )
    draft = path.with_name(path.name + ".partial")
    draft.write_bytes(content)
    draft.replace(path)
