"""Attention sinks, output gates and exclusive attention: equal to published layers and formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.testing import assert_close

from components.attention import Attention
from components.tensor_split import TensorSplit
from model_builder import GPT
from tests.tiny import context, tiny_config, tiny_layer

B, T, C, H, G, D = 2, 9, 32, 4, 2, 8
VARIANT = {
    "n_kv_head": G,
    "attention_sinks": True,
    "exclusive_attention": "learned",
    "attention_gate": "channel",
}
"""Options that can be split over workers."""


def layer(**keys: Any) -> Attention:
    """An attention layer in float64 with random parameters."""
    torch.manual_seed(0)
    made = Attention(tiny_layer(position_encoding="none", **keys)).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return made


def inputs() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(B, T, C, dtype=torch.float64, requires_grad=True)


def heads(x: Tensor, made: Attention) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, H, T, D), and keys and values (B, G, T, D)."""
    parts = made.qkv(x).split((H * D, G * D, G * D), dim=-1)
    q, k, v = (part.unflatten(-1, (-1, D)).transpose(1, 2) for part in parts)
    return q, k, v


def published_inputs(x: Tensor, rotary: int) -> dict[str, Any]:
    """What a layer of transformers takes: `rotary` cosines and sines that do not rotate, and a
    causal mask."""
    ones, zeros = torch.ones(1, T, rotary).double(), torch.zeros(1, T, rotary).double()
    mask = torch.full((T, T), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    return {
        "hidden_states": x,
        "position_embeddings": (ones, zeros),
        "attention_mask": mask,
    }


def randomize(module: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return module.double().eval()


def gradients(y: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 1, y.numel()).double().view_as(y)
    return torch.autograd.grad((y * weights).sum(), of)


@pytest.mark.parametrize("backend", ["manual", "sdpa"])
def test_sinks_are_those_of_gpt_oss(backend):
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention

    config = GptOssConfig(
        hidden_size=C,
        num_attention_heads=H,
        num_key_value_heads=G,
        head_dim=D,
        num_hidden_layers=1,
        layer_types=["full_attention"],
    )
    config._attn_implementation = "eager"
    theirs = randomize(GptOssAttention(config, layer_idx=0))
    ours = layer(n_kv_head=G, attention_sinks=True, attention_backend=backend)
    projections = (theirs.q_proj, theirs.k_proj, theirs.v_proj)
    with torch.no_grad():
        ours.qkv.weight.copy_(torch.cat([linear.weight for linear in projections]))
        ours.qkv.bias.copy_(torch.cat([linear.bias for linear in projections]))
        ours.out.load_state_dict(theirs.o_proj.state_dict())
        ours.sinks.copy_(theirs.sinks)
    x = inputs()
    expected, y = theirs(**published_inputs(x, D // 2))[0], ours(x, context(x))
    assert_close(y, expected, rtol=1e-9, atol=1e-10)
    assert_close(
        gradients(y, x, ours.sinks),
        gradients(expected, x, theirs.sinks),
        rtol=1e-9,
        atol=1e-10,
    )


def test_the_gate_is_that_of_qwen3_next():
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextAttention

    config = Qwen3NextConfig(
        hidden_size=C,
        num_attention_heads=H,
        num_key_value_heads=G,
        head_dim=D,
        num_hidden_layers=1,
        rms_norm_eps=1e-5,
    )
    config._attn_implementation = "eager"
    theirs = randomize(Qwen3NextAttention(config, layer_idx=0))
    ours = layer(
        n_kv_head=G,
        attention_gate="channel",
        normalization="rmsnorm_unit_offset",
        qk_norm=True,
        bias=False,
    )
    queries, gate = theirs.q_proj.weight.view(H, 2, D, C).unbind(1)  # of each head together
    keys_and_values = (theirs.k_proj.weight, theirs.v_proj.weight)
    with torch.no_grad():
        ours.qkv.weight.copy_(torch.cat((queries.reshape(H * D, C), *keys_and_values)))
        ours.gate.weight.copy_(gate.reshape(H * D, C))
        ours.out.weight.copy_(theirs.o_proj.weight)
        ours.q_norm.offset.copy_(theirs.q_norm.weight)
        ours.k_norm.offset.copy_(theirs.k_norm.weight)
    x = inputs()
    expected, y = theirs(**published_inputs(x, D))[0], ours(x, context(x))
    assert_close(y, expected, rtol=1e-6, atol=1e-6)  # theirs normalises in float32
    assert_close(gradients(y, x), gradients(expected, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gate", ["none", "channel", "head"])
@pytest.mark.parametrize("exclusive", ["none", "full", "learned"])
@pytest.mark.parametrize("sinks", [False, True])
def test_by_the_formulas(gate, exclusive, sinks):
    """Every output of every head as a sum over the positions that it attends to."""
    made = layer(
        n_kv_head=G, attention_gate=gate, exclusive_attention=exclusive, attention_sinks=sinks
    )
    x = inputs().detach()
    q, k, v = heads(x, made)
    y = torch.empty(B, T, H, D, dtype=torch.float64)
    for b, t, h in torch.cartesian_prod(torch.arange(B), torch.arange(T), torch.arange(H)):
        scores = k[b, h // 2, : t + 1] @ q[b, h, t] / D**0.5
        total = scores.exp().sum() + (made.sinks[h].exp() if sinks else 0.0)
        out = (scores.exp() / total) @ v[b, h // 2, : t + 1]
        if exclusive != "none":
            own = v[b, h // 2, t]
            share = 1.0 if exclusive == "full" else made.exclusion[h].tanh()
            out = out - share * (out @ own) / (own @ own) * own
        if gate == "head":
            out = out * torch.sigmoid(made.gate(x[b, t])[h])
        elif gate == "channel":
            out = out * torch.sigmoid(made.gate(x[b, t])[h * D : (h + 1) * D])
        y[b, t, h] = out
    assert_close(made(x, context(x)), made.out(y.flatten(2)), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", ["mixed", "gated"])
@torch.no_grad()
def test_value_embeddings_by_the_formulas(kind):
    """As attention to values that were added up by hand."""
    made = layer(n_kv_head=G, value_embedding=kind)
    embedding, x = made.value_embedding, inputs().detach()
    about = context(x)
    q, k, v = heads(x, made)
    for b, t, g in torch.cartesian_prod(torch.arange(B), torch.arange(T), torch.arange(G)):
        row = embedding.table.weight[about.tokens[b, t], g * D : (g + 1) * D]
        if kind == "mixed":
            v[b, g, t] = embedding.shares[0] * v[b, g, t] + embedding.shares[1] * row
        else:
            v[b, g, t] += 2 * torch.sigmoid(embedding.gate.weight[g] @ x[b, t, :32]) * row
    y = made.backend(q, k, v).transpose(1, 2).flatten(2)
    assert_close(made(x, about), made.out(y), rtol=1e-9, atol=1e-10)


def test_a_gated_value_embedding_starts_open():
    made = Attention(tiny_layer(value_embedding="gated"))
    made.value_embedding.init_parameters(tiny_layer(value_embedding="gated"))
    v, x = torch.zeros(1, H, 3, D), torch.randn(1, 3, C)
    tokens = torch.tensor([[5, 0, 5]])
    expected = made.value_embedding.table(tokens).unflatten(-1, (H, D)).transpose(1, 2)
    assert_close(made.value_embedding(v, x, tokens), expected)


def test_gradients():
    made = layer(**VARIANT)
    names, parameters = zip(*made.named_parameters(), strict=True)
    assert {"sinks", "exclusion", "gate.weight"} <= set(names)

    def call(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(made, given, (x, context(x)))

    x = inputs()[:1, :4].detach().requires_grad_()
    assert gradcheck(call, (x, *parameters), fast_mode=True)


def test_learned_exclusion_starts_as_plain_attention():
    torch.manual_seed(0)
    config = tiny_config(exclusive_attention="learned")
    learned, idx = GPT(config), torch.arange(12)[None]
    torch.manual_seed(0)
    assert_close(learned(idx), GPT(config.changed(exclusive_attention="none"))(idx))


@pytest.mark.parametrize("gate", ["channel", "head"])
def test_shares_of_heads_add_up_to_the_whole(gate):
    keys = {**VARIANT, "attention_gate": gate, "attention_out_bias": False}
    x = inputs().detach()
    total = torch.zeros_like(x)
    for rank in range(2):
        share = layer(**keys)
        assert share.split(TensorSplit(rank, 2))
        assert share.sinks.numel() == H // 2
        total += share(x, context(x))
    whole = layer(**keys)
    assert_close(total, whole(x, context(x)), rtol=1e-9, atol=1e-10)
