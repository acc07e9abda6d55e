"""Tables of families with mixtures of experts."""

from __future__ import annotations

import dataclasses

from errors import UserError
from interop.activation_fields import gate
from interop.family import Family, WeightTable
from interop.family_tables import (
    LLAMA_KEYS,
    LLAMA_WEIGHTS,
    RMS_EPS,
    SIZES,
    TIED,
    UNTIED,
    layer_weights,
)
from interop.fields import (
    ATTENTION_BIAS,
    HEAD_DIM,
    KEY_HEADS,
    NO_HEAD_DIM,
    Aspect,
    Fields,
    Keys,
    layers_of,
    same,
)
from interop.file_forms import FileForm, Renamed, StackedExperts
from interop.later_families import static_ntk
from interop.layouts import (
    NEIGHBOUR_PAIRS,
    ONE_ROW,
)
from interop.moe_fields import (
    BY_STEP,
    IN_RANGE,
    NORMALIZED,
    SHARED_OF_WIDTH,
    mixture,
    shared_experts,
)
from interop.rope_fields import rope
from interop.window_fields import (
    WINDOW_EVERYWHERE,
    WINDOW_IF_USED,
    early_alternating,
    optional_windows,
)
from model_config import ModelArchitectureConfig
from patterns import by_layer

EXPERT_WEIGHTS: WeightTable = LLAMA_WEIGHTS | {
    "blocks.{}.ffn.router": layer_weights("mlp.gate"),
    "blocks.{}.ffn.router.expert_bias": layer_weights("mlp.gate.e_score_correction_bias"),
    "blocks.{}.ffn.experts.gate_up": layer_weights("mlp.experts.gate_up_proj"),
    "blocks.{}.ffn.experts.down": layer_weights("mlp.experts.down_proj"),
    "blocks.{}.ffn.shared.gate_up": layer_weights(
        "mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"
    ),
    "blocks.{}.ffn.shared.down": layer_weights("mlp.shared_experts.down_proj"),
}
"""Mixtures of experts beside LLaMA's networks."""

GATED_SHARED_WEIGHTS: WeightTable = {
    "blocks.{}.ffn.shared.gate_up": layer_weights(
        "mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"
    ),
    "blocks.{}.ffn.shared.down": layer_weights("mlp.shared_expert.down_proj"),
    "blocks.{}.ffn.shared_gate": layer_weights("mlp.shared_expert_gate"),
}


def stacked(gate: str, up: str, down: str) -> tuple[FileForm, ...]:
    """Files with each expert's matrices by these names."""
    return (
        StackedExperts("mlp.experts.gate_up_proj", (gate, up)),
        StackedExperts("mlp.experts.down_proj", (down,)),
    )


STACKED = stacked("gate_proj", "up_proj", "down_proj")
BIAS_RATE = 0.001
"""The rate at which DeepSeek-V3's biases for balancing were trained. A file says only that there
are such biases."""

_DEFAULTS: Fields = {**UNTIED, "hidden_act": "silu", "attention_bias": False}

_MIXTRAL = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    fixed={**LLAMA_KEYS, "router_renormalize": True},
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        mixture(gate("hidden_act"), width="intermediate_size", experts="num_local_experts"),
        rope(theta=1e6),
        WINDOW_EVERYWHERE,
    ),
    defaults={
        **_DEFAULTS,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "num_key_value_heads": 8,
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
    },
    aliases={"num_experts": "num_local_experts"},
    weights=EXPERT_WEIGHTS,
    file_forms=(Renamed(".block_sparse_moe.", ".mlp."), *stacked("w1", "w3", "w2")),
)

_QWEN_DEFAULTS: Fields = {
    **_DEFAULTS,
    "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
    "norm_topk_prob": False,
}
_QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    fixed={**LLAMA_KEYS, "qk_norm": True},
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        ATTENTION_BIAS,
        mixture(gate("hidden_act"), BY_STEP),
        NORMALIZED,
        rope(),
        WINDOW_IF_USED,
    ),
    defaults={
        **_QWEN_DEFAULTS,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "num_experts": 128,
    },
    aliases={"num_local_experts": "num_experts"},
    weights=EXPERT_WEIGHTS,
    file_forms=STACKED,
)

_QWEN2_MOE = Family(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    fixed=LLAMA_KEYS,
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        same(attention_bias="qkv_bias"),
        mixture(gate("hidden_act"), BY_STEP),
        SHARED_OF_WIDTH,
        NORMALIZED,
        rope(),
        optional_windows(early_alternating),
    ),
    defaults={
        **_QWEN_DEFAULTS,
        "num_key_value_heads": 16,
        "max_window_layers": 28,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts_per_tok": 4,
        "num_experts": 60,
        "qkv_bias": True,
    },
    weights=EXPERT_WEIGHTS | GATED_SHARED_WEIGHTS,
    file_forms=STACKED,
)

