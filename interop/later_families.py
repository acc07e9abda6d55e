"""Tables of families that differ from LLaMA or GPT-NeoX in few things."""

from __future__ import annotations

import dataclasses

from components.activations import XIELU
from components.layer_config import LayerConfig
from interop.activation_fields import activation, gate
from interop.family import Family, Weights
from interop.family_tables import (
    LAYER_NORM_EPS,
    LLAMA_ASPECTS,
    LLAMA_KEYS,
    LLAMA_WEIGHTS,
    NO_BIASES,
    PAIRED_WEIGHTS,
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
    HEAD_DIM_OF_WHOLE_HEADS,
    HEAD_DIM_OF_WIDTH,
    KEY_HEADS,
    NO_HEAD_DIM,
    QK_LAYER_NORM,
    Aspect,
    Fields,
    Keys,
    same,
)
from interop.file_forms import FixedNumbers
from interop.layouts import SWAPPED_HALVES
from interop.rope_fields import rope
from interop.window_fields import WINDOW_EVERYWHERE

_LLAMA_DEFAULTS = {
    **UNTIED,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
}

_PLAIN_WEIGHTS = LLAMA_WEIGHTS | {"blocks.{}.ffn.up": layer_weights("mlp.up_proj")}
"""With a network that is not gated."""

_SEED_OSS = Family(
    model_type="seed_oss",
    architecture="SeedOssForCausalLM",
    fixed=LLAMA_KEYS,
    aspects=(
        *LLAMA_ASPECTS,
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
        *LLAMA_ASPECTS,
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
    weights=PAIRED_WEIGHTS,
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
    weights=PAIRED_WEIGHTS,
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
    weights=_PLAIN_WEIGHTS,
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
        QK_LAYER_NORM,
        NO_HEAD_DIM,
        rope(fraction_field="partial_rotary_factor", fraction=0.5),
    ),
    defaults={
        **UNTIED,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu_new",
        "qk_layernorm": False,
    },
    weights={
        "embedding": LLAMA_WEIGHTS["embedding"],
        "blocks.{}.norm": layer_weights("input_layernorm"),
        "blocks.{}.mixer.qkv": LLAMA_WEIGHTS["blocks.{}.mixer.qkv"],
        "blocks.{}.mixer.q_norm": layer_weights("self_attn.q_layernorm"),
        "blocks.{}.mixer.k_norm": layer_weights("self_attn.k_layernorm"),
        "blocks.{}.mixer.out": layer_weights("self_attn.dense"),
        "blocks.{}.ffn.up": layer_weights("mlp.fc1"),
        "blocks.{}.ffn.down": layer_weights("mlp.fc2"),
        "final_norm": Weights(("model.final_layernorm",)),
        "head": LLAMA_WEIGHTS["head"],
    },
)

