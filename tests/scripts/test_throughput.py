"""The benchmark of training steps: what it measures, and what it prints of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import throughput
from scripts.runs import PASSED

TINY = (
    *("config/arch_gpt2.py", "--n_layer=1", "--n_head=2", "--n_embd=8", "--vocab_size=300"),
    *("--sequence_length=16", "--batch_size=2", "--gradient_accumulation_steps=2"),
    *("--device=cpu", "--dtype=float32", "--compile=False"),
)

A_MODEL = """
import dataclasses

import torch
from torch import nn


@dataclasses.dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool


class GPT(nn.Module):
    steps = 0

    def __init__(self, config):
        super().__init__()
        self.table = nn.Embedding(config.vocab_size, config.n_embd)

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        print("it prints something")
        return torch.optim.AdamW(self.parameters(), learning_rate, betas)

    def forward(self, idx, targets):
        GPT.steps += 1
        logits = self.table(idx) @ self.table.weight.T
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for nanoGPT, which it is measured against; nothing is compiled."""
    (tmp_path / "model.py").write_text(A_MODEL)
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    return tmp_path


def test_contenders_are_measured_in_turn(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    argv = [
        *TINY,
        *("--variant", "", "--variant", "optimizer=lion"),
        *(f"--against={checkout}", "--rounds=3", "--steps=1", f"--out={out}"),
    ]
    assert throughput.main(argv) == PASSED
    said = capsys.readouterr().out
    assert "it prints something" not in said
    results = json.loads(out.read_text())["results"]
    names = ["as given", "optimizer=lion", *throughput.NANOGPT]
    assert [own["name"] for own in results] == names
    for own in results:
        assert own["lowest"] <= own["tokens_per_second"] <= own["highest"]
        assert own["name"] in said
    steps = 3 * (throughput.WARM_UP + 3)
    assert sys.modules["nanogpt_model"].GPT.steps == 2 * steps  # micro-batches


def test_a_step_is_one_of_training(tmp_path: Path) -> None:
    throughput.write_data(tmp_path / "data", 16)
    run = throughput.set_up(TINY, "", tmp_path)
    before = run.network.embedding.weight.detach().clone()
    contender = throughput.ours(run, "ours")
    contender.step()
    assert not torch.equal(run.network.embedding.weight, before)
    assert contender.tokens == 2 * 2 * 16


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no model.py; name a checkout of nanoGPT"):
        throughput.load_nanogpt(tmp_path)
