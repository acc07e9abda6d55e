"""The model families of Hugging Face transformers that can be read and written: a table each."""

from __future__ import annotations

import json
from pathlib import Path

from errors import UserError, listed, quoted
from interop.activation_fields import activation, gate
from interop.deepseek_families import DEEPSEEK_FAMILIES
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
    HEAD_DIM_OF_WHOLE_HEADS,
    KEY_HEADS,
    NO_HEAD_DIM,
    Aspect,
    Fields,
    ffn_width,
    same,
    switch,
)
from interop.file_forms import Renamed
from interop.gemma_fields import GEMMA3_LAYERS, QUERY_SCALAR, ROOT_OF_WIDTH
from interop.gpt_oss_family import GPT_OSS
from interop.hybrid_families import HYBRID_FAMILIES
from interop.later_families import LATER_FAMILIES
from interop.layouts import CONV1D, HEAD_MAJOR, NEIGHBOUR_PAIRS
from interop.moe_families import MOE_FAMILIES
from interop.rope_fields import (
    ROTARY_DIM,
    rope,
    rope_in_some_layers,
    windows_without_rope,
)
from interop.window_fields import (
    WINDOW_EVERYWHERE,
    alternating,
    late_windows,
    optional_windows,
    windows_by_layer,
)

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

_GEMMA_KEYS = {**LLAMA_KEYS, "normalization": "rmsnorm_unit_offset"}
_GEMMA_LIMITS = {"use_bidirectional_attention": (None, False)}

_OLD_LENGTH = Aspect(lambda given: {}, lambda config: {"n_ctx": config.block_size})
"""A field that transformers ignores; llama.cpp's converter reads no other."""

_GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    fixed={**PLAIN_NORMS, "position_encoding": "learned", "norm_position": "pre"},
    aspects=(
        same(
            n_layer="n_layer",
            n_head="n_head",
            n_embd="n_embd",
            block_size="n_positions",
            vocab_size="vocab_size",
            norm_eps="layer_norm_epsilon",
            init_std="initializer_range",
            weight_tying="tie_word_embeddings",
        ),
        _OLD_LENGTH,
        ffn_width("n_inner"),
        activation("activation_function"),
    ),
    defaults={**TIED, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5},
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    required={
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    weights={
        "embedding": Weights(("transformer.wte",)),
        "positions.table": Weights(("transformer.wpe",)),
        "blocks.{}.mixer_norm": Weights(("transformer.h.{}.ln_1",)),
        "blocks.{}.mixer.qkv": Weights(("transformer.h.{}.attn.c_attn",), CONV1D),
        "blocks.{}.mixer.out": Weights(("transformer.h.{}.attn.c_proj",), CONV1D),
        "blocks.{}.ffn_norm": Weights(("transformer.h.{}.ln_2",)),
        "blocks.{}.ffn.up": Weights(("transformer.h.{}.mlp.c_fc",), CONV1D),
        "blocks.{}.ffn.down": Weights(("transformer.h.{}.mlp.c_proj",), CONV1D),
        "final_norm": Weights(("transformer.ln_f",)),
        "head": Weights(("lm_head",)),
    },
)

_GPTJ = Family(
    model_type="gptj",
    architecture="GPTJForCausalLM",
    prefix="transformer.",
    fixed={
        **PLAIN_NORMS,
        **ROPE,
        "norm_position": "parallel_shared",
        "attention_bias": False,
        "head_bias": True,
    },
    aspects=(*_GPT2.aspects, ROTARY_DIM),
    defaults={**_GPT2.defaults, "tie_word_embeddings": False},
    aliases=_GPT2.aliases,
    weights={
        "embedding": Weights(("transformer.wte",)),
        "blocks.{}.norm": Weights(("transformer.h.{}.ln_1",)),
        "blocks.{}.mixer.qkv": Weights(
            tuple(f"transformer.h.{{}}.attn.{kind}_proj" for kind in "qkv"), NEIGHBOUR_PAIRS
        ),
        "blocks.{}.mixer.out": Weights(("transformer.h.{}.attn.out_proj",)),
        "blocks.{}.ffn.up": Weights(("transformer.h.{}.mlp.fc_in",)),
        "blocks.{}.ffn.down": Weights(("transformer.h.{}.mlp.fc_out",)),
        "final_norm": Weights(("transformer.ln_f",)),
        "head": Weights(("lm_head",)),
    },
)

