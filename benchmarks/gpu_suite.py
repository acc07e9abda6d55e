"""Every check that needs a GPU, and every benchmark, on one GPU in under 9 minutes.

benchmarks/gpu_suite.sh --against=../nanoGPT
benchmarks/gpu_suite.sh --tiny
benchmarks/gpu_suite.sh --table

The first writes benchmarks/results/<device>-<date>.json and the tables of docs/performance.md. The
second runs the same list on any device, with models that a CPU trains in seconds: it only tests the
suite, so it applies no goals of speed or loss and does not change the document. The third only
writes the document, from existing results.

An entry that fails, times out or does not fit into the remaining time is recorded as such, and the
others still run.

Exit status: 0 all passed or were skipped, 1 one failed, timed out or was not run, 2 an error.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.suite.entries import all_entries
from benchmarks.suite.entry import PASSED as ENTRY_PASSED
from benchmarks.suite.entry import SKIPPED, Outcome, Place
from benchmarks.suite.execution import run_entries
from benchmarks.suite.results import (
    DOCUMENT,
    RESULTS,
    read_results,
    results_of,
    update_document,
    write_results,
    written,
)
from data.dataset_files import SPLITS
from data.dataset_writer import Document, write_dataset
from data.tokenizers import ByteTokenizer
from errors import UserError
from scripts.runs import FAILED, PASSED, PROJECT, run_script
from training.hardware import environment, resolve_device
from training.provenance import output_of

TINY_RESULTS = PROJECT / "out" / "gpu_suite"


def write_documents(folder: Path) -> None:
    """Write a dataset of this project's documents as bytes, a text that is always available."""
    text = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted((PROJECT / "docs").glob("*.md"))
    )
    write_dataset(
        [Document(split, [text]) for split in SPLITS],
        ByteTokenizer(),
        folder,
        name="documents",
        source="docs/*.md, by benchmarks/gpu_suite.py",
        separate=False,
        workers=1,
    )


def run_suite(device: torch.device, args: argparse.Namespace) -> list[Outcome]:
    """Run all entries, and print a line when each ends."""
    with tempfile.TemporaryDirectory(prefix="nanoarch-gpu-suite-") as temporary:
        folder = Path(temporary)
        write_documents(folder / "data")
        place = Place(folder, folder / "data", device.type, args.tiny, args.against)
        entries, outcomes = all_entries(place), []
        for outcome in run_entries(entries, folder, 60 * args.minutes, tiny=args.tiny):
            print(line(outcome), flush=True)
            outcomes.append(outcome)
    return outcomes


def line(outcome: Outcome) -> str:
    """An outcome as a line to print."""
    numbers = (f"{name} {written(value)}" for name, value in outcome.numbers.items())
    entry = outcome.entry
    details = ", ".join(part for part in (*numbers, outcome.reason, entry.note) if part)
    text = f"{outcome.status:<10}{outcome.seconds:6.1f} s  {entry.name}: {details}"
    return f"{text}\n{outcome.output}" if outcome.output else text


def conclusion(outcomes: Sequence[Outcome]) -> tuple[int, str]:
    """The exit status, and the number of entries with each outcome."""
    counts = Counter(outcome.status for outcome in outcomes)
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    return (PASSED if counts.keys() <= {ENTRY_PASSED, SKIPPED} else FAILED), said


def checked_device(args: argparse.Namespace) -> torch.device:
    """The device to run on.

    Raises:
        UserError: If the full size is requested without a GPU, or `against` is not nanoGPT.
    """
    if args.against and not (args.against / "model.py").is_file():
        raise UserError(f"--against={args.against} has no model.py; name a checkout of nanoGPT.")
    device = resolve_device("auto")
    if device.type != "cuda" and not args.tiny:
        raise UserError("there is no CUDA device; --tiny runs the suite on any device.")
    return device


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        prog="benchmarks/gpu_suite.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = flags.add_mutually_exclusive_group()
    what.add_argument("--tiny", action="store_true", help="tiny sizes, on any device")
    what.add_argument("--table", action="store_true", help="run nothing: write docs/performance.md")
    flags.add_argument("--minutes", type=float, default=9.0, help="in all (default: %(default)g)")
    flags.add_argument("--against", type=Path, metavar="FOLDER", help="a checkout of nanoGPT")
    flags.add_argument(
        "--results",
        type=Path,
        metavar="FOLDER",
        help="for the results file (default: benchmarks/results; with --tiny: out/gpu_suite)",
    )
    return flags


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    folder = args.results or (TINY_RESULTS if args.tiny else RESULTS)
    if args.table:
        update_document(DOCUMENT, read_results(folder))
        return PASSED
    if args.against:
        args.against = args.against.resolve()
    device = checked_device(args)
    machine = environment(device)
    outcomes = run_suite(device, args)
    commit = args.against and output_of("git", "-C", str(args.against), "rev-parse", "HEAD")
    results = results_of(
        outcomes,
        machine,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        command=argv,
        tiny=args.tiny,
        nanogpt_commit=commit or None,
    )
    print(f"results: {write_results(results, folder)}")
    if not args.tiny:
        update_document(DOCUMENT, read_results(folder))
    status, said = conclusion(outcomes)
    print(said)
    return status


if __name__ == "__main__":
    run_script(main)
