"""Canon layers: equal to the formula, which has no reference implementation that can be imported.

The expected values are sums over positions in float64, written out without a convolution.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck
from torch.nn import functional as F
from torch.testing import assert_close

from components.blocks import BLOCKS, Block
from components.canon import Canon
from components.tensor_split import TensorSplit
from errors import ConfigError
from model_builder import GPT
from tests.tiny import context, layer_inputs, tiny_config, tiny_layer, tiny_model, tokens

LLAMA = {
    "ffn_type": "swiglu",
    "normalization": "rmsnorm",
    "position_encoding": "none",
    "bias": False,
    "ffn_hidden": 12,
}


def block_of(**keys: object) -> Block:
    """A block in float64 with random parameters."""
    torch.manual_seed(0)
    block = BLOCKS["pre"](tiny_layer(**{**LLAMA, **keys})).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return block


def inputs(length: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, length, 32, dtype=torch.float64, generator=generator)


def by_hand(canon: Canon, h: Tensor) -> Tensor:
    """h_t + sum_j w_j h_{t-j}, where the last element of the kernel is w_0."""
    kernel = canon.conv.weight.squeeze(1)
    y = h.clone()
    for t in range(h.shape[1]):
        for j in range(min(kernel.shape[1], t + 1)):
            y[:, t] += kernel[:, -1 - j] * h[:, t - j]
    return y


@pytest.mark.parametrize(("n_kv_head", "kernel"), [(4, 4), (2, 3)])
@torch.no_grad()
def test_all_four_positions_by_the_formula(n_kv_head, kernel):
    """A block of llama, written out: a after the norm, b before the heads, c after the norm, d on
    the gate and the other factor."""
    keys = {"canon": "abcd", "canon_kernel": kernel, "n_kv_head": n_kv_head}
    block, x = block_of(**keys), inputs()
    mixer, ffn = block.mixer, block.ffn
    h = by_hand(block.before_mixer["canon_a"], block.mixer_norm(x))
    q, k, v = by_hand(mixer.canon, mixer.qkv(h)).split(mixer.widths, dim=-1)
    q, k, v = (part.unflatten(-1, (-1, 8)).transpose(1, 2) for part in (q, k, v))
    k, v = (part.repeat_interleave(4 // n_kv_head, dim=1) for part in (k, v))
    scores = (q @ k.transpose(-2, -1) / 8**0.5).masked_fill(
        torch.ones(7, 7).triu(1).bool(), -torch.inf
    )
    x = x + mixer.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    h = by_hand(block.before_ffn["canon_c"], block.ffn_norm(x))
    gate, up = by_hand(ffn.canon, ffn.gate_up(h)).chunk(2, dim=-1)
    expected = x + ffn.down(F.silu(gate) * up)
    x = inputs()
    assert_close(block(x, layer_inputs(x))[0], expected, rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_a_plain_network_is_convolved_before_its_activation():
    ffn, x = block_of(canon="d", ffn_type="standard").ffn, inputs()
    expected = ffn.down(F.gelu(by_hand(ffn.canon, ffn.up(x))))
    assert_close(ffn(x, context(x)), expected, rtol=1e-9, atol=1e-10)


def test_gradients():
    block = block_of(canon="abcd", n_kv_head=2, ffn_hidden=4)
    names, parameters = zip(*block.named_parameters(), strict=True)
    assert sum(name.endswith("conv.weight") for name in names) == 4

    def call(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(block, given, (x, layer_inputs(x)))[0]

    x = inputs(5)[:1].requires_grad_()
    assert gradcheck(call, (x, *parameters), fast_mode=True)


@torch.no_grad()
def test_without_attention_decoding_goes_on_beyond_block_size():
    """Each state holds the last three inputs, of as many channels as its convolution has."""
    model = tiny_model(canon="acd", mixer="short_conv")
    idx, state = tokens(60), model.new_state(2)
    size = state.bytes
    parts = [model(piece, state=state) for piece in idx.split([2, 1, 30, 27], dim=1)]
    assert_close(torch.cat(parts, dim=1), model(idx), rtol=1e-4, atol=1e-4)
    assert state.bytes == size
    kept = {name: own["canon"].shape for name, own in state.layers[0].items() if "canon" in own}
    assert kept == {"canon_a": (2, 3, 32), "canon_c": (2, 3, 32), "ffn": (2, 3, 128)}


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"canon": "ab", "mixer": "short_conv"}, "position b, which mixer='short_conv'"),
        ({"canon": "d", "ffn_type": "moe"}, "position d, which ffn_type='moe'"),
        ({"canon_kernel": 3}, "canon_kernel=3 has no effect with canon='none'"),
    ],
)
def test_refusals(keys, problem):
    with pytest.raises(ConfigError, match=problem):
        tiny_config(**keys)


@pytest.mark.parametrize("ffn_type", ["standard", "swiglu"])
@torch.no_grad()
def test_shares_of_channels_add_up_to_the_whole(ffn_type):
    keys = {"canon": "bd", "n_kv_head": 2, "ffn_type": ffn_type}
    x = inputs()
    for name in ("mixer", "ffn"):
        total = torch.zeros_like(x)
        for rank in range(2):
            share = getattr(block_of(**keys), name)
            assert share.split(TensorSplit(rank, 2))
            total += share(x, context(x))
        whole = getattr(block_of(**keys), name)(x, context(x))
        assert_close(total, whole, rtol=1e-9, atol=1e-10)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_decoding_has_a_graph_for_the_prompt_and_one_for_tokens():
    torch._dynamo.reset()
    model, prompt = tiny_model(canon="abcd"), tokens(6, batch=1)
    text = model.generate(prompt, 12, temperature=0)
    compiler = CompileCounterWithBackend("eager")
    model.compile(backend=compiler, fullgraph=True, dynamic=False)
    assert torch.equal(model.generate(prompt, 12, temperature=0), text)
    assert compiler.frame_count == 2


def test_other_weights_start_as_without_canon():
    models = []
    for canon in ("none", "abcd"):
        torch.manual_seed(0)
        models.append(GPT(tiny_config(canon=canon)).state_dict())
    plain, canon = models
    assert all(torch.equal(canon[name], weight) for name, weight in plain.items())
    assert not torch.equal(*(canon[f"blocks.{i}.ffn.canon.conv.weight"] for i in (0, 1)))
