"""The cost of the presets at full size, against torch's counter and the known figure."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model_builder import GPT
from model_config import ModelArchitectureConfig
from model_presets import PRESETS
from tests.parametrized import one_in
from tests.tiny import tiny_file


def build_without_memory(name: str, **keys) -> GPT:
    with torch.device("meta"):
        return GPT(ModelArchitectureConfig.from_preset(name, attention_backend="manual", **keys))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_check_figure(name):
    """12L/768, V 50304, T 1024; 6 x matmul weights + 12 L C T, computed by hand."""
    model = build_without_memory(name)
    weights = 12 * 12 * 768**2 + 768 * 50304
    assert 6 * weights + 12 * 12 * 768 * 1024 == 854_654_976
    assert model.flops_per_token(1024) == 854_654_976
    assert model.flops_per_token(1024, causal=True) == 798_087_168
    assert model.flops_per_token() == 854_654_976


@pytest.mark.parametrize(
    "name", one_in(2, [name for name in PRESETS if not tiny_file(name).exists()])
)
@pytest.mark.parametrize("length", [1, 256, pytest.param(1024, marks=pytest.mark.slow)])
def test_presets_equal_the_counter(name, length):
    model = build_without_memory(name)
    idx = torch.zeros(2, length, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(idx, idx)[1].backward()
    assert counter.get_total_flops() == model.flops_per_token(length) * idx.numel()


def test_window_caps_both_conventions():
    model = build_without_memory("llama", sliding_window=256)
    full = build_without_memory("llama")
    scores = 12 * 12 * 768  # FLOPs per token and attended position, all layers
    assert full.flops_per_token(1024) - model.flops_per_token(1024) == scores * (1024 - 256)
    pairs = 256 * 257 // 2 + 768 * 256
    causal = model.flops_per_token(1024, causal=True)
    matrices = full.flops_per_token(1024) - scores * 1024
    assert causal == pytest.approx(matrices + scores * pairs / 1024, rel=1e-12)
    assert model.flops_per_token(200) == full.flops_per_token(200)


def test_parameters_in_closed_form():
    C, V, T, L = 768, 50304, 1024, 12
    gpt2 = V * C + T * C + L * (12 * C**2 + 13 * C) + 2 * C
    llama = 2 * V * C + L * (4 * C**2 + 3 * C * 2048 + 2 * C) + C
    assert build_without_memory("gpt2").num_parameters() == gpt2 == 124_475_904
    assert build_without_memory("llama").num_parameters() == llama == 162_220_800
    assert build_without_memory("gpt2").num_parameters(embeddings=False) == gpt2 - (V + T) * C
    assert build_without_memory("llama").num_parameters(embeddings=False) == llama - V * C


def test_attention_ffn_ratio():
    """(4 C^2 + 2 T C) / 8 C^2 of multiply-adds."""
    expected = (4 * 768**2 + 2 * 1024 * 768) / (8 * 768**2)
    for name in ("gpt2", "llama"):
        ratio = build_without_memory(name).attention_ffn_ratio(1024)
        assert ratio == pytest.approx(expected, rel=1e-12)


def test_attention_ffn_ratio_without_an_ffn():
    assert build_without_memory("llama", ffn_type="none").attention_ffn_ratio(1024) is None


def test_attention_ffn_ratio_counts_shared_experts_once():
    """They are a feed-forward network within a feed-forward network: router, 2 + 1 networks."""
    C, F, T = 768, 2048, 1024
    moe = build_without_memory("llama", ffn_type="moe", n_shared_experts=1)
    expected = (4 * C**2 + 2 * T * C) / (8 * C + 3 * 3 * C * F)
    assert moe.attention_ffn_ratio(T) == pytest.approx(expected, rel=1e-12)
