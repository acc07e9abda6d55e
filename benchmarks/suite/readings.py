"""Read numbers from the output of the suite's commands: run.json, pytest's XML, and the JSON of
benchmarks/throughput.py."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.suite.entry import NothingToRun, Numbers
from training_logger import RUN_FILE


def run_log(run: Path) -> dict[str, Any]:
    """The run.json of a run directory.

    Raises:
        ValueError: if the run did not complete.
    """
    log = json.loads((run / RUN_FILE).read_text(encoding="utf-8"))
    if log["status"] != "completed":
        raise ValueError(f"{run.name} was {log['status']}")
    return log


def losses(run: Path) -> dict[int, float]:
    """The training loss of each logged step."""
    return {record["iter"]: record["loss"] for record in run_log(run)["training_iterations"]}


def largest_difference(first: Path, second: Path) -> float:
    """The largest difference between the training losses of two runs at the same step, in nats per
    token.

    Raises:
        ValueError: If they logged different steps, or a loss is not finite.
    """
    one, other = losses(first), losses(second)
    if one.keys() != other.keys() or not one:
        raise ValueError(f"{first.name} logged {len(one)} steps, {second.name} {len(other)}")
    if None in (*one.values(), *other.values()):
        raise ValueError(f"a loss of {first.name} or {second.name} is not finite")
    return max(abs(loss - other[step]) for step, loss in one.items())


def differences(reference: Path, others: Mapping[str, Path]) -> Numbers:
    """The differences between the losses of runs and those of a reference.

    Returns:
        first_loss, last_loss: The losses of the reference, in nats per token.
        difference or difference_NAME: The largest difference for each of `others`.
    """
    of_reference = list(losses(reference).values())
    found: Numbers = {"first_loss": of_reference[0], "last_loss": of_reference[-1]}
    for name, run in others.items():
        key = f"difference_{name}" if len(others) > 1 else "difference"
        found[key] = largest_difference(reference, run)
    return found


def best_loss(run: Path) -> Numbers:
    """The best validation loss of a run, its speed, and its duration."""
    summary = run_log(run)["summary"]
    keys = ("best_val_loss", "median_tokens_per_second", "wall_seconds", "peak_memory_bytes")
    return {key: summary[key] for key in keys}


def together(alone: Path, at_once: Sequence[Path]) -> Numbers:
    """Tokens per second of one run alone, and the sum over concurrent runs; medians of each run."""
    one, *several = (
        run_log(run)["summary"]["median_tokens_per_second"] for run in (alone, *at_once)
    )
    return {
        "runs": len(several),
        "tokens_per_second_alone": one,
        "tokens_per_second_in_sum": sum(several),
        "ratio": sum(several) / one,
    }


def speed(results: Path) -> Numbers:
    """Our tokens per second and MFU, from the JSON of benchmarks/throughput.py."""
    ours = _rows(results)[0]
    keys = ("tokens_per_second", "lowest", "highest", "mfu_percent")
    return {key: ours[key] for key in keys}


def against_nanogpt(results: Path) -> Numbers:
    """The ratio of our tokens per second to those of nanoGPT's fastest setting."""
    ours, *theirs = (own["tokens_per_second"] for own in _rows(results))
    return {
        "tokens_per_second": ours,
        "tokens_per_second_of_nanogpt": max(theirs),
        "ratio": ours / max(theirs),
    }


def _rows(results: Path) -> list[dict[str, Any]]:
    return json.loads(results.read_text(encoding="utf-8"))["results"]


def test_counts(results: Path, device: str) -> Numbers:
    """How many tests passed and were skipped, from pytest's XML.

    Raises:
        NothingToRun: If all tests need a CUDA device, and the device is another.
    """
    suite = ElementTree.parse(results).getroot().find("testsuite")
    if suite is None:
        raise ValueError(f"{results} has no testsuite")
    count, skipped, *bad = (
        int(suite.get(key, 0)) for key in ("tests", "skipped", "failures", "errors")
    )
    passed = count - skipped - sum(bad)
    if device != "cuda" and not passed:
        raise NothingToRun(f"{skipped} tests, all of which need a CUDA device")
    return {"tests_passed": passed, "tests_skipped": skipped}
