"""The numbers in docs/deviations.md are what the code makes them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from model_builder import GPT
from model_config import ModelArchitectureConfig
from scripts.baseline import CPU, GPU
from training.hardware import peak_flops

PROJECT = Path(__file__).resolve().parents[2]
TEXT = " ".join((PROJECT / "docs" / "deviations.md").read_text(encoding="utf-8").split())


def model(preset: str) -> GPT:
    with torch.device("meta"):
        return GPT(ModelArchitectureConfig.from_preset(preset))


@pytest.mark.parametrize("preset", ["gpt2", "llama"])
def test_the_cost_of_a_token(preset):
    flops = model(preset).flops_per_token(1024)
    assert f"{flops:,} FLOPs per token" in TEXT
    assert f"({flops / 1e9:.2f} GFLOPs)" in TEXT
    causal = model(preset).flops_per_token(1024, causal=True)
    assert f"or {causal:,} without masked attention" in TEXT
    assert f"more than {28e9 / flops // 1:.0f} times too high" in TEXT


def test_the_widths_of_the_networks():
    networks = [model(preset).blocks[0].ffn for preset in ("llama", "gpt2")]
    llama, gpt2 = (network.down.in_features for network in networks)
    assert f"At width 768 that is {llama:,} against {gpt2:,}" in TEXT
    for network in networks:
        matrices = sum(p.numel() for p in network.parameters() if p.ndim == 2)
        assert f"{matrices:,} weights per layer in both" in TEXT


def test_the_peaks(monkeypatch):
    for name, told in (("NVIDIA A100-SXM4-80GB", "an A100"), ("NVIDIA H100 80GB HBM3", "an H100")):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None, name=name: name)
        peak = peak_flops(torch.device("cuda"), torch.bfloat16) / 1e12
        assert re.search(rf"\b{peak:.0f}( TFLOP/s in bfloat16)? for {told}", TEXT)


@pytest.mark.parametrize("recipe", [CPU, GPU])
def test_the_bars(recipe):
    name = recipe.config.relative_to(PROJECT).as_posix()
    assert f"| `{name}` | {recipe.bar}" in TEXT
