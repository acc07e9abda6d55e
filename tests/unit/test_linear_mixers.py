"""Linear attention and its successors: equal to their definitions and to published layers.

The definitions are written out in float64: in parallel form, with a weight for each pair of tokens,
where a paper has one, else token by token.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from components.backward_cost import backward_flops
from components.linear_mixer import LinearMixer
from components.mixers import MIXERS
from errors import ConfigError
from recipe.adapters import adapt
from tests.tiny import context, tiny_config, tiny_model, tokens
from training_config import TrainingConfig

B, T, C, H, DK, DV = 2, 21, 32, 2, 6, 5
SHAPE = {"linear_n_head": H, "linear_key_dim": DK, "linear_value_dim": DV, "linear_chunk": 8}
Keys = dict[str, Any]
"""Config keys and values."""

NAMES = ("linear_attention", "retnet", "gla", "deltanet", "gated_deltanet", "kda")


def layer_of(name: str, **keys: Any) -> LinearMixer:
    """A layer in float64 in which nothing is zero or one."""
    torch.manual_seed(0)
    config = tiny_config(**{"mixer": name, **SHAPE, **keys})
    layer = MIXERS[name](config.layers[0]).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return layer


def projected(layer: LinearMixer, x: Tensor) -> list[Tensor]:
    """q, k, v and z of each head (B, H, T, D), from the rows of the weight."""
    widths = [H * DK, H * DK, H * DV, *([H * DV] if layer.has_gate else [])]
    weights, biases = layer.qkvz.weight.split(widths), layer.qkvz.bias.split(widths)
    found = [x @ w.T + b for w, b in zip(weights, biases, strict=True)]
    return [each.view(*x.shape[:2], H, -1).transpose(1, 2) for each in found]


def convolved(x: Tensor, filters: Tensor) -> Tensor:
    """SiLU of the sum over the last tokens: x (B, H, T, D), filters (H D, 1, kernel)."""
    b, h, t, d = x.shape
    kernel = filters.shape[-1]
    before = torch.cat((x.new_zeros(b, h, kernel - 1, d), x), dim=2)
    weights = filters.view(h, 1, d, kernel)
    summed = sum(weights[..., j] * before[:, :, j : j + t] for j in range(kernel))
    return summed * torch.sigmoid(summed)


def normalized(layer: LinearMixer, y: Tensor) -> Tensor:
    mean_square = (y * y).mean(-1, keepdim=True)
    return y / torch.sqrt(mean_square + 1e-5) * layer.norm.weight


def joined(layer: LinearMixer, y: Tensor) -> Tensor:
    """The output of the layer for those of its heads (B, H, T, Dv)."""
    return y.transpose(1, 2).flatten(2) @ layer.out.weight.T + layer.out.bias


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def linear_attention(layer: LinearMixer, x: Tensor, keys: Keys) -> Tensor:
    """Equation 7 of the paper: the softmax's weights are products of features. The sum has the
    layer's 1e-6, without which a query whose features are all 0 would have no output."""
    q, k, v = projected(layer, x)
    if keys.get("linear_feature_map") == "relu":
        q, k = (torch.where(each > 0, each, 0) for each in (q, k))
    else:
        q, k = (torch.where(each > 0, each + 1, torch.exp(each)) for each in (q, k))
    weights = torch.tril(torch.einsum("bhtd,bhsd->bhts", q, k))
    return joined(layer, weights / (weights.sum(-1, keepdim=True) + 1e-6) @ v)


def retnet(layer: LinearMixer, x: Tensor, keys: Keys) -> Tensor:
    """Equation 5 of the paper: (Q K^T * D) V, with rotations as complex numbers."""
    q, k, v, z = projected(layer, x)
    pairs = [torch.complex(*each.chunk(2, dim=-1)) for each in (q, k)]
    theta = keys.get("retnet_theta", 10000)
    angles = torch.arange(T).double()[:, None] * theta ** -(torch.arange(0, DK, 2).double() / DK)
    q, k = (each * torch.polar(torch.ones_like(angles), angles) for each in pairs)
    scores = torch.einsum("bhtd,bhsd->bhts", q, k.conj()).real / math.sqrt(DK)
    gamma = torch.tensor([1 - 2 ** (-5 - h) for h in range(H)], dtype=torch.float64)
    distance = torch.arange(T)[:, None] - torch.arange(T)
    decay = torch.where(distance >= 0, gamma[:, None, None] ** distance.clamp(min=0), 0.0)
    return joined(layer, normalized(layer, (scores * decay) @ v) * silu(z))


def low_rank(pair: torch.nn.Module, x: Tensor) -> Tensor:
    y = x @ pair.first.weight.T @ pair.second.weight.T
    return y if pair.second.bias is None else y + pair.second.bias


