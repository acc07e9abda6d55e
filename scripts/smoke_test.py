"""Check that training works on this machine: overfit one batch of 256 tokens within 100 steps.

python scripts/smoke_test.py
python scripts/smoke_test.py config/arch_llama.py --device=cuda

Takes about a minute. The tokens are random, so the model can only memorize them. Success shows that
data, forward pass, backward pass, optimizer and logging work together on this machine; it says
nothing about the quality of the architecture. Config files and flags are those of train.py, applied
after config/run_smoke_test.py.

Exit status: 0 passed, 1 the loss stayed above 0.05, 2 the run failed.
"""

from __future__ import annotations

import random
import string
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.dataset_files import SPLITS
from data.dataset_writer import Document, write_dataset
from data.tokenizers import CharTokenizer
from scripts.runs import CONFIG, FAILED, PASSED, run_script, train
from training_logger import format_bytes, format_count

TARGET_LOSS = 0.05
"""Nats per token."""
TOKENS = 256
CHARACTERS = string.ascii_letters


def write_random_characters(folder: Path) -> None:
    """A dataset of a single training sequence: 256 tokens and the one after them."""
    text = "".join(random.Random(0).choices(CHARACTERS, k=TOKENS + 1))
    write_dataset(
        [Document(split, (text,)) for split in SPLITS],
        CharTokenizer(CHARACTERS),
        folder,
        name="random characters",
        source="drawn by scripts/smoke_test.py",
        separate=False,
        workers=1,
    )


def verdict(log: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a run reached the target, and a sentence with step, speed and memory."""
    records = log["training_iterations"]
    losses = {r["iter"]: r["loss"] for r in records if r["loss"] is not None}
    reached = next((step for step, loss in losses.items() if loss < TARGET_LOSS), None)
    summary = log["summary"]
    cost = (
        f"{format_count(summary['median_tokens_per_second'])} tokens/s, peak memory "
        f"{format_bytes(summary['peak_memory_bytes'])}, {summary['wall_seconds']:.1f} s"
    )
    if reached is not None:
        return True, f"PASSED: loss {losses[reached]:.4f} at iteration {reached}; {cost}"
    lowest = f"{min(losses.values()):.4f}" if losses else "never finite"
    steps = records[-1]["iter"] if records else 0
    return False, f"FAILED: lowest loss {lowest}, not below {TARGET_LOSS} in {steps} steps; {cost}"


def main(argv: Sequence[str]) -> int:
    if {"--help", "-h"}.intersection(argv):
        print(__doc__)
        return PASSED
    with tempfile.TemporaryDirectory(prefix="nanoarch-smoke-") as temporary:
        folder = Path(temporary)
        write_random_characters(folder / "data")
        recipe = (str(CONFIG / "run_smoke_test.py"), *argv, f"--dataset={folder / 'data'}")
        passed, sentence = verdict(train(recipe, folder / "run"))
    print(sentence)
    return PASSED if passed else FAILED


if __name__ == "__main__":
    run_script(main)
