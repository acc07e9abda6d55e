"""Prepare Tiny Shakespeare (1.1 MB), tokenized by characters (65 of them)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cli import run_cli
from data.prepare_scripts import prepare_tiny_shakespeare
from data.text_files import read_pieces
from data.tokenizers import CharTokenizer


def characters(path: Path) -> CharTokenizer:
    """A tokenizer for the characters that occur in the text."""
    return CharTokenizer("".join(read_pieces(path)))


def main(argv: list[str]) -> None:
    prepare_tiny_shakespeare(argv, __doc__, "shakespeare_char", characters)


if __name__ == "__main__":
    run_cli(main)
