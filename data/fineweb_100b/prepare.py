"""Prepare FineWeb (the sample of 100 billion tokens): web pages of Common Crawl, 200 GB on disk."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cli import run_cli
from data.prepare_scripts import prepare_from_hub


def main(argv: list[str]) -> None:
    prepare_from_hub(argv, __doc__, "fineweb_100b", "HuggingFaceFW/fineweb", "sample-100BT")


if __name__ == "__main__":
    run_cli(main)
