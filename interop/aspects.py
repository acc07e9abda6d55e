"""What a `config.json` of Hugging Face transformers says, aspect by aspect, in both directions.

An aspect reads some fields of the file as keys of an architecture, and writes them back. It may
write less than the keys say (a family without windows writes no window): what gets lost shows when
the written fields are read again, see `families.Family.misfits`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from components.positions import rotated_dimensions
from errors import UserError
from model_config import ModelArchitectureConfig

Fields = dict[str, Any]
"""What config.json holds."""
Keys = dict[str, Any]
"""Keys of a ModelArchitectureConfig."""


@dataclasses.dataclass(frozen=True)
class Aspect:
    """Some keys of an architecture, as some fields say them."""

    read: Callable[[Fields], Keys]
    write: Callable[[ModelArchitectureConfig], Fields]


def same(**fields: str) -> Aspect:
    """Keys whose value a field has as it is: `n_layer="num_hidden_layers"`."""
    return Aspect(
        lambda given: {key: given[field] for key, field in fields.items()},
        lambda config: {field: getattr(config, key) for key, field in fields.items()},
    )


def switch(key: str, field: str, *, on: Any, off: Any) -> Aspect:
    """A key with one value where a field is true, and another where it is not."""
    return Aspect(
        lambda given: {key: on if given[field] else off},
        lambda config: {field: getattr(config, key) == on},
    )


# Sizes


def ffn_width(field: str) -> Aspect:
    """The hidden width of a network that is four times as wide where nothing is said."""
    return Aspect(
        lambda given: {"ffn_hidden": given.get(field) or 4 * given["n_embd"]},
        lambda config: {field: config.ffn_hidden},
    )


KEY_HEADS = Aspect(
    lambda given: {"n_kv_head": given.get("num_key_value_heads") or given["num_attention_heads"]},
    lambda config: {"num_key_value_heads": config.n_kv_head},
)
HEAD_DIM = Aspect(
    lambda given: {
        "head_dim": given.get("head_dim") or given["hidden_size"] // given["num_attention_heads"]
    },
    lambda config: {"head_dim": config.head_dim},
)


def _head_dim_of_whole_heads(config: ModelArchitectureConfig) -> Fields:
    if config.n_embd % config.n_head:
        raise UserError(
            f"n_embd={config.n_embd} is not a multiple of n_head={config.n_head}, as transformers "
            "wants it, whatever head_dim is."
        )
    return {"head_dim": config.head_dim}


HEAD_DIM_OF_WHOLE_HEADS = dataclasses.replace(HEAD_DIM, write=_head_dim_of_whole_heads)
"""Where transformers refuses a width that is no multiple of the heads."""


def _refuse_own_head_dim(given: Fields) -> Keys:
    derived = given["hidden_size"] // given["num_attention_heads"]
    if given.get("head_dim") not in (None, derived):
        raise UserError(
            f"head_dim={given['head_dim']} cannot be expressed here: transformers' class has heads "
            f"of hidden_size/num_attention_heads={derived} dimensions; drop head_dim."
        )
    return {}


def _refuse_wide_heads(config: ModelArchitectureConfig) -> Fields:
    if config.head_dim * config.n_head != config.n_embd:
        raise UserError(
            f"head_dim={config.head_dim} of n_head={config.n_head} heads does not make "
            f"n_embd={config.n_embd}, and this family has no head_dim of its own."
        )
    return {}


NO_HEAD_DIM = Aspect(_refuse_own_head_dim, _refuse_wide_heads)
"""Where the class of transformers derives the width of a head, but its RoPE reads `head_dim`."""


# Activations

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu2",
    "leaky_relu": "leaky_relu",
    "sigmoid": "sigmoid",
}
_GATED = {"silu": "swiglu", "gelu": "geglu", "gelu_tanh": "geglu", "relu": "reglu"}


def _activation(given: Fields, field: str) -> str:
    name = given[field]
    if name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise UserError(f"{field}={name!r} is no activation known here; known are {known}.")
    return _ACTIVATIONS[name]


def _activation_field(config: ModelArchitectureConfig, field: str) -> Fields:
    names = {"gelu_tanh": "gelu_pytorch_tanh"}
    return {field: names.get(config.activation, config.activation)}


def activation(field: str) -> Aspect:
    """The activation of a plain network."""
    return Aspect(
        lambda given: {"activation": _activation(given, field)},
        lambda config: _activation_field(config, field),
    )


def gate(field: str, also: dict[str, str] | None = None) -> Aspect:
    """The gate of a gated network; `also` renames what a family calls by another's name."""

    def read(given: Fields) -> Keys:
        name = (also or {}).get(given[field], given[field])
        gated_by = _activation({field: name}, field)
        return {"ffn_type": _GATED.get(gated_by, "glu"), "activation": gated_by}

    return Aspect(read, lambda config: _activation_field(config, field))


