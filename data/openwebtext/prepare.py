"""Prepare OpenWebText, as nanoGPT does: 8 million web pages, 9 billion tokens, 18 GB on disk."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cli import run_cli
from data.prepare_scripts import prepare_from_hub


def main(argv: list[str]) -> None:
    prepare_from_hub(argv, __doc__, "openwebtext", "Skylion007/openwebtext")


if __name__ == "__main__":
    run_cli(main)
