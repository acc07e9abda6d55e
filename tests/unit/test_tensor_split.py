"""Tensor parallelism: which share of a weight a worker has, and which parts can be split."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from components.attention import Attention
from components.ffns import StandardFFN, SwiGLU
from components.tensor_split import Division, TensorSplit, split_of
from configurator import run_plugins
from errors import ConfigError
from model_builder import GPT
from tests.tiny import OPTIONS, context, tiny_config


@pytest.mark.parametrize(("dim", "sections"), [(0, (8, 4, 4)), (1, (6,)), (0, (10, 10))])
@pytest.mark.parametrize("size", [1, 2])
def test_shares_make_the_whole(dim: int, sections: tuple[int, ...], size: int) -> None:
    shape = (sum(sections), 3) if dim == 0 else (3, sum(sections))
    whole = torch.randn(shape)
    division = Division(dim, sections)
    shares = [division.share(whole, rank, size) for rank in range(size)]
    assert torch.equal(division.whole(shares), whole)
    assert division.shape(shares[0].shape) == whole.shape
    assert all(share.numel() == whole.numel() // size for share in shares)


def test_a_share_has_some_of_every_section() -> None:
    rows = torch.arange(12)[:, None]  # of 2 query heads, 1 key head, 1 value head, width 3
    first, second = (Division(0, (6, 3, 3)).share(rows, rank, 3) for rank in (0, 1))
    assert first.flatten().tolist() == [0, 1, 6, 9]
    assert second.flatten().tolist() == [2, 3, 7, 10]


def test_the_parts_of_a_split_block_add_up_to_the_whole() -> None:
    """Without messages: the outputs of the workers' shares are added up here."""
    config = tiny_config(n_head=4, n_kv_head=2, ffn_type="swiglu", ffn_hidden=24, bias=False)
    x = torch.randn(2, 5, config.n_embd)
    whole = GPT(config).blocks[0].ffn(x, None)
    total = torch.zeros_like(whole)
    for rank in range(2):
        network = GPT(config).blocks[0].ffn
        assert network.split(TensorSplit(rank, 2))
        total += network(x, None)
    torch.testing.assert_close(total, whole, rtol=1e-4, atol=1e-6)


def with_random_gains(block: nn.Module) -> nn.Module:
    """A block whose learned vectors are not all 1."""
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if name.endswith("stored"):
                parameter.mul_(torch.linspace(0.5, 1.5, parameter.numel()))
    return block


@torch.no_grad()
def test_shares_of_learned_vectors_go_with_their_heads_and_units() -> None:
    config = tiny_config(**OPTIONS["nGPT"], ffn_hidden=24)
    x = torch.randn(2, 5, config.n_embd)
    for name in ("mixer", "ffn"):
        blocks = [with_random_gains(GPT(config).blocks[0]) for _ in range(3)]
        assert blocks[1].split(TensorSplit(0, 2)) == blocks[2].split(TensorSplit(1, 2)) == set()
        whole, *shares = (getattr(block, name)(x, context(x)) for block in blocks)
        torch.testing.assert_close(sum(shares), whole, rtol=1e-4, atol=1e-6)


OWN_ACTIVATION = """
from components.activations import ACTIVATIONS, Activation

@ACTIVATIONS.register("own", label="Own")
class Own(Activation):
    'Softmax over the units.'

    def forward(self, x):
        return x.softmax(-1)
"""


class Changed(StandardFFN):
    def forward(self, x, context):
        return 2 * super().forward(x, context)


class Widened(StandardFFN):
    def __init__(self, config):
        super().__init__(config)
        self.extra = nn.Linear(1, 1)


class Mixed(Attention):
    def _heads(self, x):
        return super()._heads(x.flip(-1))


class Renamed(SwiGLU):
    """What it computes is SwiGLU's."""

    default_multiplier = 4.0


def test_a_subclass_that_computes_something_else_is_not_split() -> None:
    layer = tiny_config(ffn_type="swiglu", activation="silu").layers[0]
    assert split_of(Renamed(layer)) is not None
    for kind in (Changed, Widened, Mixed):
        assert split_of(kind(layer)) is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"n_head": 4, "n_kv_head": 1}, "does not divide n_kv_head=1; drop tensor_parallel"),
        ({"n_head": 4, "n_kv_head": 2, "ffn_hidden": 33}, "divide ffn_hidden=33; use one of 1, 3"),
    ],
)
def test_what_does_not_divide_is_refused(keys: dict, message: str) -> None:
    block = GPT(tiny_config(**keys)).blocks[0]
    with pytest.raises(ConfigError, match=message):
        block.split(TensorSplit(0, 2))


def test_what_cannot_be_split_stays_whole() -> None:
    keys = {"n_head": 4, "qk_norm": True, "qk_norm_over": "projection"}
    block = GPT(tiny_config(**keys, ffn_type="moe", n_experts=2, n_experts_per_token=1)).blocks[0]
    before = sum(p.numel() for p in block.parameters())
    assert block.split(TensorSplit(0, 2)) == {"Attention", "MoE"}
    assert sum(p.numel() for p in block.parameters()) == before


@pytest.mark.parametrize("keys", [{"value_residual": "fixed"}, {"dropout": 0.1}])
def test_attention_that_needs_all_heads_stays_whole(keys: dict) -> None:
    block = GPT(tiny_config(n_head=4, **keys)).blocks[0]
    assert block.split(TensorSplit(0, 2)) == {"Attention"}


def test_an_activation_of_a_users_own_may_look_at_all_units(tmp_path: Path) -> None:
    plugin = tmp_path / "own.py"
    plugin.write_text(OWN_ACTIVATION)
    run_plugins(str(plugin))
    block = GPT(tiny_config(n_head=4, ffn_type="glu", activation="own")).blocks[0]
    assert block.split(TensorSplit(0, 2)) == {"GLU"}
