"""Multi-head latent attention: equal to the layer of DeepSeek-V3, and its small decoding state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from components.latent_attention import LatentAttention
from components.positions import POSITIONS
from errors import ConfigError
from model_builder import GPT
from tests.tiny import ROPE, context, tiny_config, tokens

B, T, C, H = 2, 9, 32, 4
DIMS = {
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
}


def mla(**keys: Any) -> dict[str, Any]:
    return {"mixer": "mla", **ROPE, **DIMS, **keys}


def weights_of(theirs: torch.nn.Module, compressed: bool) -> dict[str, Tensor]:
    """The parameters of DeepSeek's layer by our names."""
    names = {
        "kv_latent": theirs.kv_a_proj_with_mqa,
        "kv_norm": theirs.kv_a_layernorm,
        "kv": theirs.kv_b_proj,
        "out": theirs.o_proj,
        "q": theirs.q_b_proj if compressed else theirs.q_proj,
    }
    if compressed:
        names |= {"q_latent": theirs.q_a_proj, "q_norm": theirs.q_a_layernorm}
    return {
        f"{name}.{kind}": value
        for name, module in names.items()
        for kind, value in module.named_parameters()
    }


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("q_rank", [None, 7])
@pytest.mark.parametrize("backend", ["manual", "sdpa"])
def test_it_is_the_layer_of_deepseek_v3(q_rank, bias, backend):
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as published

    config = DeepseekV3Config(
        hidden_size=C,
        num_attention_heads=H,
        num_key_value_heads=H,
        q_lora_rank=q_rank,
        **DIMS,
        attention_bias=bias,
        rope_interleave=False,
        num_hidden_layers=1,
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    theirs = published.DeepseekV3Attention(config, layer_idx=0).double().eval()
    layer = tiny_config(
        **mla(q_lora_rank=q_rank, attention_bias=bias, norm_eps=1e-6, attention_backend=backend)
    )
    ours = LatentAttention(layer.layers[0]).double().eval()
    weights = weights_of(theirs, compressed=q_rank is not None)
    assert weights.keys() == dict(ours.named_parameters()).keys()
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(0.3 * torch.randn_like(value))
            ours.get_parameter(name).copy_(value)
    x = torch.randn(B, T, C, dtype=torch.float64)
    rotary = published.DeepseekV3RotaryEmbedding(config)
    mask = torch.full((T, T), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    results = []
    for ours_is_called in (True, False):
        given = x.clone().requires_grad_()
        if ours_is_called:
            y = ours(given, context(given, POSITIONS["rope"](layer.positions[0])))
        else:
            angles = rotary(given, torch.arange(T)[None])
            y = theirs(given, angles, attention_mask=mask)[0]
        (y * torch.linspace(-1, 1, y.numel()).double().view_as(y)).sum().backward()
        results.append((y, given.grad))
    close = {"rtol": 1e-5, "atol": 1e-6}  # angles and norms are float32
    assert_close(results[0], results[1], **close)
    for name, value in weights.items():
        assert_close(ours.get_parameter(name).grad, value.grad, **close)


@pytest.mark.parametrize("keys", [{}, {"q_lora_rank": 7, "sliding_window": 5}])
@torch.no_grad()
def test_decoding_from_latents_equals_attention_to_keys(keys):
    torch.manual_seed(0)
    model = GPT(tiny_config(**mla(**keys))).double().eval()
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    idx = tokens(20)
    state = model.new_state(2)
    parts = [model(piece, state=state) for piece in idx.split([7, 1, 1, 5, 6], dim=1)]
    assert_close(torch.cat(parts, dim=1), model(idx), rtol=1e-5, atol=1e-6)


def test_the_state_holds_the_latents_alone():
    model = GPT(tiny_config(**mla()))
    numbers = 2 * 24 * (12 + 4)  # of 2 layers and 24 tokens
    assert model.new_state(1).bytes == 4 * numbers


def test_gradients():
    torch.manual_seed(0)
    config = tiny_config(**mla(q_lora_rank=7, attention_sinks=True))
    layer = LatentAttention(config.layers[0]).double().eval()
    positions = POSITIONS["rope"](config.positions[0])
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def call(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, given, (x, context(x, positions)))

    x = torch.randn(1, 4, C, dtype=torch.float64, requires_grad=True)
    assert gradcheck(call, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"qk_rope_head_dim": 3}, "rope_fraction=1 of qk_rope_head_dim=3 rotates 3 dimensions"),
        (
            {"qk_rope_head_dim": 2, "rope_scaling": "ntk", "rope_scaling_factor": 2.0},
            "needs more than 2 rotated dimensions; qk_rope_head_dim=2 with rope_fraction=1",
        ),
    ],
)
def test_what_rope_cannot_rotate_is_refused(keys, said):
    with pytest.raises(ConfigError, match=said):
        tiny_config(**mla(**keys))


def test_its_cost_is_that_of_the_paper():
    """Forward FLOPs per token, by hand: 4 projections and the attention to T keys."""
    config = tiny_config(**mla(q_lora_rank=7))
    flops = LatentAttention(config.layers[0]).forward_flops(T) // T
    rank, nope, rope, value, q_rank = 12, 6, 4, 5, 7
    queries = 2 * C * q_rank + 2 * q_rank * H * (nope + rope)
    keys = 2 * C * (rank + rope) + 2 * rank * H * (nope + value)
    attention = 2 * H * T * (nope + rope + value)
    assert flops == queries + keys + attention + 2 * H * value * C
