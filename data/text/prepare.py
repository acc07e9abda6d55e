"""Prepare your own text as a dataset; train on it with --dataset=NAME.

    python data/text/prepare.py --name novel --input novel.txt --tokenizer chars
    python data/text/prepare.py --name mails --input *.jsonl --text_field body
    python data/text/prepare.py --name tuning --input novel.txt --tokenizer MODEL_FOLDER

A .txt file is one document, and so is each line of a .jsonl file and each row of a .parquet file
(pip install pyarrow). Whole documents go to training or validation: a .txt file by the hash of its
name, others by the hash of their text. A single .txt file is split by position: its end is for
validation. An end-of-text token ends each document; with chars, nothing separates them.

Files are streamed, so they may be larger than memory. With chars they are read twice.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cli import run_cli
from data.dataset_lookup import DATA_FOLDER, PREPARE_FILE
from data.dataset_writer import Document, write_dataset
from data.prepare_scripts import add_tokenizer, add_val_fraction, prepare_parser
from data.text_files import characters_of, file_documents
from data.tokenizers import CharTokenizer, tokenizer_called
from errors import UserError


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = prepare_parser(__doc__, DATA_FOLDER / "NAME")
    parser.add_argument(
        "--input", type=Path, nargs="+", required=True, metavar="FILE", help="the files to read"
    )
    parser.add_argument(
        "--name", required=True, help="name of the dataset, and of its folder under data/"
    )
    add_tokenizer(parser, "bytes, chars (those in the text)")
    parser.add_argument(
        "--text_field",
        default="text",
        metavar="FIELD",
        help="field or column that holds the text (default: %(default)s)",
    )
    add_val_fraction(parser, 0.05, "the documents (of a single .txt: of its text)")
    args = parser.parse_args(argv)
    if args.out == parser.get_default("out"):
        args.out = folder_of(args.name)
    return args


def folder_of(name: str) -> Path:
    """The folder of a dataset of your own under data/.

    Raises:
        UserError: the name is no folder name, or that of a dataset which has its own script.
    """
    folder = DATA_FOLDER / name
    if folder.parent != DATA_FOLDER or name in (".", ".."):
        raise UserError(f"--name {name!r} must be a plain folder name; --out takes a path.")
    if (folder / PREPARE_FILE).is_file():
        raise UserError(f"{folder} has a {PREPARE_FILE} of its own; choose another --name.")
    return folder


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)

    def documents() -> Iterator[Document]:
        return file_documents(args.input, args.val_fraction, args.text_field)

    if args.tokenizer == CharTokenizer.name:
        tokenizer = CharTokenizer(characters_of(documents()))
    else:
        tokenizer = tokenizer_called(args.tokenizer)
    all_txt = all(path.suffix == ".txt" for path in args.input)
    write_dataset(
        documents(),
        tokenizer,
        args.out,
        name=args.name,
        source=", ".join(path.name for path in args.input),
        separate=True,
        workers=args.workers,
        total_bytes=sum(path.stat().st_size for path in args.input) if all_txt else None,
    )


if __name__ == "__main__":
    run_cli(main)
