"""Forgetting attention: equal to a product of gates, with everything else that changes scores.

There is no reference implementation that can be imported. The expected values come from a second
derivation in float64: each weight is multiplied by the gates themselves, with no logarithm and no
cumulative sum.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck
from torch.testing import assert_close

from components.attention import Attention
from components.context import Context
from components.positions import POSITIONS, alibi_slopes
from components.tensor_split import TensorSplit
from errors import ConfigError
from model_builder import GPT
from tests.tiny import layer_inputs, tiny_config, tiny_layer, tiny_model, tokens

B, T, C, H, G, D = 2, 9, 32, 4, 2, 8
EVERYTHING = {
    "attention_softcap": 0.7,
    "sliding_window": 4,
    "attention_sinks": True,
    "position_encoding": "alibi",
}


def layer(**keys: Any) -> Attention:
    """A layer with forget gates in float64 with random parameters."""
    torch.manual_seed(0)
    keys = {"position_encoding": "none", "n_kv_head": G, **keys}
    made = Attention(tiny_layer(forget_gate=True, **keys)).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return made


def inputs() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(B, T, C, dtype=torch.float64)


def context(x: Tensor, position_encoding: str = "none") -> Context:
    encoding = POSITIONS[position_encoding](tiny_layer(position_encoding=position_encoding))
    return Context(layer_inputs(x, encoding.double())).of("mixer")


@pytest.mark.parametrize("backend", ["manual", "sdpa"])
@pytest.mark.parametrize("keys", [{}, EVERYTHING], ids=["alone", "with everything"])
@torch.no_grad()
def test_by_products_of_gates(keys, backend):
    """sdpa has no softcap, so it is left out there."""
    keys = {k: v for k, v in keys.items() if backend == "manual" or k != "attention_softcap"}
    made, x = layer(attention_backend=backend, **keys), inputs()
    q, k, v = made.qkv(x).split(made.widths, dim=-1)
    q, k, v = (part.unflatten(-1, (-1, D)) for part in (q, k, v))  # (B, T, heads, D)
    gates = torch.sigmoid(made.forget.gate(x))
    y = torch.zeros(B, T, H, D, dtype=torch.float64)
    for b, i, h in torch.cartesian_prod(torch.arange(B), torch.arange(T), torch.arange(H)):
        total = made.sinks[h].exp() if "attention_sinks" in keys else 0.0
        for j in range(max(0, i - keys.get("sliding_window", T) + 1), i + 1):
            score = q[b, i, h] @ k[b, j, h // 2] / D**0.5
            if "attention_softcap" in keys:
                score = 0.7 * torch.tanh(score / 0.7)
            if "position_encoding" in keys:
                score = score - alibi_slopes(H)[h] * (i - j)
            weight = score.exp() * gates[b, j + 1 : i + 1, h].prod()
            y[b, i, h] += weight * v[b, j, h // 2]
            total = total + weight
        y[b, i, h] /= total
    about = context(x, keys.get("position_encoding", "none"))
    assert_close(made(x, about), made.out(y.flatten(2)), rtol=1e-9, atol=1e-10)


def test_gradients():
    made = layer(attention_sinks=True)
    names, parameters = zip(*made.named_parameters(), strict=True)
    assert {"forget.gate.weight", "forget.gate.bias"} <= set(names)

    def call(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(made, given, (x, context(x)))

    x = inputs()[:1, :4].requires_grad_()
    assert gradcheck(call, (x, *parameters), fast_mode=True)


@torch.no_grad()
def test_open_gates_forget_nothing():
    made, x = layer(), inputs()
    made.forget.gate.weight.zero_()
    made.forget.gate.bias.fill_(60.0)
    plain = made.backend(*(made._heads(part) for part in made.qkv(x).split(made.widths, dim=-1)))
    assert_close(made(x, context(x)), made.out(plain.transpose(1, 2).flatten(2)))


@torch.no_grad()
def test_shares_of_heads_add_up_to_the_whole():
    x, total = inputs(), torch.zeros(B, T, C, dtype=torch.float64)
    for rank in range(2):
        share = layer(attention_out_bias=False)
        assert share.split(TensorSplit(rank, 2))
        total += share(x, context(x))
    whole = layer(attention_out_bias=False)
    assert_close(total, whole(x, context(x)), rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_the_state_keeps_the_gates_precisely():
    """In float32 beside keys and values in bfloat16: 4 more bytes per head and token."""
    config = tiny_config(forget_gate=True)
    plain = GPT(config.changed(forget_gate=False)).decoding_state_bytes(10)
    assert GPT(config).decoding_state_bytes(10) == plain + 2 * H * 10 * 4


def test_flash_is_refused():
    with pytest.raises(ConfigError, match="does not support a bias on the scores"):
        tiny_config(forget_gate=True, attention_backend="flash")


@pytest.mark.slow
@torch.no_grad()
def test_compiled_decoding_has_a_graph_for_the_prompt_and_one_for_tokens():
    torch._dynamo.reset()
    model, prompt = tiny_model(forget_gate=True), tokens(6, batch=1)
    text = model.generate(prompt, 12, temperature=0)
    compiler = CompileCounterWithBackend("eager")
    model.compile(backend=compiler, fullgraph=True, dynamic=False)
    assert torch.equal(model.generate(prompt, 12, temperature=0), text)
    assert compiler.frame_count == 2
