"""Tables of families whose layers differ, in their windows, RoPE or mixers."""

from __future__ import annotations

import dataclasses

from components.layer_config import LayerConfig
from errors import UserError
from interop.activation_fields import gate
from interop.family import Family, Weights, WeightTable
from interop.family_tables import (
    LLAMA_ASPECTS,
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
    HEAD_DIM_OF_WHOLE_HEADS,
    KEY_HEADS,
    Aspect,
    Fields,
    Keys,
    layers_of,
    same,
    value_of,
)
from interop.rope_by_type import rope_beside_windows, rope_by_layer_type
from interop.rope_fields import rope
from interop.window_fields import (
    FULL,
    SLIDING,
    LayerTypes,
    every_nth_full,
    first_of_four_full,
    types_of,
    windows_by_layer,
)
from model_config import ModelArchitectureConfig
from patterns import by_layer


def _all_windowed(given: Fields) -> LayerTypes:
    """Ministral's default: a window in all layers, if there is one."""
    return types_of([given["sliding_window"] is not None] * len(layers_of(given)))


_MINISTRAL = Family(
    model_type="ministral",
    architecture="MinistralForCausalLM",
    fixed=LLAMA_KEYS,
    aspects=(
        *LLAMA_ASPECTS,
        rope(),
        windows_by_layer(_all_windowed),
    ),
    defaults={
        **UNTIED,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "sliding_window": 4096,
        "num_key_value_heads": 8,
    },
    weights=LLAMA_WEIGHTS,
)

_CWM_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
_CWM = Family(
    model_type="cwm",
    architecture="CwmForCausalLM",
    fixed=LLAMA_KEYS,
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM_OF_WHOLE_HEADS,
        gate("hidden_act"),
        same(bias="mlp_bias"),
        rope(theta=1e6, absent=_CWM_ROPE),
        windows_by_layer(first_of_four_full),
    ),
    defaults={
        **UNTIED,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "mlp_bias": False,
        "sliding_window": 8192,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    needs_bos=True,
    weights=LLAMA_WEIGHTS,
)

_OLMO_WEIGHTS = LLAMA_WEIGHTS | {
    "blocks.{}.mixer_norm": layer_weights("post_attention_layernorm"),
    "blocks.{}.ffn_norm": layer_weights("post_feedforward_layernorm"),
}
_OLMO3 = Family(
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    fixed={
        **LLAMA_KEYS,
        "norm_position": "res_post",
        "qk_norm": True,
        "qk_norm_over": "projection",
    },
    aspects=(
        *LLAMA_ASPECTS,
        ATTENTION_BIAS,
        rope_by_layer_type(
            # transformers reads rope_theta for the layers without a window only
            {FULL: ("rope_theta", 500_000.0), SLIDING: (None, 500_000.0)},
            lambda given: every_nth_full(given, 4),
        ),
    ),
    defaults={
        **UNTIED,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "sliding_window": 4096,
    },
    weights=_OLMO_WEIGHTS,
)


def _no_window(given: Fields) -> bool:
    return given["sliding_window"] is None


def _exaone_types(given: Fields) -> LayerTypes:
    """EXAONE's default: every n-th layer sees all."""
    if _no_window(given):
        raise UserError(
            "sliding_window=None needs layer_types, without which transformers cannot read it."
        )
    pattern = given["sliding_window_pattern"]
    if not isinstance(pattern, int) or pattern < 1:
        raise UserError(
            f"sliding_window_pattern={pattern!r} needs layer_types, without which transformers "
            "cannot read it."
        )
    return every_nth_full(given, pattern)


_EXAONE4 = dataclasses.replace(
    _OLMO3,
    model_type="exaone4",
    architecture="Exaone4ForCausalLM",
    fixed={**LLAMA_KEYS, "norm_position": "res_post", "qk_norm": True},
    aspects=(
        *LLAMA_ASPECTS,
        rope_beside_windows(rope(), _exaone_types, everywhere=_no_window),
    ),
    defaults={
        **UNTIED,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
        "num_key_value_heads": 32,
    },
)


# LFM2: layers with attention and layers with a short convolution

_CONV = "conv"
_LFM_MIXERS = {_CONV: "short_conv", FULL: "attention"}


