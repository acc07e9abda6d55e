"""Scaling of queries: equal to Llama 4's and Ministral 3's; ssmax to a softmax of another base."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from components.attention import Attention
from components.tensor_split import TensorSplit
from errors import ConfigError
from tests.tiny import context, tiny_config, tiny_layer, tiny_model, tokens

B, T, C, H, G, D = 2, 9, 32, 4, 2, 8
STEPS = {"query_scaling": "llama4", "query_scaling_interval": 3, "query_scaling_factor": 0.7}


def layer(**keys: Any) -> Attention:
    """A layer in float64 with random parameters."""
    torch.manual_seed(0)
    made = Attention(tiny_layer(position_encoding="none", n_kv_head=G, **keys)).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return made


def inputs() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(B, T, C, dtype=torch.float64)


def test_steps_are_those_of_llama_4():
    from transformers import Llama4TextConfig
    from transformers.models.llama4.modeling_llama4 import Llama4TextAttention

    config = Llama4TextConfig(
        hidden_size=C,
        num_attention_heads=H,
        num_key_value_heads=G,
        head_dim=D,
        num_hidden_layers=1,
        no_rope_layers=[0],
        attn_temperature_tuning=True,
        floor_scale=3,
        attn_scale=0.7,
    )
    config._attn_implementation = "eager"
    theirs = Llama4TextAttention(config, layer_idx=0).double().eval()
    ours = layer(bias=False, **STEPS)
    with torch.no_grad():
        projections = (theirs.q_proj, theirs.k_proj, theirs.v_proj)
        ours.qkv.weight.copy_(torch.cat([linear.weight for linear in projections]))
        ours.out.weight.copy_(theirs.o_proj.weight)
    x = inputs().requires_grad_()
    mask = torch.full((T, T), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    results = []
    for y in (ours(x, context(x)), theirs(x, None, mask)[0]):
        weights = torch.linspace(-1, 1, y.numel()).double().view_as(y)
        results.append((y, *torch.autograd.grad((y * weights).sum(), x)))
    assert_close(*results, rtol=1e-6, atol=1e-7)  # their scale is in float32


@torch.no_grad()
def test_steps_are_those_of_ministral_3():
    """Its function gets positions from 0."""
    from transformers.models.ministral3.modeling_ministral3 import get_llama_4_attn_scale

    made = layer(**{**STEPS, "query_scaling": "ministral3"})
    q = torch.randn(B, H, T, D, dtype=torch.float64)
    for start in (0, 2, 3, 50):
        positions = torch.arange(start, start + T, dtype=torch.float64)[None]
        assert_close(made.query_scaling(q, start), q * get_llama_4_attn_scale(positions, 0.7, 3))


@pytest.mark.parametrize("window", [None, 4])
@torch.no_grad()
def test_ssmax_is_a_softmax_with_base_n_to_the_s(window):
    made, x = layer(query_scaling="ssmax", sliding_window=window), inputs()
    q, k, v = made.qkv(x).split(made.widths, dim=-1)
    q, k, v = (part.unflatten(-1, (-1, D)) for part in (q, k, v))  # (B, T, heads, D)
    y = torch.empty(B, T, H, D, dtype=torch.float64)
    for b, t, h in torch.cartesian_prod(torch.arange(B), torch.arange(T), torch.arange(H)):
        first = max(0, t + 1 - (window or T))
        scores = k[b, first : t + 1, h // 2] @ q[b, t, h] / D**0.5
        powers = float(len(scores)) ** (made.query_scaling.bases[h] * scores)
        y[b, t, h] = powers / powers.sum() @ v[b, first : t + 1, h // 2]
    assert_close(made(x, context(x)), made.out(y.flatten(2)), rtol=1e-9, atol=1e-10)


def test_gradients():
    made = layer(query_scaling="ssmax")
    names, parameters = zip(*made.named_parameters(), strict=True)
    assert "query_scaling.bases" in names

    def call(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(made, given, (x, context(x)))

    x = inputs()[:1, :4].requires_grad_()
    assert gradcheck(call, (x, *parameters), fast_mode=True)


@torch.no_grad()
def test_shares_of_heads_add_up_to_the_whole():
    keys = {"query_scaling": "ssmax", "attention_out_bias": False}
    x, total = inputs(), torch.zeros(B, T, C, dtype=torch.float64)
    for rank in range(2):
        share = layer(**keys)
        assert share.split(TensorSplit(rank, 2))
        total += share(x, context(x))
    assert_close(total, layer(**keys)(x, context(x)), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("kind", "interval"), [("llama4", 24), ("ministral3", 23)])
@torch.no_grad()
def test_the_last_token_of_a_block_may_be_the_only_one_that_is_scaled(kind, interval):
    keys = {"query_scaling": kind, "query_scaling_interval": interval}
    scaled, plain = tiny_model(**keys)(tokens(24)), tiny_model()(tokens(24))
    assert torch.equal(scaled[:, :-1], plain[:, :-1])
    assert not torch.equal(scaled[:, -1], plain[:, -1])


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"query_scaling": "llama4"}, "block_size=24 is less than query_scaling_interval=8192"),
        (
            {"query_scaling": "ministral3", "query_scaling_interval": 24},
            "block_size=24 is at most query_scaling_interval=24",
        ),
        ({"query_scaling_factor": 0.2}, "has no effect with query_scaling='none'"),
        (
            {"query_scaling": "ssmax", "query_scaling_interval": 4},
            "has no effect with query_scaling='ssmax'",
        ),
    ],
)
def test_options_without_effect_are_refused(keys, problem):
    with pytest.raises(ConfigError, match=problem):
        tiny_config(**keys)
