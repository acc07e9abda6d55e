"""The model families of Hugging Face transformers that can be read and written: a table each."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from errors import UserError, listed, quoted
from interop.activation_fields import gate
from interop.attention_families import ATTENTION_FAMILIES
from interop.deepseek_families import DEEPSEEK_FAMILIES
from interop.family import Family
from interop.family_tables import (
    LAYER_NORM_EPS,
    LLAMA_ASPECTS,
    LLAMA_KEYS,
    LLAMA_WEIGHTS,
    NO_BIASES,
    RMS_EPS,
    ROPE,
    SIZES,
    UNTIED,
    layer_weights,
)
from interop.fields import (
    ATTENTION_BIAS,
    HEAD_DIM_OF_WHOLE_HEADS,
    KEY_HEADS,
    NO_HEAD_DIM,
    Aspect,
    Fields,
    Keys,
    same,
    switch,
)
from interop.gemma_families import GEMMA_FAMILIES
from interop.gpt_families import GPT_FAMILIES
from interop.gpt_oss_family import GPT_OSS
from interop.hybrid_families import HYBRID_FAMILIES
from interop.later_families import LATER_FAMILIES
from interop.later_gpt_families import LATER_GPT_FAMILIES
from interop.moe_families import MOE_FAMILIES
from interop.patterned_families import PATTERNED_FAMILIES
from interop.rope_fields import rope, rope_in_some_layers, windows_without_rope
from interop.scaled_families import SCALED_FAMILIES
from interop.state_space_families import STATE_SPACE_FAMILIES
from interop.window_fields import WINDOW_EVERYWHERE, late_windows, optional_windows
from model_config import ModelArchitectureConfig

CONFIG = "config.json"


def read_fields(folder: Path) -> Fields:
    """What a folder's config.json holds. Raises UserError where there is none."""
    file = folder / CONFIG
    if file.exists() and not file.is_file():
        raise UserError(f"{file} is not a regular file; replace it with one.")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise UserError(f"{file} has no fields: {quoted(fields)}.")
    return fields


def family_of(fields: Fields) -> Family:
    """The family that a config.json names. Raises UserError for another.

    A name that resembles a supported one is that of another architecture, so none is suggested.
    """
    name = fields.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"model_type={quoted(name)} is not supported. {listed(FAMILIES)}")
    return FAMILIES[name]


# The tables

_LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    fixed=LLAMA_KEYS,
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM_OF_WHOLE_HEADS,
        gate("hidden_act"),
        ATTENTION_BIAS,
        same(bias="mlp_bias"),
        rope(),
    ),
    defaults={
        **UNTIED,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    },
    weights=LLAMA_WEIGHTS,
)


def _alike_biases(given: Fields) -> Keys:
    """InternLM 3 has all biases, or none."""
    if given["attention_bias"] != given["mlp_bias"]:
        raise UserError(
            f"qkv_bias={given['attention_bias']} with bias={given['mlp_bias']} cannot be computed "
            "by transformers, which needs both alike."
        )
    return dict.fromkeys(NO_BIASES, given["mlp_bias"])


def _any_bias(config: ModelArchitectureConfig) -> Fields:
    biased = any(layer.get(key) for layer in config.kinds for key in NO_BIASES)
    return {"attention_bias": biased, "mlp_bias": biased}


_INTERNLM3 = dataclasses.replace(
    _LLAMA,
    model_type="internlm3",
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM_OF_WHOLE_HEADS,
        gate("hidden_act"),
        Aspect(_alike_biases, _any_bias),
        rope(),
    ),
    defaults={
        **_LLAMA.defaults,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 2,
        "head_dim": 128,
    },
    aliases={"qkv_bias": "attention_bias", "bias": "mlp_bias"},
)
_IQUESTCODER = dataclasses.replace(
    _LLAMA,
    model_type="iquestcoder",
    defaults={
        **_LLAMA.defaults,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    required={"clip_qkv": (None,), "use_sliding_window": (False,)},
)

_MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    fixed=LLAMA_KEYS,
    aspects=(*LLAMA_ASPECTS, rope(), WINDOW_EVERYWHERE),
    defaults={
        **UNTIED,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "sliding_window": 4096,
        "num_key_value_heads": 8,
    },
    weights=LLAMA_WEIGHTS,
)