_NEOX_LAYER = "gpt_neox.layers.{}."
_GPT_NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    prefix="gpt_neox.",
    fixed={**PLAIN_NORMS, **ROPE},
    aspects=(
        SIZES,
        LAYER_NORM_EPS,
        ATTENTION_BIAS,
        activation("hidden_act"),
        switch("norm_position", "use_parallel_residual", on="parallel", off="pre"),
        NO_HEAD_DIM,
        rope("rotary_emb_base", fraction_field="rotary_pct", fraction=0.25),
    ),
    defaults={
        **UNTIED,
        "layer_norm_eps": 1e-5,
        "attention_bias": True,
        "hidden_act": "gelu",
        "use_parallel_residual": True,
    },
    weights={
        "embedding": Weights(("gpt_neox.embed_in",)),
        "blocks.{}.mixer_norm": Weights((_NEOX_LAYER + "input_layernorm",)),
        "blocks.{}.mixer.qkv": Weights((_NEOX_LAYER + "attention.query_key_value",), HEAD_MAJOR),
        "blocks.{}.mixer.out": Weights((_NEOX_LAYER + "attention.dense",)),
        "blocks.{}.ffn_norm": Weights((_NEOX_LAYER + "post_attention_layernorm",)),
        "blocks.{}.ffn.up": Weights((_NEOX_LAYER + "mlp.dense_h_to_4h",)),
        "blocks.{}.ffn.down": Weights((_NEOX_LAYER + "mlp.dense_4h_to_h",)),
        "final_norm": Weights(("gpt_neox.final_layer_norm",)),
        "head": Weights(("lm_head",)),
    },
    file_forms=(Renamed("embed_out.", "lm_head."),),
)

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

_MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    fixed=LLAMA_KEYS,
    aspects=(SIZES, RMS_EPS, KEY_HEADS, HEAD_DIM, gate("hidden_act"), rope(), WINDOW_EVERYWHERE),
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
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        gate("hidden_act"),
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
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        gate("hidden_act"),
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


_GEMMA_DEFAULTS = {**TIED, "rms_norm_eps": 1e-6, "attention_bias": False, "head_dim": 256}
_GEMMA = Family(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    fixed=_GEMMA_KEYS,
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        gate("hidden_act", also={"gelu": "gelu_pytorch_tanh"}),
        ATTENTION_BIAS,
        ROOT_OF_WIDTH,
        rope(),
    ),
    defaults={
        **_GEMMA_DEFAULTS,
        "hidden_act": "gelu_pytorch_tanh",
        "num_key_value_heads": 16,
    },
    required=_GEMMA_LIMITS,
    weights=LLAMA_WEIGHTS,
)

_LATER_GEMMA = (
    SIZES,
    RMS_EPS,
    KEY_HEADS,
    HEAD_DIM_OF_WHOLE_HEADS,
    gate("hidden_activation"),
    ATTENTION_BIAS,
    ROOT_OF_WIDTH,
    QUERY_SCALAR,
    same(output_softcap="final_logit_softcapping"),
)
_GEMMA2 = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    fixed={**_GEMMA_KEYS, "norm_position": "sandwich"},
    aspects=(
        *_LATER_GEMMA,
        same(attention_softcap="attn_logit_softcapping"),
        rope(),
        windows_by_layer(alternating),
    ),
    defaults={
        **_GEMMA_DEFAULTS,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "num_key_value_heads": 4,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    required=_GEMMA_LIMITS,
    weights=SANDWICH_WEIGHTS,
)
_GEMMA3 = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    fixed={**_GEMMA2.fixed, "qk_norm": True},
    aspects=(*_LATER_GEMMA, GEMMA3_LAYERS),
    defaults={**_GEMMA2.defaults, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    # Its class in transformers reads attn_logit_softcapping, but never applies it.
    required={**_GEMMA_LIMITS, "attn_logit_softcapping": (None,)},
    weights=SANDWICH_WEIGHTS,
)

_PHI3 = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    fixed=LLAMA_KEYS,
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        gate("hidden_act"),
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
    aspects=(SIZES, RMS_EPS, KEY_HEADS, HEAD_DIM, gate("hidden_act"), ATTENTION_BIAS, rope()),
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
        _GPT2,
        _LLAMA,
        _MISTRAL,
        _QWEN2,
        _QWEN3,
        _GPT_NEOX,
        _GEMMA,
        _GEMMA2,
        _GEMMA3,
        _PHI3,
        _OLMO2,
        _SMOLLM3,
        _STABLELM,
        _GPTJ,
        *LATER_FAMILIES,
        *MOE_FAMILIES,
        GPT_OSS,
        *DEEPSEEK_FAMILIES,
        *HYBRID_FAMILIES,
    )
}
"""By model_type; where several could express an architecture, the first is written."""
