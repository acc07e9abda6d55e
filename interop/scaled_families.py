"""Tables of families that scale embeddings, residuals or logits by fixed numbers."""

from __future__ import annotations

import dataclasses

from errors import UserError
from interop.activation_fields import gate
from interop.family import Family
from interop.family_tables import (
    LAYER_NORM_EPS,
    LLAMA_ASPECTS,
    LLAMA_KEYS,
    LLAMA_WEIGHTS,
    PAIRED_WEIGHTS,
    RMS_EPS,
    SANDWICH_WEIGHTS,
    SIZES,
    TIED,
    UNTIED,
    layer_weights,
)
from interop.fields import (
    ATTENTION_BIAS,
    HEAD_DIM,
    HEAD_DIM_OF_WHOLE_HEADS,
    KEY_HEADS,
    Aspect,
    Fields,
    Keys,
    layers_of,
    same,
    switch,
)
from interop.file_forms import Renamed
from interop.moe_fields import mixture
from interop.rope_by_type import rope_beside_windows
from interop.rope_fields import rope, rotates
from interop.window_fields import every_nth_full, first_of_four_full, windows_by_layer
from model_config import ModelArchitectureConfig
from patterns import by_layer

_SCALES = same(
    embedding_scale="embedding_multiplier",
    residual_scale="residual_multiplier",
    attention_scale="attention_multiplier",
)
_UNSCALED = dict.fromkeys(
    ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"), 1.0
)
_DIVIDED_LOGITS = Aspect(
    lambda given: {"logit_scale": 1 / given["logits_scaling"]},
    lambda config: {"logits_scaling": 1 / config.logit_scale},
)
"""Granite divides its logits."""

_GRANITE = Family(
    model_type="granite",
    architecture="GraniteForCausalLM",
    fixed=LLAMA_KEYS,
    aspects=(
        *LLAMA_ASPECTS,
        ATTENTION_BIAS,
        same(bias="mlp_bias"),
        _SCALES,
        _DIVIDED_LOGITS,
        rope(),
    ),
    defaults={
        **UNTIED,
        **_UNSCALED,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    },
    weights=LLAMA_WEIGHTS,
)


_GRANITE_MOE = dataclasses.replace(
    _GRANITE,
    model_type="granitemoe",
    architecture="GraniteMoeForCausalLM",
    fixed={**LLAMA_KEYS, "router_renormalize": True},
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        ATTENTION_BIAS,
        mixture(gate("hidden_act"), width="intermediate_size", experts="num_local_experts"),
        _SCALES,
        _DIVIDED_LOGITS,
        rope(),
    ),
    defaults={**_GRANITE.defaults, "num_local_experts": 8, "num_experts_per_tok": 2},
    weights=LLAMA_WEIGHTS
    | {
        "blocks.{}.ffn.router": layer_weights("block_sparse_moe.router"),
        "blocks.{}.ffn.experts.gate_up": layer_weights("block_sparse_moe.experts.gate_up_proj"),
        "blocks.{}.ffn.experts.down": layer_weights("block_sparse_moe.experts.down_proj"),
    },
    file_forms=(
        Renamed(".input_linear.weight", ".experts.gate_up_proj"),
        Renamed(".output_linear.weight", ".experts.down_proj"),
        Renamed(".router.layer.", ".router."),
    ),
)


def _scale_of_heads(given: Fields) -> Keys:
    """A scale of 1/sqrt(head_dim), which HyperCLOVA X has where none is given."""
    scale = given["attention_multiplier"]
    return {"attention_scale": HEAD_DIM.read(given)["head_dim"] ** -0.5 if scale is None else scale}


_HYPERCLOVAX = dataclasses.replace(
    _GRANITE,
    model_type="hyperclovax",
    architecture="HyperCLOVAXForCausalLM",
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM_OF_WHOLE_HEADS,
        gate("hidden_act"),
        ATTENTION_BIAS,
        same(bias="mlp_bias"),
        _SCALES,
        Aspect(_scale_of_heads, lambda config: {}),
        same(logit_scale="logits_scaling"),
        switch("norm_position", "use_post_norm", on="sandwich", off="pre"),
        rope(),
    ),
    defaults={**_GRANITE.defaults, "attention_multiplier": None, "use_post_norm": True},
    weights=SANDWICH_WEIGHTS
    | {
        "blocks.{}.mixer_out_norm": layer_weights("post_norm1"),
        "blocks.{}.ffn_norm": layer_weights("post_attention_layernorm"),
        "blocks.{}.ffn_out_norm": layer_weights("post_norm2"),
    },
)


# Granite with windows: a base of RoPE for each layer, 0 for none


def _read_layer_rope(given: Fields) -> Keys:
    keys, layers = rope().read(given), layers_of(given)
    thetas = given.get("layer_rope_theta")
    if thetas is None:
        return keys
    if len(thetas) < len(layers):
        raise UserError(
            f"layer_rope_theta has {len(thetas)} entries, num_hidden_layers is {len(layers)}; it "
            "needs one for each layer."
        )
    thetas = thetas[: len(layers)]
    some = next(filter(None, thetas), keys["rope_theta"])  # for layers that have no use for it
    return keys | {
        "position_encoding": by_layer(["rope" if theta else "none" for theta in thetas]),
        "rope_theta": by_layer([theta or some for theta in thetas]),
    }


def _write_layer_rope(config: ModelArchitectureConfig) -> Fields:
    thetas = [layer.rope_theta if rotates(layer) else 0 for layer in config.layers]
    return rope().write(config) | {"layer_rope_theta": thetas}


_GRANITE_SWA = dataclasses.replace(
    _GRANITE,
    model_type="granite_swa",
    architecture="GraniteSWAForCausalLM",
    fixed={**LLAMA_KEYS, "attention_sinks": True},
    aspects=(
        *_GRANITE.aspects[:-1],
        Aspect(_read_layer_rope, _write_layer_rope),
        windows_by_layer(first_of_four_full),
    ),
    defaults={
        **_GRANITE.defaults,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 4,
        "sliding_window": 128,
    },
    weights=LLAMA_WEIGHTS | {"blocks.{}.mixer": layer_weights("self_attn")},
)


# Cohere

_COHERE = Family(
    model_type="cohere",
    architecture="CohereForCausalLM",
    fixed={**LLAMA_KEYS, "normalization": "layernorm_nobias", "norm_position": "parallel_shared"},
    aspects=(
        SIZES,
        LAYER_NORM_EPS,
        KEY_HEADS,
        HEAD_DIM,
        gate("hidden_act"),
        ATTENTION_BIAS,
        same(logit_scale="logit_scale"),
        rope(theta=500_000.0),
    ),
    defaults={
        **TIED,
        "layer_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "logit_scale": 0.0625,
    },
    required={"use_qk_norm": (False, None)},
    weights=PAIRED_WEIGHTS | {"blocks.{}.norm": layer_weights("input_layernorm")},
)
_COHERE2 = dataclasses.replace(
    _COHERE,
    model_type="cohere2",
    architecture="Cohere2ForCausalLM",
    aspects=(
        *_COHERE.aspects[:-1],
        rope_beside_windows(
            rope(),
            lambda given: every_nth_full(given, given.get("sliding_window_pattern", 4)),
            everywhere=lambda given: False,
        ),
    ),
    defaults={**_COHERE.defaults, "sliding_window": 4096},
    required={},
)

SCALED_FAMILIES = (_GRANITE, _GRANITE_MOE, _GRANITE_SWA, _HYPERCLOVAX, _COHERE, _COHERE2)
