"""Prepare FineWeb (the sample of 10 billion tokens): web pages of Common Crawl, 20 GB on disk."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cli import run_cli
from data.prepare_scripts import prepare_from_hub


def main(argv: list[str]) -> None:
    prepare_from_hub(argv, __doc__, "fineweb", "HuggingFaceFW/fineweb", "sample-10BT")


if __name__ == "__main__":
    run_cli(main)
