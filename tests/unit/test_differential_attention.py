"""Differential attention: equal to DiffLlama's layer and to the paper's formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from components.attention import Attention
from components.context import Context
from components.positions import POSITIONS
from errors import ConfigError
from model_builder import GPT
from recipe.optimizers import parameter_groups
from tests.tiny import layer_inputs, tiny_config, tiny_layer

C, H, G, D, T = 32, 8, 4, 4, 9
LAYER = 2
"""Index of the layer, which lambda_init depends on."""


def layer(**keys: Any) -> Attention:
    """A layer of differential attention in float64 with random parameters."""
    torch.manual_seed(0)
    keys = {"n_head": H, "n_kv_head": G, "differential_attention": True, "n_layer": 3, **keys}
    config = tiny_config(**{"position_encoding": "rope", **keys})
    made = Attention(config.layers[LAYER]).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return made


def inputs() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, T, C, dtype=torch.float64, requires_grad=True)


def context(x: Tensor) -> Context:
    keys = {"position_encoding": "rope", "n_head": H, "n_kv_head": G}
    rope = POSITIONS["rope"](tiny_layer(**keys)).double()
    return Context(layer_inputs(x, rope)).of("mixer")


@pytest.mark.parametrize("backend", ["manual", "sdpa"])
def test_it_is_the_layer_of_diffllama(backend):
    from transformers import DiffLlamaConfig
    from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention

    config = DiffLlamaConfig(
        hidden_size=C,
        num_attention_heads=H,
        num_key_value_heads=G,
        num_hidden_layers=3,
        rms_norm_eps=1e-5,
    )
    config._attn_implementation = "eager"
    theirs = DiffLlamaAttention(config, layer_idx=LAYER).double().eval()
    ours = layer(attention_backend=backend, bias=False)
    vectors = [getattr(theirs, f"lambda_{name}") for name in ("q1", "k1", "q2", "k2")]
    with torch.no_grad():
        projections = (theirs.q_proj, theirs.k_proj, theirs.v_proj)
        ours.qkv.weight.copy_(torch.cat([linear.weight for linear in projections]))
        ours.out.weight.copy_(theirs.o_proj.weight)
        ours.difference.lambdas.copy_(torch.stack(vectors))
    x = inputs()
    about = context(x)
    angles = [table[:T].repeat(1, 2)[None] for table in (about.positions.cos, about.positions.sin)]
    mask = torch.full((T, T), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    expected, y = theirs(x, tuple(angles), mask)[0], ours(x, about)
    assert_close(y, expected, rtol=1e-6, atol=1e-7)  # their lambda is in float32
    weights = torch.linspace(-1, 1, y.numel()).double().view_as(y)
    gradients = torch.autograd.grad((y * weights).sum(), (x, ours.difference.lambdas))
    theirs_given = torch.autograd.grad((expected * weights).sum(), (x, *vectors))
    assert_close(gradients[0], theirs_given[0], rtol=1e-5, atol=1e-6)
    assert_close(gradients[1], torch.stack(theirs_given[1:]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sinks", [False, True])
@torch.no_grad()
def test_by_the_formula(sinks):
    """Every pair of heads as the difference of two sums, with a gate per pair."""
    made = layer(position_encoding="none", attention_sinks=sinks, attention_gate="head")
    x = inputs().detach()
    q, k, v = made.qkv(x).split(made.widths, dim=-1)
    q, k, v = (part.unflatten(-1, (-1, D)) for part in (q, k, v))  # (B, T, heads, D)
    start = 0.8 - 0.6 * math.exp(-0.3 * LAYER)
    a, b, c, d = made.difference.lambdas
    share = (a @ b).exp() - (c @ d).exp() + start
    y = torch.empty(2, T, H // 2, 2 * D, dtype=torch.float64)
    for n, t, pair in torch.cartesian_prod(torch.arange(2), torch.arange(T), torch.arange(H // 2)):
        of_keys = pair * G // H  # the first key head of the pair
        values = torch.cat((v[n, : t + 1, of_keys], v[n, : t + 1, of_keys + G // 2]), dim=-1)
        maps = []
        for head, key in ((pair, of_keys), (pair + H // 2, of_keys + G // 2)):
            scores = (k[n, : t + 1, key] @ q[n, t, head] / D**0.5).exp()
            maps.append(scores / (scores.sum() + (made.sinks[head].exp() if sinks else 0)))
        out = (maps[0] - share * maps[1]) @ values
        out = (1 - start) * out / (out.square().mean() + 1e-5).sqrt()
        y[n, t, pair] = out * torch.sigmoid(made.gate(x[n, t])[pair])
    expected = made.out(y.flatten(2))
    assert_close(made(x, Context(layer_inputs(x)).of("mixer")), expected, rtol=1e-9, atol=1e-10)


def test_gradients():
    made = layer(n_head=4, n_kv_head=2)
    names, parameters = zip(*made.named_parameters(), strict=True)
    assert "difference.lambdas" in names

    def call(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        about = Context(layer_inputs(x)).of("mixer")
        return torch.func.functional_call(made, given, (x, about))

    x = inputs()[:1, :4].detach().requires_grad_()
    assert gradcheck(call, (x, *parameters), fast_mode=True)


def test_lambda_is_as_precise_under_autocast():
    made = GPT(tiny_config(differential_attention=True)).blocks[1].mixer.difference
    y = torch.randn(1, 4, 3, 2 * 8)
    expected = made(y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(made(y), expected)


def test_lambda_starts_small_and_does_not_decay():
    model = GPT(tiny_config(differential_attention=True, head_dim=256))
    lambdas = model.blocks[1].mixer.difference.lambdas
    assert lambdas.std().item() == pytest.approx(0.1, rel=0.1)
    decayed = [p for group in parameter_groups(model, 0.1)[:1] for p in group["params"]]
    assert not any(parameter is lambdas for parameter in decayed)
    assert any(parameter is model.blocks[1].mixer.qkv.weight for parameter in decayed)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"n_head": 1}, "pairs heads, but n_head=1 is odd"),
        ({"n_kv_head": 1}, "pairs heads, but n_kv_head=1 is odd"),
        ({"exclusive_attention": "full"}, "cannot be combined with differential_attention=True"),
        ({"attention_backend": "flash"}, "does not support values of another dimension than keys"),
    ],
)
def test_refusals(keys, problem):
    with pytest.raises(ConfigError, match=problem):
        tiny_config(differential_attention=True, **keys)
