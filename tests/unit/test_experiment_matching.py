"""Equal sizes: the widths found, and that nothing else comes of the search."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from errors import ConfigError
from experiment.matching import (
    FFN_KEYS,
    TOLERANCE,
    _nearest,
    active_parameters,
    flops_per_token,
    parameters,
    sizes_of_run,
    solve,
)
from model_builder import GPT
from model_config import ModelArchitectureConfig
from recipe.adapters import adapted_model
from tests.parametrized import one_in
from tests.tiny import SIZES, VARIANTS, tiny_config
from training_config import TrainingConfig

LENGTH = SIZES["block_size"]
COUNTS: dict[str, Callable[[ModelArchitectureConfig], float]] = {
    "params": parameters,
    "active_params": active_parameters,
    "flops": lambda config: flops_per_token(config, LENGTH),
}


LARGER = {
    "moe as in DeepSeek-V3": {"n_embd": 256},
    "attention without an FFN": {"n_embd": 768},
    "mamba2 without an FFN": {"n_embd": 768},
}
"""Variants that are too coarse to match at the tiny sizes. Widening each of the ten experts of
DeepSeek-V3's by 1 adds 30 n_embd to the roughly 12 n_embd^2 parameters of a layer. The nearest
width is off by at most half of that, which is within the tolerance from n_embd = 250 on. Without
an FFN, n_embd itself changes, in steps of a head."""


def off(config: ModelArchitectureConfig, match: str, target: float) -> float:
    return abs(COUNTS[match](config) - target) / target


RARELY = 18
"""One in so many variants is made equal in every run of the tests."""


@pytest.mark.parametrize("name", one_in(RARELY, list(VARIANTS)))
def test_every_part_can_be_made_equal_to_plain(name: str) -> None:
    """Parameters for half of them, FLOPs for the others; active parameters where they are fewer."""
    several = ("residual", "value_residual", "rwkv_value_rank")  # of layers that share something
    differs = any("+" in str(v) or k in several for k, v in VARIANTS[name].items())
    sizes = {"n_layer": 2 if differs else 1, **LARGER.get(name, {})}
    config = tiny_config(**{**sizes, **VARIANTS[name]})
    plain = tiny_config(**{**sizes, "n_layer": config.n_layer})
    matched = [("params", "flops")[list(VARIANTS).index(name) // RARELY % 2]]
    if active_parameters(config) < parameters(config):
        matched.append("active_params")
    for match in matched:
        target = COUNTS[match](plain)
        keys = solve(config, COUNTS[match], target)
        assert off(config.changed(**keys), match, target) <= TOLERANCE
        width = "ffn_hidden" if "ffn_hidden" in config else "n_embd"
        assert not keys or width in keys


def drawn(draw: random.Random) -> ModelArchitectureConfig | None:
    """A config of one layer with sizes that divide badly; None where there is no such config."""
    heads = draw.choice((1, 2, 3, 4, 6))
    extra: dict[str, Any] = draw.choice(
        (
            {"ffn_type": "swiglu"},
            {"ffn_multiple_of": draw.choice((8, 32))},
            {"position_encoding": "rope", "rope_fraction": draw.choice((0.25, 0.5, 0.7))},
            {"head_dim": 6},
            {"ffn_multiplier": 2.5},
            {"ffn_hidden": draw.choice((1, 17))},
        )
    )
    width = heads * draw.choice((2, 4, 10, 32))
    try:
        return tiny_config(n_layer=1, n_head=heads, n_embd=width, **extra)
    except ConfigError:
        return None


@pytest.mark.parametrize("seed", range(12))
def test_within_half_a_percent_or_refused(seed: int) -> None:
    draw = random.Random(seed)
    config = next(filter(None, (drawn(draw) for _ in range(100))))
    match = draw.choice(("params", "flops"))
    target = COUNTS[match](config) * draw.choice((0.2, 0.8, 0.97, 1.03, 1.3, 5))
    fixed = draw.choice(((), (), ("n_embd",), ("ffn_hidden",), ("ffn_multiple_of", "n_embd")))
    try:
        keys = solve(config, COUNTS[match], target, fixed)
    except ValueError as refusal:
        if not str(refusal).startswith("no width brings its"):
            raise
        return
    found = config.changed(**keys)
    assert off(found, match, target) <= TOLERANCE
    assert not set(fixed) & set(keys)
    assert found.ffn_multiple_of == config.ffn_multiple_of
    assert found.ffn_hidden % found.ffn_multiple_of == 0


def test_what_is_equal_stays_as_it_is() -> None:
    config = tiny_config()
    assert solve(config, parameters, parameters(config) * 1.004) == {}


def test_the_network_is_fitted_before_the_width() -> None:
    config = tiny_config()
    assert list(solve(config, parameters, 1.3 * parameters(config))) == ["ffn_hidden"]


def test_a_network_much_wider_changes_both() -> None:
    config = tiny_config()
    keys = solve(config, parameters, 3 * parameters(config))
    assert set(keys) == {"n_embd", "ffn_hidden"}
    assert 0.5 <= keys["ffn_hidden"] / (4 * keys["n_embd"]) <= 2


def test_a_width_that_is_fixed_leaves_the_network_to_be_fitted() -> None:
    config = tiny_config()
    keys = solve(config, parameters, 3 * parameters(config), ["n_embd"])
    assert list(keys) == ["ffn_hidden"]


@pytest.mark.parametrize("key", FFN_KEYS)
def test_a_network_that_is_fixed_leaves_the_width_to_be_fitted(key: str) -> None:
    config = tiny_config(n_head=1, n_embd=64)
    target = parameters(config.changed(n_embd=80))
    assert solve(config, parameters, target, [key]) == {"n_embd": 80}


def test_a_multiplier_makes_room_for_a_width() -> None:
    config = tiny_config(ffn_multiplier=2.5)
    keys = solve(config, parameters, 1.2 * parameters(config))
    assert keys["ffn_multiplier"] is None


def test_multiples_are_kept() -> None:
    config = tiny_config(n_embd=64, ffn_multiple_of=8)
    keys = solve(config, parameters, 1.2 * parameters(config))
    assert keys["ffn_hidden"] % 8 == 0


def test_both_fixed() -> None:
    config = tiny_config()
    with pytest.raises(ValueError, match=r"no width brings its .* \(the closest is 9.09% off\)"):
        solve(config, parameters, 1.1 * parameters(config), ["n_embd", "ffn_hidden"])


def test_a_refusal_names_what_is_in_the_way() -> None:
    config = tiny_config(n_embd=8, ffn_multiple_of=32)
    with pytest.raises(ValueError, match="lower ffn_multiple_of=32, leave ffn_hidden or n_embd"):
        solve(config, parameters, 1.1 * parameters(config))


@pytest.mark.parametrize("start", [1, 2, 7, 100, 5000])
@pytest.mark.parametrize("power", [1, 2])
def test_the_nearest_number(start: int, power: int) -> None:
    """Against a search through all of them."""
    for target in (0.1, 5.0, 29.0, 301.0, 7777.0):
        counted = [3 * number**power + 7 for number in range(1, 4000)]
        best = min(range(1, 4000), key=lambda number: abs(counted[number - 1] - target))
        found = _nearest(lambda number: 3 * number**power + 7, target, start)
        assert abs(counted[found - 1] - target) == abs(counted[best - 1] - target)


def test_counts_are_those_of_the_model() -> None:
    config = tiny_config(ffn_type="swiglu")
    model = GPT(config)
    assert parameters(config) == sum(p.numel() for p in model.parameters())
    assert active_parameters(config) == parameters(config)
    assert flops_per_token(config, 16) == model.flops_per_token(16)
    config = tiny_config(ffn_type="moe")
    assert active_parameters(config) == GPT(config).active_parameters() < parameters(config)


def test_the_parameters_of_a_run_include_its_adapters():
    """Its FLOPs and the `parameters` in its log include them, too."""
    config = tiny_config()
    plain, adapted = TrainingConfig(), TrainingConfig(init_from="model", adapter="lora")
    assert sizes_of_run(config, plain) == (parameters(config), active_parameters(config))
    report = adapted_model(config, adapted).cost_report()
    assert sizes_of_run(config, adapted) == (report["parameters"], report["active_parameters"])
    assert report["parameters"] > parameters(config)
