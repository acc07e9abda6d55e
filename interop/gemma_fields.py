"""What Gemma's `config.json` says in its own way: scales, and RoPE by layer type."""

from __future__ import annotations

from components.layer_config import LayerConfig
from errors import UserError
from interop.fields import Aspect, Fields, Keys, value_of
from interop.rope_fields import refuse_partly_rotated, rotates, scaling_fields, scaling_keys
from interop.window_fields import (
    FULL,
    SLIDING,
    LayerTypes,
    every_nth_full,
    fields_of_windows,
    keys_of_windows,
    layer_types,
    types_of,
    windowed_layers,
)
from model_config import ModelArchitectureConfig
from patterns import by_layer

QUERY_SCALAR = Aspect(
    lambda given: {"attention_scale": given["query_pre_attn_scalar"] ** -0.5},
    lambda config: {"query_pre_attn_scalar": round(value_of(config, "attention_scale") ** -2)},
)
"""Gemma says the attention's scale by the number whose root divides the scores."""

ROOT_OF_WIDTH = Aspect(lambda given: {"embedding_scale": given["hidden_size"] ** 0.5}, lambda _: {})
"""Gemma's token embeddings are multiplied by the root of their width."""


# Gemma 3: RoPE and windows by layer type

_THETAS = {FULL: ("rope_theta", 1e6), SLIDING: ("rope_local_base_freq", 10_000.0)}
"""For each layer type the older field of its base, and the base where none is given."""


def _parameters_of_type(given: Fields, kind: str) -> Fields:
    """The RoPE parameters of a layer type, as transformers resolves them."""
    by_type = given.get("rope_parameters") or {}
    stray = [name for name in by_type if name not in _THETAS]
    if stray:
        raise UserError(
            f"rope_parameters has {stray[0]}, but a gemma3_text has RoPE parameters by layer type; "
            f"put it into {' or '.join(_THETAS)}."
        )
    added = given.get("rope_scaling") if kind == FULL else None
    return {**(by_type.get(kind) or {}), **(added or {})}


def _keys_of_type(given: Fields, kind: str) -> Keys:
    """The keys that a layer type's RoPE would have in a model of its own."""
    parameters, (theta_field, theta) = _parameters_of_type(given, kind), _THETAS[kind]
    refuse_partly_rotated(given, parameters)
    return {
        "rope_theta": parameters.get("rope_theta", given.get(theta_field, theta)),
        **scaling_keys(parameters, given["max_position_embeddings"]),
    }


def _joined(types: LayerTypes, keys_of: dict[str, Keys]) -> Keys:
    """The keys of layer types as those of a model whose layers have these types."""
    keys: Keys = {}
    for own in keys_of.values():
        for key, value in own.items():
            # A scaling that lacks the key has no use for the value that stands in for it.
            keys.setdefault(key, by_layer([keys_of[kind].get(key, value) for kind in types]))
    return keys


def _read_gemma3(given: Fields) -> Keys:
    types = layer_types(
        given, lambda given: every_nth_full(given, given.get("sliding_window_pattern", 6))
    )
    keys_of = {kind: _keys_of_type(given, kind) for kind in dict.fromkeys(types)}
    return _joined(types, keys_of) | keys_of_windows(given, types)


def _parameters(layer: LayerConfig) -> Fields:
    """The RoPE parameters of a layer; nothing where it has no RoPE."""
    if not rotates(layer):
        return {}
    return {"rope_theta": layer.rope_theta, **(scaling_fields(layer) or {"rope_type": "default"})}


def _types_to_write(config: ModelArchitectureConfig) -> LayerTypes:
    """Layer types by windows; without any, two kinds of RoPE, which types tell apart as well."""
    windowed = windowed_layers(config)
    if any(windowed):
        return types_of(windowed)
    last = _parameters(config.layers[-1])
    return types_of([_parameters(layer) != last for layer in config.layers])


def _is_scaled(parameters: Fields) -> bool:
    return parameters.get("rope_type", "default") != "default"


def _rope_fields(parameters: dict[str, Fields]) -> Fields:
    """The older fields, which older versions read too, unless windowed layers are scaled."""
    if _is_scaled(parameters.get(SLIDING, {})):
        return {"rope_parameters": parameters}
    fields = {_THETAS[kind][0]: own["rope_theta"] for kind, own in parameters.items()}
    scaling = {name: x for name, x in parameters.get(FULL, {}).items() if name != "rope_theta"}
    return fields | {"rope_scaling": scaling if _is_scaled(scaling) else None}


def _write_gemma3(config: ModelArchitectureConfig) -> Fields:
    types = _types_to_write(config)
    parameters: dict[str, Fields] = {}
    for kind, layer in zip(types, config.layers, strict=True):
        if rotates(layer):
            parameters.setdefault(kind, _parameters(layer))
    return fields_of_windows(config, types) | _rope_fields(parameters)


GEMMA3_LAYERS = Aspect(_read_gemma3, _write_gemma3)