def _lfm_mixers(given: Fields) -> Keys:
    layers, types = layers_of(given), given.get("layer_types")
    if types is None:
        attending = given.get("full_attn_idxs")
        attending = list(layers) if attending is None else attending
        types = [FULL if layer in attending else _CONV for layer in layers]
    unknown = set(types) - set(_LFM_MIXERS)
    if unknown:
        raise UserError(f"layer_types has {unknown.pop()!r}, which is not supported.")
    if len(types) != len(layers):
        raise UserError(
            f"layer_types has {len(types)} entries, num_hidden_layers is {len(layers)}; they must "
            "agree."
        )
    return {"mixer": by_layer([_LFM_MIXERS[kind] for kind in types])}


def _lfm_types(config: ModelArchitectureConfig) -> Fields:
    kinds = {mixer: kind for kind, mixer in _LFM_MIXERS.items()}
    return {"layer_types": [kinds[layer.mixer] for layer in config.layers]}


def _lfm_width(given: Fields) -> Keys:
    """The hidden width, which the class reduces to 2/3 and rounds up."""
    width = given.get("block_ff_dim", given["intermediate_size"])
    if given["block_auto_adjust_ff_dim"]:
        width = int(2 * width / 3)
        multiplier, multiple = given["block_ffn_dim_multiplier"], given["block_multiple_of"]
        if multiplier is not None:
            width = multiple * -(-int(multiplier * width) // multiple)
    return {"ffn_hidden": width}


def _lfm_width_fields(config: ModelArchitectureConfig) -> Fields:
    return {
        "intermediate_size": value_of(config, "ffn_hidden"),
        "block_auto_adjust_ff_dim": False,
    }


def _lfm_tie(given: Fields) -> Keys:
    return {"weight_tying": given.get("tie_embedding", given["tie_word_embeddings"])}


def _conv_weights(layer: LayerConfig) -> WeightTable:
    """What the output projection of a convolution is called."""
    if layer.mixer != "short_conv":
        return {}
    return {"blocks.{}.mixer.out": layer_weights("conv.out_proj")}


_LFM2 = Family(
    model_type="lfm2",
    architecture="Lfm2ForCausalLM",
    fixed={**LLAMA_KEYS, "qk_norm": True, "ffn_type": "swiglu"},
    aspects=(
        same(
            n_layer="num_hidden_layers",
            n_head="num_attention_heads",
            n_embd="hidden_size",
            block_size="max_position_embeddings",
            vocab_size="vocab_size",
            norm_eps="norm_eps",
            init_std="initializer_range",
        ),
        Aspect(_lfm_tie, lambda config: {"tie_word_embeddings": config.weight_tying}),
        Aspect(_lfm_width, _lfm_width_fields),
        KEY_HEADS,
        HEAD_DIM,
        Aspect(_lfm_mixers, _lfm_types),
        same(short_conv_kernel="conv_L_cache"),
        rope(theta=1e6),
    ),
    defaults={
        **TIED,
        "norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "conv_L_cache": 3,
        "intermediate_size": 12288,
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
    },
    required={"conv_bias": (False,)},
    mixers=("attention", "short_conv"),
    weights=LLAMA_WEIGHTS
    | {
        "blocks.{}.mixer_norm": layer_weights("operator_norm"),
        "blocks.{}.mixer.q_norm": layer_weights("self_attn.q_layernorm"),
        "blocks.{}.mixer.k_norm": layer_weights("self_attn.k_layernorm"),
        "blocks.{}.mixer.gates_in": layer_weights("conv.in_proj"),
        "blocks.{}.mixer.conv": layer_weights("conv.conv"),
        "blocks.{}.mixer.out": layer_weights("self_attn.out_proj"),
        "blocks.{}.ffn_norm": layer_weights("ffn_norm"),
        "blocks.{}.ffn.gate_up": layer_weights("feed_forward.w1", "feed_forward.w3"),
        "blocks.{}.ffn.down": layer_weights("feed_forward.w2"),
        "final_norm": Weights(("model.embedding_norm",)),
    },
    weights_of=_conv_weights,
)

PATTERNED_FAMILIES = (_MINISTRAL, _CWM, _OLMO3, _EXAONE4, _LFM2)
