"""Any combination of keys either works, by every law of the contract, or is refused with advice.

Combinations are drawn key by key from the keys' own declarations, patterns over the layers where
these may differ. One that is refused must name keys that were set; without those of the first
problem it is tried again, until one is accepted.
"""

from __future__ import annotations

import contextlib
import tempfile
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from errors import ConfigError
from experiment.matching import parameters
from model_keys import architecture_keys
from options import Key
from patterns import Pattern
from tests.contract import test_every_model as contract
from tests.tiny import MOST_PARAMETERS, SIZES, tiny_config, tiny_model, tokens

EXAMPLES = 100
"""Of the slow test."""

FEW = 10
"""Of the test in every run."""

RANGES = {
    "n_layer": st.integers(1, 3),
    "loop_count": st.integers(1, 3),
    "n_embd": st.integers(8, 48),
    "block_size": st.integers(SIZES["block_size"], 40),
    "vocab_size": st.integers(SIZES["vocab_size"], 80),
    "ffn_hidden": st.integers(1, 64),
    "head_dim": st.integers(1, 16),
    "sliding_window": st.integers(1, 30),
    "rope_original_block_size": st.integers(4, 64),
    "dropout": st.floats(0, 0.5),
    "init_std": st.floats(0.01, 0.1),
    "fire_width": st.integers(16, 32),  # a few ReLUs are easily all dead
    "mamba_dt_min": st.floats(0, 0.001),  # not all steps at a limit, which has no gradient
    "mamba_dt_max": st.floats(1, 10),
}
"""Values of the keys whose declaration alone would allow too much for a small model."""


def values_of(key: Key) -> st.SearchStrategy:
    """Values that a key may take by itself, by what its declaration says."""
    one = _single_values(key)
    return st.one_of(one, _patterns(one), st.lists(one, min_size=1)) if key.per_layer else one


def _single_values(key: Key) -> st.SearchStrategy:
    if key.name in RANGES:
        return RANGES[key.name]
    if key.choices is not None:
        return st.sampled_from(list(key.choices))
    members = set(typing.get_args(key.annotation) or (key.annotation,)) - {types.NoneType}
    if members == {bool}:
        return st.booleans()
    if members == {int}:
        return st.integers(key.metadata["bounds"]["at_least"], 8)
    if members == {float}:
        return _around(key)
    raise TypeError(f"say in RANGES what {key.name}, a {key.annotation}, may be here")


def _around(key: Key) -> st.SearchStrategy:
    """Floats from a quarter to four times the default, within the bounds."""
    middle, bounds = key.default or 0.4, key.metadata["bounds"]
    lowest = max(b for b in (middle / 4, bounds["at_least"], bounds["above"]) if b is not None)
    highest = min(b for b in (middle * 4, bounds["at_most"], bounds["below"]) if b is not None)
    return st.floats(lowest, highest, exclude_min=True, exclude_max=True)


def _patterns(one: st.SearchStrategy) -> st.SearchStrategy:
    """Texts of patterns over a few layers, with a rest and without."""
    runs = st.lists(st.tuples(one, st.integers(1, 2)), min_size=1, max_size=3)
    with_rest = st.builds(lambda runs, rest: [*runs, (rest, None)], runs, one)
    return st.one_of(runs, with_rest).map(lambda runs: str(Pattern(tuple(runs))))


COMBINATIONS = st.fixed_dictionaries(
    {}, optional={name: values_of(key) for name, key in architecture_keys().items()}
)


def followed_advice(keys: dict[str, Any]) -> dict[str, Any]:
    """The keys that are left once every refusal is heeded by dropping the keys it names."""
    while True:
        try:
            size = parameters(tiny_config(**keys))
            assert size <= MOST_PARAMETERS, f"{size:,} parameters; bound them in RANGES: {keys}"
        except ConfigError as error:
            for problem in error.problems:
                assert set(problem.keys) & set(keys), f"names no key that was set: {problem}"
                assert problem.message.endswith("."), problem
            dropped = error.problems[0].keys
            keys = {key: value for key, value in keys.items() if key not in dropped}
        else:
            return keys


def without_what_this_machine_lacks(keys: dict[str, Any]) -> dict[str, Any]:
    """The keys, without a backend that a CPU refuses to train with, and says so when asked to."""
    refusals = tiny_config(**keys).backend_refusals("cpu", torch.float32)
    if not refusals:
        return keys
    with pytest.raises(ValueError, match="use attention_backend='auto'"):
        tiny_model(**keys)(tokens(contract.T))
    return {key: value for key, value in keys.items() if key != "attention_backend"}


@contextlib.contextmanager
def in_double() -> Iterator[None]:
    """Models made meanwhile are in double: no combination is so steep that rounding shows."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def drawing(examples: int) -> settings:
    """Draw so many configs, the same ones every time."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


@example(drawn={"n_embd": 12, "position_encoding": "rope"})  # it is n_embd that makes heads odd
@given(drawn=COMBINATIONS)
@drawing(FEW)
def test_a_few_work_or_are_refused(drawn):
    with in_double():
        it_works_or_is_refused(drawn)


@pytest.mark.slow
@given(drawn=COMBINATIONS)
@drawing(EXAMPLES)
def test_it_works_or_is_refused(drawn):
    with in_double():
        it_works_or_is_refused(drawn)


def it_works_or_is_refused(drawn: dict[str, Any]) -> None:
    keys = without_what_this_machine_lacks(followed_advice(drawn))
    contract.test_shapes_and_loss(keys)
    contract.test_causal_at_every_position(keys)
    contract.test_every_parameter_learns(keys)
    if contract.of_attention(keys):
        contract.test_cost_equals_the_counter({**keys, "attention_backend": "manual"}, contract.T)
        contract.test_cost_of_a_window_and_of_causality(keys)
    contract.test_cache_equals_no_cache(keys)
    with tempfile.TemporaryDirectory() as folder:
        contract.test_save_and_load(keys, Path(folder))
