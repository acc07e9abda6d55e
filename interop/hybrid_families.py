"""Tables of families whose layers have different mixers."""

from __future__ import annotations

import dataclasses

from components.layer_config import LayerConfig
from errors import UserError
from interop.activation_fields import gate
from interop.family import Family, Weights, WeightTable
from interop.family_tables import LLAMA_KEYS, RMS_EPS, SIZES, UNTIED, layer_weights
from interop.fields import (
    ATTENTION_BIAS,
    HEAD_DIM,
    KEY_HEADS,
    Aspect,
    Fields,
    Keys,
    if_any,
    layers_of,
    same,
)
from interop.file_forms import Ignored, QueryGates
from interop.layouts import KEY_HEAD_MAJOR, KEY_HEAD_MAJOR_GATES
from interop.moe_families import EXPERT_WEIGHTS, GATED_SHARED_WEIGHTS, STACKED
from interop.moe_fields import BY_STEP, NORMALIZED, SHARED_OF_WIDTH, mixture
from interop.rope_fields import rope
from model_config import ModelArchitectureConfig
from patterns import by_layer

_MIXERS = {"linear_attention": "gated_deltanet", "full_attention": "attention"}
_KINDS = tuple(_MIXERS)
_LAYER_TYPES = {mixer: kind for kind, mixer in _MIXERS.items()}


def _read_mixers(given: Fields) -> Keys:
    types, layers = given.get("layer_types"), layers_of(given)
    if types is None:
        interval = given.get("full_attention_interval", 4)
        types = [_KINDS[(layer + 1) % interval == 0] for layer in layers]
    if len(types) != len(layers) or not set(types) <= set(_MIXERS):
        raise UserError(
            f"layer_types={types} cannot be expressed here; it must have {' or '.join(_MIXERS)} "
            f"for each of num_hidden_layers={len(layers)} layers."
        )
    if "full_attention" not in types:
        raise UserError("no layer has full_attention, which transformers needs in at least one.")
    return {"mixer": by_layer([_MIXERS[kind] for kind in types])}


def _write_mixers(config: ModelArchitectureConfig) -> Fields:
    types = [_LAYER_TYPES[layer.mixer] for layer in config.layers]
    if "full_attention" not in types:
        raise UserError("this family needs mixer=attention in at least one layer.")
    if any(layer.get("linear_kernel") == 0 for layer in config.layers):
        raise UserError("linear_kernel=0 cannot be expressed: this family has a convolution.")
    return {"layer_types": types}


_LAYER_MIXERS = Aspect(_read_mixers, _write_mixers)
_DELTA_RULE = same(
    linear_n_head="linear_num_key_heads",
    linear_n_value_head="linear_num_value_heads",
    linear_key_dim="linear_key_head_dim",
    linear_value_dim="linear_value_head_dim",
    linear_kernel="linear_conv_kernel_dim",
)


def _of_mixer(layer: LayerConfig) -> WeightTable:
    return _DELTA_WEIGHTS if layer.mixer == "gated_deltanet" else _GATED_ATTENTION


def _tensor(name: str) -> Weights:
    return layer_weights("linear_attn." + name)


_DELTA_WEIGHTS: WeightTable = {
    "blocks.{}.mixer.qkvz": dataclasses.replace(_tensor("in_proj_qkvz"), layout=KEY_HEAD_MAJOR),
    "blocks.{}.mixer.beta_decay": dataclasses.replace(
        _tensor("in_proj_ba"), layout=KEY_HEAD_MAJOR_GATES
    ),
    "blocks.{}.mixer.conv": _tensor("conv1d"),
    "blocks.{}.mixer.A_log": _tensor("A_log"),
    "blocks.{}.mixer.dt_bias": _tensor("dt_bias"),
    "blocks.{}.mixer.norm": _tensor("norm"),
    "blocks.{}.mixer.out": _tensor("out_proj"),
}
_GATED_ATTENTION: WeightTable = {"blocks.{}.mixer.gate": layer_weights("self_attn.q_proj_gate")}

_QWEN3_NEXT = Family(
    model_type="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    fixed={
        **LLAMA_KEYS,
        "normalization": "rmsnorm_unit_offset",
        "qk_norm": True,
        "attention_gate": "channel",
    },
    aspects=(
        _LAYER_MIXERS,
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        ATTENTION_BIAS,
        if_any(_DELTA_RULE),
        mixture(gate("hidden_act"), BY_STEP),
        SHARED_OF_WIDTH,
        NORMALIZED,
        rope(fraction_field="partial_rotary_factor", fraction=0.25),
    ),
    defaults={
        **UNTIED,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": 1e-6,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "decoder_sparse_step": 1,
        "mlp_only_layers": None,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "num_experts_per_tok": 10,
        "num_experts": 512,
        "norm_topk_prob": True,
    },
    # It is also the activation behind the convolution, which is fixed here.
    required={"hidden_act": ("silu",)},
    mixers=tuple(_LAYER_TYPES),
    weights=EXPERT_WEIGHTS | GATED_SHARED_WEIGHTS,
    weights_of=_of_mixer,
    file_forms=(Ignored("mtp."), QueryGates(), *STACKED),
)

HYBRID_FAMILIES = (_QWEN3_NEXT,)
