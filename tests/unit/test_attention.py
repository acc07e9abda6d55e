"""Attention: windows, shared key heads, the manual reference's weights, and refusals."""

from __future__ import annotations

import math

import pytest
import torch

from components.attention import attended_pairs
from components.attention_backends import (
    ATTENTION_BACKENDS,
    AttentionNeeds,
    attention_needs,
    visible,
    window_of,
)
from errors import ConfigError
from model_config import ModelArchitectureConfig
from tests.tiny import ROPE, SIZES, context, tiny_config, tiny_layer, tiny_model, tokens


def qkv(heads: int = 4, kv_heads: int = 2, length: int = 7, dim: int = 8):
    torch.manual_seed(0)
    return (
        torch.randn(2, heads, length, dim),
        torch.randn(2, kv_heads, length, dim),
        torch.randn(2, kv_heads, length, dim),
    )


def test_manual_attention_by_hand():
    """Every output as a sum over the positions that a query attends to."""
    q, k, v = qkv()
    bias = torch.randn(4, 7, 7)
    backend = ATTENTION_BACKENDS["manual"](AttentionNeeds(window=3, softcap=2.0, bias=True))
    out = backend(q, k, v, bias)
    for b in range(2):
        for h in range(4):
            for t in range(7):
                seen = range(max(0, t - 2), t + 1)
                scores = [
                    2 * math.tanh((q[b, h, t] @ k[b, h // 2, s]).item() / math.sqrt(8) / 2)
                    + bias[h, t, s].item()
                    for s in seen
                ]
                weights = torch.tensor(scores).softmax(0)
                expected = sum(w * v[b, h // 2, s] for w, s in zip(weights, seen, strict=True))
                assert torch.allclose(out[b, h, t], expected, atol=1e-5)


def test_manual_weights_are_zero_above_the_diagonal_and_sum_to_one():
    q, k, _ = qkv()
    weights = ATTENTION_BACKENDS["manual"](AttentionNeeds()).weights(q, k)
    assert (weights.triu(1) == 0).all()
    assert torch.allclose(weights.sum(-1), torch.ones(2, 4, 7), atol=1e-6)


def test_visible_positions():
    assert visible(2, 5, 3, torch.device("cpu")).tolist() == [
        [False, True, True, True, False],
        [False, False, True, True, True],
    ]


@pytest.mark.parametrize("window", [None, 1, 3, 9])
def test_attended_pairs_are_those_visible(window):
    seen = visible(7, 7, window, torch.device("cpu"))
    assert attended_pairs(7, window, causal=True) == seen.sum().item()
    assert attended_pairs(7, window, causal=False) == 7 * min(7, window or 7)


def test_a_window_hides_what_lies_before_it():
    """In one layer, token t attends to t - window + 1 but not to the token before."""
    model, idx = tiny_model(n_layer=1, sliding_window=4), tokens(12)
    changed = idx.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 61
    moved = (model(idx) - model(changed)).abs().amax(dim=(0, 2)) > 1e-5
    assert moved.tolist() == [3 <= t <= 6 for t in range(12)]


def test_the_pattern_says_which_layers_are_windowed():
    config = tiny_config(n_layer=5, sliding_window="4*2+none")
    assert [window_of(layer) for layer in config.layers] == [4, 4, None, 4, 4]


def test_a_window_over_the_longest_sequence_hides_nothing():
    config = ModelArchitectureConfig.from_dict({**SIZES, "sliding_window": "24+23"})
    assert [window_of(layer) for layer in config.layers] == [None, 23]


def test_flash_says_where_it_runs():
    q, k, v = qkv()
    with pytest.raises(ValueError, match="CUDA in bfloat16 or float16, not on cpu in float32"):
        ATTENTION_BACKENDS["flash"](AttentionNeeds())(q, k, v)
    config = tiny_config(attention_backend="flash")
    assert "use attention_backend='auto'" in config.backend_refusals("cpu", torch.float32)[0]


def test_flash_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refusal = ATTENTION_BACKENDS["flash"].refusal(
        AttentionNeeds(), "cuda", torch.bfloat16, training=True
    )
    assert "pip install flash-attn" in refusal


def test_flex_says_that_a_cpu_cannot_train_with_it():
    model = tiny_model(attention_backend="flex")
    with pytest.raises(ValueError, match="no backward pass on a CPU"):
        model(tokens(8))
    assert tiny_config(attention_backend="flex").backend_refusals("cpu", torch.float32)
    assert tiny_config(attention_backend="flex").backend_refusals("mps", torch.float32)
    on_cuda = tiny_config(attention_backend="flex", head_dim=16)
    assert not on_cuda.backend_refusals("cuda", torch.bfloat16)
    narrow = on_cuda.changed(head_dim=8).backend_refusals("cuda", torch.bfloat16)
    assert narrow == [
        "attention_backend='flex' needs head_dim of at least 16 on CUDA, not 8; use "
        "attention_backend='auto'."
    ]


def test_auto_takes_what_the_device_is_fastest_at():
    plain = tiny_config(attention_backend="auto", block_size=512)
    assert plain.attention_backends_on("cpu") == plain.attention_backends_on("cuda") == ["sdpa"]
    mixed = plain.changed(sliding_window="4+none", head_dim=16)
    assert mixed.attention_backends_on("cuda") == ["flex", "sdpa"]
    assert mixed.attention_backends_on("cpu") == ["sdpa"]
    assert mixed.changed(position_encoding="alibi").attention_backends_on("cuda") == ["sdpa"]
    assert mixed.changed(head_dim=8).attention_backends_on("cuda") == ["sdpa"]
    assert plain.changed(block_size=256).attention_backends_on("cpu") == ["manual"]
    assert plain.attention_backends_on("cpu", length=256) == ["manual"]
    assert plain.attention_backends_on("cpu", length=257) == ["sdpa"]
    assert plain.changed(block_size=256).attention_backends_on("cuda") == ["sdpa"]
    capped = plain.changed(attention_softcap=30.0)
    assert capped.changed(head_dim=16).attention_backends_on("cuda") == ["flex"]
    assert capped.attention_backends_on("cpu") == ["manual"]
    dropping = capped.changed(dropout=0.1)
    assert dropping.attention_backends_on("cuda") == ["manual"]


def test_a_scale_in_place_of_the_root_of_the_width():
    """Doubling the scale doubles the scores, as doubling the queries does."""
    q, k, v = qkv()
    for name in ("manual", "sdpa"):
        backend = ATTENTION_BACKENDS[name]
        scaled = backend(AttentionNeeds(scale=2 / math.sqrt(8)))(q, k, v)
        assert torch.allclose(scaled, backend(AttentionNeeds())(2 * q, k, v), atol=1e-5)
    assert attention_needs(tiny_layer(attention_scale=0.1)).scale == 0.1
    assert attention_needs(tiny_layer(head_dim=16)).scale == 0.25


@pytest.mark.parametrize(("over", "widths"), {"head": (8, 8), "projection": (32, 16)}.items())
def test_what_qk_norm_normalises(over, widths):
    model = tiny_model(qk_norm=True, qk_norm_over=over, n_kv_head=2)
    attention = model.blocks[0].mixer
    assert (attention.q_norm.weight.numel(), attention.k_norm.weight.numel()) == widths
    seen = []
    attention.backend = lambda q, k, v, *rest: seen.append(q) or v.repeat(1, 2, 1, 1)
    attention.q_norm.weight.data.fill_(1.0)
    model(tokens(6))
    square = seen[0].square().mean(dim=-1 if over == "head" else (1, 3))
    assert torch.allclose(square, torch.ones_like(square), atol=1e-3)


@torch.no_grad()
def test_qk_norm_may_be_a_layer_norm():
    model = tiny_model(qk_norm=True, qk_norm_type="layernorm", n_kv_head=2, normalization="rmsnorm")
    attention, seen = model.blocks[0].mixer, []
    attention.backend = lambda q, k, v, *rest: seen.extend((q, k)) or v.repeat(1, 2, 1, 1)
    x = torch.randn(2, 6, 32)
    attention(x, context(x))
    projections = attention.qkv(x).split(attention.widths, dim=-1)
    norms = (attention.q_norm, attention.k_norm)
    for own, projected, norm in zip(seen, projections[:2], norms, strict=True):
        heads = projected.unflatten(-1, (-1, 8)).transpose(1, 2)
        centered = heads - heads.mean(-1, keepdim=True)
        expected = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        assert torch.allclose(own, expected * norm.weight + norm.bias, atol=1e-5)


def test_the_output_matrix_may_differ_in_its_bias():
    attention = tiny_model(bias=False, attention_bias=True, attention_out_bias=False).blocks[0]
    assert attention.mixer.qkv.bias is not None
    assert attention.mixer.out.bias is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("forget_gate", True),
        ("qk_norm", True),
        ("qk_sphere", True),
        ("query_scaling", "ssmax"),
        ("attention_scale", 0.3),
        ("attention_softcap", 2.0),
    ],
)
def test_scores_have_no_effect_if_a_token_attends_only_to_itself(key, value):
    keys = {**ROPE, key: value}
    with pytest.raises(ConfigError, match=f"{key}={value} has no effect with sliding_window=1"):
        tiny_config(**keys, sliding_window=1)
    tiny_config(**keys, sliding_window="1+none")
    with_sinks = tiny_model(**keys, sliding_window=1, attention_sinks=True)
    assert not torch.equal(with_sinks(tokens(9)), tiny_model(sliding_window=1)(tokens(9)))


@pytest.mark.parametrize("name", ["fire", "cope", "path"])
def test_learned_scores_need_more_than_the_own_token_in_every_layer(name):
    alone = f"position_encoding='{name}' has no effect with sliding_window=1"
    for window in (1, "1+none"):
        with pytest.raises(ConfigError, match=alone):
            tiny_config(position_encoding=name, sliding_window=window)
    tiny_config(position_encoding=f"none+{name}", sliding_window="1+none")
