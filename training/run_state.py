"""Load and validate the state that train.py saves in a checkpoint's state.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from errors import UserError, quoted
from model_config import ModelArchitectureConfig
from options import KEYS
from patterns import Pattern
from recipe.adapters import adapted_model
from training.checkpoint import is_count, is_number, load_state, refuse_other_shapes, weight_shapes
from training.hardware import host_memory
from training_config import TrainingConfig

MOST_KEYS = 1000
"""Maximum number of keys in a config."""
MOST_CHARACTERS = 4096
"""Maximum length of a string in a config; paths are the longest."""


MOST_LAYERS = 10_000
"""Maximum number of layers of the base model of adapters."""

_OF_HEADS = (
    *("n_head", "n_kv_head", "head_dim", "qk_nope_head_dim", "qk_rope_head_dim"),
    *("v_head_dim", "q_lora_rank", "kv_lora_rank"),
)
_SIZES = ("vocab_size", "n_embd", "ffn_hidden", "adapter_rank", *_OF_HEADS)


def load_run_state(path: Path) -> dict[str, Any]:
    """Load the state of a run from a checkpoint; unknown keys are not checked.

    Raises:
        UserError: If a key is missing or its value is invalid, or if the config does not match the
            sizes of the weights.
    """
    state = load_state(path)
    faulty = [key for key, sound in _CHECKS.items() if key not in state or not sound(state[key])]
    faulty += [key for key, sound in _LATER_CHECKS.items() if not sound(state.get(key))]
    if "config" not in faulty and _has_adapters(state["config"]) and not state.get("base_sha256"):
        faulty.append("base_sha256")
    if "config" not in faulty and _is_quantized(state["config"]):
        faulty += [] if state.get("quantized_base_sha256") else ["quantized_base_sha256"]
    if faulty:
        raise UserError(
            f"{path / 'state.json'} is damaged: {', '.join(faulty)} missing or invalid; use "
            "another checkpoint."
        )
    _refuse_sizes(path, state["config"])
    return state


def refuse_other_weights(
    path: Path, config: ModelArchitectureConfig, training: TrainingConfig
) -> None:
    """Raise UserError if a checkpoint's weights do not match a model with these configs.

    Neither the model nor the weights are allocated, so the check is cheap at any size.
    """
    _refuse_sizes(path, {**config.to_dict(), **training.to_dict()})
    with torch.device("meta"):
        model = adapted_model(config, training)
    refuse_other_shapes(path, model)
    if model.adapted:  # the shapes of the base are not in the checkpoint
        _refuse_bytes(path, 4 * model.num_parameters())


def _refuse_bytes(path: Path, needed: int) -> None:
    memory = host_memory()
    if needed > memory:
        raise UserError(
            f"{path}: the base model of its adapters needs {needed:,} bytes, but this machine has "
            f"{memory:,}; use a machine with more memory."
        )


def _refuse_sizes(path: Path, config: Mapping[str, Any]) -> None:
    """Raise UserError for sizes in a config that the saved weights cannot have.

    Configs that pass are small enough to build on the meta device, as `refuse_other_weights` does.
    """
    if _has_adapters(config):
        _refuse_sizes_of_base(path, config)
        return
    shapes = weight_shapes(path)
    dimensions = [size for shape in shapes.values() if 0 not in shape for size in shape]
    largest, total = max(dimensions, default=0), sum(map(math.prod, shapes.values()))
    embedding = shapes.get("embedding.weight", ())
    vocab_size, n_embd = embedding if len(embedding) == 2 else (0, 0)
    limits = {
        "vocab_size": (vocab_size, f"embedding.weight has {vocab_size} rows"),
        "n_embd": (n_embd, f"embedding.weight has {n_embd} columns"),
        "n_layer": (len(shapes), f"{len(shapes)} weights are saved"),
        "ffn_hidden": (total, f"{total} numbers are saved"),
    }
    heads = (largest, f"the largest dimension of a weight is {largest}")
    limits |= dict.fromkeys(_OF_HEADS, heads)
    for key, (most, found) in limits.items():
        value = config.get(key)
        if any(is_count(size) and size > most for size in _values_of_layers(key, value)):
            raise UserError(
                f"{path} is damaged: its config has {key}={quoted(value)}, but {found} in its "
                "model.safetensors; use another checkpoint."
            )
    _refuse_positions(path, config)


def _has_adapters(config: Mapping[str, Any]) -> bool:
    return config.get("adapter", "none") != "none"


def _is_quantized(config: Mapping[str, Any]) -> bool:
    return _has_adapters(config) and config.get("quantize_base", "none") != "none"


def _refuse_sizes_of_base(path: Path, config: Mapping[str, Any]) -> None:
    """`_refuse_sizes` of a checkpoint with adapters, which does not contain the weights of the
    base: no dimension may be beyond the memory, no model deeper than any known one."""
    memory = host_memory()
    limits = {"n_layer": MOST_LAYERS, **dict.fromkeys(_SIZES, memory)}
    for key, most in limits.items():
        value = config.get(key)
        if any(is_count(size) and size > most for size in _values_of_layers(key, value)):
            raise UserError(
                f"{path} is damaged: its config has {key}={quoted(value)}, more than {most:,}; use "
                "another checkpoint."
            )
    _refuse_positions(path, config)


def _values_of_layers(key: str, value: Any) -> list[Any]:
    """The values of a key over the layers; empty if unreadable, which the config refuses later."""
    try:
        meant = KEYS[key].read(value)
    except UserError:
        return []
    return meant.values if isinstance(meant, Pattern) else [meant]


def _refuse_positions(path: Path, config: Mapping[str, Any]) -> None:
    """Raise UserError for a block_size whose position tables do not fit in memory."""
    length, width = config.get("block_size"), config.get("n_embd")
    memory = host_memory()
    if not (is_count(length) and is_count(width)):
        return  # the config refuses them later
    if 4 * length * width > memory:
        raise UserError(
            f"{path}: block_size={length} positions of n_embd={width} float32 numbers need "
            f"{4 * length * width:,} bytes, but this machine has {memory:,}; use a machine with "
            "more memory."
        )


# Checks of values


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MOST_CHARACTERS


def _is_config(value: Any) -> bool:
    if not isinstance(value, dict) or len(value) > MOST_KEYS:
        return False
    return all(map(_is_text, value)) and all(map(_is_setting, value.values()))


def _is_texts(value: Any) -> bool:
    """Whether a value is a dict of strings."""
    return isinstance(value, dict) and all(map(_is_text, (*value, *value.values())))


def _is_setting(value: Any) -> bool:
    """Whether a value can be that of a config key; the config checks the rest."""
    if value is None or isinstance(value, bool) or _is_text(value):
        return True
    return is_number(value) and abs(value) < 2**63  # so that no arithmetic on it overflows


def _is_tokenizer(value: Any) -> bool:
    """Whether a value has the form of `Tokenizer.to_meta`."""
    if not isinstance(value, dict) or not _is_text(value.get("name")):
        return False
    digest, end = value.get("sha256", ""), value.get("end_of_text")
    return (
        isinstance(value.get("characters", ""), str)
        and _is_text(digest)
        and (end is None or isinstance(end, bool) or is_count(end))
    )


def _is_stepper(value: Any) -> bool:
    """Whether a value has the form of `StepGuard.state_dict` plus a scaler state."""
    return (
        isinstance(value, dict)
        and is_count(value.get("bad_steps"))
        and is_count(value.get("bad_in_a_row"))
        and _is_scaler(value.get("scaler"))
    )


_SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}


def _is_scaler(value: Any) -> bool:
    """Whether a value has the form of `GradScaler.state_dict`, which is empty if disabled."""
    if not isinstance(value, dict):
        return False
    return not value or (value.keys() == _SCALER and all(map(is_number, value.values())))


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "config": _is_config,
    "derived": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "data_fingerprint": _is_text,
    "tokenizer": _is_tokenizer,
    "evaluated_at": lambda value: value is None or is_count(value),
    "seconds": lambda value: is_number(value) and value >= 0,
    "stepper": _is_stepper,
}

_LATER_CHECKS: dict[str, Callable[[Any], bool]] = {
    "run_id": lambda value: value is None or _is_text(value),
    "log_records": lambda value: value is None or is_count(value),
    "sampled_at": lambda value: value is None or is_count(value),
    "init_from_sha256": lambda value: value is None or _is_text(value),
    "base_sha256": lambda value: value is None or _is_text(value),
    "quantized_base_sha256": lambda value: value is None or _is_text(value),
    "plugin_paths": lambda value: value is None or _is_texts(value),
}
"""Checks of keys that older checkpoints lack."""