_GLM_WEIGHTS = PAIRED_WEIGHTS | {"blocks.{}.ffn.gate_up": layer_weights("mlp.gate_up_proj")}
_GLM = Family(
    model_type="glm",
    architecture="GlmForCausalLM",
    fixed={**ROPE, **NO_BIASES, "normalization": "rmsnorm", "norm_position": "pre"},
    aspects=(
        *LLAMA_ASPECTS,
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

_NEMOTRON = Family(
    model_type="nemotron",
    architecture="NemotronForCausalLM",
    fixed={**LLAMA_KEYS, "normalization": "layernorm_unit_offset", "ffn_type": "standard"},
    aspects=(
        SIZES,
        same(norm_eps="norm_eps"),
        KEY_HEADS,
        HEAD_DIM,
        activation("hidden_act"),
        ATTENTION_BIAS,
        same(bias="mlp_bias"),
        rope(fraction_field="partial_rotary_factor", fraction=0.5),
    ),
    defaults={
        **_LLAMA_DEFAULTS,
        "initializer_range": 0.0134,
        "norm_eps": 1e-5,
        "hidden_act": "relu2",
    },
    weights=_PLAIN_WEIGHTS,
)

_JAIS2 = Family(
    model_type="jais2",
    architecture="Jais2ForCausalLM",
    fixed={**_NEMOTRON.fixed, "normalization": "layernorm"},
    aspects=(
        SIZES,
        LAYER_NORM_EPS,
        KEY_HEADS,
        HEAD_DIM_OF_WHOLE_HEADS,
        activation("hidden_act"),
        ATTENTION_BIAS,
        same(bias="mlp_bias"),
        rope(),
    ),
    defaults={
        **UNTIED,
        "layer_norm_eps": 1e-5,
        "hidden_act": "relu2",
        "attention_bias": True,
        "mlp_bias": True,
    },
    weights=_PLAIN_WEIGHTS,
)

_APERTUS_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 12e6,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


def _xielu_numbers(layer: LayerConfig) -> dict[str, float]:
    if layer.activation != "xielu":
        return {}
    return {"mlp.act_fn.beta": XIELU.BETA, "mlp.act_fn.eps": -1e-6}


_APERTUS = Family(
    model_type="apertus",
    architecture="ApertusForCausalLM",
    fixed={**LLAMA_KEYS, "ffn_type": "standard", "qk_norm": True},
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        activation("hidden_act", learned=("xielu",)),
        ATTENTION_BIAS,
        rope(theta=12e6, absent=_APERTUS_ROPE),
    ),
    defaults={**_LLAMA_DEFAULTS, "rms_norm_eps": 1e-5, "hidden_act": "xielu"},
    weights=_PLAIN_WEIGHTS
    | {
        "blocks.{}.mixer_norm": layer_weights("attention_layernorm"),
        "blocks.{}.ffn_norm": layer_weights("feedforward_layernorm"),
        "blocks.{}.ffn.activation": layer_weights("mlp.act_fn"),
    },
    file_forms=(FixedNumbers(_xielu_numbers),),
)


_UNREAD = ("factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow")
"""Parameters beside an `alpha` that HunYuan's files have and nothing reads."""


def static_ntk(given: Fields) -> Keys:
    """HunYuan's `dynamic` scaling with an `alpha` raises the base of RoPE, and nothing else."""
    parameters = dict(given.get("rope_scaling") or given.get("rope_parameters") or {})
    alpha, kind = parameters.pop("alpha", None), parameters.get("rope_type", parameters.get("type"))
    if not alpha or kind != "dynamic":
        return rope().read(given)
    for name in ("type", "rope_type", *_UNREAD):
        parameters.pop(name, None)
    keys = rope().read(given | {"rope_scaling": None, "rope_parameters": parameters})
    dim = HEAD_DIM.read(given)["head_dim"]
    return keys | {"rope_theta": keys["rope_theta"] * alpha ** (dim / (dim - 2))}


_HUNYUAN = Family(
    model_type="hunyuan_v1_dense",
    architecture="HunYuanDenseV1ForCausalLM",
    fixed={**LLAMA_KEYS, "qk_norm": True, "qk_norm_after_rope": True},
    aspects=(
        *LLAMA_ASPECTS,
        ATTENTION_BIAS,
        Aspect(static_ntk, rope().write),
    ),
    defaults={**_LLAMA_DEFAULTS, "rms_norm_eps": 1e-5},
    weights=LLAMA_WEIGHTS
    | {
        "blocks.{}.mixer.q_norm": layer_weights("self_attn.query_layernorm"),
        "blocks.{}.mixer.k_norm": layer_weights("self_attn.key_layernorm"),
    },
)

_NANOCHAT = Family(
    model_type="nanochat",
    architecture="NanoChatForCausalLM",
    fixed={
        **_HUNYUAN.fixed,
        "normalization": "rmsnorm_nogain",
        "embedding_norm": True,
        "ffn_type": "standard",
    },
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        activation("hidden_act"),
        ATTENTION_BIAS,
        same(output_softcap="final_logit_softcapping"),
        rope(),
    ),
    defaults={
        **UNTIED,
        "rms_norm_eps": 1e-6,
        "hidden_act": "relu2",
        "attention_bias": False,
        "final_logit_softcapping": 15.0,
    },
    weights={
        **LLAMA_WEIGHTS,
        "blocks.{}.mixer.qkv": dataclasses.replace(
            LLAMA_WEIGHTS["blocks.{}.mixer.qkv"], layout=SWAPPED_HALVES
        ),
        "blocks.{}.ffn.up": layer_weights("mlp.fc1"),
        "blocks.{}.ffn.down": layer_weights("mlp.fc2"),
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
    _NEMOTRON,
    _JAIS2,
    _APERTUS,
    _HUNYUAN,
    _NANOCHAT,
)
