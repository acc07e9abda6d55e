"""Prepare Tiny Shakespeare (1.1 MB), tokenized with GPT-2's byte pair encoding.

The first 90 % of the text are for training, the last 10 % for validation, as in nanoGPT. The text
is the file given by --input, else input.txt beside this script, else it is downloaded to there; in
any case its sha256 is checked.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.prepare_scripts import prepare_tiny_shakespeare, run_script
from data.tokenizers import TiktokenTokenizer


def main(argv: Sequence[str] | None = None) -> None:
    folder = Path(__file__).resolve().parent
    prepare_tiny_shakespeare(
        argv, __doc__, folder, lambda _: TiktokenTokenizer("gpt2", download=True)
    )


if __name__ == "__main__":
    run_script(main)
