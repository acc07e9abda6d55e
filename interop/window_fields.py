"""Sliding windows in a `config.json`, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from components.attention_backends import window_of
from errors import UserError
from interop.fields import Aspect, Fields, Keys, layers_of
from model_config import ModelArchitectureConfig
from patterns import by_layer

SLIDING, FULL = "sliding_attention", "full_attention"

LayerTypes = list[str]
"""For each layer SLIDING, which has a window, or FULL, which sees all."""
DefaultTypes = Callable[[Fields], LayerTypes]
"""The layer types of a family's config.json that does not list them."""


def types_of(windowed: Sequence[bool]) -> LayerTypes:
    """The layer types, by whether each layer has a window."""
    return [SLIDING if one else FULL for one in windowed]


def windowed_layers(config: ModelArchitectureConfig) -> list[bool]:
    """Whether the window of each layer hides anything."""
    return [window_of(layer) is not None for layer in config.layers]


# Which layers have a window


def layer_types(given: Fields, default: DefaultTypes) -> LayerTypes:
    """What `layer_types` says, or the family's own where it is left out."""
    types, layers = given.get("layer_types"), layers_of(given)
    if types is None:
        return default(given)
    unknown = set(types) - {SLIDING, FULL}
    if unknown:
        raise UserError(f"layer_types has {unknown.pop()!r}, which is not supported.")
    if len(types) != len(layers):
        raise UserError(
            f"layer_types has {len(types)} entries, num_hidden_layers is {len(layers)}; they must "
            "agree."
        )
    return types


def late_windows(given: Fields) -> LayerTypes:
    """Qwen's default: the first `max_window_layers` layers see all."""
    return types_of([layer >= given["max_window_layers"] for layer in layers_of(given)])


def late_windows_if_any(given: Fields) -> LayerTypes:
    """dots.llm1's default: Qwen's where there is a window."""
    if given["sliding_window"] is None:
        return types_of([False] * len(layers_of(given)))
    return late_windows(given)


def early_alternating(given: Fields) -> LayerTypes:
    """Qwen2-MoE's default: every other one of the first `max_window_layers` has a window."""
    last = given["max_window_layers"]
    return types_of([layer % 2 == 0 and layer < last for layer in layers_of(given)])


def every_nth_full(given: Fields, interval: int) -> LayerTypes:
    """All layers but every n-th have a window."""
    return types_of([(layer + 1) % interval != 0 for layer in layers_of(given)])


def first_of_four_full(given: Fields) -> LayerTypes:
    """All layers but the first of every four have a window."""
    return types_of([layer % 4 != 0 for layer in layers_of(given)])


def alternating(given: Fields) -> LayerTypes:
    """Gemma 2's default: every other layer sees all."""
    return every_nth_full(given, 2)


# Windows


def _window(given: Fields) -> int | None:
    """The window, or None where it reaches over the longest sequence, so that it hides nothing."""
    window = given["sliding_window"]
    return None if window is None or window >= given["max_position_embeddings"] else window


def keys_of_windows(given: Fields, types: LayerTypes) -> Keys:
    """The window of each layer. Raises UserError where a layer needs one and none is said."""
    if SLIDING in types and given["sliding_window"] is None:
        raise UserError(
            "layers with sliding_attention need a sliding_window; config.json has none."
        )
    windows = [_window(given) if kind == SLIDING else None for kind in types]
    return {"sliding_window": by_layer(windows)}


def fields_of_windows(config: ModelArchitectureConfig, types: LayerTypes) -> Fields:
    """The window of the first layer that has one, beside these types."""
    windows = (window_of(layer) for layer in config.kinds)
    window = next((window for window in windows if window is not None), config.block_size)
    return {"sliding_window": window, "layer_types": types}


WINDOW_EVERYWHERE = Aspect(
    lambda given: {"sliding_window": _window(given)},
    lambda config: {"sliding_window": window_of(config.layers[0])},
)


def _window_if_used(given: Fields) -> Keys:
    return {"sliding_window": _window(given) if given["use_sliding_window"] else None}


def _use_of_window(config: ModelArchitectureConfig) -> Fields:
    fields = WINDOW_EVERYWHERE.write(config)
    return fields | {"use_sliding_window": fields["sliding_window"] is not None}


WINDOW_IF_USED = Aspect(_window_if_used, _use_of_window)
"""Qwen3-MoE: a window in all layers where `use_sliding_window` is true."""


def windows_by_layer(default: DefaultTypes) -> Aspect:
    """Windows by `layer_types`."""
    return Aspect(
        lambda given: keys_of_windows(given, layer_types(given, default)),
        lambda config: fields_of_windows(config, types_of(windowed_layers(config))),
    )


def optional_windows(default: DefaultTypes) -> Aspect:
    """Windows by `layer_types` where `use_sliding_window` is true."""

    def all_full_unless_used(given: Fields) -> LayerTypes:
        used = given["use_sliding_window"] and given["sliding_window"] is not None
        return default(given) if used else types_of([False] * len(layers_of(given)))

    def read(given: Fields) -> Keys:
        types = layer_types(given, all_full_unless_used)
        if SLIDING in types and not given["use_sliding_window"]:
            raise UserError(
                "layer_types has 'sliding_attention', but use_sliding_window is false; change one."
            )
        return keys_of_windows(given, types)

    def write(config: ModelArchitectureConfig) -> Fields:
        windowed = windowed_layers(config)
        return fields_of_windows(config, types_of(windowed)) | {"use_sliding_window": any(windowed)}

    return Aspect(read, write)
