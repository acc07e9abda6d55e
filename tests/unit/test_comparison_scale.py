"""A thousand runs of a thousand log lines: the table within 10 seconds and 1 GB."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import compare_architectures
from tests.simulated import simulated_run
from training_logger import SCHEMA_VERSION

ROOT = Path(compare_architectures.__file__).parent
RUNS, LINES, SEEDS = 1000, 1000, 5
LIMIT_SECONDS, LIMIT_BYTES = 10, 1_000_000_000

# VmHWM counts this program alone; ru_maxrss of children would also count other tests' processes.
COMPARE_AND_TELL_PEAK = """
import runpy
try:
    runpy.run_path("compare_architectures.py", run_name="__main__")
finally:
    print(open("/proc/self/status").read())
"""


def log_lines(run) -> list[dict]:
    """Training records as long as real ones."""
    return [
        {
            "iter": step,
            "loss": 3.123456789012,
            "lr": 0.000123456789,
            "time_ms": 100.123456789,
            "tokens_seen": step * 1000,
            "tokens_per_second": 12345.678901234,
            "mfu": {
                "mfu_percent": 45.123456789,
                "achieved_tflops": 0.0512345678,
                "peak_tflops": 1.2345678,
                "flops_per_token": run.architecture["flops_per_token"],
                "architecture": run.architecture["name"],
            },
            "memory": {"resident": 3_210_000_000, "peak": 3_210_000_000},
            "gradients": {"norm": 1.0123456789, "mean": 1.234567e-7, "std": 0.0001234567},
            "bad_steps": 0,
        }
        for step in range(1, LINES + 1)
    ]


def write_runs(out: Path) -> None:
    """RUNS logs, laid out as training_logger does, of RUNS / SEEDS arms."""
    for index in range(RUNS):
        arm, seed = divmod(index, SEEDS)
        curve = [(step, 4 - step / 100 + (7 * index % 11) / 1000) for step in range(0, 101, 2)]
        run = simulated_run(f"arm{arm:03}", seed, model={"n_layer": arm}, curve=curve)
        document = {
            "schema_version": SCHEMA_VERSION,
            "run_name": run.run_name,
            "status": run.status,
            "start_time": run.start_time,
            "config": run.config,
            "architecture": run.architecture,
            "environment": run.environment,
            "data": run.data,
            "training_iterations": log_lines(run),
            "eval_steps": run.eval_steps,
            "checkpoints": [],
            "summary": run.summary,
        }
        folder = out / run.run_name
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps(document, indent=1) + "\n")


@pytest.mark.slow
def test_a_thousand_runs_are_compared_in_10_seconds_and_1_gb():
    with tempfile.TemporaryDirectory() as out:
        write_runs(Path(out))
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", COMPARE_AND_TELL_PEAK, out, "--ratio"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - began
    assert (done.returncode, done.stderr) == (0, "")
    peak = 1024 * int(re.search(r"VmHWM: *(\d+) kB", done.stdout.replace("\t", " "))[1])
    print(f"{seconds:.1f} s, {peak / 1e9:.2f} GB")
    assert done.stdout.count("arch-arm") == RUNS / SEEDS
    assert seconds < LIMIT_SECONDS
    assert peak < LIMIT_BYTES
