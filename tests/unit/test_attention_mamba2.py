"""Attention and Mamba-2 side by side: their sum, their scales, their state and their cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from components.attention_mamba2 import AttentionMamba2
from components.positions import POSITIONS
from errors import ConfigError
from model_builder import GPT
from tests.tiny import ROPE, context, tiny_config, tiny_layer, tiny_model

KEYS = {
    "mixer": "attention_mamba2",
    **ROPE,
    "n_kv_head": 2,
    "mamba_n_head": 4,
    "mamba_head_dim": 6,
    "mamba_state_dim": 5,
    "mamba_n_group": 2,
    "mamba_chunk": 1,
}
SCALES = {
    "attention_in_scale": 0.7,
    "attention_out_scale": 1.2,
    "mamba_in_scale": 0.8,
    "mamba_out_scale": 1.3,
    "mamba_z_scale": 0.6,
    "mamba_x_scale": 1.4,
    "mamba_b_scale": 0.9,
    "mamba_c_scale": 1.1,
    "mamba_dt_scale": 0.5,
}


def layer_of(**keys: Any) -> AttentionMamba2:
    torch.manual_seed(0)
    layer = AttentionMamba2(tiny_layer(**{**KEYS, **keys})).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return layer


def around(x: Tensor) -> Any:
    return context(x, POSITIONS["rope"](tiny_layer(**KEYS)))


@torch.no_grad()
def test_the_sum_of_attention_and_mamba2_on_scaled_inputs():
    """Scales of projections are scales of their weights and biases."""
    layer, x = layer_of(**SCALES), torch.randn(2, 9, 32, dtype=torch.float64)
    plain = layer_of()
    rows = {"z": 24, "x": 24, "b": 10, "c": 10, "dt": 4}
    factors = torch.cat(
        [torch.full((n,), SCALES[f"mamba_{name}_scale"]) for name, n in rows.items()]
    ).double()
    plain.mamba.zxbcdt.weight *= factors[:, None]
    plain.mamba.zxbcdt.bias *= factors
    attended = 1.2 * plain.attention(0.7 * x, around(x))
    assert_close(layer(x, around(x)), attended + 1.3 * plain.mamba(0.8 * x, around(x)))


def test_gradients():
    layer = layer_of(**SCALES)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def call(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, given, (x, around(x)))

    x = torch.randn(1, 5, 32, dtype=torch.float64, requires_grad=True)
    assert gradcheck(call, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("length", [1, 7])
def test_its_cost_equals_the_counter(length):
    layer, x = layer_of(**SCALES), torch.randn(1, length, 32, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        layer(x, around(x))
    assert layer.forward_flops(length) == counter.get_total_flops()


def test_its_state_is_that_of_both():
    keys = {**KEYS, "mamba_chunk": 5}
    both, attention, mamba = (
        tiny_model(**{key: value for key, value in keys.items() if key in kept}, mixer=mixer)
        for mixer, kept in {
            "attention_mamba2": keys.keys() - {"mixer"},
            "attention": {"n_kv_head", "position_encoding"},
            "mamba2": {key for key in keys if key.startswith("mamba")},
        }.items()
    )
    assert both.new_state().bytes == attention.new_state().bytes + mamba.new_state().bytes
    assert not both.unbounded


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({**KEYS, "mamba_n_group": 3}, "mamba_n_head=4 is not a multiple of mamba_n_group=3"),
        ({**KEYS, "n_kv_head": 3}, "n_head=4 is not a multiple of n_kv_head=3"),
        ({**KEYS, "qk_norm_over": "projection"}, "no effect without qk_norm"),
        ({**KEYS, "kv_sharing": True}, "kv_sharing=True needs an earlier attention layer"),
        ({"mamba_z_scale": 0.5}, "mamba_z_scale=0.5 belongs to mixer=attention_mamba2, which no"),
        ({"mixer": "mamba2", "mamba_in_scale": 2.0}, "belongs to mixer=attention_mamba2"),
        ({"glu_gate_scale": 0.5}, "belongs to ffn_type=glu, swiglu, geglu or reglu"),
        ({"ffn_type": "moe", "glu_out_scale": 0.5}, "belongs to ffn_type=glu, swiglu"),
        (
            {**KEYS, "mamba_norm": "none", "normalization": "dyt", "norm_eps": 1e-3},
            "norm_eps=0.001 has no effect",
        ),
        ({**KEYS, "parametrization": "mup"}, "not defined for mixer='attention_mamba2'"),
    ],
)
def test_what_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(**keys)


def test_an_epsilon_that_one_half_uses():
    for keys in ({"mamba_norm": "after_gate"}, {"mamba_norm": "none", "qk_norm": True}):
        config = tiny_config(**KEYS, **keys, normalization="dyt", norm_eps=1e-3)
        assert GPT(config).config.norm_eps == 1e-3


@torch.no_grad()
def test_scales_of_a_gated_network():
    keys = {"ffn_type": "swiglu", "bias": True}
    scaled = tiny_model(**keys, glu_gate_scale=0.4, glu_out_scale=1.7).blocks[0].ffn
    plain = tiny_model(**keys).blocks[0].ffn
    x = torch.randn(2, 5, 32)
    gate, up = plain.gate_up(x).chunk(2, dim=-1)
    expected = 1.7 * plain.down(torch.nn.functional.silu(0.4 * gate) * up)
    assert_close(scaled(x, context(x)), expected)
