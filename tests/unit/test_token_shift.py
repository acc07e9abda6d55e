"""Token shift: equal to RWKV's, where a single projection reads it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from components.blocks import Block
from components.token_shift import TokenShift
from model_builder import GPT
from tests.tiny import context, tiny_config, tiny_layer

SHIFTED_NETWORK = {"token_shift": "ffn", "activation": "relu2", "bias": False}


def inputs() -> Tensor:
    return torch.randn(2, 7, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_network_is_that_of_rwkv_without_its_gate():
    """With a zero projection its receptance is 1/2, whatever its own token shift."""
    from transformers import RwkvConfig
    from transformers.models.rwkv.modeling_rwkv import RwkvFeedForward

    torch.manual_seed(0)
    config = RwkvConfig(hidden_size=32, intermediate_size=128, num_hidden_layers=1)
    theirs = RwkvFeedForward(config).double()
    block: Block = GPT(tiny_config(**SHIFTED_NETWORK)).double().blocks[0]
    shift, network = block.before_ffn["shift_ffn"], block.ffn
    with torch.no_grad():
        theirs.time_mix_key.uniform_()
        theirs.time_mix_receptance.uniform_()
        theirs.receptance.weight.zero_()
        shift.current.copy_(theirs.time_mix_key.flatten())
        network.up.weight.copy_(theirs.key.weight)
        network.down.weight.copy_(theirs.value.weight)
    x = inputs().requires_grad_()
    results = []
    for y in (block.feed(x, context(x)), 2 * theirs(x)[0]):
        weights = torch.linspace(-1, 1, y.numel()).double().view_as(y)
        results.append((y, *torch.autograd.grad((y * weights).sum(), x)))
    assert_close(*results, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("shifted_input", ["mixer", "ffn", "both"])
@torch.no_grad()
def test_each_sublayer_reads_a_mixture_of_two_tokens(shifted_input):
    """mu x_t + (1 - mu) x_{t-1}, with a mu of its own; x_{-1} is 0."""
    keys = {"token_shift": shifted_input, "position_encoding": "none"}
    block = GPT(tiny_config(**keys)).double().blocks[0]
    x = inputs()
    before = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), dim=1)
    sublayers = {"mixer": (block.mix, block.mixer), "ffn": (block.feed, block.ffn)}
    for name, (shifted, plain) in sublayers.items():
        mu = torch.ones(32).double()
        if shifted_input in (name, "both"):
            mu = getattr(block, f"before_{name}")[f"shift_{name}"].current.uniform_()
        expected = plain(mu * x + (1 - mu) * before, context(x))
        assert_close(shifted(x, context(x)), expected, rtol=1e-9, atol=1e-10)


def test_starts_as_rwkv_does():
    """Layer l of L: the position of the channel, from 0 to 1, to the power of 1 - l/L."""
    model = GPT(tiny_config(token_shift="both", n_layer=4))
    ratios = torch.arange(32) / 32
    for layer, block in enumerate(model.blocks):
        expected = ratios ** (1 - layer / 4)
        assert_close(block.before_mixer["shift_mixer"].current, expected)
        assert_close(block.before_ffn["shift_ffn"].current, expected)


def test_gradients():
    shift = TokenShift(tiny_layer(token_shift="both"))
    x, mu = inputs()[:1, :4].requires_grad_(), torch.rand(32).double().requires_grad_()

    def call(x: Tensor, mu: Tensor) -> Tensor:
        return torch.func.functional_call(shift, {"current": mu}, (x, context(x)))

    assert gradcheck(call, (x, mu))
