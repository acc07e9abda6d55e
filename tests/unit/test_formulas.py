"""Every norm, activation, network and block against its formula, written out here."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from components.blocks import BLOCKS
from model_components import ACTIVATIONS, FFNS, NORMS
from tests.measured import assert_close
from tests.tiny import context, layer_inputs, tiny_layer

TOLERANCE = 1e-6


def erf_cdf(x: Tensor) -> Tensor:
    return (1 + torch.erf(x / math.sqrt(2))) / 2


def tanh_gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATION_FORMULAS = {
    "gelu": lambda x: x * erf_cdf(x),
    "gelu_tanh": tanh_gelu,
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "relu": lambda x: torch.where(x > 0, x, 0.0),
    "relu2": lambda x: torch.where(x > 0, x * x, 0.0),
    "leaky_relu": lambda x: torch.where(x > 0, x, x / 100),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "xielu": lambda x: torch.where(x > 0, 0.8 * x * x, 0.8 * (torch.exp(x) - 1 - x)) + x / 2,
}


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def over_root_mean_square(x: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


NORM_FORMULAS = {
    "layernorm": lambda x, eps, w: over_root_mean_square(centred(x), eps) * w[0] + w[1],
    "layernorm_nobias": lambda x, eps, w: over_root_mean_square(centred(x), eps) * w[0],
    "rmsnorm": lambda x, eps, w: over_root_mean_square(x, eps) * w[0],
    "rmsnorm_unit_offset": lambda x, eps, w: over_root_mean_square(x, eps) * (1 + w[0]),
    "layernorm_unit_offset": lambda x, eps, w: (
        over_root_mean_square(centred(x), eps) * (1 + w[1]) + w[0]
    ),
    "layernorm_nogain": lambda x, eps, w: over_root_mean_square(centred(x), eps),
    "rmsnorm_nogain": lambda x, eps, w: over_root_mean_square(x, eps),
    "dyt": lambda x, eps, w: torch.tanh(w[0] * x) * w[1] + w[2],
    "derf": lambda x, eps, w: torch.erf(w[0] * x + w[3]) * w[1] + w[2],
    "none": lambda x, eps, w: x,
}
"""Of x, eps and the parameters in order."""


def affine(x: Tensor, linear: nn.Linear) -> Tensor:
    return x @ linear.weight.T + linear.bias


def plain_network(name: str, ffn: nn.Module, x: Tensor) -> Tensor:
    return affine(ACTIVATION_FORMULAS[name](affine(x, ffn.up)), ffn.down)


def gated_network(name: str, ffn: nn.Module, x: Tensor) -> Tensor:
    hidden = affine(x, ffn.gate_up)
    half = hidden.shape[-1] // 2
    return affine(ACTIVATION_FORMULAS[name](hidden[..., :half]) * hidden[..., half:], ffn.down)


def mixture(name: str, ffn: nn.Module, x: Tensor) -> Tensor:
    """The two best of eight networks, by the exponentials of their logits, made to sum to 1."""
    weights = torch.exp(x @ ffn.router.weight.T)
    weights = torch.where(weights < weights.sort().values[..., -2:-1], 0.0, weights)
    weights = weights / weights.sum(-1, keepdim=True)
    return sum(
        weights[..., expert, None] * gated_network(name, network_of(ffn.experts, expert), x)
        for expert in range(8)
    )


def network_of(experts: nn.Module, expert: int) -> SimpleNamespace:
    """One of the stacked networks."""
    made = {}
    for name in ("gate_up", "down"):
        weight, biases = getattr(experts, name)[expert], getattr(experts, f"{name}_bias")
        made[name] = SimpleNamespace(weight=weight, bias=biases.view(8, -1)[expert])
    return SimpleNamespace(**made)


FFN_FORMULAS = {
    "standard": ("gelu", plain_network),
    "glu": ("sigmoid", gated_network),
    "swiglu": ("silu", gated_network),
    "geglu": ("gelu", gated_network),
    "reglu": ("relu", gated_network),
    "moe": ("silu", mixture),
}
"""Its activation unless one is asked for, and what it makes of x."""


def pre(x, attend, network, n):
    x = x + attend(n["mixer_norm"](x))
    return x + network(n["ffn_norm"](x))


def post(x, attend, network, n):
    x = n["mixer_norm"](x + attend(x))
    return n["ffn_norm"](x + network(x))


def sandwich(x, attend, network, n):
    x = x + n["mixer_out_norm"](attend(n["mixer_norm"](x)))
    return x + n["ffn_out_norm"](network(n["ffn_norm"](x)))


def parallel(x, attend, network, n):
    return x + attend(n["mixer_norm"](x)) + network(n["ffn_norm"](x))


def res_post(x, attend, network, n):
    x = x + n["mixer_norm"](attend(x))
    return x + n["ffn_norm"](network(x))


def parallel_shared(x, attend, network, n):
    return x + attend(n["norm"](x)) + network(n["norm"](x))


BLOCK_FORMULAS = {
    "pre": pre,
    "post": post,
    "res_post": res_post,
    "sandwich": sandwich,
    "parallel": parallel,
    "parallel_shared": parallel_shared,
}


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 2 + 0.5


def shaken(module: nn.Module) -> nn.Module:
    """With parameters that are neither zero nor one."""
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


@pytest.mark.parametrize(
    ("registry", "formulas"),
    [
        (ACTIVATIONS, ACTIVATION_FORMULAS),
        (NORMS, NORM_FORMULAS),
        (FFNS, FFN_FORMULAS),
        (BLOCKS, BLOCK_FORMULAS),
    ],
    ids=lambda argument: getattr(argument, "key", ""),
)
def test_every_part_has_its_formula(registry, formulas):
    assert set(registry.names) == set(formulas), "write out the formula of what is missing"


@pytest.mark.parametrize("name", ACTIVATION_FORMULAS)
def test_activations(name):
    x = random(50)
    made = ACTIVATIONS[name](tiny_layer(activation=name))
    assert_close(made(x), ACTIVATION_FORMULAS[name](x), TOLERANCE)


def test_the_slope_of_leaky_relu_is_an_option():
    x = random(50)
    made = ACTIVATIONS["leaky_relu"](tiny_layer(activation="leaky_relu", leaky_relu_slope=0.25))
    assert_close(made(x), torch.where(x > 0, x, x / 4), TOLERANCE)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("name", NORM_FORMULAS)
def test_norms(name, eps):
    keys = {"normalization": name}
    if "norm_eps" in NORMS.entry(name).keys:
        keys["norm_eps"] = eps
    x, norm = random(4, 3, 32), shaken(NORMS[name](32, tiny_layer(**keys)))
    expected = NORM_FORMULAS[name](x, eps, list(norm.parameters()))
    assert_close(norm(x), expected, TOLERANCE)


@pytest.mark.parametrize("name", FFN_FORMULAS)
def test_feed_forward_networks(name):
    activation, formula = FFN_FORMULAS[name]
    x, ffn = random(2, 3, 32), shaken(FFNS[name](tiny_layer(ffn_type=name)))
    assert_close(ffn(x, context(x)), formula(activation, ffn, x), TOLERANCE)


@pytest.mark.parametrize("name", BLOCK_FORMULAS)
def test_blocks(name):
    block = shaken(BLOCKS[name](tiny_layer(norm_position=name)))
    x = random(2, 3, 32)
    expected = BLOCK_FORMULAS[name](
        x,
        lambda x: block.mixer(x, context(x)),
        lambda x: block.ffn(x, context(x)),
        dict(block.named_children()),
    )
    assert_close(block(x, layer_inputs(x))[0], expected, TOLERANCE)
