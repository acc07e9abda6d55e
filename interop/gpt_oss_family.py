"""The table of gpt-oss."""

from __future__ import annotations

import dataclasses

from errors import UserError
from interop.family import Family, Weights
from interop.family_tables import RMS_EPS, ROPE, SIZES, UNTIED, layer_weights
from interop.fields import ATTENTION_BIAS, HEAD_DIM, KEY_HEADS, Aspect, Fields, Keys, value_of
from interop.layouts import INTERLEAVED_EXPERTS, TRANSPOSED_EXPERTS, Layout
from interop.moe_families import EXPERT_WEIGHTS
from interop.moe_fields import NO_GATE, mixture
from interop.rope_fields import rope
from interop.window_fields import alternating, windows_by_layer
from model_config import ModelArchitectureConfig

_YARN_OF_GPT_OSS: Fields = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""Its scaling where nothing is said."""


def _write_limit(config: ModelArchitectureConfig) -> Fields:
    limit = value_of(config, "glu_limit")
    if limit is None:
        raise UserError("glu_limit=None cannot be expressed by gpt_oss, whose gates are clamped.")
    return {"swiglu_limit": float(limit)}


_LIMIT = Aspect(lambda given: {"glu_limit": given["swiglu_limit"]}, _write_limit)
_OSS_ROPE = rope(theta=150_000.0)


def _read_oss_rope(given: Fields) -> Keys:
    if given.get("rope_parameters") is None:
        given = {**given, "rope_parameters": _YARN_OF_GPT_OSS}
    return _OSS_ROPE.read(given)


def _write_oss_rope(config: ModelArchitectureConfig) -> Fields:
    fields = _OSS_ROPE.write(config)
    if not fields:  # no layer has RoPE, which shows when the fields are read again
        return fields
    if fields.get("rope_scaling") is None:
        fields["rope_parameters"] = {"rope_type": "default", "rope_theta": fields["rope_theta"]}
    return fields


_GPT_OSS_ROPE = Aspect(_read_oss_rope, _write_oss_rope)


def _experts(name: str, layout: Layout) -> Weights:
    return dataclasses.replace(layer_weights("mlp.experts." + name), layout=layout)


GPT_OSS = Family(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    fixed={
        **ROPE,
        "normalization": "rmsnorm",
        "norm_position": "pre",
        "bias": True,  # of the experts
        "attention_sinks": True,
        "activation": "quick_gelu",
        "glu_shift": 1.0,
        "router_renormalize": True,
        "router_logit_bias": True,
    },
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        ATTENTION_BIAS,
        mixture(NO_GATE, width="intermediate_size", experts="num_local_experts"),
        _LIMIT,
        _GPT_OSS_ROPE,
        windows_by_layer(alternating),
    ),
    defaults={
        **UNTIED,
        "attention_bias": True,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "sliding_window": 128,
        "num_experts_per_tok": 4,
        "num_local_experts": 128,
        "swiglu_limit": 7.0,
    },
    aliases={"num_experts": "num_local_experts"},
    # Its class in transformers reads hidden_act, but never applies it.
    required={"hidden_act": ("silu",), "swiglu_alpha": (1.702,)},
    weights=EXPERT_WEIGHTS
    | {
        "blocks.{}.mixer.sinks": layer_weights("self_attn.sinks"),
        "blocks.{}.ffn.router": layer_weights("mlp.router"),
        "blocks.{}.ffn.experts.gate_up": _experts("gate_up_proj", INTERLEAVED_EXPERTS),
        "blocks.{}.ffn.experts.gate_up_bias": _experts("gate_up_proj_bias", INTERLEAVED_EXPERTS),
        "blocks.{}.ffn.experts.down": _experts("down_proj", TRANSPOSED_EXPERTS),
        "blocks.{}.ffn.experts.down_bias": _experts("down_proj_bias", TRANSPOSED_EXPERTS),
    },
)