_OLMOE = Family(
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    fixed={**LLAMA_KEYS, "qk_norm": True, "qk_norm_over": "projection"},
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        NO_HEAD_DIM,
        ATTENTION_BIAS,
        mixture(gate("hidden_act"), width="intermediate_size"),
        NORMALIZED,
        rope(),
    ),
    defaults={
        **_DEFAULTS,
        "rms_norm_eps": 1e-5,
        "num_experts_per_tok": 8,
        "num_experts": 64,
        "norm_topk_prob": False,
    },
    aliases={"num_local_experts": "num_experts"},
    required={"clip_qkv": (None,)},
    weights=EXPERT_WEIGHTS,
    file_forms=STACKED,
)

_FLEX_OLMO = dataclasses.replace(
    _OLMOE,
    model_type="flex_olmo",
    architecture="FlexOlmoForCausalLM",
    fixed={**_OLMOE.fixed, "norm_position": "res_post"},
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        ATTENTION_BIAS,
        mixture(gate("hidden_act"), width="intermediate_size"),
        NORMALIZED,
        rope(theta=500_000.0),
    ),
    defaults={
        **_OLMOE.defaults,
        "rms_norm_eps": 1e-6,
        "num_experts_per_tok": 5,
        "num_experts": 7,
    },
    required={},
    weights=EXPERT_WEIGHTS
    | {
        "blocks.{}.mixer_norm": layer_weights("post_attention_layernorm"),
        "blocks.{}.ffn_norm": layer_weights("post_feedforward_layernorm"),
    },
)

_ERNIE45_MOE = Family(
    model_type="ernie4_5_moe",
    architecture="Ernie4_5_MoeForCausalLM",
    fixed={
        **LLAMA_KEYS,
        "router_renormalize": True,
        "router_bias_rate": BIAS_RATE,
    },
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        mixture(gate("hidden_act"), IN_RANGE, experts="moe_num_experts", used="moe_k"),
        shared_experts("moe_num_shared_experts"),
        rope(theta=500_000.0),
    ),
    defaults={
        **TIED,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "num_key_value_heads": 4,
        "moe_intermediate_size": 1536,
        "moe_k": 6,
        "moe_num_experts": 64,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 1,
    },
    aliases={"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"},
    # use_bias adds biases to all matrices but those of the routed experts.
    required={"use_bias": (False,), "moe_norm_min": (1e-12,)},
    weights=EXPERT_WEIGHTS
    | {
        "blocks.{}.mixer.qkv": dataclasses.replace(
            LLAMA_WEIGHTS["blocks.{}.mixer.qkv"], layout=NEIGHBOUR_PAIRS
        ),
        "blocks.{}.ffn.router.expert_bias": dataclasses.replace(
            layer_weights("mlp.gate.moe_statics.e_score_correction_bias"), layout=ONE_ROW
        ),
    },
    file_forms=(Renamed("mlp.moe_statics.", "mlp.gate.moe_statics."), *STACKED),
)


def _used_by_layer(given: Fields) -> Keys:
    """HunYuan's number of experts per token, which may be a list with one for each layer."""
    used, layers = given["moe_topk"], layers_of(given)
    if not isinstance(used, list):
        return {"n_experts_per_token": used}
    if len(used) < len(layers):
        raise UserError(
            f"moe_topk has {len(used)} entries, num_hidden_layers is {len(layers)}; it needs one "
            "for each layer."
        )
    return {"n_experts_per_token": by_layer(used[: len(layers)])}


def _used_fields(config: ModelArchitectureConfig) -> Fields:
    used = [layer.get("n_experts_per_token") for layer in config.layers]
    return {"moe_topk": used if len(set(used)) > 1 else used[0]}


_HUNYUAN_MOE = Family(
    model_type="hunyuan_v1_moe",
    architecture="HunYuanMoEV1ForCausalLM",
    fixed={
        **LLAMA_KEYS,
        "qk_norm": True,
        "qk_norm_after_rope": True,
        "router_renormalize": True,
        "n_shared_experts": 1,
    },
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        ATTENTION_BIAS,
        mixture(gate("hidden_act"), width="intermediate_size", used="moe_topk"),
        Aspect(_used_by_layer, _used_fields),
        Aspect(static_ntk, rope().write),
    ),
    defaults={**_DEFAULTS, "rms_norm_eps": 1e-5, "num_experts": 1, "moe_topk": 1},
    aliases={"num_local_experts": "num_experts", "num_experts_per_tok": "moe_topk"},
    weights=EXPERT_WEIGHTS
    | {
        "blocks.{}.mixer.q_norm": layer_weights("self_attn.query_layernorm"),
        "blocks.{}.mixer.k_norm": layer_weights("self_attn.key_layernorm"),
        "blocks.{}.ffn.router": layer_weights("mlp.gate.wg"),
        "blocks.{}.ffn.shared.gate_up": layer_weights(
            "mlp.shared_mlp.gate_proj", "mlp.shared_mlp.up_proj"
        ),
        "blocks.{}.ffn.shared.down": layer_weights("mlp.shared_mlp.down_proj"),
    },
    file_forms=STACKED,
)

MOE_FAMILIES = (
    _MIXTRAL,
    _QWEN3_MOE,
    _QWEN2_MOE,
    _OLMOE,
    _FLEX_OLMO,
    _ERNIE45_MOE,
    _HUNYUAN_MOE,
)
