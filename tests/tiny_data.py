"""A prepared dataset and a run that take no time."""

from __future__ import annotations

import random
from pathlib import Path

from data.dataset_files import SPLITS
from data.dataset_writer import Document, write_dataset
from data.tokenizers import CharTokenizer

CHARACTERS = "abcdefgh"


def write_tiny_dataset(folder: Path) -> Path:
    """Prepare 400 random characters a split in `folder`."""
    draw = random.Random(0)
    write_dataset(
        [Document(split, ("".join(draw.choices(CHARACTERS, k=400)),)) for split in SPLITS],
        CharTokenizer(CHARACTERS),
        folder,
        name="tiny",
        source="drawn by a test",
        separate=False,
        workers=1,
    )
    return folder


def tiny_run_flags(dataset: Path) -> list[str]:
    """Flags of a run of three steps on a CPU."""
    return [
        *(f"--dataset={dataset}", "--device=cpu", "--dtype=float32", "--compile=False"),
        *("--n_layer=1", "--n_head=2", "--n_embd=8", "--block_size=16", "--batch_size=2"),
        *("--max_iters=3", "--warmup_iters=1", "--eval_tokens=64", "--log_interval=1"),
    ]
