"""Equal sizes: find the width at which an arm has as many parameters (all or active) or FLOPs as
the baseline."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch

from components.layer_config import LayerConfig
from errors import ConfigError, Problem, UserError
from model_builder import GPT
from model_config import ModelArchitectureConfig
from patterns import Pattern, by_layer
from recipe.adapters import adapted_model
from training_config import TrainingConfig

TOLERANCE = 0.005
"""Relative difference up to which counts are considered equal."""

USUAL = 2.0
"""Maximum factor by which the FFN width is changed; beyond it, n_embd is changed, too. Each of N
experts may be N times narrower still, since together they are then as wide as one network."""

MOST_TRIES = 64
"""Number of consecutive widths tried to find one that is valid for all components."""

MOST_LAYERS, MOST_WEIGHTS = 10_000, 10**15
"""Size limits of a model in a sweep."""

Count = Callable[[ModelArchitectureConfig], float]
FFN_KEYS = ("ffn_hidden", "ffn_multiplier", "ffn_multiple_of")


def size_problems(config: ModelArchitectureConfig) -> Iterator[Problem]:
    """Yield problems for models that are too large to count, without building them."""
    if config.n_layer > MOST_LAYERS:
        yield Problem(
            ("n_layer",),
            f"n_layer={config.n_layer} exceeds the {MOST_LAYERS:,} layers that a model in a "
            "sweep may have; lower it.",
        )
    widest = max(layer.get("ffn_hidden", 0) for layer in config.kinds)
    weights = config.n_layer * config.n_embd * max(config.n_embd, widest)
    if weights > MOST_WEIGHTS:
        yield Problem(
            ("n_layer", "n_embd", "ffn_hidden"),
            f"n_layer={config.n_layer}, n_embd={config.n_embd} and ffn_hidden={widest} "
            f"give more than the {MOST_WEIGHTS:.0e} weights that a model in a sweep may have; "
            "lower one of them.",
        )


@functools.cache
def _sizes(config: ModelArchitectureConfig) -> tuple[int, int]:
    """Number of total and active parameters of a model, without allocating them."""
    with torch.device("meta"):
        model = GPT(config)
        return model.num_parameters(), model.active_parameters()


def parameters(config: ModelArchitectureConfig) -> int:
    """Number of parameters of a model."""
    return _sizes(config)[0]


def active_parameters(config: ModelArchitectureConfig) -> int:
    """Number of parameters of a model that a token uses."""
    return _sizes(config)[1]


@functools.cache
def sizes_of_run(config: ModelArchitectureConfig, training: TrainingConfig) -> tuple[int, int]:
    """Number of total and active parameters of a run's model, including its adapters."""
    if training.adapter == "none":
        return _sizes(config)
    with torch.device("meta"):
        model = adapted_model(config, training)
        return model.num_parameters(), model.active_parameters()


@functools.cache
def flops_per_token(config: ModelArchitectureConfig, sequence_length: int) -> float:
    """Training FLOPs per token at a sequence length, by the full convention."""
    with torch.device("meta"):
        return GPT(config).flops_per_token(sequence_length)


@functools.cache
def trained_flops_per_token(config: ModelArchitectureConfig, training: TrainingConfig) -> float:
    """Training FLOPs per token of a run, which may train adapters only."""
    if training.adapter == "none":
        return flops_per_token(config, training.sequence_length)
    with torch.device("meta"):
        return adapted_model(config, training).flops_per_token(training.sequence_length)


def counter(match: str, sequence_length: int) -> Count:
    """The function that computes a count of `request.MATCHED` for a model."""
    counts: dict[str, Count] = {
        "active_params": active_parameters,
        "params": parameters,
        "flops": lambda config: flops_per_token(config, sequence_length),
    }
    return counts[match]


def solve(
    config: ModelArchitectureConfig, count: Count, target: float, fixed: Collection[str] = ()
) -> dict[str, Any]:
    """Find the keys to change to bring `count(config)` within TOLERANCE of a target; may be empty.

    The FFN width is changed first. If that would be out of proportion (see USUAL), or it is fixed,
    n_embd is changed, too.

    Args:
        config: The config of the arm.
        count: The count, which increases with both widths.
        target: The count of the baseline.
        fixed: Keys that define the arm and must not change.

    Raises:
        UserError: If no width comes close enough.
    """
    if _off(count(config), target) <= TOLERANCE:
        return {}
    tried = list(_candidates(config, count, target, set(fixed)))
    reached = [_off(count(config.changed(**keys)), target) for keys in tried]
    for keys, off in zip(tried, reached, strict=True):
        if off <= TOLERANCE:
            return keys
    nearest = min(reached, default=_off(count(config), target))
    multiple = _first(config, "ffn_multiple_of")
    finer = f"lower ffn_multiple_of={multiple}, " if multiple and multiple > 1 else ""
    raise UserError(
        f"no width brings its {count(config):,.0f} within {TOLERANCE:.1%} of the baseline's "
        f"{target:,.0f} (the closest is {nearest:.2%} off); {finer}leave ffn_hidden or n_embd "
        "free, or use --match=none."
    )


