"""Tables of families with Mamba-2 layers."""

from __future__ import annotations

import math

from components.layer_config import LayerConfig
from errors import UserError
from interop.family import Family, Weights, WeightTable
from interop.family_tables import (
    LLAMA_WEIGHTS,
    RMS_EPS,
    ROPE,
    SIZES,
    UNTIED,
    layer_weights,
)
from interop.fields import (
    ATTENTION_BIAS,
    HEAD_DIM,
    KEY_HEADS,
    Aspect,
    Fields,
    Keys,
    layers_of,
    same,
    value_of,
)
from interop.rope_fields import rope
from model_config import ModelArchitectureConfig
from patterns import by_layer

MAMBA_TENSORS = {
    "zxbcdt": "in_proj",
    "conv": "conv1d",
    "A_log": "A_log",
    "dt_bias": "dt_bias",
    "D": "D",
    "norm": "norm",
    "out": "out_proj",
}
"""The modules and tensors of a Mamba-2 layer, and what transformers calls them."""

LENGTH = 2048
"""Sequence length if config.json gives no limit: the one that the models were trained with."""


def mamba_weights(ours: str, theirs: str) -> WeightTable:
    """The weights of a Mamba-2 layer, given the names of ours and theirs."""
    return {
        f"{ours}.{name}": Weights((f"{theirs}.{other}",)) for name, other in MAMBA_TENSORS.items()
    }


_INFINITE = {"__float__": "Infinity"}
"""Infinity in the JSON of transformers."""


def _limits(given: Fields) -> Keys:
    limits = given.get("time_step_limit") or (0.0, math.inf)
    lowest, highest = (math.inf if limit == _INFINITE else float(limit) for limit in limits)
    return {"mamba_dt_min": lowest, "mamba_dt_max": None if math.isinf(highest) else highest}


def _limit_fields(config: ModelArchitectureConfig) -> Fields:
    lowest, highest = (value_of(config, key) for key in ("mamba_dt_min", "mamba_dt_max"))
    return {"time_step_limit": [lowest, _INFINITE if highest is None else highest]}


STEP_LIMITS = Aspect(_limits, _limit_fields)


def _multiple(config: ModelArchitectureConfig) -> int:
    """The width of all heads divided by that of the model. Raises UserError if it is not an
    integer."""
    heads, dim = (value_of(config, key) for key in ("mamba_n_head", "mamba_head_dim"))
    width = heads * dim
    if width % config.n_embd:
        raise UserError(
            f"mamba_n_head={heads} x mamba_head_dim={dim} = {width} is not a multiple of "
            f"n_embd={config.n_embd}, as this family requires."
        )
    return width // config.n_embd


def _check_width(given: Fields) -> Keys:
    width = given["num_heads"] * given["head_dim"]
    if given["expand"] * given["hidden_size"] != width:
        raise UserError(
            f"expand={given['expand']} x hidden_size={given['hidden_size']} is not num_heads="
            f"{given['num_heads']} x head_dim={given['head_dim']}, as transformers requires."
        )
    return {}


_MAMBA2 = Family(
    model_type="mamba2",
    architecture="Mamba2ForCausalLM",
    prefix="backbone.",
    fixed={
        "mixer": "mamba2",
        "ffn_type": "none",
        "normalization": "rmsnorm",
        "norm_position": "pre",
        "mamba_norm": "after_gate",
    },
    aspects=(
        same(
            n_layer="num_hidden_layers",
            n_embd="hidden_size",
            vocab_size="vocab_size",
            block_size="max_position_embeddings",
            norm_eps="layer_norm_epsilon",
            init_std="initializer_range",
            weight_tying="tie_word_embeddings",
            bias="use_bias",
            mamba_n_head="num_heads",
            mamba_head_dim="head_dim",
            mamba_state_dim="state_size",
            mamba_n_group="n_groups",
            mamba_kernel="conv_kernel",
            mamba_conv_bias="use_conv_bias",
        ),
        Aspect(_check_width, lambda config: {"expand": _multiple(config)}),
        STEP_LIMITS,
    ),
    defaults={
        "max_position_embeddings": LENGTH,
        "num_heads": 128,
        "head_dim": 64,
        "state_size": 128,
        "n_groups": 8,
        "expand": 2,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
    },
    required={"hidden_act": ("silu",)},
    mixers=("mamba2",),
    weights={
        "embedding": Weights(("backbone.embeddings",)),
        "blocks.{}.mixer_norm": Weights(("backbone.layers.{}.norm",)),
        **mamba_weights("blocks.{}.mixer", "backbone.layers.{}.mixer"),
        "final_norm": Weights(("backbone.norm_f",)),
        "head": Weights(("lm_head",)),
    },
)


# Mamba-2 with attention

_LAYER = "model.layers.{}."


