"""Sampling: temperature, top_k, top_p, seeds and limits."""

from __future__ import annotations

import math

import pytest
import torch

from errors import UserError
from model_builder import MIN_TEMPERATURE, sample
from tests.tiny import tiny_model, tokens

PROBABILITIES = torch.tensor([[0.5, 0.25, 0.15, 0.07, 0.03]])


def frequencies(draws: int = 20_000, **arguments) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    logits = PROBABILITIES.log().repeat(draws, 1)
    drawn = sample(logits, generator=generator, **arguments)
    return (drawn.flatten().bincount(minlength=5) / draws).tolist()


def test_plain_sampling_follows_the_probabilities():
    assert frequencies() == pytest.approx(PROBABILITIES[0].tolist(), abs=0.015)


def test_temperature_sharpens():
    squared = PROBABILITIES[0] ** 2
    expected = (squared / squared.sum()).tolist()
    assert frequencies(temperature=0.5) == pytest.approx(expected, abs=0.015)


def test_temperature_zero_is_the_likeliest():
    assert frequencies(temperature=0) == [1, 0, 0, 0, 0]


def test_top_k_keeps_k():
    assert frequencies(top_k=2) == pytest.approx([2 / 3, 1 / 3, 0, 0, 0], abs=0.015)
    assert frequencies(top_k=99) == pytest.approx(PROBABILITIES[0].tolist(), abs=0.015)


def test_top_p_keeps_the_likeliest_that_add_up_to_p():
    assert frequencies(top_p=0.5) == [1, 0, 0, 0, 0]
    assert frequencies(top_p=0.6) == pytest.approx([2 / 3, 1 / 3, 0, 0, 0], abs=0.015)
    assert frequencies(top_p=1.0) == pytest.approx(PROBABILITIES[0].tolist(), abs=0.015)


def test_a_seed_repeats_a_text_and_leaves_the_global_generator():
    model, prompt = tiny_model(), tokens(3)
    state = torch.get_rng_state()
    texts = [
        model.generate(prompt, 10, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_stream_gives_what_generate_gives():
    model, prompt = tiny_model(), tokens(3)
    streamed = list(model.stream(prompt, 6, temperature=0))
    assert all(token.shape == (2, 1) for token in streamed)
    assert torch.equal(torch.cat((prompt, *streamed), 1), model.generate(prompt, 6, temperature=0))


def test_generating_leaves_the_mode_and_no_graph():
    model = tiny_model().train()
    text = model.generate(tokens(3), 2)
    assert model.training
    assert not text.requires_grad
    assert torch.equal(model.generate(tokens(3), 0), tokens(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1}, "temperature=-1 must be 0 .* or finite and at least 1e-06"),
        ({"temperature": math.nan}, "temperature=nan must be 0"),
        ({"temperature": math.inf}, "temperature=inf must be 0"),
        ({"temperature": 1e-320}, "temperature=1e-320 must be 0"),
        ({"top_p": math.nan}, "top_p=nan must be above 0"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"top_p": 1.5}, "top_p=1.5 must be above 0 and at most 1"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        tiny_model().generate(tokens(3), 2, **arguments)
    with pytest.raises(UserError, match=message):
        tiny_model().stream(tokens(3), 2, **arguments)
    with pytest.raises(UserError, match=message):
        sample(PROBABILITIES.log(), **arguments)


def test_the_lowest_temperature_is_the_likeliest():
    assert frequencies(temperature=MIN_TEMPERATURE) == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_logits_that_are_not_finite_are_refused(temperature):
    for broken in (math.nan, math.inf):
        logits = PROBABILITIES.log().masked_fill(PROBABILITIES < 0.1, broken)
        with pytest.raises(UserError, match="logits are not finite"):
            sample(logits, temperature)


def test_minus_infinity_excludes_a_token():
    logits = PROBABILITIES.log().masked_fill(PROBABILITIES > 0.1, -math.inf)
    assert all(int(sample(logits)) in (3, 4) for _ in range(20))


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="T >= 1"):
        tiny_model().generate(torch.zeros(1, 0, dtype=torch.long), 2)
