"""Check that a known recipe still reaches its known loss: train the control, check the bar.

python scripts/baseline.py --cpu --seeds=1337,1338
python scripts/baseline.py

Trains config/baseline_shakespeare.py, or with --cpu config/baseline_shakespeare_cpu.py, once per
seed (of the weights and of the data order). Each best validation loss must be at most the bar, and
any two must differ by less than 1 % of their mean. Every run appends a row to metrics/baseline.csv.

Exit status: 0 passed, 1 a bar was missed, 2 a run failed.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from errors import UserError
from scripts.runs import CONFIG, FAILED, PASSED, PROJECT, run_script, train
from training.run_directory import make_run_directory

LARGEST_SPREAD = 0.01
"""Upper bound of the relative difference |a - b| / mean(a, b) between the losses of two seeds."""
METRICS = PROJECT / "metrics" / "baseline.csv"


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A recipe and the validation loss, in nats per character, that it must reach."""

    config: Path
    bar: float


GPU = Baseline(CONFIG / "baseline_shakespeare.py", bar=1.5435)
CPU = Baseline(CONFIG / "baseline_shakespeare_cpu.py", bar=1.92)


@dataclasses.dataclass(frozen=True)
class Result:
    """A row of the table: the results of a seed, and the environment.

    Attributes:
        finished: End time in UTC, ISO 8601.
        best_val_loss: Nats per character, on the whole validation split.
        tokens_per_second: Training throughput; the median of the log intervals.
    """

    finished: str
    config: str
    seed: int
    best_val_loss: float
    best_iter: int
    bar: float
    tokens_per_second: float
    peak_memory_bytes: int | None
    device: str
    threads: int
    python: str
    torch: str
    numpy: str
    cuda: str | None
    driver: str | None
    commit: str | None
    dirty: bool | None


def measure(baseline: Baseline, seed: int, out_dir: Path) -> Result:
    """Train a baseline with a seed.

    Raises:
        UserError: If the run did not complete, or no validation loss is finite.
    """
    folder = make_run_directory(f"{baseline.config.stem}-{seed}", out_dir)
    log = train([str(baseline.config), f"--seed={seed}", f"--data_seed={seed}"], folder)
    return result_of(log, baseline, seed)


def result_of(log: Mapping[str, Any], baseline: Baseline, seed: int) -> Result:
    """The row for the log of a run."""
    summary, machine = log["summary"], log["environment"]
    if summary["best_val_loss"] is None:
        raise UserError(f"seed {seed}: no validation loss is finite.")
    versions = ("device", "threads", "python", "torch", "numpy", "cuda", "driver")
    return Result(
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        config=baseline.config.stem,
        seed=seed,
        best_val_loss=summary["best_val_loss"],
        best_iter=summary["best_val_iter"],
        bar=baseline.bar,
        tokens_per_second=round(summary["median_tokens_per_second"]),
        peak_memory_bytes=summary["peak_memory_bytes"],
        commit=machine["commit"],
        dirty=machine["dirty"],
        **{key: machine[key] for key in versions},
    )


def append(result: Result, path: Path) -> None:
    """Append a row to the table, which starts with a header.

    Raises:
        UserError: If the existing table has other columns.
    """
    columns = [field.name for field in dataclasses.fields(Result)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8", newline="") as file:
        file.seek(0)
        found = next(csv.reader(file), None)
        if found not in (None, columns):
            raise UserError(
                f"{path} has the columns {', '.join(found)}, a row now has {', '.join(columns)}; "
                "move that file away to begin another."
            )
        writer = csv.writer(file, lineterminator="\n")
        if found is None:
            writer.writerow(columns)
        writer.writerow(dataclasses.astuple(result))


def spread(losses: Sequence[float]) -> float:
    """The largest |a - b| / mean(a, b) over all pairs, which is that of the lowest and highest."""
    lowest, highest = min(losses), max(losses)
    return (highest - lowest) / ((highest + lowest) / 2)


def misses(results: Sequence[Result]) -> list[str]:
    """A sentence for each requirement that is not met."""
    found = [
        f"seed {result.seed}: {result.best_val_loss:.4f} is above the bar of {result.bar}"
        for result in results
        if result.best_val_loss > result.bar
    ]
    difference = spread([result.best_val_loss for result in results])
    if difference >= LARGEST_SPREAD:
        found.append(f"seeds differ by {difference:.2%}, not by less than {LARGEST_SPREAD:.0%}")
    return found


def report(results: Sequence[Result]) -> str:
    """A line per seed, and their largest difference."""
    lines = [
        f"seed {result.seed}: best val loss {result.best_val_loss:.4f} at iteration "
        f"{result.best_iter} (bar {result.bar}), {result.tokens_per_second:,.0f} tokens/s"
        for result in results
    ]
    if len(results) > 1:
        lines.append(f"largest difference {spread([r.best_val_loss for r in results]):.2%}")
    return "\n".join(lines)


def seeds(text: str) -> list[int]:
    """Parse `1337,1338` for argparse; rejects duplicates."""
    numbers = [int(part) for part in text.split(",")]
    if len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"{text} lists a seed twice; list each once")
    return numbers


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--cpu", action="store_true", help="use the small CPU recipe")
    flags.add_argument("--seeds", type=seeds, default="1337,1338", help="default: %(default)s")
    flags.add_argument(
        "--out_dir", type=Path, default=Path("out/baseline"), help="default: %(default)s"
    )
    flags.add_argument(
        "--metrics", type=Path, default=METRICS, help="CSV file to append results to"
    )
    return flags


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    results = []
    for seed in args.seeds:
        results.append(measure(CPU if args.cpu else GPU, seed, args.out_dir))
        append(results[-1], args.metrics)
    missed = misses(results)
    print("\n".join([report(results), *(f"MISSED: {miss}" for miss in missed)]))
    return FAILED if missed else PASSED


if __name__ == "__main__":
    run_script(main)