def _heads(width_fields: tuple[str, ...]) -> Aspect:
    """Number and dimension of the heads of Mamba-2.

    Args:
        width_fields: The fields that give the width of all heads; the first overrides the second,
            `mamba_expand`.
    """

    def width_of(given: Fields) -> int:
        own = [given[name] for name in width_fields if given.get(name) is not None]
        return own[0] if own else given["mamba_expand"] * given["hidden_size"]

    def read(given: Fields) -> Keys:
        width, heads, dim = width_of(given), given["mamba_n_heads"], given["mamba_d_head"]
        dim = width // heads if dim in (None, "auto") else dim
        if heads * dim != width:
            raise UserError(
                f"mamba_n_heads={heads} x mamba_d_head={dim} is not the width {width} of Mamba-2 "
                f"({' or '.join((*width_fields, 'mamba_expand x hidden_size'))}), as transformers "
                "requires."
            )
        return {"mamba_n_head": heads, "mamba_head_dim": dim}

    def write(config: ModelArchitectureConfig) -> Fields:
        heads, dim = (value_of(config, key) for key in ("mamba_n_head", "mamba_head_dim"))
        width = {width_fields[0]: heads * dim} if width_fields else {}
        expand = {} if width_fields else {"mamba_expand": _multiple(config)}
        return {"mamba_n_heads": heads, "mamba_d_head": dim, **width, **expand}

    return Aspect(read, write)


def _one_bias(*fields: str) -> Aspect:
    """Bias fields that must be equal, since a single key sets all of them."""

    def read(given: Fields) -> Keys:
        if len({bool(given[field]) for field in fields}) > 1:
            values = ", ".join(f"{field}={given[field]!r}" for field in fields)
            raise UserError(f"{values} cannot be expressed here; they must be equal.")
        return {"bias": given[fields[0]]}

    return Aspect(read, lambda config: dict.fromkeys(fields, config.bias))


_SPACES = same(
    mamba_state_dim="mamba_d_state",
    mamba_n_group="mamba_n_groups",
    mamba_kernel="mamba_d_conv",
    mamba_conv_bias="mamba_conv_bias",
)
_HYBRID_DEFAULTS = {
    **UNTIED,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "mamba_n_heads": 128,
    "mamba_d_head": "auto",
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
}
_SILU = {"hidden_act": ("silu",)}
"""It is also the activation after the convolution, which is fixed here."""
_FEED_FORWARD: WeightTable = {
    "embedding": LLAMA_WEIGHTS["embedding"],
    "blocks.{}.mixer_norm": LLAMA_WEIGHTS["blocks.{}.mixer_norm"],
    "blocks.{}.ffn_norm": layer_weights("pre_ff_layernorm"),
    "blocks.{}.ffn.gate_up": layer_weights("feed_forward.gate_proj", "feed_forward.up_proj"),
    "blocks.{}.ffn.down": layer_weights("feed_forward.down_proj"),
    "final_norm": Weights(("model.final_layernorm",)),
    "head": LLAMA_WEIGHTS["head"],
}


# Bamba: layers of Mamba-2 or attention


def _bamba_mixers(given: Fields) -> Keys:
    layers, attending = layers_of(given), given.get("attn_layer_indices") or ()
    mixers = ["attention" if layer in attending else "mamba2" for layer in layers]
    return {"mixer": by_layer(mixers)}


def _bamba_indices(config: ModelArchitectureConfig) -> Fields:
    attending = [layer.index for layer in config.layers if layer.mixer == "attention"]
    if len(attending) in (0, config.n_layer):
        raise UserError("this family needs both mixer=attention and mixer=mamba2 in its layers.")
    return {"attn_layer_indices": attending}


_PARTIAL_ROPE = rope(fraction_field="partial_rotary_factor", fraction=0.5)


def _bamba_rope(given: Fields) -> Keys:
    """Bamba reads the rotated share only from rope_parameters."""
    share = "partial_rotary_factor"
    return _PARTIAL_ROPE.read({name: x for name, x in given.items() if name != share})


def _bamba_rope_fields(config: ModelArchitectureConfig) -> Fields:
    fields = _PARTIAL_ROPE.write(config)
    if not fields:
        return fields
    scaling = fields.pop("rope_scaling") or {"rope_type": "default"}
    return {"rope_parameters": {**fields, **scaling}}


def _of_bamba(layer: LayerConfig) -> WeightTable:
    if layer.mixer == "mamba2":
        return mamba_weights("blocks.{}.mixer", _LAYER + "mamba")
    return {name: LLAMA_WEIGHTS[name] for name in ("blocks.{}.mixer.qkv", "blocks.{}.mixer.out")}


