"""Prepare Tiny Shakespeare (1.1 MB), tokenized with GPT-2's byte pair encoding."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cli import run_cli
from data.prepare_scripts import prepare_tiny_shakespeare
from data.tokenizers import TiktokenTokenizer


def gpt2(_: Path) -> TiktokenTokenizer:
    """GPT-2's tokenizer, downloaded if it is not cached."""
    return TiktokenTokenizer("gpt2", download=True)


def main(argv: list[str]) -> None:
    prepare_tiny_shakespeare(argv, __doc__, "shakespeare", gpt2)


if __name__ == "__main__":
    run_cli(main)
