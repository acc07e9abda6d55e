"""The keys of a model: those of every model, and the options of the chosen components."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from components.parametrizations import parametrization_of
from errors import unknown_name
from model_components import BLOCKS, FFNS, MIXERS, MTPS, NORMS, PARAMETRIZATIONS, RESIDUALS
from options import KEYS, Key, Role, Section, keys_of
from part_keys import Draft, canonical_name, expanded
from saved_configs import current_name

_sizes = Section("Sizes", Role.ARCHITECTURE)
_parts = Section("Components", Role.ARCHITECTURE)
_whole = Section("Whole model", Role.ARCHITECTURE)


class ModelOptions:
    """The keys that every model has, regardless of its components."""

    n_layer: int = _sizes.option(12, "number of blocks", at_least=1, tag=None)
    n_embd: int = _sizes.option(768, "width of the residual stream", at_least=1, tag=None)
    block_size: int = _sizes.option(
        1024, "maximum sequence length, in tokens", at_least=1, tag="T{}"
    )
    vocab_size: int = _sizes.option(
        50304,
        "vocabulary size; train.py uses that of the dataset unless this is set",
        at_least=1,
        tag=None,
    )

    mixer: str = _parts.option(
        "attention",
        "sequence mixer; none: the layer has only an FFN",
        choices=MIXERS.plus("none"),
        per_layer=True,
        tag=None,
    )
    normalization: str = _parts.option(
        "layernorm",
        "norm layer; auto: LayerNorm, with a bias if bias is True",
        choices=NORMS.plus("auto"),
        per_layer=True,
        tag=None,
    )
    norm_position: str = _parts.option(
        "pre", "placement of the norms in a block", choices=BLOCKS, per_layer=True, tag=None
    )
    ffn_type: str = _parts.option(
        "standard",
        "feed-forward network; none: the layer has only a mixer",
        choices=FFNS.plus("none"),
        per_layer=True,
        tag=None,
    )
    residual: str = _parts.option(
        "plain",
        "how sublayers are added to the residual stream",
        choices=RESIDUALS,
    )
    parametrization: str = _parts.option(
        "standard",
        "how initial weights, multipliers and learning rates depend on width and depth",
        choices=PARAMETRIZATIONS,
    )
    mtp: str = _parts.option(
        "none",
        "modules that predict tokens after the next one during training; none: no such modules",
        choices=MTPS.plus("none"),
    )

    loop_count: int = _whole.option(
        1,
        "number of times that the looped layers are applied, with the same weights",
        at_least=1,
        at_most=1024,
        tag="Loop{}",
    )
    loop_prelude: int = _whole.option(
        0, "number of layers before the looped ones", at_least=0, tag="Prelude{}"
    )
    loop_coda: int = _whole.option(
        0, "number of layers after the looped ones", at_least=0, tag="Coda{}"
    )
    bias: bool = _whole.option(True, "biases in the Linear layers", tag=("NoBias", "Bias"))
    head_bias: bool = _whole.option(False, "bias in the LM head", tag=("NoHeadBias", "HeadBias"))
    weight_tying: bool = _whole.option(
        True, "share the weights of the token embedding and the LM head", tag=("Untied", "Tied")
    )
    dropout: float = _whole.option(0.0, "dropout probability", at_least=0, below=1, tag="Drop{}")
    output_softcap: float | None = _whole.option(
        None, "soft cap c: logits = c tanh(logits/c); none: no cap", above=0, tag="Cap{}"
    )
    embedding_scale: float = _whole.option(
        1.0, "scale of the token embeddings", above=0, tag="Emb{}"
    )
    embedding_norm: bool = _whole.option(
        False,
        "normalize the embeddings before the first block, as the first layer's norms do",
        tag=("NoEmbNorm", "EmbNorm"),
    )
    logit_scale: float | None = _whole.option(
        None,
        "scale of the logits, before output_softcap; none: that of parametrization, which is 1 "
        "unless it depends on the width",
        above=0,
        derive=lambda config: parametrization_of(config).logit_scale,
        tag="Logits{}",
    )
    logit_gain: bool = _whole.option(
        False,
        "multiply the logit of each token by a learned number",
        tag=("NoLogitGain", "LogitGain"),
    )
    sphere_weights: bool = _whole.option(
        False,
        "scale the vectors of embeddings and weights along the residual stream to length 1, at the "
        "start and after every step",
        tag=("FreeWeights", "SphereWeights"),
    )
    init_std: float = _whole.option(
        0.02, "standard deviation of initial weights", above=0, tag="Init{}"
    )
    zero_init: bool = _whole.option(
        False,
        "start the projections that add to the residual stream at 0",
        tag=("RandomInit", "ZeroInit"),
    )


MODEL_KEYS = keys_of(ModelOptions)
KEYS.declare("", MODEL_KEYS)

REPLACED = {
    "window_pattern": "write the pattern in sliding_window: sliding_window='128*5+none' "
    "repeats five layers with a window and one without",
    "rope_pattern": "write the pattern in position_encoding: position_encoding='rope*3+none' "
    "repeats three layers with RoPE and one without",
    "rope_local_theta": "write a pattern for rope_theta, and for rope_scaling if it is set: "
    "rope_theta='1e4*5+1e6' with sliding_window='512*5+none'",
}
"""Keys removed from earlier versions, with what to write instead."""


def removed_key_message(key: str) -> str | None:
    """What to write instead of a removed or renamed key; None for any other name."""
    if current_name(key) != key:
        return f"the key {key!r} was renamed to {current_name(key)!r}."
    return f"the key {key!r} was removed; {REPLACED[key]}." if key in REPLACED else None


def unknown_key_message(key: str) -> str:
    """The message for a name that is not a model key, with what to write instead."""
    return removed_key_message(key) or unknown_name("key", key, architecture_keys())


def architecture_keys() -> dict[str, Key]:
    """All model keys; options of components follow the key that chooses the component."""
    return expanded(MODEL_KEYS)


def canonical(key: Key, value: Any, given: Mapping[str, Any]) -> Any:
    """Resolve an alias or `auto` to the name of a component.

    Args:
        key: The key of the value. Values of keys that do not choose a component are unchanged.
        value: A valid value.
        given: The given values of all keys.
    """
    if (key.name, value) == ("normalization", "auto"):
        biased = given.get("bias", MODEL_KEYS["bias"].default)
        return "layernorm" if biased else "layernorm_nobias"
    return canonical_name(key, value, given)


def layer_values(given: Mapping[str, Any], order: Iterable[str]) -> dict[str, Any]:
    """All keys and values of a layer, given some of them; `order` is the order of all keys."""
    return Draft(given, MODEL_KEYS, canonical).resolved(order)
