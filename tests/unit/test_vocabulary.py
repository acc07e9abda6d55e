"""The vocabulary of a model: the data's, padded, unless the user or `init_from` fixes it."""

from __future__ import annotations

import pytest

from configurator import load
from errors import ConfigError


@pytest.mark.parametrize(
    ("tokens", "model"), [(65, 65), (256, 256), (4095, 4095), (4096, 4096), (50257, 50304)]
)
def test_a_large_vocabulary_of_the_data_is_padded(tokens, model):
    assert load([]).for_data(tokens).model.vocab_size == model


def test_a_vocabulary_that_is_given_stays():
    settings = load(["--vocab_size=100"])
    assert settings.for_data(65) is settings


def test_a_vocabulary_too_small_for_the_data_is_refused():
    said = "vocab_size=64 is too small for the 65 tokens of dataset='words'; drop it, or raise"
    with pytest.raises(ConfigError, match=said):
        load(["--vocab_size=64", "--dataset=words"]).for_data(65)
