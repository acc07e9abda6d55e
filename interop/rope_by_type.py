"""RoPE in a `config.json` that differs by layer type: its base and scaling, or which types have it.

Families list a type for each layer, `full_attention` or `sliding_attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from components.layer_config import LayerConfig
from errors import UserError
from interop.fields import Aspect, Fields, Keys
from interop.rope_fields import refuse_partly_rotated, rotates, scaling_fields, scaling_keys
from interop.window_fields import (
    FULL,
    SLIDING,
    DefaultTypes,
    LayerTypes,
    fields_of_windows,
    keys_of_windows,
    layer_types,
    types_of,
    windowed_layers,
)
from model_config import ModelArchitectureConfig
from patterns import by_layer

Thetas = Mapping[str, tuple[str | None, float]]
"""For each layer type the older field of its base, None where there is none; and the base where
nothing is said."""


# A base and a scaling for each layer type


def rope_by_layer_type(thetas: Thetas, default: DefaultTypes) -> Aspect:
    """Windows by layer type, and RoPE whose base and scaling differ by layer type.

    Older files scale the layers without a window by `rope_scaling`.
    """

    def read(given: Fields) -> Keys:
        types = layer_types(given, default)
        keys_of = {kind: _keys_of_type(given, kind, thetas) for kind in dict.fromkeys(types)}
        return _joined(types, keys_of) | keys_of_windows(given, types)

    def write(config: ModelArchitectureConfig) -> Fields:
        types = _types_to_write(config)
        parameters: dict[str, Fields] = {}
        for kind, layer in zip(types, config.layers, strict=True):
            if rotates(layer):
                parameters.setdefault(kind, _parameters(layer))
        return fields_of_windows(config, types) | _rope_fields(parameters, thetas)

    return Aspect(read, write)


def _parameters_of_type(given: Fields, kind: str) -> Fields:
    """The RoPE parameters of a layer type, as transformers resolves them."""
    by_type = given.get("rope_parameters") or {}
    stray = [name for name in by_type if name not in (FULL, SLIDING)]
    if stray:
        raise UserError(
            f"rope_parameters has {stray[0]}, but a {given['model_type']} has RoPE parameters by "
            f"layer type; put it into {FULL} or {SLIDING}."
        )
    added = given.get("rope_scaling") if kind == FULL else None
    return {**(by_type.get(kind) or {}), **(added or {})}


def _keys_of_type(given: Fields, kind: str, thetas: Thetas) -> Keys:
    """The keys that a layer type's RoPE would have in a model of its own."""
    parameters, (field, theta) = _parameters_of_type(given, kind), thetas[kind]
    refuse_partly_rotated(given, parameters)
    older = theta if field is None else given.get(field, theta)
    return {
        "rope_theta": parameters.get("rope_theta", older),
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


def _rope_fields(parameters: dict[str, Fields], thetas: Thetas) -> Fields:
    """The older fields, which older versions read too, unless these cannot say it."""
    if _is_scaled(parameters.get(SLIDING, {})) or None in (field for field, _ in thetas.values()):
        return {"rope_parameters": parameters}
    fields = {thetas[kind][0]: own["rope_theta"] for kind, own in parameters.items()}
    scaling = {name: x for name, x in parameters.get(FULL, {}).items() if name != "rope_theta"}
    return fields | {"rope_scaling": scaling if _is_scaled(scaling) else None}


# RoPE only in layers with a window


def rope_beside_windows(
    rotary: Aspect, default: DefaultTypes, everywhere: Callable[[Fields], bool]
) -> Aspect:
    """Windows by layer type, and RoPE in the layers of type `sliding_attention` only.

    Args:
        rotary: Base and scaling of RoPE, which the layers share.
        default: The layer types of a file that lists none.
        everywhere: Whether all layers of a file have RoPE, since none has a window.
    """

    def read(given: Fields) -> Keys:
        types = layer_types(given, default)
        turned = [everywhere(given) or kind == SLIDING for kind in types]
        encodings = by_layer(["rope" if one else "none" for one in turned])
        keys = rotary.read(given) | keys_of_windows(given, types)
        return keys | {"position_encoding": encodings}

    def write(config: ModelArchitectureConfig) -> Fields:
        fields = rotary.write(config)
        turned = [rotates(layer) for layer in config.layers]
        unwindowed = {"sliding_window": None, "layer_types": types_of([False] * len(turned))}
        if all(turned) and everywhere(unwindowed) and not any(windowed_layers(config)):
            return fields | unwindowed
        return fields | fields_of_windows(config, types_of(turned))

    return Aspect(read, write)
