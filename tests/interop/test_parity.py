"""Every family: what transformers computes is what is computed here, both ways."""

from __future__ import annotations

import pytest
import torch

from interop.families import FAMILIES, family_of
from interop.huggingface import choose_family, load, save
from model_builder import GPT
from model_config import ModelArchitectureConfig
from tests.interop.references import (
    LONGEST,
    OFTEN,
    REFERENCES,
    WINDOW,
    assert_close,
    enlarged,
    every_reference,
    from_folder,
    often,
    reference,
    tokens,
)
from tests.measured import assert_within
from tests.parametrized import one_in


def test_every_family_has_a_reference():
    kinds = {reference(name).config.model_type for name in REFERENCES}
    assert kinds == set(FAMILIES)


@every_reference
@torch.no_grad()
def test_logits(name):
    theirs, idx = reference(name), tokens(LONGEST)
    assert_close(load(theirs)(idx), theirs(idx).logits)


@often
@torch.no_grad()
def test_logits_of_shorter_texts(name):
    theirs = reference(name)
    ours = load(theirs)
    for length in (WINDOW - 2, WINDOW, WINDOW + 1):
        assert_close(ours(tokens(length)), theirs(tokens(length)).logits)


@often
def test_logits_of_every_backend(name):
    theirs, idx = reference(name), tokens(LONGEST)
    if "attention_backend" not in load(theirs).config:
        pytest.skip("a model without attention")
    expected = theirs(idx).logits
    for backend in ("manual", "auto"):
        assert_close(load(theirs, attention_backend=backend)(idx), expected)


@every_reference
def test_gradients(name):
    theirs, idx = reference(name), tokens(LONGEST)
    ours = load(theirs)
    family = family_of(theirs.config.to_dict())
    ours(idx[:, :-1], idx[:, 1:])[1].backward()
    theirs.zero_grad()
    theirs(idx, labels=idx).loss.backward()
    gradients = family.from_files(
        {name: parameter.grad for name, parameter in theirs.named_parameters()}, ours.config
    )
    for own, parameter in ours.named_parameters():
        parts = [gradients[part] for part in family.names(own, ours.config)]
        expected = family.to_ours(own, parts, ours.config)
        error = (parameter.grad - expected).norm() / expected.norm().clamp(min=1e-6)
        assert_within(error.item(), 1e-4, f"the gradient of {own}")


WITHOUT_LIMITS_IN_CACHE = (
    "Mamba-2, biased, limited steps",
    "Falcon-H1, biased, norm before the gate",
)
"""Models whose time_step_limit transformers ignores when it decodes token by token."""


@often
def test_greedy_text(name):
    """32 tokens, more than the window: with and without cache, in both libraries."""
    theirs, prompt = reference(name), tokens(5)
    ours = load(theirs)
    expected = theirs.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=32,
        do_sample=False,
        use_cache=name not in WITHOUT_LIMITS_IN_CACHE,
        pad_token_id=0,
    )
    assert expected.shape == (2, 37)
    for use_cache in (True, False):
        text = ours.generate(prompt, 32, temperature=0, use_cache=use_cache)
        assert torch.equal(text, expected), f"use_cache={use_cache}"


@often
@torch.no_grad()
def test_saved_here_and_loaded_there(name, tmp_path):
    theirs, idx = reference(name), tokens(LONGEST)
    ours = load(theirs)
    save(ours, tmp_path / "saved", theirs.config.model_type)
    assert_close(from_folder(tmp_path / "saved")(idx).logits, theirs(idx).logits)
    again = load(tmp_path / "saved")
    assert again.config == ours.config
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True)
    )


@every_reference
@torch.no_grad()
def test_saved_there_and_loaded_here(name, tmp_path):
    theirs, idx = reference(name), tokens(LONGEST)
    theirs.save_pretrained(tmp_path)
    assert_close(load(tmp_path)(idx), theirs(idx).logits)


@pytest.mark.parametrize("name", one_in(3, OFTEN))
def test_trained_here_and_loaded_there(name, tmp_path):
    """50 steps from our own initial weights, in the architecture of the family."""
    torch.manual_seed(0)
    model = GPT(load(reference(name)).config.changed(dropout=0.1)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    idx, losses = tokens(17), []
    for _ in range(50):
        loss = model(idx[:, :-1], idx[:, 1:])[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2
    save(model.eval(), tmp_path / "saved")
    with torch.no_grad():
        assert_close(
            from_folder(tmp_path / "saved")(tokens(LONGEST)).logits, model(tokens(LONGEST))
        )


@pytest.mark.parametrize(
    ("preset", "family"),
    {
        "gpt2": "gpt2",
        "llama": "llama",
        "hybrid": "gpt_neox",
        "custom": "gpt2",
        "legacy": "gpt2",
    }.items(),
)
@torch.no_grad()
def test_presets_can_be_exported(preset, family, tmp_path):
    """Biases that the family always has and the model lacks are written as zeros."""
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": LONGEST, "vocab_size": 61}
    torch.manual_seed(0)
    model = GPT(ModelArchitectureConfig.from_preset(preset, **sizes)).eval()
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    assert choose_family(model.config).model_type == family
    save(model, tmp_path / "saved")
    expected = model(tokens(LONGEST))
    assert_close(from_folder(tmp_path / "saved")(tokens(LONGEST)).logits, expected)
    assert_close(load(tmp_path / "saved")(tokens(LONGEST)), expected)


@pytest.mark.parametrize("biases", ["true+false", "false+true"])
@torch.no_grad()
def test_biases_that_some_layers_lack_are_written_as_zeros(biases, tmp_path):
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": LONGEST, "vocab_size": 61}
    torch.manual_seed(0)
    config = ModelArchitectureConfig.from_preset("llama", **sizes, attention_bias=biases)
    model = enlarged(GPT(config).eval())
    save(model, tmp_path / "saved", "llama")
    expected = model(tokens(LONGEST))
    assert_close(from_folder(tmp_path / "saved")(tokens(LONGEST)).logits, expected)
    assert_close(load(tmp_path / "saved")(tokens(LONGEST)), expected)
