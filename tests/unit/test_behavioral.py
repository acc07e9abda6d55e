"""How a model behaves: what a token sees, what dropout does, how it begins, that it learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from components.attention_backends import ATTENTION_BACKENDS, ManualAttention, attention_needs
from model_builder import GPT
from model_components import FFNS
from model_config import ModelArchitectureConfig
from tests.contract import test_every_model as contract
from tests.measured import assert_close, assert_within
from tests.parametrized import one_in
from tests.tiny import SIZES, presets, some_variants, tiny_config, tiny_layer, tiny_model, tokens

every_preset = pytest.mark.parametrize("keys", presets().values(), ids=presets().keys())
every_window = pytest.mark.parametrize(
    "window",
    [
        {},
        {"sliding_window": 1},
        {"sliding_window": 4},
        {"sliding_window": "4+none"},
    ],
    ids=["all", "one", "four", "four, then all"],
)

# What a token may see


@every_window
@pytest.mark.parametrize("position_encoding", one_in(3, ["rope", "learned", "alibi"]))
@pytest.mark.parametrize("backend", ATTENTION_BACKENDS.names)
@torch.no_grad()
def test_no_backend_looks_ahead(backend, position_encoding, window):
    keys = {"attention_backend": backend, "position_encoding": position_encoding, **window}
    if backend == "flash":
        pytest.skip("does not run on a CPU")
    contract.test_causal_at_every_position(keys)


@some_variants(0)
def test_weights_above_the_diagonal_are_zero(keys, monkeypatch):
    """Exactly, in every layer and head; and each row sums to 1, or to less with a sink."""
    seen = []
    normalized = ManualAttention._normalized

    def watched(self, *arguments):
        seen.append(normalized(self, *arguments))
        return seen[-1]

    monkeypatch.setattr(ManualAttention, "_normalized", watched)
    model = tiny_model(**keys)
    model(tokens(contract.T))
    applied = (model.config.layers[layer] for layer in model.config.applied_layers)
    attending = [layer for layer in applied if "attention_backend" in layer]
    assert len(seen) == len(attending)
    for layer, found in zip(attending, seen, strict=True):
        assert (found.triu(1) == 0).all()
        if layer.attention_sinks:
            assert (found.sum(-1) < 1).all()
        else:
            assert_close(found.sum(-1), torch.ones(found.shape[:-1]), 1e-6)


@some_variants(1)
def test_sequences_of_a_batch_do_not_see_each_other(keys):
    model, idx = tiny_model(**keys), tokens(contract.T, batch=3)
    alone = torch.cat([model(sequence[None]) for sequence in idx])
    assert_close(model(idx), alone, 1e-5)


# Dropout


@some_variants(2)
def test_dropout_is_off_in_evaluation(keys):
    """Bitwise equal to a model with the same weights and no dropout."""
    idx = tokens(contract.T)
    model, without = (tiny_model(**{**keys, "dropout": p}) for p in (0.5, 0.0))
    assert torch.equal(model(idx), without(idx))
    assert torch.equal(model(idx), model(idx))


@some_variants(0)
def test_dropout_is_on_in_training(keys):
    idx = tokens(contract.T)
    model = tiny_model(**{**keys, "dropout": 0.5}).train()
    assert not torch.allclose(model(idx), model(idx), atol=1e-3)


@some_variants(1)
def test_dropout_of_zero_is_none(keys):
    idx, model = tokens(contract.T), tiny_model(**{**keys, "dropout": 0.0})
    evaluated = model(idx)
    assert torch.equal(model.train()(idx), evaluated)


@pytest.mark.parametrize("ffn_type", FFNS.names)
def test_the_places_of_dropout(ffn_type):
    """After the embedding, on the attention weights and output, and after the FFN."""
    model = tiny_model(dropout=0.25, ffn_type=ffn_type, n_layer=1).train()
    places = [name for name, module in model.named_modules() if isinstance(module, nn.Dropout)]
    assert sorted(places) == ["blocks.0.ffn.dropout", "blocks.0.mixer.dropout", "dropout"]
    assert all(model.get_submodule(name).p == 0.25 for name in places)


@pytest.mark.parametrize("backend", ["manual", "sdpa"])
def test_dropout_of_the_weights_drops_its_share(backend):
    """With values of one, an output is the sum of the kept weights over 1 - p: 1 on average."""
    torch.manual_seed(0)
    needs = attention_needs(tiny_layer(dropout=0.25))
    q, k = torch.zeros(50, 4, 40, 8), torch.zeros(50, 4, 40, 8)
    out = ATTENTION_BACKENDS[backend](needs)(q, k, torch.ones(50, 4, 40, 8), None, 0.25)
    assert_within(abs(out.mean().item() - 1), 0.01)
    first = out[:, :, 0]  # sees itself alone: dropped or scaled
    assert first.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert_within(abs((first == 0).float().mean().item() - 0.25), 0.1)


def test_attention_drops_weights_in_training_alone():
    """With dropout disabled everywhere else."""
    model, idx = tiny_model(dropout=0.5), tokens(8)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert torch.equal(model(idx), model(idx))
    model.train()
    assert not torch.allclose(model(idx), model(idx), atol=1e-3)


# Beginnings


@some_variants(2)
def test_every_matrix_is_initialised_by_its_owner(keys, monkeypatch):
    """No default values of PyTorch remain in matrices and tables."""

    def spoil(module: nn.Module) -> None:
        for parameter in module.parameters(recurse=False):
            nn.init.constant_(parameter, math.nan)

    for module in (nn.Linear, nn.Embedding):
        monkeypatch.setattr(module, "reset_parameters", spoil)
    for name, parameter in GPT(tiny_config(**keys)).named_parameters():
        assert parameter.isfinite().all(), f"nobody initialises {name}"


@every_preset
def test_a_new_model_guesses_evenly(keys):
    """Its loss is that of a uniform guess, ln V."""
    torch.manual_seed(0)
    model, idx = GPT(tiny_config(**keys)), tokens(24, batch=8)
    loss = model(idx[:, :-1], idx[:, 1:])[1].item()
    assert_within(abs(loss / math.log(SIZES["vocab_size"]) - 1), 0.01)


@some_variants(0)
def test_a_seed_makes_a_model(keys):
    """Its weights are a function of the seed, and differ between seeds."""
    first, again, other = (_new_weights(seed, keys) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def _new_weights(seed: int, keys: dict) -> torch.Tensor:
    torch.manual_seed(seed)
    model = GPT(tiny_config(**keys))
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_residual_variance_does_not_grow_with_depth():
    """In a new deep model, the blocks keep the variance of the stream about the same."""
    torch.manual_seed(0)
    deviations = []
    for n_layer in (2, 32):
        model = GPT(tiny_config(n_layer=n_layer)).eval()
        stream = []
        model.final_norm.register_forward_pre_hook(lambda _, args, to=stream: to.append(args[0]))
        model(tokens(24))
        deviations.append(stream[0].std().item())
    assert_within(abs(deviations[1] / deviations[0] - 1), 0.2)


# Learning


@every_preset
def test_it_learns_a_text_by_heart(keys):
    torch.manual_seed(0)
    model, idx = GPT(tiny_config(**keys)).train(), tokens(24, batch=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    for _ in range(60):
        loss = model(idx[:, :-1], idx[:, 1:])[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_within(loss.item(), 0.1, "the loss")


@pytest.mark.slow
@every_preset
def test_it_learns_to_look_back(keys):
    """A random text, then the same again: only attention can predict the repetition.

    Batches are new at every step, so there is nothing to learn by heart.
    """
    torch.manual_seed(0)
    config = ModelArchitectureConfig(
        **{**SIZES, **keys, "block_size": 12, "vocab_size": 8, "n_layer": 2}
    )
    model = GPT(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        half = torch.randint(8, (64, 6), generator=generator)
        idx = torch.cat((half, half), dim=1)
        targets = idx[:, 1:].clone()
        targets[:, :5] = -1  # the first half cannot be known
        loss = model(idx[:, :-1], targets)[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_within(loss.item(), 0.5 * math.log(8), "the loss")