def gla(layer: LinearMixer, x: Tensor, keys: Keys) -> Tensor:
    """Equation 4 of the paper's section 4, with the products of decays written out."""
    q, k, v, z = projected(layer, x)
    assert layer.decay.first.out_features == keys.get("gla_rank", 16)
    alpha = torch.sigmoid(low_rank(layer.decay, x)).view(B, T, H, DK).transpose(1, 2)
    alpha = alpha ** (1 / keys.get("gla_temperature", 16))
    y = torch.zeros(B, H, T, DV, dtype=x.dtype)
    for t, s in itertools.product(range(T), range(T)):
        if s <= t:
            kept = alpha[:, :, s + 1 : t + 1].prod(dim=2)
            weight = (q[:, :, t] * kept * k[:, :, s]).sum(-1, keepdim=True) / math.sqrt(DK)
            y[:, :, t] += weight * v[:, :, s]
    return joined(layer, normalized(layer, y) * silu(z))


def deltanet(layer: LinearMixer, x: Tensor, keys: Keys) -> Tensor:
    """Equation 4 of the paper, token by token."""
    q, k, v = projected(layer, x)
    filters = layer.conv.weight.split([H * DK, H * DK, H * DV])
    q, k, v = (convolved(*each) for each in zip((q, k, v), filters, strict=True))
    q, k = (each / torch.sqrt((each * each).sum(-1, keepdim=True) + 1e-6) for each in (q, k))
    beta = torch.sigmoid(x @ layer.beta.weight.T)
    S, outputs = torch.zeros(B, H, DV, DK, dtype=x.dtype), []
    for t in range(T):
        kept = torch.eye(DK) - beta[:, t, :, None, None] * k[:, :, t, :, None] * k[:, :, t, None]
        new = beta[:, t, :, None, None] * v[:, :, t, :, None] * k[:, :, t, None]
        S = S @ kept + new
        outputs.append((S @ q[:, :, t, :, None])[..., 0] / math.sqrt(DK))
    return joined(layer, normalized(layer, torch.stack(outputs, dim=2)))


DEFINITIONS: dict[str, Callable[[LinearMixer, Tensor, Keys], Tensor]] = {
    "linear_attention": linear_attention,
    "retnet": retnet,
    "gla": gla,
    "deltanet": deltanet,
}


CHANGED: dict[str, Keys] = {
    "linear_attention": {"linear_feature_map": "relu"},
    "retnet": {"retnet_theta": 50.0},
    "gla": {"gla_rank": 3, "gla_temperature": 2.0},
}
"""Values of their own options other than the defaults."""


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        *(pytest.param(name, {}, id=name) for name in DEFINITIONS),
        *(pytest.param(name, keys, id=f"{name}-changed") for name, keys in CHANGED.items()),
    ],
)
def test_it_is_the_definition_of_the_paper(name, keys):
    layer, x = layer_of(name, **keys), torch.randn(B, T, C, dtype=torch.float64)
    results = []
    for call in (lambda x: layer(x, context(x)), lambda x: DEFINITIONS[name](layer, x, keys)):
        given = x.clone().requires_grad_()
        y = call(given)
        total = (y * torch.linspace(-1, 1, y.numel()).double().view_as(y)).sum()
        results.append((y, torch.autograd.grad(total, [given, *layer.parameters()])))
    assert_close(results[0], results[1])


