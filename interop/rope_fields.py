"""Rotary positions in a `config.json`: base, share and scaling, and which layers have them."""

from __future__ import annotations

import math

from components.layer_config import LayerConfig
from components.positions import rotated_dimensions
from errors import UserError
from interop.fields import HEAD_DIM, NO_HEAD_DIM, Aspect, Fields, Keys, layers_of
from interop.window_fields import LayerTypes, types_of
from model_config import ModelArchitectureConfig
from patterns import by_layer

_SCALINGS = {
    "default": {},
    "linear": {"rope_scaling_factor": "factor"},
    "llama3": {
        "rope_scaling_factor": "factor",
        "rope_low_freq_factor": "low_freq_factor",
        "rope_high_freq_factor": "high_freq_factor",
        "rope_original_block_size": "original_max_position_embeddings",
    },
    "yarn": {
        "rope_scaling_factor": "factor",
        "rope_beta_fast": "beta_fast",
        "rope_beta_slow": "beta_slow",
        "rope_original_block_size": "original_max_position_embeddings",
    },
}
"""Each `rope_type`, and which of its parameters is which key."""
_OF_YARN = ("attention_factor", "mscale", "mscale_all_dim", "truncate")
"""Parameters that have no key of their own in `_SCALINGS`."""
_NOT_SCALING = ("rope_theta", "rope_type", "type", "partial_rotary_factor")
_ORIGINAL = "original_max_position_embeddings"


def rotates(layer: LayerConfig) -> bool:
    """Whether a layer has RoPE."""
    return layer.get("position_encoding") == "rope"


def _rotating(config: ModelArchitectureConfig) -> LayerConfig | None:
    """The first layer with RoPE, or None."""
    return next(filter(rotates, config.kinds), None)


# Scaling


def _rope_type(parameters: Fields) -> str:
    return parameters.get("rope_type", parameters.get("type", "default"))


def scaling_keys(parameters: Fields, longest: int) -> Keys:
    """The keys of RoPE parameters' scaling. Raises UserError for what would be lost."""
    kind = _rope_type(parameters)
    if kind not in _SCALINGS:
        known = ", ".join(_SCALINGS)
        raise UserError(f"rope_type={kind!r} is not a supported RoPE scaling; supported: {known}.")
    said = {_ORIGINAL: longest, "beta_fast": 32.0, "beta_slow": 1.0}
    said |= {name: value for name, value in parameters.items() if value is not None}
    lost = set(parameters).intersection(said) - set(_NOT_SCALING) - set(_SCALINGS[kind].values())
    if kind == "yarn":
        lost -= set(_OF_YARN)
    if lost:
        listed = ", ".join(f"{name}={said[name]!r}" for name in sorted(lost))
        raise UserError(f"rope_type={kind!r} has {listed}, which cannot be expressed here.")
    keys = {key: said[name] for key, name in _SCALINGS[kind].items()}
    if keys.get("rope_scaling_factor", 1) == 1:
        # Every scaling by 1 leaves RoPE as it is, unless YaRN has a scale of its own.
        if kind == "yarn" and said.get("attention_factor", 1) != 1:
            scale = said["attention_factor"]
            raise UserError(
                f"rope_type='yarn' has attention_factor={scale!r} with factor=1, which cannot be "
                "expressed here."
            )
        return {"rope_scaling": "none"}
    return {"rope_scaling": kind, **keys, **(_yarn_keys(parameters) if kind == "yarn" else {})}


def yarn_scale(factor: float, share: float = 1.0) -> float:
    """How much YaRN sharpens attention, as transformers computes it; `share` is its `mscale`."""
    return 0.1 * share * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn_keys(parameters: Fields) -> Keys:
    """The scale of the rotation where it is not the default, and the rounding of the bounds."""
    keys: Keys = {"rope_truncate": bool(parameters.get("truncate", True))}
    factor, of_all = parameters["factor"], parameters.get("mscale_all_dim")
    if parameters.get("attention_factor") is not None:
        keys["rope_attention_factor"] = parameters["attention_factor"]
    elif parameters.get("mscale") and of_all:
        scales = yarn_scale(factor, parameters["mscale"]), yarn_scale(factor, of_all)
        keys["rope_attention_factor"] = scales[0] / scales[1]
    return keys


def scaling_fields(layer: LayerConfig) -> Fields | None:
    """The scaling of a layer with RoPE, or None where it has none that transformers knows."""
    if layer.rope_scaling not in _SCALINGS:
        return None
    names = _SCALINGS[layer.rope_scaling]
    values = {name: getattr(layer, key) for key, name in names.items()}
    if layer.rope_scaling == "yarn":
        values |= _yarn_fields(layer)
    return {"rope_type": layer.rope_scaling, **values}


def _yarn_fields(layer: LayerConfig) -> Fields:
    fields: Fields = {}
    if layer.rope_attention_factor != yarn_scale(layer.rope_scaling_factor):
        fields["attention_factor"] = layer.rope_attention_factor
    if not layer.rope_truncate:
        fields["truncate"] = False
    return fields


# RoPE that layers share


def shared_parameters(given: Fields, absent: Fields | None = None) -> Fields:
    """The RoPE parameters of a model whose layers share them, as transformers resolves them.

    `rope_scaling` replaces `rope_parameters`, and an `original_max_position_embeddings` beside
    them replaces theirs. `absent`: those of a file with neither.
    """
    parameters = given.get("rope_scaling") or given.get("rope_parameters")
    parameters = (absent or {}) if parameters is None else parameters
    by_layer = [name for name, value in parameters.items() if isinstance(value, dict)]
    if by_layer:
        raise UserError(
            f"rope_parameters has a separate entry for {by_layer[0]}, but every layer of this "
            "model_type has the same RoPE; give its parameters without layer types."
        )
    if _ORIGINAL in given and _ORIGINAL in _SCALINGS.get(_rope_type(parameters), {}).values():
        parameters = parameters | {_ORIGINAL: given[_ORIGINAL]}
    return parameters