# Attention

QUERY_SCALAR = Aspect(
    lambda given: {"attention_scale": given["query_pre_attn_scalar"] ** -0.5},
    lambda config: {"query_pre_attn_scalar": round(config.attention_scale**-2)},
)
"""Gemma says the attention's scale by the number whose root divides the scores."""

ROOT_OF_WIDTH = Aspect(lambda given: {"embedding_scale": given["hidden_size"] ** 0.5}, lambda _: {})
"""Gemma's token embeddings are multiplied by the root of their width."""


def _period(letters: str) -> str:
    """The shortest pattern that, repeated, gives these letters."""
    sizes = range(1, len(letters) + 1)
    return next(
        letters[:size] for size in sizes if (letters[:size] * len(letters)).startswith(letters)
    )


def _window_keys(given: Fields, letters: str) -> Keys:
    """The keys of windowed layers (S), whatever the window reaches over; none without any."""
    if "S" not in letters:
        return {}
    if given["sliding_window"] is None:
        raise UserError(
            "layers with sliding_attention need a sliding_window; config.json has none."
        )
    return {"sliding_window": given["sliding_window"], "window_pattern": _period(letters)}


def _effective_window_keys(given: Fields, letters: str) -> Keys:
    """The same, without a window that reaches over the longest sequence, which hides nothing."""
    keys = _window_keys(given, letters)
    return keys if keys.get("sliding_window", math.inf) < given["max_position_embeddings"] else {}


WINDOW_EVERYWHERE = Aspect(
    lambda given: _effective_window_keys(
        given, ("L" if given["sliding_window"] is None else "S") * given["num_hidden_layers"]
    ),
    lambda config: {"sliding_window": config.sliding_window},
)

_LAYER_TYPES = {"sliding_attention": "S", "full_attention": "L"}
Letters = Callable[[Fields], str]
"""A letter for each layer of a config.json: S windowed, L not."""


def _letters_of_types(given: Fields, default: Letters) -> str:
    """The letters that `layer_types` gives, or the family's own where it is left out."""
    types, layers = given.get("layer_types"), given["num_hidden_layers"]
    if types is None:
        return default(given)
    unknown = set(types) - set(_LAYER_TYPES)
    if unknown:
        raise UserError(f"layer_types has {unknown.pop()!r}, which is not known here.")
    if len(types) != layers:
        raise UserError(
            f"layer_types has {len(types)} entries, num_hidden_layers is {layers}; they must agree."
        )
    return "".join(_LAYER_TYPES[kind] for kind in types)


def _window_fields(config: ModelArchitectureConfig) -> Fields:
    windowed = [config.windowed(layer) for layer in range(config.n_layer)]
    return {
        "sliding_window": config.sliding_window or config.block_size,
        "layer_types": ["sliding_attention" if one else "full_attention" for one in windowed],
    }


def windows_by_layer(default: Letters) -> Aspect:
    """Windows by `layer_types`."""
    return Aspect(
        lambda given: _effective_window_keys(given, _letters_of_types(given, default)),
        _window_fields,
    )


def optional_windows(default: Letters) -> Aspect:
    """Windows by `layer_types` where `use_sliding_window` is true."""

    def all_see_all_unless_used(given: Fields) -> str:
        used = given["use_sliding_window"] and given["sliding_window"] is not None
        return default(given) if used else "L" * given["num_hidden_layers"]

    def read(given: Fields) -> Keys:
        letters = _letters_of_types(given, all_see_all_unless_used)
        if "S" in letters and not given["use_sliding_window"]:
            raise UserError(
                "layer_types has 'sliding_attention', but use_sliding_window is false; change one."
            )
        return _effective_window_keys(given, letters)

    def write(config: ModelArchitectureConfig) -> Fields:
        return _window_fields(config) | {"use_sliding_window": config.sliding_window is not None}

    return Aspect(read, write)


def late_windows(given: Fields) -> str:
    """Qwen's default: the first `max_window_layers` layers see all."""
    full = min(max(given["max_window_layers"], 0), given["num_hidden_layers"])
    return "L" * full + "S" * (given["num_hidden_layers"] - full)


