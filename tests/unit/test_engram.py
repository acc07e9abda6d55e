"""Embeddings of hashed n-grams: equal to the formulas, written out token by token."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from components.causal_conv import CausalConv
from components.context import Context
from components.engram import Engram, multipliers, table_sizes
from components.tensor_split import TensorSplit
from errors import ConfigError
from model_builder import GPT
from tests.tiny import layer_inputs, tiny_config, tokens

C, V, T, LAYER = 32, 61, 9, 1
KEYS = {
    "n_layer": 2,
    "engram": True,
    "engram_order": 4,
    "engram_heads": 3,
    "engram_table_size": 20,
    "engram_width": 12,
    "engram_kernel": 3,
    "normalization": "rmsnorm",
    "bias": True,
}
PRIMES = [23, 29, 31, 37, 41, 43, 47, 53, 59]
"""Table sizes: three each for n-grams of 2, 3 and 4 tokens."""


def made(**keys: Any) -> Engram:
    """The part of the second layer in float64 with random parameters."""
    torch.manual_seed(0)
    part = Engram(tiny_config(**{**KEYS, **keys}).layers[LAYER]).double()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return part


def context(x: Tensor, idx: Tensor) -> Context:
    return Context(layer_inputs(x)._replace(tokens=idx)).of("engram")


def row_by_hand(idx: list[int], position: int, length: int, size: int) -> int:
    """The row of the n-gram of a length that ends at a position."""
    mixed = 0
    for back in range(length):
        digest = hashlib.sha256(f"engram {LAYER} {back}".encode()).digest()
        odd = 2 * (int.from_bytes(digest[:8], "big") % (((2**63 - 1) // V + 1) // 2)) + 1
        token = idx[position - back] if position >= back else V
        assert odd * V < 2**63
        mixed ^= token * odd
    return mixed % size


def normed(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain


@torch.no_grad()
def test_by_the_formulas():
    part, idx = made(), tokens(T)
    x = torch.randn(2, T, C, dtype=torch.float64)
    added = torch.empty_like(x)
    for b in range(2):
        seen = idx[b].tolist()
        values = []
        for t in range(T):
            embeddings, first = [], 0
            for place, size in enumerate(PRIMES):
                row = row_by_hand(seen, t, 2 + place // 3, size)
                embeddings.append(part.table.weight[first + row])
                first += size
            assert first == len(part.table.weight)
            memory = torch.cat(embeddings)
            key = normed(part.key.weight @ memory + part.key.bias, part.key_norm.weight)
            score = (key @ normed(x[b, t], part.query_norm.weight)).item() / C**0.5
            gate = 1 / (1 + math.exp(-math.copysign(abs(score) ** 0.5, score)))
            values.append(gate * (part.value.weight @ memory + part.value.bias))
            smoothed = torch.zeros(C, dtype=torch.float64)
            for tap in range(3):
                if t >= 4 * tap:
                    own = normed(values[t - 4 * tap], part.conv_norm.weight)
                    smoothed += part.conv.weight[:, 0, 2 - tap] * own
            added[b, t] = values[t] + smoothed * torch.sigmoid(smoothed)
    assert_close(part(x, context(x, idx)), added, rtol=1e-9, atol=1e-10)


def test_hashes_never_change():
    """A saved model must find the same rows again."""
    assert multipliers(0, 3, 50304) == [84672743032697, 143349188536355, 53742448245511]
    assert table_sizes(20, 3, 3) == ((23, 29, 31), (37, 41, 43), (47, 53, 59))
    assert table_sizes(1, 1, 3) == ((2, 3, 5),)
    rows = made().rows(torch.tensor([[5, 17, 60, 0, 5]]))
    assert rows[0, -1].tolist() == [[21, 28, 65], [119, 149, 190], [216, 292, 307]]
    assert not torch.equal(rows, Engram(tiny_config(**KEYS).layers[0]).rows(torch.tensor([[5]])))


@torch.no_grad()
def test_equal_ngrams_have_equal_rows():
    rows = made().rows(torch.tensor([[7, 8, 9, 1, 7, 8, 9]]))[0]
    assert torch.equal(rows[2, :2], rows[6, :2])  # 2 and 3 tokens
    assert not torch.equal(rows[2, 2], rows[6, 2])  # 4 tokens
    table = torch.arange(9).view(3, 3)
    of_table = torch.bucketize(rows, torch.tensor(PRIMES).cumsum(0), right=True)
    assert torch.equal(of_table, table.expand(7, 3, 3))


@pytest.mark.parametrize("static", [False, True])
@torch.no_grad()
def test_decoding_in_pieces(static):
    torch.manual_seed(0)
    model = GPT(tiny_config(**KEYS)).double().eval()
    for parameter in model.parameters():
        parameter.copy_(0.3 * torch.randn_like(parameter))
    idx = tokens(20)
    state = model.new_state(2, static=static)
    parts = [model(piece, state=state) for piece in idx.split([1, 2, 9, 1, 7], dim=1)]
    assert_close(torch.cat(parts, dim=1), model(idx), rtol=1e-9, atol=1e-10)
    assert state.layers[0]["engram"]["tokens"].tolist() == idx[:, -3:].tolist()
    assert state.layers[0]["engram"]["inputs"].shape == (2, 8, C)


def test_gradients():
    part, idx = made(engram_table_size=2), tokens(5, batch=1)
    names, parameters = zip(*part.named_parameters(), strict=True)

    def call(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(part, given, (x, context(x, idx)))

    x = torch.randn(1, 5, C, dtype=torch.float64, requires_grad=True)
    assert gradcheck(call, (x, *parameters), fast_mode=True)


def test_size_and_cost():
    model, plain = GPT(tiny_config(**KEYS)), GPT(tiny_config(normalization="rmsnorm"))
    weights = 2 * C * 3 * 12 + C * 3  # of keys and values, and of the convolution
    assert model.forward_flops(T) - plain.forward_flops(T) == 2 * 2 * weights * T
    total = model.num_parameters() - plain.num_parameters()
    active = model.active_parameters() - plain.active_parameters()
    assert total == 2 * (weights + 2 * C + 3 * C + sum(PRIMES) * 4)
    assert active == 2 * (weights + 2 * C + 3 * C + 9 * 4)
    assert model.blocks[0].split(TensorSplit(0, 2)) == {"Engram"}
    assert not model.blocks[0].first["engram"].conv.weight.any()


@torch.no_grad()
def test_a_dilated_convolution():
    torch.manual_seed(0)
    conv = CausalConv(5, 3, bias=True, dilation=4).double()
    for parameter in conv.parameters():
        parameter.copy_(torch.randn_like(parameter))
    x, kept = torch.randn(2, 20, 5).double(), conv.new_state(2, device="cpu", dtype=torch.float64)
    expected = conv.bias.expand_as(x).clone()
    for tap in range(3):
        expected[:, 4 * tap :] += conv.weight[:, 0, 2 - tap] * x[:, : 20 - 4 * tap]
    assert_close(conv(x), expected)
    pieces = [conv(piece, kept) for piece in x.split([3, 1, 16], dim=1)]
    assert_close(torch.cat(pieces, dim=1), expected)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"engram_order": 4}, "engram_order=4 has no effect with engram=False"),
        ({"engram_width": 8}, "engram_width=8 has no effect with engram=False"),
        ({"engram": True, "engram_width": 12}, "engram_width=12 is not a multiple of engram_heads"),
        ({"engram": True, "parametrization": "mup"}, "is not defined for engram=True"),
    ],
)
def test_refusals(keys, problem):
    with pytest.raises(ConfigError, match=problem):
        tiny_config(**keys)


def test_keys_at_their_defaults_need_no_engram():
    tiny_config(engram_order=3, engram_heads=8, engram_table_size=None, engram_kernel=4)