def _rotated_share(given: Fields, fraction: float) -> float:
    """The share of a head that transformers rotates: int(head_dim * fraction) dimensions."""
    head_dim = HEAD_DIM.read(given)["head_dim"]
    return int(head_dim * fraction) / head_dim


def _fraction_of_rotated(layer: LayerConfig) -> float:
    """A fraction from which transformers computes the dimensions rotated here.

    The product of a head's width and the quotient of the two can fall short of them.
    """
    rotated, head_dim = rotated_dimensions(layer), layer.head_dim
    fraction = max(layer.rope_fraction, rotated / head_dim)
    while int(head_dim * fraction) < rotated:
        fraction = math.nextafter(fraction, math.inf)
    return fraction


def refuse_partly_rotated(given: Fields, parameters: Fields) -> None:
    """Refuse a share beside a scaling, where the class of transformers rotates whole heads."""
    share = parameters.get("partial_rotary_factor", given.get("partial_rotary_factor", 1.0))
    kind = _rope_type(parameters)
    if share != 1 and kind != "default":
        raise UserError(
            f"partial_rotary_factor={share} with rope_type={kind!r} cannot be expressed here: this "
            "model_type rotates whole heads; drop one."
        )


def rope(
    theta_field: str = "rope_theta",
    theta: float = 10_000.0,
    fraction_field: str | None = None,
    fraction: float = 1.0,
    scales: bool = True,
    absent: Fields | None = None,
) -> Aspect:
    """Base, share and scaling of RoPE.

    Newer files have all in `rope_parameters`, older ones in fields of their own and
    `rope_scaling`. The older way is written: both old and new versions read it.

    Args:
        theta_field: The older field of the base.
        theta: The base where none is given.
        fraction_field: The older field of the share of a head that is rotated; None: all of it.
        fraction: The share where none is given.
        scales: Whether the family can scale RoPE.
        absent: The RoPE parameters of a file with none, where these scale RoPE; the parameters are
            then written in `rope_parameters`, since a file without would mean these.
    """

    def read(given: Fields) -> Keys:
        parameters = shared_parameters(given, absent)
        keys = {"rope_theta": parameters.get("rope_theta", given.get(theta_field, theta))}
        keys |= scaling_keys(parameters, given["max_position_embeddings"])
        if not scales and _rope_type(parameters) != "default":
            raise UserError(
                f"rope_type={_rope_type(parameters)!r} cannot be expressed here: transformers "
                "does not support this scaling for this model_type."
            )
        if fraction_field is None:
            refuse_partly_rotated(given, parameters)
            return keys
        old = given.get(fraction_field, fraction)
        share = _rotated_share(given, parameters.get("partial_rotary_factor", old))
        return keys | {"rope_fraction": share}

    def write(config: ModelArchitectureConfig) -> Fields:
        layer = _rotating(config)
        if layer is None:
            return {}
        if absent:
            scaling = scaling_fields(layer) or {"rope_type": "default"}
            return {"rope_parameters": {"rope_theta": layer.rope_theta, **scaling}}
        fields = {theta_field: layer.rope_theta}
        if fraction_field:
            fields[fraction_field] = _fraction_of_rotated(layer)
        return fields | ({"rope_scaling": scaling_fields(layer)} if scales else {})

    return Aspect(read, write)


# GPT-J


def _write_rotary_dim(config: ModelArchitectureConfig) -> Fields:
    layer = _rotating(config)
    rotated = config.n_embd // config.n_head if layer is None else rotated_dimensions(layer)
    return NO_HEAD_DIM.write(config) | {"rotary_dim": rotated}


ROTARY_DIM = Aspect(
    lambda given: {"rope_fraction": given["rotary_dim"] * given["n_head"] / given["n_embd"]},
    _write_rotary_dim,
)
"""GPT-J's number of rotated dimensions; the width of its heads is derived."""


# SmolLM3: layers without RoPE


def _rotated_layers(given: Fields) -> list[bool]:
    """SmolLM3's layers with RoPE: by a list of 1 and 0, or by an interval."""
    layers, rotated = layers_of(given), given.get("no_rope_layers")
    if rotated is None:
        interval = given.get("no_rope_layer_interval", 4)
        return [(layer + 1) % interval != 0 for layer in layers]
    if len(rotated) < len(layers):
        raise UserError(
            f"no_rope_layers has {len(rotated)} entries, num_hidden_layers is {len(layers)}; it "
            "needs one for each layer."
        )
    return [bool(turned) for turned in rotated[: len(layers)]]


def rope_in_some_layers(rotary: Aspect) -> Aspect:
    """RoPE in some layers, and no position encoding in the others."""

    def read(given: Fields) -> Keys:
        encodings = ["rope" if turned else "none" for turned in _rotated_layers(given)]
        return rotary.read(given) | {"position_encoding": by_layer(encodings)}

    def write(config: ModelArchitectureConfig) -> Fields:
        turned = [int(rotates(layer)) for layer in config.layers]
        return rotary.write(config) | {"no_rope_layers": turned}

    return Aspect(read, write)


def windows_without_rope(given: Fields) -> LayerTypes:
    """SmolLM3's default: the windowed layers are those without RoPE."""
    return types_of([not turned for turned in _rotated_layers(given)])
