"""How long a run will take, where a micro-batch takes a second for each of its sequences."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiment import timing
from experiment.timing import seconds_of_run
from tests.tiny_sweep import tiny_arms


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
@pytest.mark.parametrize(("interval", "validations"), [(5, 3), (0, 1)])
def test_processes_share_batches_and_validation(
    tiny_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    interval: int,
    validations: int,
) -> None:
    monkeypatch.setattr(timing, "_seconds_of_micro_batch", lambda settings, sequences: sequences)
    flags = {
        **{"gradient_accumulation_steps": "2", "batch_size": "8", "sequence_length": "16"},
        **{"eval_interval": str(interval), "eval_tokens": "320"},
    }
    arm, _ = tiny_arms(tiny_dataset, vary={"normalization": ("rmsnorm",)}, flags=flags)
    trained, validated = 10 * 2 * 8, validations * 320 / 16 / 3  # at a third of the cost
    seconds = seconds_of_run(arm.settings, 10, 10**9, processes)
    assert seconds == pytest.approx((trained + validated) / processes)
