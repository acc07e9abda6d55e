"""A weight starts from what the seed, its name and its shape decide, and nothing else does."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from components.context import Context
from components.ffns import FFNS
from components.part import Part, own_stream
from model_builder import GPT
from tests.tiny import some_variants, tiny_config


def weights(seed: int = 0, **keys) -> dict[str, Tensor]:
    """Every parameter of a new model, by name."""
    torch.manual_seed(seed)
    return {name: p.detach() for name, p in GPT(tiny_config(**keys)).named_parameters()}


def is_random(weight: Tensor) -> bool:
    return bool(weight.std() > 0)


def shared(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of the random weights of one shape in both."""
    return [
        name
        for name in one.keys() & other.keys()
        if one[name].shape == other[name].shape and is_random(one[name])
    ]


def scales_initial_weights(keys: dict) -> bool:
    """Whether the keys scale initial weights, or those of residual projections."""
    parts = f"{keys.get('mixer', '')} {keys.get('ffn_type', '')}"
    return bool({"parametrization", "loop_count", "zero_init"} & keys.keys()) or "none" in parts


class TestPairs:
    @some_variants(0)
    def test_what_two_architectures_share_starts_alike(self, keys) -> None:
        depth = keys.get("n_layer", tiny_config().n_layer)  # which residual projections start by
        base, variant = weights(n_layer=depth), weights(**keys)
        names = shared(base, variant)
        same_width = tiny_config(**keys).n_embd == tiny_config().n_embd
        assert ("embedding.weight" in names) == same_width
        for name in names:
            if "sphere_weights" in keys:  # which scales each of their vectors
                break
            if scales_initial_weights(keys):
                base[name] = base[name] * (variant[name].norm() / base[name].norm())
                assert torch.allclose(base[name], variant[name], atol=1e-7), name
            else:
                assert torch.equal(base[name], variant[name]), name

    @pytest.mark.parametrize(
        ("size", "grows"),
        [
            ({"ffn_hidden": 50}, ".ffn."),
            ({"vocab_size": 80}, "embedding"),
            ({"block_size": 40}, "table"),
        ],
    )
    def test_a_change_of_size_leaves_all_other_weights(self, size, grows) -> None:
        base, larger = weights(), weights(**size)
        assert any(base[name].shape != larger[name].shape for name in base)
        assert all(torch.equal(base[name], larger[name]) for name in base if grows not in name)

    def test_layers_on_top_leave_those_below(self) -> None:
        base, deeper = weights(), weights(n_layer=3)
        assert torch.equal(base["blocks.1.ffn.up.weight"], deeper["blocks.1.ffn.up.weight"])
        down, scaled = (model["blocks.1.ffn.down.weight"] for model in (base, deeper))
        assert torch.allclose(down * math.sqrt(2 / 3), scaled)

    def test_untied_only_adds_a_head(self) -> None:
        tied, untied = weights(), weights(weight_tying=False)
        assert untied.keys() - tied.keys() == {"head.weight"}
        assert all(torch.equal(tied[name], untied[name]) for name in tied)
        assert not torch.equal(untied["head.weight"], untied["embedding.weight"])

    def test_another_seed_changes_every_random_weight(self) -> None:
        one, other = weights(seed=1), weights(seed=2)
        assert all(not torch.equal(one[name], other[name]) for name in shared(one, other))

    def test_what_was_drawn_before_does_not_matter(self) -> None:
        before = weights()
        torch.manual_seed(0)
        torch.rand(3)
        assert torch.equal(GPT(tiny_config()).embedding.weight, before["embedding.weight"])


def test_weights_of_one_model_are_independent() -> None:
    """Of n pairs of independent normal numbers, the correlation is within 5/sqrt(n)."""
    model = weights(n_layer=3, weight_tying=False)
    found = [weight.flatten() for weight in model.values() if is_random(weight)]
    assert len(found) == 3 + 3 * 4
    for one, other in itertools.combinations(found, 2):
        n = min(len(one), len(other))
        correlation = torch.corrcoef(torch.stack((one[:n], other[:n])))[0, 1]
        assert abs(correlation) < 5 / math.sqrt(n)


@some_variants(1)
def test_the_stream_outside_goes_on_as_if_nothing_was_made(keys) -> None:
    torch.manual_seed(3)
    undisturbed = torch.rand(2)
    torch.manual_seed(3)
    GPT(tiny_config(**keys))
    assert torch.equal(torch.rand(2), undisturbed)


def test_made_without_memory_nothing_is_drawn() -> None:
    before = torch.get_rng_state()
    with torch.device("meta"):
        model = GPT(tiny_config())
    assert all(p.is_meta for p in model.parameters())
    assert torch.equal(before, torch.get_rng_state())


class TestOwnStream:
    def drawn(self, *names: str) -> list[float]:
        """A number from each stream, one after the other."""
        torch.manual_seed(0)
        numbers = []
        for name in names:
            with own_stream(name):
                numbers.append(torch.rand(()).item())
        return numbers

    def test_is_the_names_alone(self) -> None:
        assert self.drawn("a", "b", "a") == [*self.drawn("a", "b"), *self.drawn("a")]
        assert self.drawn("a") != self.drawn("b")

    def test_nests(self) -> None:
        def inner() -> float:
            with own_stream("inner"):
                return torch.rand(()).item()

        torch.manual_seed(0)
        with own_stream("outer"):
            first = inner()
            torch.rand(9)
            assert inner() == first
        assert inner() != first

    def test_ends_with_an_error_too(self) -> None:
        torch.manual_seed(0)
        with pytest.raises(ZeroDivisionError), own_stream("a"):
            torch.rand(1 // 0)
        assert torch.initial_seed() == 0


def test_a_part_of_the_users_own_draws_by_its_name() -> None:
    """With plain torch.nn.init, and however much it draws."""

    @FFNS.register("noisy", label="Noisy")
    class Noisy(FFNS["standard"]):
        """The standard network plus a vector that is random at first."""

        def __init__(self, config) -> None:
            super().__init__(config)
            self.shift = nn.Parameter(torch.empty(config.n_embd))

        def init_parameters(self, config) -> None:
            nn.init.normal_(self.shift)
            super().init_parameters(config)

        def forward(self, x: Tensor, context: Context) -> Tensor:
            return super().forward(x + self.shift, context)

    assert issubclass(Noisy, Part)
    base, noisy = weights(), weights(ffn_type="noisy")
    again = weights(ffn_type="noisy", position_encoding="alibi", normalization="rmsnorm")
    assert noisy.keys() - base.keys() == {"blocks.0.ffn.shift", "blocks.1.ffn.shift"}
    assert all(torch.equal(base[name], noisy[name]) for name in base)
    assert all(torch.equal(again[name], noisy[name]) for name in shared(again, noisy))
    assert not torch.equal(noisy["blocks.0.ffn.shift"], noisy["blocks.1.ffn.shift"])
