"""Shared code of the data/*/prepare.py scripts: flags, Tiny Shakespeare, streamed datasets."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from cli import CommandParser
from data.dataset_lookup import DATA_FOLDER
from data.dataset_writer import write_dataset
from data.downloads import TINY_SHAKESPEARE_URL, hub_documents, tiny_shakespeare
from data.text_files import split_by_position
from data.tokenizers import Tokenizer, tokenizer_called

TINY_SHAKESPEARE = """
The first 90 % of the text is for training, the last 10 % for validation, as in nanoGPT. The text is
read from --input, or from input.txt next to the script; otherwise it is downloaded to that file.
Its sha256 is always checked.
"""
FROM_HUB = """
It is streamed from the Hugging Face Hub (pip install datasets) and tokenized with GPT-2's byte pair
encoding, or with --tokenizer; an end-of-text token ends each document. --max_documents uses only
the first documents, which is enough for small models.
"""


def prepare_parser(description: str, folder: Path | str) -> argparse.ArgumentParser:
    """Create a command-line parser with the flags of every prepare script: --out and --workers.

    Args:
        description: Description in --help; line breaks are kept.
        folder: Default of --out.
    """
    parser = CommandParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(folder),
        metavar="DIR",
        help="folder of the prepared dataset (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=positive,
        default=os.cpu_count() or 1,
        metavar="N",
        help="number of tokenizer threads (default: one per CPU); does not change the result",
    )
    return parser


def add_tokenizer(parser: argparse.ArgumentParser, others: str = "bytes") -> None:
    """Add the flag --tokenizer, by default GPT-2's; `others` describes additional choices."""
    parser.add_argument(
        "--tokenizer",
        default="gpt2",
        metavar="NAME",
        help=(
            f"{others}, gpt2 or another tiktoken encoding, or the folder of a Hugging Face "
            "tokenizer: byte-level BPE, or SentencePiece BPE with byte fallback; needs pip "
            "install tokenizers (default: %(default)s)"
        ),
    )


def add_val_fraction(parser: argparse.ArgumentParser, default: float, of_what: str) -> None:
    """Add the flag --val_fraction: the fraction `of_what` used for validation."""
    parser.add_argument(
        "--val_fraction",
        type=fraction,
        default=default,
        metavar="F",
        help=f"validation fraction of {of_what} (default: %(default)s)",
    )


def positive(text: str) -> int:
    """Parse an int above 0, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value


def fraction(text: str) -> float:
    """Parse a number above 0 and below 1, for argparse."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{value:g} is not above 0 and below 1")
    return value


def prepare_tiny_shakespeare(
    argv: list[str],
    description: str,
    name: str,
    make_tokenizer: Callable[[Path], Tokenizer],
) -> None:
    """Prepare Tiny Shakespeare as the dataset `name`, with a tokenizer created from its file."""
    folder = DATA_FOLDER / name
    parser = prepare_parser(f"{description}\n{TINY_SHAKESPEARE}", folder)
    parser.add_argument("--input", type=Path, metavar="FILE", help="local copy of the text")
    args = parser.parse_args(argv)
    path = tiny_shakespeare(args.input, folder)
    write_dataset(
        split_by_position(path, val_fraction=0.1),
        make_tokenizer(path),
        args.out,
        name=name,
        source=TINY_SHAKESPEARE_URL,
        separate=False,
        workers=args.workers,
        total_bytes=path.stat().st_size,
    )


def prepare_from_hub(
    argv: list[str],
    description: str,
    name: str,
    repository: str,
    configuration: str | None = None,
) -> None:
    """Prepare the dataset `name` from the Hugging Face Hub."""
    parser = prepare_parser(f"{description}\n{FROM_HUB}", DATA_FOLDER / name)
    add_tokenizer(parser)
    add_val_fraction(parser, 0.0005, "the documents")
    parser.add_argument(
        "--max_documents", type=positive, metavar="N", help="stop after N documents (default: all)"
    )
    args = parser.parse_args(argv)
    write_dataset(
        hub_documents(
            repository, args.val_fraction, configuration, max_documents=args.max_documents
        ),
        tokenizer_called(args.tokenizer),
        args.out,
        name=name,
        source=" ".join(filter(None, ["hf.co/datasets/" + repository, configuration])),
        separate=True,
        workers=args.workers,
    )
