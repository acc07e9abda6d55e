"""What a `config.json` of Hugging Face transformers says, aspect by aspect, in both directions.

An aspect reads some fields of the file as keys of an architecture, and writes them back. It may
write less than the keys say (a family whose layers are alike writes the first one's value): what
gets lost shows when the written fields are read again, see `family.Family.misfits`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from errors import UserError
from model_config import ModelArchitectureConfig
from patterns import MOST_LAYERS_TO_DIFFER

Fields = dict[str, Any]
"""What config.json holds."""
Keys = dict[str, Any]
"""Keys of a ModelArchitectureConfig; a Pattern where layers differ."""


@dataclasses.dataclass(frozen=True)
class Aspect:
    """Some keys of an architecture, as some fields say them."""

    read: Callable[[Fields], Keys]
    write: Callable[[ModelArchitectureConfig], Fields]


def value_of(config: ModelArchitectureConfig, key: str) -> Any:
    """The value of a key in the first layer that has it, or None."""
    return next((getattr(layer, key) for layer in config.kinds if key in layer), None)


def same(**fields: str) -> Aspect:
    """Keys whose value a field has as it is: `n_layer="num_hidden_layers"`."""
    return Aspect(
        lambda given: {key: given[field] for key, field in fields.items()},
        lambda config: {field: value_of(config, key) for key, field in fields.items()},
    )


def if_any(aspect: Aspect) -> Aspect:
    """Leave out the fields of keys that no layer has."""

    def write(config: ModelArchitectureConfig) -> Fields:
        return {name: x for name, x in aspect.write(config).items() if x is not None}

    return Aspect(aspect.read, write)


def switch(key: str, field: str, *, on: Any, off: Any) -> Aspect:
    """A key with one value where a field is true, and another where it is not."""
    return Aspect(
        lambda given: {key: on if given[field] else off},
        lambda config: {field: value_of(config, key) == on},
    )


def layers_of(given: Fields) -> range:
    """The layers of a family whose layers may differ. Raises UserError for none or too many."""
    layers = given["num_hidden_layers"]
    if not 1 <= layers <= MOST_LAYERS_TO_DIFFER:
        raise UserError(
            f"num_hidden_layers={layers} must be from 1 to {MOST_LAYERS_TO_DIFFER:,} in a family "
            "whose layers may differ."
        )
    return range(layers)


# Sizes


def ffn_width(field: str, width: str = "n_embd") -> Aspect:
    """The hidden width of a network that is four times as wide where nothing is said.

    Args:
        field: The field of the hidden width.
        width: The field of the width of the model.
    """
    return Aspect(
        lambda given: {"ffn_hidden": given.get(field) or 4 * given[width]},
        lambda config: {field: value_of(config, "ffn_hidden")},
    )


def four_times_as_wide(width: str) -> Aspect:
    """A network that is always four times as wide as the model, whose field is `width`."""
    return Aspect(lambda given: {"ffn_hidden": 4 * given[width]}, lambda config: {})


KEY_HEADS = Aspect(
    lambda given: {"n_kv_head": given.get("num_key_value_heads") or given["num_attention_heads"]},
    lambda config: {"num_key_value_heads": value_of(config, "n_kv_head")},
)
HEAD_DIM = Aspect(
    lambda given: {
        "head_dim": given.get("head_dim") or given["hidden_size"] // given["num_attention_heads"]
    },
    lambda config: {"head_dim": value_of(config, "head_dim")},
)


def _refuse_uneven_heads(config: ModelArchitectureConfig) -> Fields:
    if config.n_embd % config.n_head:
        raise UserError(
            f"n_embd={config.n_embd} is not a multiple of n_head={config.n_head}, as transformers "
            "requires, regardless of head_dim."
        )
    return {}


WHOLE_HEADS = Aspect(lambda given: {}, _refuse_uneven_heads)
"""Where transformers refuses a width that is no multiple of the heads."""
HEAD_DIM_OF_WHOLE_HEADS = Aspect(
    HEAD_DIM.read, lambda config: _refuse_uneven_heads(config) | HEAD_DIM.write(config)
)
"""The same with a width of heads of its own."""


def _refuse_own_head_dim(given: Fields) -> Keys:
    derived = given["hidden_size"] // given["num_attention_heads"]
    if given.get("head_dim") not in (None, derived):
        raise UserError(
            f"head_dim={given['head_dim']} cannot be expressed here: transformers' class has heads "
            f"of hidden_size/num_attention_heads={derived} dimensions; drop head_dim."
        )
    return {}


def _refuse_wide_heads(config: ModelArchitectureConfig) -> Fields:
    for layer in config.kinds:
        if layer.head_dim * config.n_head != config.n_embd:
            raise UserError(
                f"head_dim={layer.head_dim} of n_head={config.n_head} heads does not make "
                f"n_embd={config.n_embd}, and this family has no separate head_dim."
            )
    return {}


NO_HEAD_DIM = Aspect(_refuse_own_head_dim, _refuse_wide_heads)
"""Where the class of transformers derives the width of a head, but its RoPE reads `head_dim`."""
HEAD_DIM_OF_WIDTH = Aspect(
    _refuse_own_head_dim,
    lambda config: _refuse_wide_heads(config) | HEAD_DIM.write(config),
)
"""Where `head_dim` must be given and be hidden_size/num_attention_heads."""


# Norms of queries and keys


def _layer_norm_of_heads(given: Fields) -> Keys:
    if not given["qk_layernorm"]:
        return {"qk_norm": False}
    return {"qk_norm": True, "qk_norm_type": "layernorm"}


QK_LAYER_NORM = Aspect(
    _layer_norm_of_heads, lambda config: {"qk_layernorm": bool(value_of(config, "qk_norm"))}
)
"""A LayerNorm of each head of queries and keys, or none."""


# Biases


def _bias_of_all_matrices(config: ModelArchitectureConfig) -> Fields:
    # A layer without gets one of zeros. One that has all but the output's is of another family.
    return {"attention_bias": any(layer.get("attention_out_bias") for layer in config.kinds)}


ATTENTION_BIAS = Aspect(
    lambda given: dict.fromkeys(("attention_bias", "attention_out_bias"), given["attention_bias"]),
    _bias_of_all_matrices,
)
"""Biases in all of attention's matrices, or in none."""
