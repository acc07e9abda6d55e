"""PaTH attention: equal to products of its matrices, with everything else that changes scores.

The authors' layer needs Triton and a GPU. The expected values come from a second derivation in
float64: each score multiplies a key by the matrices I - beta w w^T of the tokens up to the query,
one after another, with no triangular system and no chunk.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from components.attention import Attention
from components.backward_cost import backward_flops
from components.linear_mixer import LowRank
from components.path_attention import path_in_chunk
from components.positions import POSITIONS
from components.tensor_split import TensorSplit
from errors import ConfigError
from model_builder import GPT
from recipe.adapters import adapt
from tests.tiny import context as context_of
from tests.tiny import tiny_config, tiny_layer, tiny_model, tokens
from training_config import TrainingConfig

B, T, C, H, G, D = 2, 11, 32, 4, 2, 8
PATH = {"position_encoding": "path", "path_rank": 6, "n_kv_head": G}
EVERYTHING = {
    "attention_softcap": 0.7,
    "sliding_window": 6,
    "attention_sinks": True,
    "forget_gate": True,
    "path_rank": 0,
    "path_kernel": 0,
}
LENGTHS = (1, 4, 5, 64)
"""Tokens in a chunk."""


def layer(**keys: Any) -> Attention:
    """A layer with PaTH in float64 with random parameters."""
    torch.manual_seed(0)
    made = Attention(tiny_layer(**{**PATH, **keys})).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return made


def inputs(length: int = T) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(B, length, C, dtype=torch.float64)


def context(x: Tensor):
    return context_of(x, POSITIONS["path"](tiny_layer(**PATH)))


def matrices(made: Attention, x: Tensor) -> Tensor:
    """The matrices H (B, T, G, D, D) of all tokens and key heads."""
    part = made.scoring
    if isinstance(part.w, LowRank):
        u = x @ part.w.first.weight.T @ part.w.second.weight.T
    else:
        u = x @ part.w.weight.T
    if part.conv is not None:
        kernel = part.conv.weight[:, 0]  # the last column is of the token itself
        size = kernel.shape[1]
        u = sum(
            F.pad(u, (0, 0, back, 0))[:, : x.shape[1]] * kernel[:, size - 1 - back]
            for back in range(size)
        )
    u = (u * torch.sigmoid(u)).unflatten(-1, (G, D))
    w = u / torch.sqrt((u * u).sum(-1, keepdim=True) + 1e-6)
    beta = 2 * torch.sigmoid(x @ part.beta.weight.T + part.beta.bias)
    eye = torch.eye(D, dtype=torch.float64)
    return eye - beta[..., None, None] * w[..., :, None] * w[..., None, :]


def expected(made: Attention, x: Tensor, keys: dict[str, Any]) -> Tensor:
    q, k, v = made.qkv(x).split(made.widths, dim=-1)
    q, k, v = (part.unflatten(-1, (-1, D)) for part in (q, k, v))  # (B, T, heads, D)
    all_matrices, cap = matrices(made, x), keys.get("attention_softcap")
    y = torch.zeros(B, T, H, D, dtype=torch.float64)
    for b, i, h in torch.cartesian_prod(torch.arange(B), torch.arange(T), torch.arange(H)):
        total = made.sinks[h].exp() if "attention_sinks" in keys else 0.0
        for j in range(max(0, i - keys.get("sliding_window", T) + 1), i + 1):
            key = k[b, j, h // 2]
            for t in range(j + 1, i + 1):
                key = all_matrices[b, t, h // 2] @ key
            score = q[b, i, h] @ key / D**0.5
            weight = (cap * torch.tanh(score / cap) if cap else score).exp()
            if "forget_gate" in keys:
                weight = weight * torch.sigmoid(made.forget.gate(x[b, j + 1 : i + 1]))[:, h].prod()
            y[b, i, h] += weight * v[b, j, h // 2]
            total = total + weight
        y[b, i, h] /= total
    return made.out(y.flatten(2))


@pytest.mark.parametrize("chunk", LENGTHS)
@pytest.mark.parametrize("keys", [{}, EVERYTHING], ids=["alone", "with everything"])
@torch.no_grad()
def test_by_products_of_matrices(keys, chunk):
    made, x = layer(path_chunk=chunk, **keys), inputs()
    assert_close(made(x, context(x)), expected(made, x, keys), rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_the_products_of_a_chunk():
    """Each of the four results by its definition."""
    torch.manual_seed(2)
    n, heads = 7, 3
    q = torch.randn(heads, n, D, dtype=torch.float64)
    k, w = torch.randn(2, n, D, dtype=torch.float64)
    w, beta = F.normalize(w, dim=-1), 2 * torch.rand(n, 1, dtype=torch.float64)
    eye = torch.eye(D, dtype=torch.float64)
    steps = [eye - beta[t] * torch.outer(w[t], w[t]) for t in range(n)]

    def product(first: int, last: int) -> Tensor:
        """H_last ... H_first, numbered from 0."""
        total = eye
        for step in steps[first : last + 1]:
            total = step @ total
        return total

    within, moved_q, moved_k, factor = path_in_chunk(q, k, w, beta)
    for i in range(n):
        assert_close(moved_q[:, i], q[:, i] @ product(0, i))
        assert_close(moved_k[i], product(i + 1, n - 1) @ k[i])
        for j in range(i + 1):
            assert_close(within[:, i, j], q[:, i] @ product(j + 1, i) @ k[j])
    assert_close(eye - factor.T @ w, product(0, n - 1))


def test_gradients():
    made = layer(path_chunk=3)
    names, parameters = zip(*made.named_parameters(), strict=True)
    own = ("w.first.weight", "w.second.weight", "conv.weight", "beta.weight", "beta.bias")
    assert {f"scoring.{name}" for name in own} <= set(names)

    def call(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(made, given, (x, context(x)))

    x = inputs(5)[:1].requires_grad_()
    assert gradcheck(call, (x, *parameters), fast_mode=True)


@torch.no_grad()
def test_the_state_has_the_keys_after_all_tokens():
    """Each key multiplied by the matrices of all later tokens, however the text is divided."""
    made, x = layer(path_kernel=0, path_chunk=3), inputs()
    _, k, _ = made.qkv(x).split(made.widths, dim=-1)
    wanted, all_matrices = k.unflatten(-1, (G, D)).clone(), matrices(made, x)
    for t in range(T):
        wanted[:, :t] = torch.einsum("bgij,bsgj->bsgi", all_matrices[:, t], wanted[:, :t])
    for pieces in ([T], [5, 1, 1, 4]):
        model = tiny_model(**PATH)
        model.blocks[0].mixer = made
        state = made.new_state(B, 20, device=x.device, dtype=torch.float64)
        start = 0
        for piece in x.split(pieces, dim=1):
            about = context(piece)
            about._inputs = about._inputs._replace(start=start, states={"mixer": state})
            made(piece, about)
            start += piece.shape[1]
        assert_close(state["k"][:, :, :T], wanted.transpose(1, 2))
        assert not state["k"][:, :, T:].any()


@torch.no_grad()
def test_the_state_keeps_the_keys_precisely():
    """In float32 beside values in bfloat16, and the last inputs of the convolution."""
    config = tiny_config(**PATH)
    plain = GPT(tiny_config(position_encoding="none", n_kv_head=G)).decoding_state_bytes(10)
    more = GPT(config).decoding_state_bytes(10) - plain
    assert more == 2 * (10 * G * D * 2 + 2 * G * D * 2)


@torch.no_grad()
def test_cost_is_that_of_the_recurrence():
    """All earlier keys are multiplied by the matrix of each token, and read by its query."""
    made = layer()
    plain = Attention(tiny_layer(position_encoding="none", n_kv_head=G)).double()
    k, w = torch.randn(2, G, T, D, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        for t in range(1, T):
            k[:, :t] -= (k[:, :t] @ w[:, t, :, None]) @ w[:, t, None, :]
    projections = 2 * T * (C * 6 + 6 * G * D + C * G + 3 * G * D)  # and 3 taps of a filter
    added = made.forward_flops(T, causal=True) - plain.forward_flops(T, causal=True)
    assert added == counter.get_total_flops() + projections
    square = made.forward_flops(T) - plain.forward_flops(T)
    assert square == 4 * G * D * T * T + projections
    windowed = layer(sliding_window=4).scoring.forward_flops(T, causal=True)
    pairs = sum(min(t, 3) for t in range(T))
    assert windowed == 4 * G * D * pairs + projections


@pytest.mark.parametrize("pattern", ["w.second", "beta"])
def test_cost_of_adapters_includes_that_of_the_products(pattern):
    """Queries, keys and values have no gradient, but the matrices and the weights have one."""
    model = GPT(tiny_config(**PATH, n_layer=1))
    training = {"init_from": "m", "adapter": "lora", "adapter_pattern": pattern, "max_iters": 1}
    adapt(model, TrainingConfig.make(training))
    block, scoring = model.blocks[0], model.blocks[0].mixer.scoring
    products = scoring.forward_flops(T) - scoring.children_flops(T)
    linears = (block.mixer.out, block.ffn.up, block.ffn.down, model.head)
    convolved = scoring.conv.forward_flops(T) if pattern == "w.second" else 0
    adapter = scoring.get_submodule(pattern).backward_flops(T, into_input=False)
    expected = 2 * products + 2 * H * D * T * T + convolved + adapter
    expected += sum(2 * linear.weight.numel() * T for linear in linears)
    assert backward_flops(model, T) == expected


@torch.no_grad()
def test_beta_of_zero_leaves_attention_without_positions():
    made, x = layer(), inputs()
    made.scoring.beta.weight.zero_()
    made.scoring.beta.bias.fill_(-60.0)
    q, k, v = (made._heads(part) for part in made.qkv(x).split(made.widths, dim=-1))
    plain = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert_close(made(x, context(x)), made.out(plain.transpose(1, 2).flatten(2)))


@torch.no_grad()
def test_a_model_decodes_beyond_its_training_length():
    """With the weights of a model for 24 tokens, one for 60 predicts the same for the first 24."""
    model, idx = tiny_model(**PATH), tokens(60)
    longer = tiny_model(**PATH, block_size=60, path_chunk=7)
    longer.load_state_dict(model.state_dict())
    logits = longer(idx)
    assert_close(logits[:, :24], model(idx[:, :24]), rtol=1e-4, atol=1e-5)
    state = longer.new_state(2)
    parts = [longer(piece, state=state) for piece in idx.split([40, 1, 19], dim=1)]
    assert_close(torch.cat(parts, dim=1), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keys", [{}, {"path_rank": 0, "forget_gate": True}])
@torch.no_grad()
def test_shares_of_heads_add_up_to_the_whole(keys):
    x, total = inputs(), torch.zeros(B, T, C, dtype=torch.float64)
    for rank in range(2):
        share = layer(attention_out_bias=False, **keys)
        assert share.split(TensorSplit(rank, 2))
        total += share(x, context(x))
    whole = layer(attention_out_bias=False, **keys)
    assert_close(total, whole(x, context(x)), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("backend", ["sdpa", "flash", "flex"])
def test_backends_that_compute_scores_are_refused(backend):
    with pytest.raises(ConfigError, match=r"scores computed by the position encoding.*: manual"):
        tiny_config(**PATH, attention_backend=backend)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mixer": "mla", "n_kv_head": None}, "mixer='mla' does not support position_encoding='pa"),
        ({"kv_sharing": "false+true"}, "kv_sharing=True cannot be combined with position_encodi"),
        ({"sphere_weights": True, "bias": False}, "not defined for position_encoding='path'"),
        ({"parametrization": "mup", "mup_base_width": 16}, "not defined for position_encoding='pa"),
    ],
    ids=["mla", "kv_sharing", "sphere_weights", "mup"],
)
def test_what_is_refused(keys, message):
    given = {k: v for k, v in {**PATH, **keys}.items() if v is not None}
    with pytest.raises(ConfigError, match=message):
        tiny_config(**given)


@torch.no_grad()
def test_static_states():
    """With a start as a tensor, as in compiled decoding, also after a prompt of several chunks."""
    model, idx = tiny_model(**PATH, path_chunk=4), tokens(20)
    state = model.new_state(2, capacity=24, static=True)
    parts = [model(piece, state=state) for piece in idx.split([11, 1, 1, 7], dim=1)]
    assert_close(torch.cat(parts, dim=1), model(idx), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_decoding_has_a_graph_for_the_prompt_and_one_for_tokens():
    torch._dynamo.reset()
    model, prompt = tiny_model(**PATH), tokens(6, batch=1)
    text = model.generate(prompt, 12, temperature=0)
    compiler = CompileCounterWithBackend("eager")
    model.compile(backend=compiler, fullgraph=True, dynamic=False)
    assert torch.equal(model.generate(prompt, 12, temperature=0), text)
    assert compiler.frame_count == 2
