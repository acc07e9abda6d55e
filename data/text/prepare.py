"""Prepare your own text as a dataset; train on it with --dataset=NAME.

    python data/text/prepare.py --name novel --input novel.txt --tokenizer chars
    python data/text/prepare.py --name mails --input *.jsonl --text_field body
    python data/text/prepare.py --name tuning --input novel.txt --tokenizer MODEL_FOLDER

Each .txt file, each line of a .jsonl file and each row of a .parquet file (pip install pyarrow) is
a document. Documents are assigned to training or validation by the hash of the file name (.txt) or
of the text. A single .txt file is split by position, with its end used for validation. An
end-of-text token ends each document; with chars, documents are not separated.

Files are streamed, so they may be larger than memory. With chars, they are read twice.
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
        "--input", type=Path, nargs="+", required=True, metavar="FILE", help="files to read"
    )
    parser.add_argument(
        "--name", required=True, help="name of the dataset, and of its folder under data/"
    )
    add_tokenizer(parser, "bytes, chars (those in the text)")
    parser.add_argument(
        "--text_field",
        default="text",
        metavar="FIELD",
        help="field or column that contains the text (default: %(default)s)",
    )
    add_val_fraction(parser, 0.05, "the documents (of a single .txt: of its text)")
    args = parser.parse_args(argv)
    if args.out == parser.get_default("out"):
        args.out = folder_of(args.name)
    return args


def folder_of(name: str) -> Path:
    """The folder of a user's dataset under data/.

    Raises:
        UserError: If the name is not a folder name, or belongs to a dataset with its own script.
    """
    folder = DATA_FOLDER / name
    if folder.parent != DATA_FOLDER or name in (".", ".."):
        raise UserError(f"--name {name!r} must be a plain folder name; --out takes a path.")
    if (folder / PREPARE_FILE).is_file():
        raise UserError(f"{folder} has its own {PREPARE_FILE}; choose another --name.")
    return folder


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)

    def documents() -> Iterator[Document]:
        return file_documents(args.input, args.val_fraction, args.text_field)

    splits = documents()  # first: a missing file is an error before a vocabulary is downloaded
    if args.tokenizer == CharTokenizer.name:
        tokenizer = CharTokenizer(characters_of(documents()))
    else:
        tokenizer = tokenizer_called(args.tokenizer)
    all_txt = all(path.suffix == ".txt" for path in args.input)
    write_dataset(
        splits,
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