_QWEN_DEFAULTS = {
    **UNTIED,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "num_key_value_heads": 32,
}
_QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    fixed={**LLAMA_KEYS, "attention_bias": True},
    aspects=(
        *LLAMA_ASPECTS,
        rope(),
        optional_windows(late_windows),
    ),
    defaults=_QWEN_DEFAULTS,
    weights=LLAMA_WEIGHTS,
)
_QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    fixed={**LLAMA_KEYS, "qk_norm": True},
    aspects=(*_QWEN2.aspects, ATTENTION_BIAS),
    defaults={**_QWEN_DEFAULTS, "attention_bias": False, "head_dim": 128},
    weights=LLAMA_WEIGHTS,
)

_SMOLLM3 = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    fixed=LLAMA_KEYS,
    aspects=(
        *LLAMA_ASPECTS,
        ATTENTION_BIAS,
        same(bias="mlp_bias"),
        rope_in_some_layers(rope(theta=2e6)),
        optional_windows(windows_without_rope),
    ),
    defaults={
        **_LLAMA.defaults,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "num_key_value_heads": 4,
    },
    weights=LLAMA_WEIGHTS,
)


_PHI3 = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    fixed=LLAMA_KEYS,
    aspects=(
        *LLAMA_ASPECTS,
        rope(fraction_field="partial_rotary_factor", scales=False),
        WINDOW_EVERYWHERE,
    ),
    defaults={**UNTIED, "rms_norm_eps": 1e-5, "hidden_act": "silu", "sliding_window": None},
    weights=LLAMA_WEIGHTS
    | {
        "blocks.{}.mixer.qkv": layer_weights("self_attn.qkv_proj"),
        "blocks.{}.ffn.gate_up": layer_weights("mlp.gate_up_proj"),
    },
)

_OLMO2 = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    fixed={
        **LLAMA_KEYS,
        "norm_position": "res_post",
        "qk_norm": True,
        "qk_norm_over": "projection",
    },
    aspects=(*LLAMA_ASPECTS, ATTENTION_BIAS, rope()),
    defaults={
        **UNTIED,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
    },
    weights=LLAMA_WEIGHTS
    | {
        "blocks.{}.mixer_norm": layer_weights("post_attention_layernorm"),
        "blocks.{}.ffn_norm": layer_weights("post_feedforward_layernorm"),
    },
)

_STABLELM = Family(
    model_type="stablelm",
    architecture="StableLmForCausalLM",
    fixed={**ROPE, **NO_BIASES, "normalization": "layernorm"},
    aspects=(
        SIZES,
        LAYER_NORM_EPS,
        KEY_HEADS,
        gate("hidden_act"),
        same(attention_bias="use_qkv_bias"),
        switch("norm_position", "use_parallel_residual", on="parallel_shared", off="pre"),
        NO_HEAD_DIM,
        rope(fraction_field="partial_rotary_factor", fraction=0.25),
    ),
    defaults={
        **UNTIED,
        "num_key_value_heads": 32,
        "layer_norm_eps": 1e-5,
        "hidden_act": "silu",
        "use_qkv_bias": False,
        "use_parallel_residual": False,
    },
    required={"qk_layernorm": (False,)},
    weights=LLAMA_WEIGHTS | {"blocks.{}.norm": layer_weights("input_layernorm")},
)

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        *GPT_FAMILIES,
        _LLAMA,
        _MISTRAL,
        _QWEN2,
        _QWEN3,
        *GEMMA_FAMILIES,
        _PHI3,
        _OLMO2,
        _SMOLLM3,
        _STABLELM,
        _INTERNLM3,
        _IQUESTCODER,
        *LATER_FAMILIES,
        *LATER_GPT_FAMILIES,
        *SCALED_FAMILIES,
        *PATTERNED_FAMILIES,
        *MOE_FAMILIES,
        GPT_OSS,
        *DEEPSEEK_FAMILIES,
        *HYBRID_FAMILIES,
        *STATE_SPACE_FAMILIES,
        *ATTENTION_FAMILIES,
    )
}
"""By model_type; where several could express an architecture, the first is written."""