def test_kda_is_the_layer_of_kimi_linear():
    """Theirs computes the recurrence in float32."""
    from transformers import KimiLinearConfig
    from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention

    config = KimiLinearConfig(
        hidden_size=C,
        num_hidden_layers=2,
        linear_num_heads=H,
        linear_head_dim=DK,
        linear_conv_kernel_dim=3,
        rms_norm_eps=1e-5,
    )
    torch.manual_seed(0)
    theirs = KimiLinearDeltaAttention(config, layer_idx=0).double().eval()
    ours = layer_of("kda", linear_value_dim=DK, linear_kernel=3, bias=False)
    given = dict(theirs.named_parameters())
    qkv = [given.pop(f"{kind}_proj.weight") for kind in "qkv"]
    renamed = {
        "conv1d.weight": "conv.weight",
        "forget_gate.f_a_proj.weight": "decay.first.weight",
        "forget_gate.f_b_proj.weight": "decay.second.weight",
        "forget_gate.dt_bias": "dt_bias",
        "forget_gate.A_log": "A_log",
        "b_proj.weight": "beta.weight",
        "g_a_proj.weight": "gate.first.weight",
        "g_b_proj.weight": "gate.second.weight",
        "o_norm.weight": "norm.weight",
        "o_proj.weight": "out.weight",
    }
    assert given.keys() == renamed.keys()
    assert {*renamed.values(), "qkvz.weight"} == dict(ours.named_parameters()).keys()
    with torch.no_grad():
        for value in (*given.values(), *qkv):
            value.copy_(0.3 * torch.randn_like(value))
        ours.qkvz.weight.copy_(torch.cat(qkv))
        for name, value in given.items():
            own = ours.get_parameter(renamed[name])
            own.copy_(value.view_as(own))
    x = torch.randn(B, T, C, dtype=torch.float64)
    results = []
    for call in (lambda x: ours(x, context(x)), theirs):
        inputs = x.clone().requires_grad_()
        y = call(inputs)
        (y * torch.linspace(-1, 1, y.numel()).double().view_as(y)).sum().backward()
        results.append((y, inputs.grad))
    close = {"rtol": 1e-4, "atol": 1e-5}
    assert_close(results[0], results[1], **close)
    assert_close(ours.qkvz.weight.grad, torch.cat([each.grad for each in qkv]), **close)
    for name, value in given.items():
        grad = ours.get_parameter(renamed[name]).grad
        assert_close(grad, value.grad.view_as(grad), **close)


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name):
    layer = layer_of(name, linear_n_value_head=4, linear_chunk=4)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def call(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, given, (x, context(x)))

    x = torch.randn(1, 6, C, dtype=torch.float64, requires_grad=True)
    assert gradcheck(call, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_cost_equals_the_counter(name):
    """By token, where every product of the recurrence is a matmul."""
    layer = layer_of(name, linear_chunk=1, linear_n_value_head=4)
    x = torch.randn(1, 7, C, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        layer(x, context(x))
    assert layer.forward_flops(7) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "adapted"),
    [("gla", "decay.*"), ("kda", "decay.*"), ("kda", "beta"), ("kda", "gate.*"), ("gla", "qkvz")],
)
def test_the_backward_cost_with_adapters_equals_the_counter(name, adapted):
    """In the first layer, whose input has no gradient. The memory before the first token, which the
    delta rule reads, has none either, unless it is decayed."""
    model = tiny_model(mixer=name, **SHAPE, n_layer=1)
    model.blocks[0].mixer.chunk = 1
    training = TrainingConfig(init_from="model", adapter="lora", adapter_pattern=f"*.{adapted}")
    adapt(model, training)
    idx = tokens(7, batch=1)
    with FlopCounterMode(display=False) as counter:
        loss = model(idx, idx)[1]
        forward = counter.get_total_flops()
        loss.backward()
    first = 2 * H * DK * DV if adapted == "beta" else 0
    assert backward_flops(model, 7) - first == counter.get_total_flops() - forward


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_state_is_a_matrix_per_head_and_decodes_beyond_block_size(name):
    model, idx = tiny_model(mixer=name, **SHAPE).double(), tokens(60)
    columns = DV + (name == "linear_attention")
    inputs = 3 * H * (2 * DK + DV) if MIXERS[name].default_kernel else 0  # of the convolution
    assert model.new_state(1).bytes == 8 * 2 * (H * DK * columns + inputs)
    state = model.new_state(2)
    parts = [model(piece, state=state) for piece in idx.split([30, 1, 1, 28], dim=1)]
    assert_close(torch.cat(parts, dim=1), model(idx), rtol=1e-6, atol=1e-8)


def test_relu_may_be_the_feature_map():
    layer = layer_of("linear_attention", linear_feature_map="relu")
    x = torch.randn(1, 5, C, dtype=torch.float64)
    q, k, v = projected(layer, x)
    weights = torch.tril(q.clamp(min=0) @ k.clamp(min=0).mT)
    expected = joined(layer, weights / (weights.sum(-1, keepdim=True) + 1e-6) @ v)
    assert_close(layer(x, context(x)), expected)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"linear_n_value_head": 3}, "linear_n_value_head=3 is not a multiple of linear_n_head=2"),
        ({"linear_key_dim": 5}, "linear_key_dim=5 is odd, but mixer='retnet' rotates pairs"),
    ],
)
def test_what_does_not_fit_is_refused(keys, said):
    with pytest.raises(ConfigError, match=said):
        tiny_config(**{"mixer": "retnet", **SHAPE, **keys})


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"mixer": "kda"}, "n_embd=32 is not a multiple of linear_n_head=5; change one, or set"),
        ({"mixer": "gla"}, "the width 16 of all keys (n_embd=32) is not a multiple of"),
        ({"mixer": "attention+kda", "linear_n_head": "none+5"}, "layer 1: n_embd=32 is not"),
    ],
)
def test_heads_that_would_narrow_the_mixer_are_refused(keys, said):
    keys = {"linear_n_head": 5, **keys}
    with pytest.raises(ConfigError) as raised:
        tiny_config(**keys)
    assert said in str(raised.value)
    tiny_config(**keys, linear_key_dim=6)  # a width that was chosen is not narrowed


def test_the_default_number_of_heads_divides_the_width():
    widths = {200: (2, 100), 256: (4, 64), 127: (1, 127), 48: (1, 48)}
    for n_embd, expected in widths.items():
        layer = tiny_config(mixer="linear_attention", n_embd=n_embd).layers[0]
        assert (layer.linear_n_head, layer.linear_key_dim) == expected
