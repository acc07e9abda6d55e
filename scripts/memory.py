"""Compare the memory estimate of `train.py --dry_run` with measured peaks.

    python -m scripts.memory            prints the table
    python -m scripts.memory --quick    a few rows

Each row is a run of a few steps in separate processes. The measured value is the peak resident
memory minus the resident memory before the model was built, of the worker with the largest value.
Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

import train
from cli import run_cli
from errors import UserError
from training.memory import batch_bytes
from training.preflight import share_of

ROOT = Path(__file__).resolve().parents[1]
SIZES = ("--n_layer=6", "--n_head=6", "--n_embd=384", "--block_size=256", "--sequence_length=256")
STEPS = ("--max_iters=4", "--eval_interval=4", "--eval_tokens=1024", "--device=cpu")
WORKERS = {"none": 1, "ddp": 2, "zero1": 2, "fsdp": 2}


def cases(quick: bool) -> list[dict[str, Any]]:
    """The runs of the table."""
    presets = ["gpt2", "llama"]
    shapes = [(4, 8192)] if quick else list(product((2, 8, 24), (512, 8192, 50304)))
    rows = [
        {"arch_preset": preset, "batch_size": batch, "vocab_size": vocab, "parallelism": "none"}
        for preset, (batch, vocab) in product(presets, shapes)
    ]
    rows += [
        {"arch_preset": preset, "batch_size": 8, "vocab_size": vocab, "parallelism": parallelism}
        for preset, vocab, parallelism in product(
            presets, (8192,) if quick else (512, 50304), ("ddp", "zero1", "fsdp")
        )
    ]
    rows += [
        {**row, "optimizer": "muon"}
        for row in rows
        if row["batch_size"] == 8 and row["vocab_size"] == 512 and row["arch_preset"] == "gpt2"
    ]
    for mode in ("block", "selective"):
        rows.append({**rows[0], "batch_size": 24, "activation_checkpointing": mode})
    return rows


def measured(case: dict[str, Any]) -> tuple[int, int]:
    """Estimated and measured bytes of the worker with the highest measured value."""
    workers = WORKERS[case["parallelism"]]
    with TemporaryDirectory() as folder:
        flags = [f"--{key}={value}" for key, value in case.items()]
        if workers > 1:  # each worker has the batch of the row, twice
            flags.append(f"--gradient_accumulation_steps={2 * workers}")
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={workers}"]
        command = [
            *(sys.executable, *(start if workers > 1 else [])),
            *("-m", "scripts.memory", "--child", folder),
            *(*SIZES, *STEPS, *flags, f"--out_dir={folder}", "--run_name=run"),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
        if done.returncode:
            raise UserError(f"a run failed:\n{done.stdout}\n{done.stderr}")
        found = [json.loads(path.read_text("utf-8")) for path in Path(folder).glob("memory_*.json")]
    return max(own["expected"] for own in found), max(own["measured"] for own in found)


def child(folder: Path, argv: list[str]) -> None:
    """Run one worker, which writes its estimated and measured bytes to a file."""
    noted: dict[str, int] = {}
    new_placement, set_up = train.new_placement, train.set_up

    def noting_what_is_there(*args: Any) -> Any:
        noted["before"] = psutil.Process().memory_info().rss
        # the peak counts from here on
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return new_placement(*args)

    def noting_what_is_expected(*args: Any) -> Any:
        run = set_up(*args)
        share = share_of(run.settings.training, run.workers.size)
        noted["expected"] = run.memory.total + batch_bytes(share)
        return run

    train.new_placement, train.set_up = noting_what_is_there, noting_what_is_expected
    train.main(argv)
    status = Path("/proc/self/status").read_text("utf-8")
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    result = {"expected": noted["expected"], "measured": peak - noted["before"]}
    (folder / f"memory_{os.environ.get('RANK', '0')}.json").write_text(json.dumps(result))


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table with a row per run, printed as runs finish, and the range of the ratios."""
    keys = ("arch_preset", "vocab_size", "batch_size", "parallelism", "optimizer")
    keys += ("activation_checkpointing",)
    print("| preset | vocabulary | batch | parallelism | optimizer | checkpointing |", end="")
    print(" estimated | measured | |\n|---|---|---|---|---|---|---|---|---|")
    ratios = []
    for row in rows:
        expected, found = measured(row)
        ratios.append(expected / found)
        defaults = {"optimizer": "adamw", "activation_checkpointing": "none"}
        cells = [str((defaults | row)[key]) for key in keys]
        cells += [f"{expected / 1e6:.0f} MB", f"{found / 1e6:.0f} MB", f"{ratios[-1]:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    within = sum(0.85 <= ratio <= 1.15 for ratio in ratios)
    return (
        f"\nEstimated over measured: {min(ratios):.2f} to {max(ratios):.2f}, median "
        f"{statistics.median(ratios):.2f}; {within} of {len(ratios)} within 15 %."
    )


def main(argv: list[str]) -> None:
    """Print the table; or be one worker of a run."""
    if argv[:1] == ["--child"]:
        child(Path(argv[1]), argv[2:])
        return
    flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    flags.add_argument("--quick", action="store_true", help="a few rows")
    print(table(cases(flags.parse_args(argv).quick)))


if __name__ == "__main__":
    run_cli(main)
