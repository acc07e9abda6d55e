"""Norms and norm positions against their formulas."""

from __future__ import annotations

import pytest
import torch

from components.norms import NORMS
from tests.tiny import context, layer_inputs, tiny_layer, tiny_model

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