def _off(count: float, target: float) -> float:
    return abs(count - target) / target


def _candidates(
    config: ModelArchitectureConfig, count: Count, target: float, fixed: set[str]
) -> Iterator[dict[str, Any]]:
    """Yield changes of widths that come close to the target, smallest changes first."""
    extreme = []
    may_widen = not fixed.intersection(FFN_KEYS) and "ffn_hidden" in config
    if may_widen:
        keys = _ffn_width(config, count, target)
        wider = _first(config.changed(**keys), "ffn_hidden") / _first(config, "ffn_hidden")
        experts = _first(config, "n_experts") or 1
        if 1 / (USUAL * experts) <= wider <= USUAL:
            yield keys
        else:
            extreme.append(keys)
    if "n_embd" not in fixed:
        for width in embedding_widths(config, count, target):
            if may_widen:
                yield {"n_embd": width, **_ffn_width(config.changed(n_embd=width), count, target)}
            yield {"n_embd": width}
    yield from extreme


def _ffn_width(config: ModelArchitectureConfig, count: Count, target: float) -> dict[str, Any]:
    """The allowed FFN width with the count closest to the target.

    If layers have different widths, all are scaled by the same factor.
    """
    layers = [layer for layer in config.layers if "ffn_hidden" in layer]
    first, multiple = layers[0].ffn_hidden, layers[0].ffn_multiple_of
    freed = {"ffn_multiplier": None} if any(layer.ffn_multiplier for layer in layers) else {}

    def width(layer: LayerConfig, number: int) -> int | None:
        if "ffn_hidden" not in layer:
            return None
        wanted = layer.ffn_hidden * number * multiple / first
        return max(1, round(wanted / layer.ffn_multiple_of)) * layer.ffn_multiple_of

    def keys(number: int) -> dict[str, Any]:
        if len(config.kinds) == 1:
            return {"ffn_hidden": number * multiple, **freed}
        widths = by_layer([width(layer, number) for layer in config.layers])
        return {"ffn_hidden": str(widths) if isinstance(widths, Pattern) else widths, **freed}

    start = max(1, first // multiple)
    return keys(_nearest(lambda number: count(config.changed(**keys(number))), target, start))


def _first(config: ModelArchitectureConfig, key: str) -> Any:
    """The value of a key in the first layer that has it; None if no layer does."""
    return next((getattr(layer, key) for layer in config.kinds if key in layer), None)


def embedding_widths(config: ModelArchitectureConfig, count: Count, target: float) -> Iterator[int]:
    """Yield the width allowed by the heads with the count closest to the target, then neighbors."""

    def width(number: int) -> int:
        return _allowed_width(config, number)

    try:
        start = max(1, config.n_embd // _heads(config))
        number = _nearest(lambda number: count(config.changed(n_embd=width(number))), target, start)
        nearby = [width(near) for near in (number, number - 1, number - 2, number + 1) if near > 0]
    except ConfigError:
        return
    yield from dict.fromkeys(nearby)


def _allowed_width(config: ModelArchitectureConfig, number: int) -> int:
    """The first multiple of n_head, from `number` times n_head upward, that is valid for all
    components; RoPE, for example, needs pairs."""
    for near in range(number, number + MOST_TRIES):
        width = near * _heads(config)
        with contextlib.suppress(ConfigError):
            config.changed(n_embd=width)
            return width
    return number * _heads(config)  # its ConfigError gives the reason


def _heads(config: ModelArchitectureConfig) -> int:
    """The number of which n_embd must be a multiple."""
    return _first(config, "n_head") or 1


def _nearest(counted: Callable[[int], float], target: float, start: int) -> int:
    """The integer, at least 1, at which an increasing function is closest to the target.

    The search starts around `start` and alternates between linear interpolation and bisection, to
    minimize calls of the function, which is expensive.
    """
    low = high = start
    while counted(high) < target:
        low, high = high, 2 * high
    while low > 1 and counted(low) >= target:
        low, high = low // 2, low
    guesses = True
    while high - low > 1:
        rise = counted(high) - counted(low)
        share = (target - counted(low)) / rise if guesses and rise else 0.5
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        low, high = (low, middle) if counted(middle) >= target else (middle, high)
        guesses = not guesses
    return min((low, high), key=lambda number: abs(counted(number) - target))
