"""Measure the time to reach the loss of nanoGPT's CPU recipe: nanoGPT's, and this project's.

python benchmarks/time_to_loss.py --against=../nanoGPT

Runs two commands in turn, each in a separate process, including imports and final validation:
nanoGPT's train.py with the flags that its README gives for a CPU, and `train.py` with
config/run_shakespeare_fast_cpu.py, with another seed in each repetition. Both train on the
characters of Tiny Shakespeare, which must be prepared in both checkouts (data/shakespeare_char).

nanoGPT estimates its loss from 20 batches. This script reports the loss of its checkpoint on the
whole validation split, with the windows of this project.

Both use all cores, so times are not meaningful while other processes use the machine; the load
before each run and its CPU time are reported, too.

Exit status: 0 the mean loss of ours is no higher than nanoGPT's, 1 it is, 2 not measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from data.dataset import Dataset
from data.dataset_lookup import DATA_FOLDER
from data.validation import ValidationWindows
from errors import UserError
from interop import nanogpt
from recipe.objectives import validation_loss
from scripts.runs import CONFIG, FAILED, PASSED, PROJECT, run_script
from training.hardware import device_name
from training_logger import RUN_FILE

NANOGPT = (
    *("train.py", "config/train_shakespeare_char.py", "--device=cpu", "--compile=False"),
    *("--eval_iters=20", "--log_interval=1", "--block_size=64", "--batch_size=12"),
    *("--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000", "--lr_decay_iters=2000"),
    "--dropout=0.0",
)
"""The command that nanoGPT's README gives for a CPU."""

RECIPE = CONFIG / "run_shakespeare_fast_cpu.py"

DATASET = "shakespeare_char"

FIRST_SEED = 1337

WINDOWS_AT_A_TIME = 128


@dataclasses.dataclass(frozen=True)
class Timed:
    """A finished command.

    Attributes:
        seconds: Wall time.
        cpu_seconds: CPU time of all its threads.
        load: The machine's one-minute load average before it started.
        val_loss: Loss on the whole validation split, in nats per character.
    """

    name: str
    seconds: float
    cpu_seconds: float
    load: float
    val_loss: float


def seconds_of(command: Sequence[str], folder: Path) -> tuple[float, float]:
    """Wall and CPU seconds of a Python command, run in a folder. Raises UserError if it fails."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, encoding="utf-8", check=False
    )
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed no error"])[-1]
        raise UserError(f"{' '.join(command)} exited with status {done.returncode}: {last}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def of_nanogpt(checkout: Path, scratch: Path) -> Timed:
    """A run of nanoGPT, whose seed is fixed."""
    load = os.getloadavg()[0]
    out = scratch / "nanogpt"
    seconds, cpu = seconds_of([*NANOGPT, f"--out_dir={out}"], checkout)
    return Timed("nanoGPT", seconds, cpu, load, full_loss(out / "ckpt.pt"))


def of_ours(seed: int, scratch: Path) -> Timed:
    """A run of the recipe."""
    load = os.getloadavg()[0]
    seeds = (f"--seed={seed}", f"--data_seed={seed}")
    where = (f"--out_dir={scratch}", f"--run_name=seed-{seed}")
    seconds, cpu = seconds_of(["train.py", str(RECIPE), *seeds, *where], PROJECT)
    log = json.loads((scratch / f"seed-{seed}" / RUN_FILE).read_text(encoding="utf-8"))
    return Timed("ours", seconds, cpu, load, log["summary"]["final_val_loss"])


@torch.no_grad()
def full_loss(checkpoint: Path) -> float:
    """Loss of a nanoGPT checkpoint on the whole validation split, in nats per character."""
    model = nanogpt.load(checkpoint)
    length = model.config.block_size
    dataset = Dataset.open(DATA_FOLDER / DATASET, length)
    windows = ValidationWindows(dataset.val, dataset.token_bytes, length, WINDOWS_AT_A_TIME)
    losses = [
        loss
        for x, y in windows
        for loss in model(x, y, objective=validation_loss).terms["cross_entropy"].tolist()
    ]
    return math.fsum(losses) / len(losses)


def summary(runs: Sequence[Timed]) -> dict[str, float]:
    """Median seconds and mean loss of the runs of one name."""
    return {
        "seconds": median(run.seconds for run in runs),
        "cpu_seconds": median(run.cpu_seconds for run in runs),
        "val_loss": fmean(run.val_loss for run in runs),
    }


def line(run: Timed) -> str:
    return (
        f"{run.name:8}{run.seconds:8.1f} s {run.cpu_seconds:8.1f} CPU-s   "
        f"loss {run.val_loss:.4f}   load before {run.load:.1f}"
    )


def report(nanogpts: Sequence[Timed], ours: Sequence[Timed]) -> str:
    """The comparison in one line."""
    theirs, own = summary(nanogpts), summary(ours)
    return (
        f"nanoGPT: {theirs['val_loss']:.4f} in {theirs['seconds']:.1f} s; ours: "
        f"{own['val_loss']:.4f} in {own['seconds']:.1f} s, "
        f"{theirs['seconds'] / own['seconds']:.1f} times as fast "
        f"({theirs['cpu_seconds'] / own['cpu_seconds']:.1f} times by CPU time)"
    )


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument(
        "--against", type=Path, required=True, metavar="FOLDER", help="a checkout of nanoGPT"
    )
    flags.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    flags.add_argument("--out", type=Path, metavar="FILE", help="also write it as JSON")
    return flags


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    if not (args.against / "data" / DATASET / "train.bin").is_file():
        raise UserError(
            f"--against={args.against} has no data/{DATASET}/train.bin; name a checkout of "
            f"nanoGPT, and run its data/{DATASET}/prepare.py."
        )
    nanogpts, ours = [], []
    for repetition in range(args.repeats):
        with tempfile.TemporaryDirectory() as scratch:
            nanogpts.append(of_nanogpt(args.against, Path(scratch)))
            print(line(nanogpts[-1]), flush=True)
            ours.append(of_ours(FIRST_SEED + repetition, Path(scratch)))
            print(line(ours[-1]), flush=True)
    print(f"{device_name(torch.device('cpu'))}, {os.cpu_count()} CPUs, torch {torch.__version__}")
    print(report(nanogpts, ours))
    if args.out:
        runs = [dataclasses.asdict(run) for run in (*nanogpts, *ours)]
        args.out.write_text(json.dumps(runs, indent=1), encoding="utf-8")
    reached = summary(ours)["val_loss"] <= summary(nanogpts)["val_loss"]
    return PASSED if reached else FAILED


if __name__ == "__main__":
    run_script(main)