def alternating(given: Fields) -> str:
    """Gemma 2's default: every other layer sees all."""
    return _every_nth_full(given, 2)


def _every_nth_full(given: Fields, interval: int) -> str:
    layers = range(1, given["num_hidden_layers"] + 1)
    return "".join("S" if layer % interval else "L" for layer in layers)


# Rotary positions

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
_NOT_SCALING = ("rope_theta", "rope_type", "type", "partial_rotary_factor")
_ORIGINAL = "original_max_position_embeddings"


def _rope_type(parameters: Fields) -> str:
    return parameters.get("rope_type", parameters.get("type", "default"))


def _scaling_keys(parameters: Fields, longest: int) -> Keys:
    """The keys of RoPE parameters' scaling. Raises UserError for what would be lost."""
    kind = _rope_type(parameters)
    if kind not in _SCALINGS:
        known = ", ".join(_SCALINGS)
        raise UserError(f"rope_type={kind!r} is no RoPE scaling known here; known are {known}.")
    said = {_ORIGINAL: longest, "beta_fast": 32.0, "beta_slow": 1.0}
    said |= {name: value for name, value in parameters.items() if value is not None}
    lost = set(parameters).intersection(said) - set(_NOT_SCALING) - set(_SCALINGS[kind].values())
    lost -= {"truncate"} if said.get("truncate") is True else set()
    if lost:
        listed = ", ".join(f"{name}={said[name]!r}" for name in sorted(lost))
        raise UserError(f"rope_type={kind!r} has {listed}, which cannot be expressed here.")
    keys = {key: said[name] for key, name in _SCALINGS[kind].items()}
    if keys.get("rope_scaling_factor", 1) == 1:  # every scaling by 1 leaves RoPE as it is
        return {}
    return {"rope_scaling": kind, **keys}


def _scaling_fields(config: ModelArchitectureConfig) -> Fields | None:
    if config.rope_scaling not in _SCALINGS:
        return None
    names = _SCALINGS[config.rope_scaling]
    values = {name: getattr(config, key) for key, name in names.items()}
    return {"rope_type": config.rope_scaling, **values}


def _common_parameters(given: Fields) -> Fields:
    """The RoPE parameters of a model whose layers share them, as transformers resolves them.

    `rope_scaling` replaces `rope_parameters`, and an `original_max_position_embeddings` beside
    them replaces theirs.
    """
    parameters = given.get("rope_scaling") or given.get("rope_parameters") or {}
    by_layer = [name for name, value in parameters.items() if isinstance(value, dict)]
    if by_layer:
        raise UserError(
            f"rope_parameters has an entry of its own for {by_layer[0]}, but every layer of this "
            "model_type has the same RoPE; give its parameters without layer types."
        )
    if _ORIGINAL in given and _ORIGINAL in _SCALINGS.get(_rope_type(parameters), {}).values():
        parameters = parameters | {_ORIGINAL: given[_ORIGINAL]}
    return parameters


def _rotated_share(given: Fields, fraction: float) -> float:
    """The share of a head that transformers rotates: int(head_dim * fraction) dimensions."""
    head_dim = HEAD_DIM.read(given)["head_dim"]
    return int(head_dim * fraction) / head_dim


def _fraction_of_rotated(config: ModelArchitectureConfig) -> float:
    """A fraction from which transformers computes the dimensions rotated here.

    The product of a head's width and the quotient of the two can fall short of them.
    """
    rotated, head_dim = rotated_dimensions(config), config.head_dim
    fraction = max(config.rope_fraction, rotated / head_dim)
    while int(head_dim * fraction) < rotated:
        fraction = math.nextafter(fraction, math.inf)
    return fraction


