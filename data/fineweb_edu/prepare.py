"""Prepare FineWeb-Edu (the sample of 10 billion tokens): educational web pages, 20 GB on disk.

It is streamed from the Hugging Face hub (pip install datasets) and tokenized with GPT-2's byte pair
encoding; an end-of-text token ends each document. --max_documents takes the first part of it, which
is enough for small models.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.prepare_scripts import prepare_from_hub, run_script


def main(argv: Sequence[str] | None = None) -> None:
    prepare_from_hub(
        argv, __doc__, Path(__file__).resolve().parent, "HuggingFaceFW/fineweb-edu", "sample-10BT"
    )


if __name__ == "__main__":
    run_script(main)
