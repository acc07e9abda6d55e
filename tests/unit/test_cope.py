"""CoPE: equal to its formula, with everything else that changes scores.

The expected values come from a second derivation in float64: positions, interpolation and softmax
of equations 3 to 5 of the paper, one query at a time, with no gather and no cumulative sum.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck
from torch.testing import assert_close

from components.attention import Attention
from components.positions import POSITIONS
from components.tensor_split import TensorSplit
from errors import ConfigError
from model_builder import GPT
from tests.tiny import context as context_of
from tests.tiny import tiny_config, tiny_layer, tiny_model, tokens

B, T, C, H, G, D, P = 2, 11, 32, 4, 2, 8, 4
COPE = {"position_encoding": "cope", "cope_max_positions": P, "n_kv_head": G}
EVERYTHING = {
    "attention_softcap": 0.7,
    "sliding_window": 6,
    "attention_sinks": True,
    "forget_gate": True,
}


def layer(**keys: Any) -> Attention:
    """A layer with CoPE in float64 with random parameters."""
    torch.manual_seed(0)
    made = Attention(tiny_layer(**COPE, **keys)).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return made


def inputs(length: int = T) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(B, length, C, dtype=torch.float64)


def context(x: Tensor):
    return context_of(x, POSITIONS["cope"](tiny_layer(**COPE)))


def expected(made: Attention, x: Tensor, keys: dict[str, Any]) -> Tensor:
    q, k, v = made.qkv(x).split(made.widths, dim=-1)
    q, k, v = (part.unflatten(-1, (-1, D)) for part in (q, k, v))  # (B, T, heads, D)
    vectors, cap = made.scoring.vectors, keys.get("attention_softcap")
    y = torch.zeros(B, T, H, D, dtype=torch.float64)
    for b, i, h in torch.cartesian_prod(torch.arange(B), torch.arange(T), torch.arange(H)):
        total = made.sinks[h].exp() if "attention_sinks" in keys else 0.0
        scores = [q[b, i, h] @ k[b, j, h // 2] / D**0.5 for j in range(i + 1)]
        for j in range(max(0, i - keys.get("sliding_window", T) + 1), i + 1):
            p = min(sum(1 / (1 + math.exp(-s)) for s in scores[j:]), P - 1)
            below, above = math.floor(p), math.ceil(p)
            at_below, at_above = (q[b, i, h] @ vectors[n] for n in (below, above))
            score = cap * torch.tanh(scores[j] / cap) if cap else scores[j]
            weight = (score + at_below + (p - below) * (at_above - at_below)).exp()
            if "forget_gate" in keys:
                weight = weight * torch.sigmoid(made.forget.gate(x[b, j + 1 : i + 1]))[:, h].prod()
            y[b, i, h] += weight * v[b, j, h // 2]
            total = total + weight
        y[b, i, h] /= total
    return made.out(y.flatten(2))


@pytest.mark.parametrize("keys", [{}, EVERYTHING], ids=["alone", "with everything"])
@torch.no_grad()
def test_by_queries(keys):
    made, x = layer(**keys), inputs()
    assert_close(made(x, context(x)), expected(made, x, keys), rtol=1e-9, atol=1e-10)


def test_gradients():
    made = layer()
    names, parameters = zip(*made.named_parameters(), strict=True)
    assert "scoring.vectors" in names

    def call(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(made, given, (x, context(x)))

    x = inputs(4)[:1].requires_grad_()
    assert gradcheck(call, (x, *parameters), fast_mode=True)


@torch.no_grad()
def test_new_vectors_change_nothing():
    x = tokens(T)
    torch.manual_seed(0)
    plain = GPT(tiny_config(position_encoding="none", n_kv_head=G))
    torch.manual_seed(0)
    model = GPT(tiny_config(**COPE))
    assert_close(model(x), plain(x))


@torch.no_grad()
def test_open_gates_count_every_token():
    """With gates of 1, CoPE is a learned vector for each distance, starting at 1."""
    made, products = layer().scoring, torch.randn(1, 1, T, P, dtype=torch.float64)
    open_gates = torch.full((1, 1, T, T), 60.0, dtype=torch.float64)
    p = made._distances(open_gates, context(inputs()))
    added = made._interpolated(products, p)
    for i in range(T):
        for j in range(i + 1):
            assert_close(added[0, 0, i, j], products[0, 0, i, min(i - j + 1, P - 1)])


@torch.no_grad()
def test_a_model_decodes_beyond_its_training_length():
    """With the weights of a model for 24 tokens, one for 60 predicts the same for the first 24."""
    model, idx = tiny_model(**COPE), tokens(60)
    longer = tiny_model(**COPE, block_size=60)
    longer.load_state_dict(model.state_dict())
    logits = longer(idx)
    assert_close(logits[:, :24], model(idx[:, :24]))
    state = longer.new_state(2)
    parts = [longer(piece, state=state) for piece in idx.split([40, 1, 19], dim=1)]
    assert_close(torch.cat(parts, dim=1), logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_shares_of_heads_add_up_to_the_whole():
    x, total = inputs(), torch.zeros(B, T, C, dtype=torch.float64)
    for rank in range(2):
        share, over = layer(attention_out_bias=False), TensorSplit(rank, 2)
        assert share.split(over)
        assert any(parameter is share.scoring.vectors for parameter in over.partial)
        total += share(x, context(x))
    whole = layer(attention_out_bias=False)
    assert_close(total, whole(x, context(x)), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("backend", ["sdpa", "flash", "flex"])
def test_backends_that_compute_scores_are_refused(backend):
    message = "scores computed by the position encoding.*: manual"
    with pytest.raises(ConfigError, match=message):
        tiny_config(**COPE, attention_backend=backend)
    automatic = tiny_config(**COPE, attention_backend="auto", block_size=1024)
    assert automatic.attention_backends_on("cuda") == ["manual"]


def test_mla_is_refused():
    with pytest.raises(ConfigError, match="mixer='mla' does not support position_encoding='cope'"):
        tiny_config(mixer="mla", position_encoding="cope")


def test_a_single_position_is_refused():
    with pytest.raises(ConfigError, match="cope_max_positions"):
        tiny_config(position_encoding="cope", cope_max_positions=1)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_decoding_has_a_graph_for_the_prompt_and_one_for_tokens():
    torch._dynamo.reset()
    model, prompt = tiny_model(**COPE), tokens(6, batch=1)
    text = model.generate(prompt, 12, temperature=0)
    compiler = CompileCounterWithBackend("eager")
    model.compile(backend=compiler, fullgraph=True, dynamic=False)
    assert torch.equal(model.generate(prompt, 12, temperature=0), text)
    assert compiler.frame_count == 2
