"""A comparison with something of everything a page shows, of runs that were never trained."""

from __future__ import annotations

import dataclasses

from comparison.findings import Findings, compare
from tests.simulated import simulated_arm, simulated_run

HOSTILE = "<script>alert(1)</script>\"'&--><img src=x onerror=alert(2)>"
"""What a name or a value must never become part of the page as."""


def study() -> Findings:
    """A factorial of two keys in which one change helps and the other hurts, then two arms apart:
    one on other data, one with a hostile name of which a run diverged."""
    cells = (
        ("plain", "layernorm", "standard", [3.001, 3.012, 2.995, 3.006]),
        ("rms", "rmsnorm", "standard", [2.903, 2.911, 2.894, 2.909]),
        ("swiglu", "layernorm", "swiglu", [3.105, 3.112, 3.093, 3.101]),
        ("both", "rmsnorm", "swiglu", [3.002, 3.011, 2.997, 3.004]),
    )
    runs = [
        run
        for day, (arm, norm, ffn, losses) in enumerate(cells, start=1)
        for run in simulated_arm(
            arm,
            losses,
            model={"normalization": norm, "ffn_type": ffn},
            start=f"2025-01-0{day}",
            flops_per_token=1_000_000 + 30_000 * day,
            seconds_per_step=0.1 + 0.001 * day,
        )
    ]
    runs += simulated_arm("apart", [2.5, 2.6], start="2025-01-05", data={"fingerprint": "c0de"})
    failed = simulated_run("failed", curve=[(0, 4.0), (100, None)], start="2025-01-06")
    runs.append(
        dataclasses.replace(
            failed,
            run_name=HOSTILE,
            config={**failed.config, "ffn_type": HOSTILE, "learning_rate": 1.0},
            architecture={**failed.architecture, "name": HOSTILE},
            environment={**failed.environment, "torch": HOSTILE},
        )
    )
    return compare(runs)
