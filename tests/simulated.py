"""Runs that were never trained: what their logs would say, with losses of one's choosing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from comparison.runs import LoggedRun

TOKENS_PER_STEP = 1000
FLOPS_PER_TOKEN = 1_000_000
MODEL = {"normalization": "layernorm", "ffn_type": "standard", "bias": True}
TRAINING = {"learning_rate": 1e-3, "max_iters": 100, "warmup_iters": 5, "batch_size": 4}
DATA = {
    "dataset": "tiny",
    "fingerprint": "f00d",
    "tokenizer": "bytes",
    "val_tokens": 100,
    "val_fingerprint": "beef",
}


def decaying(final: float, steps: int = 100, points: int = 5) -> list[tuple[int, float]]:
    """(step, loss) of a curve that falls by 1 from its first to its last evaluation."""
    steps_of = [round(steps * i / (points - 1)) for i in range(points)]
    return [(step, final + (1 - step / steps)) for step in steps_of]


def simulated_run(
    arm: str = "plain",
    seed: int = 1,
    loss: float | None = 3.0,
    *,
    model: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    curve: Sequence[tuple[int, float | None]] | None = None,
    flops_per_token: int = FLOPS_PER_TOKEN,
    seconds_per_step: float = 0.1,
    start: str = "2025-01-01",
    status: str = "completed",
    device: str = "a CPU",
    data: dict[str, Any] | None = None,
    summary: dict[str, Any] | None = None,
) -> LoggedRun:
    """A run of an architecture called `arm`; its curve falls to `loss` where none is given."""
    curve = decaying(loss) if curve is None else curve
    return LoggedRun(
        path=Path("out") / f"{arm}-{seed}" / "run.json",
        run_name=f"{arm}-{seed}",
        status=status,
        start_time=f"{start}T{seed:02}",
        config={**MODEL, **TRAINING, "seed": seed, "data_seed": seed}
        | (model or {})
        | (training or {}),
        architecture={
            "name": f"arch-{arm}",
            "parameters": 1_000_000,
            "flops_per_token": flops_per_token,
            # a name alone makes no other architecture
            "attention_ffn_ratio": 0.5 + 1e-9 * int.from_bytes(arm.encode()[-3:]),
        },
        environment={"device": device, "dtype": "float32", "threads": 1, "source_sha256": "c0de"},
        other_load=0.0,
        data=DATA | (data or {}),
        eval_steps=[
            {
                "iter": step,
                "val_loss": value,
                "val_bits_per_byte": value and 1.4427 * value,
                "tokens_seen": step * TOKENS_PER_STEP,
                "flops": step * TOKENS_PER_STEP * flops_per_token,
                "seconds": step * seconds_per_step,
            }
            for step, value in curve
        ],
        summary={
            "final_val_bits_per_byte": curve[-1][1] and 1.4427 * curve[-1][1],
            "median_tokens_per_second": TOKENS_PER_STEP / seconds_per_step,
            "median_mfu_percent": 40.0,
            "peak_memory_bytes": 1_000_000_000,
            "bad_steps": 0,
        }
        | (summary or {}),
    )


def timed_run(
    arm: str, seed: int, loss: float, steps: int, *, seconds: float = 60.0, **settings: Any
) -> LoggedRun:
    """A run of a minute at most that did `steps` steps in `seconds`."""
    training = {"max_iters": 10_000, "max_minutes": 1.0, **settings.pop("training", {})}
    return simulated_run(
        *(arm, seed),
        curve=decaying(loss, steps),
        seconds_per_step=seconds / steps,
        training=training,
        **settings,
    )


def simulated_arm(arm: str, losses: Iterable[float], **settings: Any) -> list[LoggedRun]:
    """A run for each loss, with seeds 1, 2, ..."""
    return [simulated_run(arm, seed, loss, **settings) for seed, loss in enumerate(losses, start=1)]
