"""Gradients against finite differences in double precision: of whole models and of each part."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call

from components.attention import Attention
from components.attention_backends import ATTENTION_BACKENDS, AttentionNeeds
from components.blocks import BLOCKS
from model_builder import GPT
from model_components import ACTIVATIONS, FFNS, NORMS, POSITIONS
from recipe.objectives import make_objective
from tests.measured import assert_close
from tests.parametrized import one_in
from tests.tiny import (
    context,
    layer_inputs,
    parts_of_registries,
    presets,
    some_variants,
    tiny_config,
    tiny_layer,
    training_loss,
)
from training_config import TrainingConfig

TOLERANCES = {"eps": 1e-6, "atol": 1e-8, "rtol": 1e-6}

SMALLEST = {
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 4,
    "head_dim": 4,
    "ffn_hidden": 6,
    "vocab_size": 5,
    "block_size": 8,
}
"""Few enough parameters to move one by one."""


def in_double(module: nn.Module) -> nn.Module:
    """The module in double, its parameters away from the zeros and ones they begin with."""
    module = module.double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.3 * noise)
    return module


def random_input(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


def check(module: nn.Module, *inputs: Tensor, pick=lambda output: output) -> None:
    """gradcheck of `pick(module(*inputs))` by every parameter and every real input."""
    names = [name for name, _ in module.named_parameters()]
    values = [parameter.detach().requires_grad_() for parameter in module.parameters()]

    def output(*arguments: Tensor) -> Tensor:
        given, parameters = arguments[: len(inputs)], arguments[len(inputs) :]
        return pick(functional_call(module, dict(zip(names, parameters, strict=True)), given))

    assert gradcheck(output, (*inputs, *values), **TOLERANCES)


def model_and_text(length: int, **keys) -> tuple[GPT, Tensor, Tensor]:
    """A model in double, and `length` tokens with those that follow them."""
    torch.manual_seed(0)
    idx = torch.tensor([[0, 3, 1, 1, 4, 2, 0, 3, 2]])
    return in_double(GPT(tiny_config(**keys))), idx[:, :length], idx[:, 1 : length + 1]


# Whole models

PARTS_AND_PRESETS = [
    *(pytest.param(keys, id=name) for name, keys in presets().items()),
    *(
        pytest.param(keys, id=name, marks=pytest.mark.slow)
        for name, keys in list(parts_of_registries().items())[::2]
    ),
]


@pytest.mark.parametrize("keys", PARTS_AND_PRESETS)
def test_the_loss_by_every_single_parameter(keys):
    """Three tokens; each parameter is changed separately."""
    sizes = {key: size for key, size in SMALLEST.items() if key in tiny_config(**keys)}
    if keys.get("residual") == "unet":
        sizes["n_layer"] = 2
    if "linear_n_head" in keys:
        sizes["linear_n_head"] = 2
    if keys.get("mixer") == "rwkv7":
        sizes["rwkv_head_dim"] = 2
    model, x, y = model_and_text(3, **{**keys, **sizes})
    check(model, x, y, pick=lambda output: output[1])


@some_variants(2)
def test_the_loss_in_a_random_direction(keys):
    """Two layers and more tokens than a window; all parameters are changed at once."""
    model, x, y = model_and_text(8, **keys)
    parameters, objective = list(model.parameters()), make_objective(TrainingConfig())
    directions = [torch.randn_like(parameter) for parameter in parameters]
    gradients = torch.autograd.grad(training_loss(model, x, y), parameters)
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))

    def loss_at(distance: float) -> Tensor:
        moved = [p + distance * d for p, d in zip(parameters, directions, strict=True)]
        names = [name for name, _ in model.named_parameters()]
        return functional_call(
            model, dict(zip(names, moved, strict=True)), (x, y), {"objective": objective}
        ).loss

    with torch.no_grad():
        expected = (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6
    assert_close(slope, expected, 1e-5)


# Parts


@pytest.mark.parametrize("name", NORMS.names)
def test_norms(name):
    check(in_double(NORMS[name](6, tiny_layer(normalization=name))), random_input(2, 3, 6))


@pytest.mark.parametrize("name", ACTIVATIONS.names)
def test_activations(name):
    check(in_double(ACTIVATIONS[name](tiny_layer(activation=name))), random_input(4, 5))


@pytest.mark.parametrize("name", one_in(3, FFNS.names))
def test_feed_forward_networks(name):
    config = tiny_layer(**SMALLEST, ffn_type=name)
    x = random_input(2, 3, config.n_embd)
    check(in_double(_InContext(FFNS[name](config))), x)


class _InContext(nn.Module):
    """A sublayer by itself, called on x alone."""

    def __init__(self, sublayer: nn.Module):
        super().__init__()
        self.sublayer = sublayer

    def forward(self, x: Tensor) -> Tensor:
        return self.sublayer(x, context(x))


class _Rotated(nn.Module):
    """What a position encoding makes of embeddings, queries and keys, in one tensor."""

    def __init__(self, encoding: nn.Module):
        super().__init__()
        self.encoding = encoding

    def forward(self, x: Tensor, q: Tensor, k: Tensor) -> Tensor:
        embedded = self.encoding.embed(x, 2)
        rotated = self.encoding.rotate(q, k, 2)
        return torch.cat([part.flatten() for part in (embedded, *rotated)])


@pytest.mark.parametrize("name", POSITIONS.names)
def test_position_encodings(name):
    config = tiny_layer(**SMALLEST, position_encoding=name)
    encoding = _Rotated(in_double(POSITIONS[name](config)))
    q, k = (random_input(1, heads, 3, config.head_dim) for heads in (2, 1))
    check(encoding, random_input(1, 3, config.n_embd), q, k)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("name", ATTENTION_BACKENDS.names)
def test_attention_backends(name, softcap, window):
    """Two query heads per key head; with respect to queries, keys, values and the score bias."""
    needs = AttentionNeeds(window=window, softcap=softcap, bias=True)
    backend = ATTENTION_BACKENDS[name]
    if backend.lacks(needs) or backend.refusal(needs, "cpu", torch.float64, True):
        pytest.skip("cannot do this on a CPU")
    q, k, v = (random_input(1, heads, 4, 3) for heads in (2, 1, 1))
    assert gradcheck(backend(needs), (q, k, v, random_input(2, 4, 4)), **TOLERANCES)


class _OnItsOwn(nn.Module):
    """A block, without anything that tells positions apart."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, layer_inputs(x))[0]


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention(qk_norm):
    config = tiny_layer(**SMALLEST, n_kv_head=1, qk_norm=qk_norm)
    check(_InContext(in_double(Attention(config))), random_input(1, 3, config.n_embd))


@pytest.mark.parametrize("name", one_in(3, BLOCKS.names))
def test_blocks(name):
    config = tiny_layer(**SMALLEST, norm_position=name)
    block = BLOCKS[name](config)
    check(_OnItsOwn(in_double(block)), random_input(1, 3, config.n_embd))
