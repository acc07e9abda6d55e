"""The smoke test passes where a model learns its batch, and only there."""

from __future__ import annotations

import pytest
import torch

from data.batches import TrainingBatches
from data.dataset import Dataset
from scripts import smoke_test
from scripts.runs import FAILED, PASSED
from scripts.smoke_test import TOKENS, main, verdict, write_random_characters

SMALL = [
    *("--device=cpu", "--dtype=float32", "--n_layer=1", "--n_embd=64"),
    *("--max_iters=50", "--learning_rate=1e-2"),
]


def log_of(losses: dict[int, float | None]) -> dict:
    return {
        "training_iterations": [{"iter": i, "loss": loss} for i, loss in losses.items()],
        "summary": {
            "median_tokens_per_second": 12345.0,
            "peak_memory_bytes": 400_000_000,
            "wall_seconds": 7.25,
        },
    }


def test_every_step_is_the_same_batch_of_256_tokens(tmp_path):
    write_random_characters(tmp_path)
    tokens = Dataset.open(tmp_path, TOKENS).train
    batches = TrainingBatches(tokens, TOKENS, 1, 1, data_seed=1337)
    first, _ = batches.batch(0)
    assert first.numel() == TOKENS
    assert len(first.unique()) > 40
    for step in (1, 2, 77):
        assert torch.equal(batches.batch(step)[0], first)


def test_it_passes_at_the_first_loss_below_the_target():
    passed, sentence = verdict(log_of({10: 1.0, 20: 0.05, 30: 0.0499, 40: 0.01}))
    assert passed
    assert sentence == (
        "PASSED: loss 0.0499 at iteration 30; 12.35K tokens/s, peak memory 400.0 MB, 7.2 s"
    )


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ({10: 1.0, 20: 0.06, 30: 0.07}, "lowest loss 0.0600, not below 0.05 in 30 steps"),
        ({10: None, 20: None}, "lowest loss never finite, not below 0.05 in 20 steps"),
        ({}, "lowest loss never finite, not below 0.05 in 0 steps"),
    ],
)
def test_it_fails_where_no_loss_is_below_the_target(losses, told):
    passed, sentence = verdict(log_of(losses))
    assert not passed
    assert sentence.startswith(f"FAILED: {told}")


@pytest.mark.slow
def test_a_model_that_learns_its_batch_passes(capfd):
    assert main(SMALL) == PASSED
    lines = capfd.readouterr().out.splitlines()
    assert lines[-1].startswith("PASSED: loss 0.0")
    steps = [line for line in lines if line.startswith("step ") and "| loss " in line]
    assert len(steps) == 5  # one per 10 iterations


def test_a_model_that_does_not_learn_fails(monkeypatch, capsys):
    monkeypatch.setattr(smoke_test, "train", lambda arguments, folder: log_of({10: 3.9}))
    assert main([]) == FAILED
    assert "FAILED: lowest loss 3.9000" in capsys.readouterr().out


def test_help_trains_nothing(monkeypatch, capsys):
    monkeypatch.delattr(smoke_test, "train")
    assert main(["--help"]) == PASSED
    assert "Exit status:" in capsys.readouterr().out


@pytest.mark.slow
def test_as_it_ships_it_passes_within_a_minute(capfd):
    assert main([]) == PASSED
    seconds = float(capfd.readouterr().out.splitlines()[-1].split()[-2])
    assert seconds < 60
