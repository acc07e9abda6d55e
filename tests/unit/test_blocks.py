"""Norms and norm positions against their formulas."""

from __future__ import annotations

import pytest
import torch

from components.norms import NORMS
from errors import ConfigError, UserError
from model_builder import GPT
from model_config import ModelArchitectureConfig
from tests.tiny import (
    ROPE,
    SIZES,
    context,
    layer_inputs,
    tiny_config,
    tiny_layer,
    tiny_model,
    tokens,
)

FORMULAS = {
    "pre": lambda x, f, g, n: (y := x + f(n[0](x))) + g(n[1](y)),
    "post": lambda x, f, g, n: n[1]((y := n[0](x + f(x))) + g(y)),
    "res_post": lambda x, f, g, n: (y := x + n[0](f(x))) + n[1](g(y)),
    "sandwich": lambda x, f, g, n: (y := x + n[1](f(n[0](x)))) + n[3](g(n[2](y))),
    "parallel": lambda x, f, g, n: x + f(n[0](x)) + g(n[1](x)),
    "parallel_shared": lambda x, f, g, n: x + f(n[0](x)) + g(n[0](x)),
}
"""x, attention f, network g and the block's norms n."""


@pytest.mark.parametrize("name", FORMULAS)
@torch.no_grad()
def test_a_block_is_its_formula(name):
    block = tiny_model(norm_position=name, normalization="rmsnorm").blocks[0]
    norms = [getattr(block, norm) for norm in block.norm_names]
    x = torch.randn(2, 7, 32)
    attend, network = (lambda y, f=f: f(y, context(y)) for f in (block.mixer, block.ffn))
    expected = FORMULAS[name](x, attend, network, norms)
    assert torch.allclose(block(x, layer_inputs(x))[0], expected, atol=1e-5)


def test_unit_offset_is_rmsnorm_with_one_added_to_its_weight():
    offset, plain = (NORMS[name](8, tiny_layer()) for name in ("rmsnorm_unit_offset", "rmsnorm"))
    x = torch.randn(3, 8)
    assert torch.equal(offset(x), plain(x))
    with torch.no_grad():
        offset.offset.copy_(torch.linspace(-1, 1, 8))
        plain.weight.copy_(1 + offset.offset)
    assert torch.equal(offset(x), plain(x))
    assert [name for name, _ in offset.named_parameters()] == ["offset"]


SEQUENTIAL = ("pre", "post", "res_post", "sandwich")
"""The norm positions with which the FFN follows the mixer."""


@pytest.mark.parametrize(
    ("norm_position", "residual"),
    [*((one, "plain") for one in SEQUENTIAL), ("sandwich", "mhc"), ("pre", "hyper_connections")],
)
@torch.no_grad()
def test_layers_of_one_sublayer_each_are_a_layer_of_both(norm_position, residual):
    keys = {"norm_position": norm_position, "residual": residual, "ffn_type": "swiglu", **ROPE}
    whole = tiny_model(**keys, n_layer=2)
    halves = {"mixer": "attention+none", "ffn_type": "none+swiglu"}
    split = tiny_model(**{**keys, **halves}, n_layer=4)
    split.load_state_dict({_in_halves(name): x for name, x in whole.state_dict().items()})
    idx = tokens(9)
    assert torch.equal(split(idx), whole(idx))
    assert split.num_parameters() == whole.num_parameters()
    assert split.flops_per_token() == whole.flops_per_token()
    assert split.new_state().bytes == whole.new_state().bytes


def _in_halves(name: str) -> str:
    """The name of a tensor in a model where the mixer and the FFN of each layer are separate
    layers."""
    words = name.split(".")
    if words[0] == "blocks":
        second = words[2].startswith("ffn") or words[2:5] == ["residual", "connections", "1"]
        words[1] = str(2 * int(words[1]) + second)
        if words[3:4] == ["connections"]:
            words[4] = "0"
    return ".".join(words)


def test_the_scale_of_residual_projections_counts_sublayers():
    split = GPT(tiny_config(mixer="attention+none", ffn_type="none+standard", n_layer=8, n_embd=64))
    whole = GPT(tiny_config(n_layer=4, n_embd=64))
    for model, down in ((split, split.blocks[5].ffn.down), (whole, whole.blocks[2].ffn.down)):
        for weight in (model.blocks[2].mixer.out.weight, down.weight):
            assert weight.std().item() == pytest.approx(0.02 / 8**0.5, rel=0.06)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mixer": "none", "ffn_type": "none"}, "without any sublayer"),
        ({"ffn_type": "none+moe", "mixer": "none+mla"}, "layer 0: .*without any sublayer"),
        ({"ffn_type": "none", "ffn_hidden": 8}, "ffn_hidden=8 belongs to ffn_type="),
        ({"ffn_type": "none", "activation": "relu"}, "which no layer uses"),
        ({"mixer": "none", "n_kv_head": 2}, "which no layer uses"),
        ({"ffn_type": "none", "norm_position": "parallel"}, "no effect with ffn_type='none'"),
        ({"mixer": "none", "norm_position": "parallel_shared"}, "no effect with mixer='none'"),
        ({"ffn_type": "none", "token_shift": "both"}, "shifts the input of the ffn"),
        ({"mixer": "none", "token_shift": "mixer"}, "shifts the input of the mixer"),
        ({"mixer": "none", "canon": "ac"}, "position a, which mixer='none' does not have"),
        ({"ffn_type": "none", "canon": "abc"}, "position c, which ffn_type='none' does not have"),
    ],
)
def test_what_an_absent_sublayer_leaves_without_effect(keys, message):
    sizes = {key: value for key, value in SIZES.items() if key in ("n_layer", "n_embd")}
    with pytest.raises(ConfigError, match=message):
        ModelArchitectureConfig.make(sizes, keys)


def test_a_block_that_runs_an_absent_sublayer_is_told():
    block = GPT(tiny_config(ffn_type="none")).blocks[0]
    x = torch.randn(1, 3, 32)
    with pytest.raises(UserError, match="ffn_type='none'; use self.add"):
        block.feed(x, context(x))


def test_names_and_saved_configs_of_layers_of_one_sublayer():
    config = tiny_config(
        mixer="attention+none", ffn_type="none+swiglu", ffn_multiplier=2.5, ffn_multiple_of=16
    )
    assert ModelArchitectureConfig.from_dict(config.to_dict()) == config
    assert "-(Attn+NoMixer)-" in config.architecture_name
    assert "-(NoFFN+SwiGLU)-" in config.architecture_name
