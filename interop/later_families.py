"""Tables of families that differ from LLaMA or GPT-NeoX in few things."""

from __future__ import annotations

import dataclasses

from interop.activation_fields import activation, gate
from interop.family import Family, Weights
from interop.family_tables import (
    LAYER_NORM_EPS,
    LLAMA_KEYS,
    LLAMA_WEIGHTS,
    NO_BIASES,
    PLAIN_NORMS,
    RMS_EPS,
    ROPE,
    SANDWICH_WEIGHTS,
    SIZES,
    TIED,
    UNTIED,
    layer_weights,
)
from interop.fields import (
    ATTENTION_BIAS,
    HEAD_DIM,
    HEAD_DIM_OF_WIDTH,
    KEY_HEADS,
    NO_HEAD_DIM,
    same,
)
from interop.layouts import NEIGHBOUR_PAIRS
from interop.rope_fields import rope
from interop.window_fields import WINDOW_EVERYWHERE

_PAIRED_WEIGHTS = LLAMA_WEIGHTS | {
    "blocks.{}.mixer.qkv": dataclasses.replace(
        LLAMA_WEIGHTS["blocks.{}.mixer.qkv"], layout=NEIGHBOUR_PAIRS
    )
}
_LLAMA_DEFAULTS = {
    **UNTIED,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
}

_SEED_OSS = Family(
    model_type="seed_oss",
    architecture="SeedOssForCausalLM",
    fixed=LLAMA_KEYS,
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        gate("hidden_act"),
        same(
            attention_bias="attention_bias",
            attention_out_bias="attention_out_bias",
            bias="mlp_bias",
        ),
        rope(),
    ),
    defaults={
        **_LLAMA_DEFAULTS,
        "rms_norm_eps": 1e-6,
        "attention_bias": True,
        "attention_out_bias": False,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    weights=LLAMA_WEIGHTS,
)

_ERNIE45 = Family(
    model_type="ernie4_5",
    architecture="Ernie4_5ForCausalLM",
    fixed=LLAMA_KEYS,
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        gate("hidden_act"),
        same(bias="use_bias", attention_bias="use_bias", attention_out_bias="use_bias"),
        rope(theta=500_000.0),
    ),
    defaults={
        **TIED,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "use_bias": False,
        "num_key_value_heads": 2,
        "head_dim": 128,
    },
    weights=_PAIRED_WEIGHTS,
)

_HELIUM = Family(
    model_type="helium",
    architecture="HeliumForCausalLM",
    fixed=LLAMA_KEYS,
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM_OF_WIDTH,
        gate("hidden_act"),
        same(attention_bias="attention_bias", bias="mlp_bias"),
        rope(theta=100_000.0),
    ),
    defaults={
        **_LLAMA_DEFAULTS,
        "rms_norm_eps": 1e-8,
        "num_key_value_heads": 20,
        "head_dim": 128,
    },
    weights=_PAIRED_WEIGHTS,
)

_ARCEE = Family(
    model_type="arcee",
    architecture="ArceeForCausalLM",
    fixed={**LLAMA_KEYS, "ffn_type": "standard"},
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        activation("hidden_act"),
        ATTENTION_BIAS,
        same(bias="mlp_bias"),
        rope(),
    ),
    defaults={**_LLAMA_DEFAULTS, "rms_norm_eps": 1e-5, "hidden_act": "relu2"},
    weights=LLAMA_WEIGHTS | {"blocks.{}.ffn.up": layer_weights("mlp.up_proj")},
)

_OLMO = Family(
    model_type="olmo",
    architecture="OlmoForCausalLM",
    fixed={**LLAMA_KEYS, "normalization": "layernorm_nogain", "norm_eps": 1e-5},
    aspects=(SIZES, KEY_HEADS, NO_HEAD_DIM, gate("hidden_act"), ATTENTION_BIAS, rope()),
    defaults={**UNTIED, "hidden_act": "silu", "attention_bias": False},
    required={"clip_qkv": (None,)},
    weights=LLAMA_WEIGHTS,
)

