"""What the scripts data/*/prepare.py share: their flags, and the two kinds that come in pairs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from data.dataset_writer import write_dataset
from data.sources import (
    TINY_SHAKESPEARE_URL,
    hub_documents,
    split_by_position,
    tiny_shakespeare,
)
from data.tokenizers import TiktokenTokenizer, Tokenizer
from errors import UserError


def prepare_parser(description: str, folder: Path | str) -> argparse.ArgumentParser:
    """A command line with the flags that every prepare script has: --out and --workers.

    Args:
        description: What --help says; its line breaks are kept.
        folder: Where the dataset goes if --out does not say otherwise.
    """
    parser = argparse.ArgumentParser(
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
        help="threads that tokenize (default: one per CPU); they do not change the result",
    )
    return parser


def add_val_fraction(parser: argparse.ArgumentParser, default: float, of_what: str) -> None:
    """The flag --val_fraction: the share `of_what` that goes to validation."""
    parser.add_argument(
        "--val_fraction",
        type=fraction,
        default=default,
        metavar="F",
        help=f"share of {of_what} that goes to validation (default: %(default)s)",
    )


def positive(text: str) -> int:
    """An int above 0, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value


def fraction(text: str) -> float:
    """A number above 0 and below 1, for argparse."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{value:g} is not above 0 and below 1")
    return value


def run_script(main: Callable[[], None]) -> None:
    """Run a prepare script as a command: what the user can mend is one line, not a traceback."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")


def prepare_tiny_shakespeare(
    argv: Sequence[str] | None,
    description: str,
    folder: Path,
    make_tokenizer: Callable[[Path], Tokenizer],
) -> None:
    """Prepare Tiny Shakespeare into `folder`; the tokenizer is made from the file of the text."""
    parser = prepare_parser(description, folder)
    parser.add_argument("--input", type=Path, metavar="FILE", help="your copy of the text")
    args = parser.parse_args(argv)
    path = tiny_shakespeare(args.input, folder)
    write_dataset(
        split_by_position(path, val_fraction=0.1),
        make_tokenizer(path),
        args.out,
        name=folder.name,
        source=TINY_SHAKESPEARE_URL,
        separate=False,
        workers=args.workers,
        total_bytes=path.stat().st_size,
    )


def prepare_from_hub(
    argv: Sequence[str] | None,
    description: str,
    folder: Path,
    repository: str,
    configuration: str | None = None,
) -> None:
    """Prepare a dataset of the Hugging Face hub into `folder`, with GPT-2's tokenizer."""
    parser = prepare_parser(description, folder)
    add_val_fraction(parser, 0.0005, "the documents")
    parser.add_argument(
        "--max_documents", type=positive, metavar="N", help="stop after N documents (default: all)"
    )
    args = parser.parse_args(argv)
    write_dataset(
        hub_documents(
            repository, args.val_fraction, configuration, max_documents=args.max_documents
        ),
        TiktokenTokenizer("gpt2", download=True),
        args.out,
        name=folder.name,
        source=" ".join(filter(None, ["hf.co/datasets/" + repository, configuration])),
        separate=True,
        workers=args.workers,
    )