_BAMBA = Family(
    model_type="bamba",
    architecture="BambaForCausalLM",
    fixed={
        **ROPE,
        "normalization": "rmsnorm",
        "norm_position": "pre",
        "ffn_type": "swiglu",
        "mamba_norm": "after_gate",
    },
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        Aspect(_bamba_mixers, _bamba_indices),
        ATTENTION_BIAS,
        _one_bias("mamba_proj_bias", "mlp_bias"),
        _SPACES,
        _heads(()),
        STEP_LIMITS,
        Aspect(_bamba_rope, _bamba_rope_fields),
    ),
    defaults=_HYBRID_DEFAULTS,
    required=_SILU,
    mixers=("attention", "mamba2"),
    weights=_FEED_FORWARD,
    weights_of=_of_bamba,
)


# Falcon-H1: both in each layer


def _falcon_norm(given: Fields) -> Keys:
    if not given["mamba_rms_norm"]:
        return {"mamba_norm": "none"}
    return {"mamba_norm": "before_gate" if given["mamba_norm_before_gate"] else "after_gate"}


def _falcon_norm_fields(config: ModelArchitectureConfig) -> Fields:
    norm = value_of(config, "mamba_norm")
    return {"mamba_rms_norm": norm != "none", "mamba_norm_before_gate": norm == "before_gate"}


def _key_scale(given: Fields) -> Keys:
    dim = HEAD_DIM.read(given)["head_dim"]
    return {"attention_scale": given["key_multiplier"] * dim**-0.5}


def _key_multiplier(config: ModelArchitectureConfig) -> Fields:
    """The key multiplier that gives exactly the scale of the scores, if there is one."""
    scale, dim = (value_of(config, key) for key in ("attention_scale", "head_dim"))
    nearest = scale * dim**0.5
    near = (nearest, math.nextafter(nearest, 0), math.nextafter(nearest, math.inf))
    exact = (factor for factor in near if factor * dim**-0.5 == scale)
    return {"key_multiplier": next(exact, nearest)}


def _list_of(field: str, *keys: str) -> Aspect:
    """Keys whose values are the entries of a list; if the list is missing, all are 1."""

    def read(given: Fields) -> Keys:
        values = given.get(field) or [1.0] * len(keys)
        if len(values) != len(keys):
            raise UserError(f"{field} has {len(values)} entries; it must have {len(keys)}.")
        return dict(zip(keys, values, strict=True))

    return Aspect(read, lambda config: {field: [value_of(config, key) for key in keys]})


_SCALES = same(
    embedding_scale="embedding_multiplier",
    logit_scale="lm_head_multiplier",
    attention_in_scale="attention_in_multiplier",
    attention_out_scale="attention_out_multiplier",
    mamba_in_scale="ssm_in_multiplier",
    mamba_out_scale="ssm_out_multiplier",
)

_FALCON_H1 = Family(
    model_type="falcon_h1",
    architecture="FalconH1ForCausalLM",
    fixed={
        **ROPE,
        "mixer": "attention_mamba2",
        "normalization": "rmsnorm",
        "norm_position": "pre",
        "ffn_type": "swiglu",
    },
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        ATTENTION_BIAS,
        _one_bias("mamba_proj_bias", "projectors_bias", "mlp_bias"),
        _SPACES,
        _heads(("mamba_d_ssm",)),
        STEP_LIMITS,
        Aspect(_falcon_norm, _falcon_norm_fields),
        Aspect(_key_scale, _key_multiplier),
        _SCALES,
        _list_of("mlp_multipliers", "glu_gate_scale", "glu_out_scale"),
        _list_of("ssm_multipliers", *(f"mamba_{one}_scale" for one in ("z", "x", "b", "c", "dt"))),
        rope(),
    ),
    defaults={
        **_HYBRID_DEFAULTS,
        "mamba_d_ssm": 1024,
        "mamba_norm_before_gate": True,
        "mamba_rms_norm": False,
        "projectors_bias": False,
        "key_multiplier": 1.0,
        "embedding_multiplier": 1.0,
        "lm_head_multiplier": 1.0,
        "attention_in_multiplier": 1.0,
        "attention_out_multiplier": 1.0,
        "ssm_in_multiplier": 1.0,
        "ssm_out_multiplier": 1.0,
    },
    required=_SILU,
    mixers=("attention_mamba2",),
    weights={
        **_FEED_FORWARD,
        "blocks.{}.mixer.attention.qkv": LLAMA_WEIGHTS["blocks.{}.mixer.qkv"],
        "blocks.{}.mixer.attention.out": LLAMA_WEIGHTS["blocks.{}.mixer.out"],
        **mamba_weights("blocks.{}.mixer.mamba", _LAYER + "mamba"),
    },
)

STATE_SPACE_FAMILIES = (_MAMBA2, _BAMBA, _FALCON_H1)