_STARCODER2 = Family(
    model_type="starcoder2",
    architecture="Starcoder2ForCausalLM",
    fixed={**ROPE, "normalization": "layernorm", "norm_position": "pre", "ffn_type": "standard"},
    aspects=(
        SIZES,
        same(norm_eps="norm_epsilon"),
        KEY_HEADS,
        HEAD_DIM,
        activation("hidden_act"),
        same(bias="use_bias", attention_bias="use_bias", attention_out_bias="use_bias"),
        rope(),
        WINDOW_EVERYWHERE,
    ),
    defaults={
        **TIED,
        "initializer_range": 0.018042,
        "norm_epsilon": 1e-5,
        "hidden_act": "gelu_pytorch_tanh",
        "use_bias": True,
        "sliding_window": None,
        "num_key_value_heads": 2,
    },
    weights=LLAMA_WEIGHTS
    | {
        "blocks.{}.ffn.up": layer_weights("mlp.c_fc"),
        "blocks.{}.ffn.down": layer_weights("mlp.c_proj"),
    },
)

_PHI = Family(
    model_type="phi",
    architecture="PhiForCausalLM",
    fixed={
        **PLAIN_NORMS,
        **ROPE,
        "norm_position": "parallel_shared",
        "ffn_type": "standard",
        "head_bias": True,
    },
    aspects=(
        SIZES,
        LAYER_NORM_EPS,
        KEY_HEADS,
        activation("hidden_act"),
        NO_HEAD_DIM,
        rope(fraction_field="partial_rotary_factor", fraction=0.5),
    ),
    defaults={**UNTIED, "layer_norm_eps": 1e-5, "hidden_act": "gelu_new"},
    required={"qk_layernorm": (False,)},
    weights={
        "embedding": LLAMA_WEIGHTS["embedding"],
        "blocks.{}.norm": layer_weights("input_layernorm"),
        "blocks.{}.mixer.qkv": LLAMA_WEIGHTS["blocks.{}.mixer.qkv"],
        "blocks.{}.mixer.out": layer_weights("self_attn.dense"),
        "blocks.{}.ffn.up": layer_weights("mlp.fc1"),
        "blocks.{}.ffn.down": layer_weights("mlp.fc2"),
        "final_norm": Weights(("model.final_layernorm",)),
        "head": LLAMA_WEIGHTS["head"],
    },
)

_GLM_WEIGHTS = _PAIRED_WEIGHTS | {"blocks.{}.ffn.gate_up": layer_weights("mlp.gate_up_proj")}
_GLM = Family(
    model_type="glm",
    architecture="GlmForCausalLM",
    fixed={**ROPE, **NO_BIASES, "normalization": "rmsnorm", "norm_position": "pre"},
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        gate("hidden_act"),
        same(attention_bias="attention_bias"),
        rope(fraction_field="partial_rotary_factor", fraction=0.5),
    ),
    defaults={
        **UNTIED,
        "rms_norm_eps": 1.5625e-7,
        "hidden_act": "silu",
        "attention_bias": True,
        "num_key_value_heads": 2,
        "head_dim": 128,
    },
    weights=_GLM_WEIGHTS,
)
_GLM4 = dataclasses.replace(
    _GLM,
    model_type="glm4",
    architecture="Glm4ForCausalLM",
    fixed={**_GLM.fixed, "norm_position": "sandwich"},
    weights=SANDWICH_WEIGHTS
    | _GLM_WEIGHTS
    | {
        "blocks.{}.mixer_out_norm": layer_weights("post_self_attn_layernorm"),
        "blocks.{}.ffn_norm": layer_weights("post_attention_layernorm"),
        "blocks.{}.ffn_out_norm": layer_weights("post_mlp_layernorm"),
    },
)

LATER_FAMILIES = (
    _SEED_OSS,
    _ERNIE45,
    _HELIUM,
    _ARCEE,
    _OLMO,
    _STARCODER2,
    _PHI,
    _GLM,
    _GLM4,
)
