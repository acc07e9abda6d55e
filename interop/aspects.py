"""What a `config.json` of Hugging Face transformers says, aspect by aspect, in both directions.

An aspect reads some fields of the file as keys of an architecture, and writes them back. It may
write less than the keys say (a family without windows writes no window): what gets lost shows when
the written fields are read again, see `families.Family.misfits`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

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
    """Windowed layers (S); a window that reaches over the longest sequence is none."""
    size = given["sliding_window"]
    if size is None or size >= given["max_position_embeddings"] or "S" not in letters:
        return {}
    return {"sliding_window": size, "window_pattern": _period(letters)}


WINDOW_EVERYWHERE = Aspect(
    lambda given: _window_keys(given, "S" * given["num_hidden_layers"]),
    lambda config: {"sliding_window": config.sliding_window},
)

_LAYER_TYPES = {"sliding_attention": "S", "full_attention": "L"}


def windows_by_layer(pattern: Callable[[Fields], str]) -> Aspect:
    """Windows by `layer_types`; where they are not given, by a pattern that is repeated."""

    def read(given: Fields) -> Keys:
        layers = given["num_hidden_layers"]
        if not given.get("use_sliding_window", True):
            return {}
        types = given.get("layer_types")
        if types is None:
            return _window_keys(given, (pattern(given) * layers)[:layers])
        unknown = set(types) - set(_LAYER_TYPES)
        if unknown:
            raise UserError(f"layer_types has {unknown.pop()!r}, which is not known here.")
        return _window_keys(given, "".join(_LAYER_TYPES[kind] for kind in types))

    def write(config: ModelArchitectureConfig) -> Fields:
        windows = [config.window(layer) for layer in range(config.n_layer)]
        types = ["sliding_attention" if window else "full_attention" for window in windows]
        return {
            "sliding_window": config.sliding_window or config.block_size,
            "use_sliding_window": config.sliding_window is not None,
            "layer_types": types,
        }

    return Aspect(read, write)


def late_windows(given: Fields) -> str:
    """Qwen's pattern: the first `max_window_layers` layers see all."""
    full = min(given["max_window_layers"], given["num_hidden_layers"])
    return "L" * full + "S" * (given["num_hidden_layers"] - full)


def every_nth_full(interval: int) -> Callable[[Fields], str]:
    """Gemma's pattern: every nth layer sees all."""
    return lambda given: "S" * (given.get("sliding_window_pattern", interval) - 1) + "L"


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


def _scaling_keys(parameters: Fields, longest: int) -> Keys:
    """The keys of a `rope_scaling`; refuses what would be lost."""
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in _SCALINGS:
        known = ", ".join(_SCALINGS)
        raise UserError(f"rope_type={kind!r} is no RoPE scaling known here; known are {known}.")
    said = {"original_max_position_embeddings": longest, "beta_fast": 32.0, "beta_slow": 1.0}
    said |= {name: value for name, value in parameters.items() if value is not None}
    lost = set(parameters).intersection(said) - set(_NOT_SCALING) - set(_SCALINGS[kind].values())
    lost -= {"truncate"} if said.get("truncate") is True else set()
    if lost:
        listed = ", ".join(f"{name}={said[name]!r}" for name in sorted(lost))
        raise UserError(f"rope_type={kind!r} has {listed}, which cannot be expressed here.")
    if kind == "default":
        return {}
    return {"rope_scaling": kind} | {key: said[name] for key, name in _SCALINGS[kind].items()}


def _scaling_fields(config: ModelArchitectureConfig) -> Fields | None:
    if config.rope_scaling not in _SCALINGS:
        return None
    names = _SCALINGS[config.rope_scaling]
    values = {name: getattr(config, key) for key, name in names.items()}
    return {"rope_type": config.rope_scaling, **values}


def _rope_parameters(given: Fields, layer_type: str) -> Fields:
    """Those of a kind of layers, where the kinds have their own; else those of all."""
    parameters = given.get("rope_parameters") or {}
    return (parameters.get(layer_type) or {}) if _LAYER_TYPES.keys() & parameters else parameters


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
        scales: Whether the family has `rope_scaling`.
    """

    def read(given: Fields) -> Keys:
        parameters = {
            **_rope_parameters(given, "full_attention"),
            **(given.get("rope_scaling") or {}),
        }
        keys = {"rope_theta": parameters.get("rope_theta", given.get(theta_field, theta))}
        if fraction_field:
            old = given.get(fraction_field, fraction)
            keys["rope_fraction"] = parameters.get("partial_rotary_factor", old)
        return keys | _scaling_keys(parameters, given["max_position_embeddings"])

    def write(config: ModelArchitectureConfig) -> Fields:
        fields = {theta_field: config.rope_theta}
        if fraction_field:
            fields[fraction_field] = config.rope_fraction
        return fields | ({"rope_scaling": _scaling_fields(config)} if scales else {})

    return Aspect(read, write)


def _read_local_theta(given: Fields) -> Keys:
    """Gemma 3's base of windowed layers; where it is the common one, nothing is said."""
    parameters = _rope_parameters(given, "sliding_attention")
    if _scaling_keys(parameters, given["max_position_embeddings"]):
        raise UserError(
            "rope_parameters stretches the RoPE of windowed layers, which cannot be expressed here."
        )
    local = parameters.get("rope_theta", given.get("rope_local_base_freq", 10_000.0))
    common = rope(theta=1e6).read(given)
    windowed = windows_by_layer(every_nth_full(6)).read(given)
    if not windowed or common == {"rope_theta": local}:
        return {}
    return {"rope_local_theta": local}


LOCAL_THETA = Aspect(
    _read_local_theta,
    lambda config: {"rope_local_base_freq": config.rope_local_theta or config.rope_theta},
)

ROTARY_DIM = Aspect(
    lambda given: {"rope_fraction": given["rotary_dim"] * given["n_head"] / given["n_embd"]},
    lambda config: {"rotary_dim": round(config.rope_fraction * config.head_dim)},
)
"""GPT-J says how many dimensions of a head are rotated."""


def _read_rope_layers(given: Fields) -> Keys:
    """SmolLM3's layers with and without RoPE: by a list of 1 and 0, or every nth without."""
    interval, layers = given.get("no_rope_layer_interval", 4), given["num_hidden_layers"]
    rotated = given.get("no_rope_layers")
    if rotated is None:
        rotated = [(layer + 1) % interval != 0 for layer in range(layers)]
    return {"rope_pattern": _period("".join("R" if turned else "N" for turned in rotated))}


ROPE_BY_LAYER = Aspect(
    _read_rope_layers,
    lambda config: {
        "no_rope_layers": [int(config.rotates(layer)) for layer in range(config.n_layer)]
    },
)


def windows_without_rope(given: Fields) -> str:
    """SmolLM3's pattern: the windowed layers are those without RoPE."""
    return ROPE_BY_LAYER.read(given)["rope_pattern"].translate(str.maketrans("RN", "LS"))