def _refuse_partly_rotated(given: Fields, parameters: Fields) -> None:
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
    """

    def read(given: Fields) -> Keys:
        parameters = _common_parameters(given)
        keys = {"rope_theta": parameters.get("rope_theta", given.get(theta_field, theta))}
        keys |= _scaling_keys(parameters, given["max_position_embeddings"])
        if not scales and _rope_type(parameters) != "default":
            raise UserError(
                f"rope_type={_rope_type(parameters)!r} cannot be expressed here: transformers does "
                "not scale the RoPE of this model_type so."
            )
        if fraction_field is None:
            _refuse_partly_rotated(given, parameters)
            return keys
        old = given.get(fraction_field, fraction)
        share = _rotated_share(given, parameters.get("partial_rotary_factor", old))
        return keys | {"rope_fraction": share}

    def write(config: ModelArchitectureConfig) -> Fields:
        fields = {theta_field: config.rope_theta}
        if fraction_field:
            fields[fraction_field] = _fraction_of_rotated(config)
        return fields | ({"rope_scaling": _scaling_fields(config)} if scales else {})

    return Aspect(read, write)


# Gemma 3: RoPE and windows by layer type


def _gemma3_parameters(given: Fields, layer_type: str) -> Fields:
    """The RoPE parameters of a layer type, as transformers resolves them."""
    by_type = given.get("rope_parameters")
    if by_type is None:
        by_type = {name: {"rope_type": "default"} for name in _LAYER_TYPES}
    stray = [name for name in by_type if name not in _LAYER_TYPES]
    if stray:
        raise UserError(
            f"rope_parameters has {stray[0]}, but a gemma3_text has RoPE parameters by layer type; "
            f"put it into {' or '.join(_LAYER_TYPES)}."
        )
    added = given.get("rope_scaling") if layer_type == "full_attention" else None
    return {**(by_type.get(layer_type) or {}), **(added or {})}


def _gemma3_rope(given: Fields, layer_type: str, theta_field: str, theta: float) -> Keys:
    """The keys that a layer type's RoPE would have in a model of its own."""
    parameters = _gemma3_parameters(given, layer_type)
    keys = {"rope_theta": parameters.get("rope_theta", given.get(theta_field, theta))}
    keys |= _scaling_keys(parameters, given["max_position_embeddings"])
    _refuse_partly_rotated(given, parameters)
    return keys


def _read_gemma3(given: Fields) -> Keys:
    """Windows, and a base for windowed layers where their RoPE differs from the others'.

    A window that reaches over the longest sequence is kept then: it says which layers these are.
    """
    letters = _letters_of_types(
        given, lambda given: _every_nth_full(given, given.get("sliding_window_pattern", 6))
    )
    common = _gemma3_rope(given, "full_attention", "rope_theta", 1e6)
    local = _gemma3_rope(given, "sliding_attention", "rope_local_base_freq", 10_000.0)
    if "S" not in letters or local == common:
        return common | _effective_window_keys(given, letters)
    if "rope_scaling" in local:
        raise UserError(
            "rope_parameters scales the RoPE of windowed layers in another way than that of the "
            "others, which cannot be expressed here."
        )
    return common | {"rope_local_theta": local["rope_theta"]} | _window_keys(given, letters)


def _write_gemma3(config: ModelArchitectureConfig) -> Fields:
    return rope().write(config) | {
        "rope_local_base_freq": config.rope_local_theta or config.rope_theta,
        **_window_fields(config),
    }


GEMMA3_LAYERS = Aspect(_read_gemma3, _write_gemma3)


# Rotary positions of other families

ROTARY_DIM = Aspect(
    lambda given: {"rope_fraction": given["rotary_dim"] * given["n_head"] / given["n_embd"]},
    lambda config: _refuse_wide_heads(config) | {"rotary_dim": rotated_dimensions(config)},
)
"""GPT-J's number of rotated dimensions; the width of its heads is derived."""


def _rope_letters(given: Fields) -> str:
    """SmolLM3's layers with (R) and without (N) RoPE: by a list of 1 and 0, or by an interval."""
    interval, layers = given.get("no_rope_layer_interval", 4), given["num_hidden_layers"]
    rotated = given.get("no_rope_layers")
    if rotated is None:
        rotated = [(layer + 1) % interval != 0 for layer in range(layers)]
    if len(rotated) < layers:
        raise UserError(
            f"no_rope_layers has {len(rotated)} entries, num_hidden_layers is {layers}; it needs "
            "one for each layer."
        )
    return "".join("R" if turned else "N" for turned in rotated[:layers])


def rope_by_layer(rotary: Aspect) -> Aspect:
    """RoPE in some layers; where none has it, no position encoding."""

    def read(given: Fields) -> Keys:
        letters = _rope_letters(given)
        if "R" not in letters:
            return {"position_encoding": "none"}
        return rotary.read(given) | {"rope_pattern": _period(letters)}

    def write(config: ModelArchitectureConfig) -> Fields:
        rotates = config.position_encoding == "rope"
        layers = [int(rotates and config.rotates(layer)) for layer in range(config.n_layer)]
        return rotary.write(config) | {"no_rope_layers": layers}

    return Aspect(read, write)


def windows_without_rope(given: Fields) -> str:
    """SmolLM3's default: the windowed layers are those without RoPE."""
    return _rope_letters(given).translate(str.maketrans("RN", "LS"))
