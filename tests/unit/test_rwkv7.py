"""RWKV-7: equal to the equations of the paper (arXiv 2503.14456), written out token by token."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from components.adapted_linear import AdaptedLinear
from components.backward_cost import backward_flops
from components.rank_one_recurrence import by_chunk, by_token
from components.rwkv7 import RWKV7, VALUES
from errors import ConfigError
from model_builder import GPT
from recipe.adapters import adapt
from tests.tiny import context, tiny_config, tiny_model, tokens
from training_config import TrainingConfig

B, T, C, H, D = 2, 13, 32, 4, 8
SHAPE = {"mixer": "rwkv7", "rwkv_head_dim": D, "rwkv_chunk": 5}


def layer_of(index: int = 0, **keys: Any) -> RWKV7:
    """A layer in float64 in which nothing is zero or one."""
    torch.manual_seed(0)
    layer = RWKV7(tiny_config(**{**SHAPE, **keys}).layers[index]).double().eval()
    if index == 0:
        layer.connect(())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return layer


def called(layer: RWKV7, x: Tensor, first: Tensor | None) -> Tensor:
    """The output of a layer for x, with the values of the first layer if it takes them."""
    own = context(x)
    if first is not None:
        own._inputs.taken[VALUES] = first
    return layer(x, own)


def equations(layer: RWKV7, x: Tensor, first: Tensor | None) -> Tensor:
    """Section 4.1 of the paper: equations 3 to 22 for each head, with S (Dv, Dk)."""
    p = dict(layer.named_parameters())

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def loramlp(name: str, x: Tensor, f: Any) -> Tensor:
        y = f(x @ p[f"{name}.first.weight"].T) @ p[f"{name}.second.weight"].T
        return y + p[f"{name}.second.bias"] if f"{name}.second.bias" in p else y

    def lerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
        return (1 - share) * a + share * b

    outputs, S = [], torch.zeros(B, H, D, D, dtype=x.dtype)
    for t in range(x.shape[1]):
        before = x[:, t - 1] if t else torch.zeros_like(x[:, 0])
        of = dict(zip("rdkvag", (lerp(x[:, t], before, mu) for mu in p["mu"]), strict=True))
        r, k, v = linear("r", of["r"]), linear("k", of["k"]), linear("v", of["v"])
        if first is not None:
            v = lerp(v, first[:, t], torch.sigmoid(loramlp("value_share", of["v"], lambda h: h)))
        a = torch.sigmoid(loramlp("rate", of["a"], lambda h: h))
        d = loramlp("decay", of["d"], torch.tanh)
        w = torch.exp(-math.exp(-0.5) * torch.sigmoid(d))
        g = loramlp("gate", of["g"], torch.sigmoid)
        removal = (k * p["removal"]).view(B, H, D)
        removal = removal / removal.square().sum(-1, keepdim=True).sqrt()
        k = k * lerp(torch.ones_like(a), a, p["boost"])
        r, k, v, a, w = (each.view(B, H, D) for each in (r, k, v, a, w))
        transition = torch.diag_embed(w) - removal[..., :, None] * (a * removal)[..., None, :]
        S = S @ transition + v[..., :, None] * k[..., None, :]
        o = (S @ r[..., None])[..., 0]
        centered = o - o.mean(-1, keepdim=True)
        o = centered / (centered.square().mean(-1, keepdim=True) + 1e-5 * D).sqrt()
        o = o.reshape(B, C) * p["norm.weight"] + p["norm.bias"]
        bonus = (r * p["bonus"] * k).sum(-1, keepdim=True) * v
        outputs.append(linear("output", g * (o + bonus.reshape(B, C))))
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("chunk", [1, 5, 64])
@pytest.mark.parametrize("index", [0, 1])
def test_the_layer_is_the_equations(index, chunk):
    layer = layer_of(index, rwkv_chunk=chunk)
    x, first = torch.randn(2, B, T, C, dtype=torch.float64)
    results = []
    for call in (called, equations):
        given = [x.clone().requires_grad_(), first.clone().requires_grad_()][: 1 + index]
        y = call(layer, given[0], given[1] if index else None)
        total = (y * torch.linspace(-1, 1, y.numel()).double().view_as(y)).sum()
        results.append((y, torch.autograd.grad(total, [*given, *layer.parameters()])))
    assert_close(results[0], results[1], rtol=1e-8, atol=1e-9)


def test_the_first_of_the_layers_shares_its_values():
    model = tiny_model(**SHAPE, n_layer=3)
    assert [block.mixer.takes for block in model.blocks] == [(), (VALUES,), (VALUES,)]
    assert [block.mixer.value_share is None for block in model.blocks] == [True, False, False]
    idx = tokens(7)
    before = model(idx)
    with torch.no_grad():
        model.blocks[0].mixer.v.weight.zero_()
        model.blocks[0].mixer.output.weight.zero_()  # nothing else of the first values
        one = model(idx)
        model.blocks[0].mixer.v.weight.fill_(0.1)
    assert not torch.equal(one, before)
    assert not torch.equal(model(idx), one)


def arguments(tokens: int) -> list[Tensor]:
    """q, k, v, g, a, b and S of a recurrence whose removals have lengths of up to 1."""
    generator = torch.Generator().manual_seed(2)
    q, k, v, g, a, b = torch.randn(6, 1, 2, tokens, 4, dtype=torch.float64, generator=generator)
    a = a / a.norm(dim=-1, keepdim=True)
    state = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=generator)
    return [q, k, v, -math.exp(-0.5) * g.sigmoid(), a, a * b.sigmoid(), state]


@pytest.mark.parametrize("chunk", [2, 3, 8, 16])
def test_chunks_do_not_change_the_recurrence(chunk):
    assert_close(by_chunk(*arguments(11), chunk), by_token(*arguments(11)))


def test_the_memory_is_bounded_over_thousands_of_tokens():
    """Transitions are contractions; in float32 chunks are as accurate as single tokens."""
    *each, state = (x.float() for x in arguments(2048))
    outputs = by_chunk(*each, state, 64)[0], by_token(*each, state)[0]
    assert outputs[1].abs().max() < 100
    assert_close(*outputs, rtol=1e-4, atol=1e-4)


def test_gradients():
    layer = layer_of(1, rwkv_chunk=4)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def call(x: Tensor, first: Tensor, *values: Tensor) -> Tensor:
        own = context(x)
        own._inputs.taken[VALUES] = first
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, given, (x, own))

    x, first = torch.randn(2, 1, 6, C, dtype=torch.float64)
    inputs = (x.requires_grad_(), first.requires_grad_(), *parameters)
    assert gradcheck(call, inputs, fast_mode=True)


def test_the_cost_equals_the_counter():
    """By token, where every product of the recurrence is a matmul. In the backward pass, the memory
    before the first token has no gradient."""
    layer = layer_of(1, rwkv_chunk=1)
    x, first = torch.randn(2, 1, 7, C, dtype=torch.float64).requires_grad_().unbind()
    with FlopCounterMode(display=False) as forward:
        y = called(layer, x, first)
    assert layer.forward_flops(7) == forward.get_total_flops()
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert 2 * layer.forward_flops(7) - 2 * H * D * D == backward.get_total_flops()


@pytest.mark.parametrize(
    ("adapted", "constant"),
    [("r", 0), ("k", 1), ("v", 2), ("decay.first", 2), ("rate.second", 2), ("gate.first", 0)],
)
def test_the_backward_cost_with_one_adapter_equals_the_counter(adapted, constant):
    """In the first layer, whose input has no gradient. The memory before the first token has none
    either, and what is removed from it has one only if the keys have one."""
    model = tiny_model(**SHAPE, n_layer=1)
    layer = model.blocks[0].mixer
    layer.chunk = 1
    adapt(model, TrainingConfig(init_from="model", adapter="lora", adapter_pattern=f"*{adapted}"))
    assert isinstance(layer.get_submodule(adapted), AdaptedLinear)
    idx = tokens(7, batch=1)
    with FlopCounterMode(display=False) as counter:
        loss = model(idx, idx)[1]
        forward = counter.get_total_flops()
        loss.backward()
    first = constant * 2 * H * D * D
    assert backward_flops(model, 7) - first == counter.get_total_flops() - forward


@torch.no_grad()
def test_the_state_is_a_matrix_per_head_and_decodes_beyond_block_size():
    model, idx = tiny_model(**SHAPE).double(), tokens(60)
    assert model.new_state(1).bytes == 8 * 2 * (H * D * D + C)
    state = model.new_state(2)
    parts = [model(piece, state=state) for piece in idx.split([30, 1, 1, 28], dim=1)]
    assert_close(torch.cat(parts, dim=1), model(idx), rtol=1e-6, atol=1e-8)


def test_starts_as_in_the_code_of_the_paper():
    torch.manual_seed(0)
    layers, width = 3, 128
    model = GPT(tiny_config(mixer="rwkv7", n_layer=layers, n_embd=width)).requires_grad_(False)
    for index, block in enumerate(model.blocks):
        p = dict(block.mixer.named_parameters())
        for i in (0, 5, 63, 64, 100, width - 1):
            ramp = i / (width - 1) - 0.5
            zigzag = ((i % 64) - 31.5) / 31.5
            zigzag *= abs(zigzag)
            curve = (i / (width - 1)) ** (1 + (index / (layers - 1)) ** 0.3)
            assert p["decay.second.bias"][i] == pytest.approx(-6 + 6 * curve + 0.5 + 2.5 * zigzag)
            rate = -0.19 + 0.3 * zigzag + 0.4 * ramp
            assert p["rate.second.bias"][i] == pytest.approx(rate, abs=1e-6)
            if index:
                share = 0.73 - 0.4 * ramp
                assert p["value_share.second.bias"][i] == pytest.approx(share)
            assert p["removal"][i] == pytest.approx(0.71 - 0.1 * ramp)
            powers = (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)
            mixtures = [1 - (i / width) ** (power * (1 - index / layers)) for power in powers]
            assert p["mu"][:, i].tolist() == pytest.approx(mixtures, abs=1e-6)
        assert (p["boost"] == 1.02).all()
        assert (p["bonus"] == -0.04).all()
        assert_close(p["norm.weight"], torch.full((width,), ((index + 1) / layers) ** 0.7))
        for name, bound in (("r", 0.5), ("k", 0.05), ("v", 0.5)):
            weight = p[f"{name}.weight"] * width**0.5
            assert 0.98 * bound < weight.abs().max() <= bound
            assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert not p["output.weight"].any()
        for name in ("decay", "rate", "gate", *(["value_share"] if index else [])):
            assert not p[f"{name}.first.weight"].any()
            second = p[f"{name}.second.weight"]
            assert_close(second.T @ second, 0.01 * torch.eye(second.shape[1]), rtol=0, atol=1e-6)


def test_each_layer_has_its_own_sizes():
    ranks = ("decay", "rate", "value", "gate")
    pairs = {"head_dim": (8, 16), **{f"{name}_rank": (3, 5) for name in ranks}}
    patterns = {f"rwkv_{key}": f"{a}+{b}" for key, (a, b) in pairs.items()}
    mixed = GPT(tiny_config(mixer="rwkv7", **patterns))
    for index, block in enumerate(mixed.blocks):
        uniform = {f"rwkv_{key}": pair[index] for key, pair in pairs.items()}
        alone = GPT(tiny_config(mixer="rwkv7", **uniform)).blocks[index].mixer
        assert block.mixer.memory_shape == alone.memory_shape
        shapes = ({n: p.shape for n, p in each.named_parameters()} for each in (block.mixer, alone))
        assert next(shapes) == next(shapes)


def test_default_ranks_are_those_of_the_code_of_the_paper():
    """With 768 dimensions, 64, 64, 32 and 128; with 4096, 160, 160, 96 and 320."""
    names = [f"rwkv_{name}_rank" for name in ("decay", "rate", "value", "gate")]
    for width, ranks in ((768, (64, 64, 32, 128)), (4096, (160, 160, 96, 320))):
        layer = tiny_config(mixer="rwkv7", n_embd=width).layers[0]
        assert tuple(getattr(layer, name) for name in names) == ranks


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"rwkv_head_dim": 12}, "n_embd=32 is not a multiple of rwkv_head_dim=12"),
        (
            {"mixer": "rwkv7+attention", "rwkv_value_rank": 8},
            "rwkv_value_rank=8 has no effect: no other layer has mixer='rwkv7'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(keys, said):
    with pytest.raises(ConfigError, match=said):
        tiny_config(**{**SHAPE, **keys})
