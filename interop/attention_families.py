"""Tables of families whose attention differs from LLaMA's: DiffLlama, Ministral 3, Persimmon."""

from __future__ import annotations

from errors import UserError
from interop.activation_fields import activation
from interop.family import Family, Weights
from interop.family_tables import (
    LAYER_NORM_EPS,
    LLAMA_ASPECTS,
    LLAMA_KEYS,
    LLAMA_WEIGHTS,
    PLAIN_NORMS,
    ROPE,
    SIZES,
    UNTIED,
    layer_weights,
)
from interop.fields import ATTENTION_BIAS, NO_HEAD_DIM, QK_LAYER_NORM, Aspect, Fields, Keys
from interop.layouts import FOUR_VECTORS, HEAD_MAJOR
from interop.rope_fields import rope, rotates, scaling_fields, shared_parameters
from interop.window_fields import WINDOW_EVERYWHERE
from model_config import ModelArchitectureConfig

_DIFFLLAMA = Family(
    model_type="diffllama",
    architecture="DiffLlamaForCausalLM",
    fixed={**LLAMA_KEYS, "differential_attention": True},
    aspects=(*LLAMA_ASPECTS, ATTENTION_BIAS, rope()),
    defaults={**UNTIED, "rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_bias": False},
    weights=LLAMA_WEIGHTS
    | {
        "blocks.{}.mixer.difference.lambdas": Weights(
            tuple(
                f"model.layers.{{}}.self_attn.lambda_{name}" for name in ("q1", "k1", "q2", "k2")
            ),
            FOUR_VECTORS,
        ),
    },
)


# Ministral 3: the scale of the queries is one of the RoPE parameters

_BETA, _STEP = "llama_4_scaling_beta", "original_max_position_embeddings"
_MINISTRAL3_ROPE: Fields = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    _STEP: 16384,
    _BETA: 0.1,
}
_ROPE = rope(absent=_MINISTRAL3_ROPE)


def _read_scaled_queries(given: Fields) -> Keys:
    parameters = dict(shared_parameters(given, _MINISTRAL3_ROPE))
    kind, longest = (
        parameters.get("rope_type", parameters.get("type")),
        given["max_position_embeddings"],
    )
    of_rope = kind in ("yarn", "llama3")  # whose default is the longest sequence
    beta, step = parameters.pop(_BETA, None), parameters.get(_STEP, longest if of_rope else None)
    if beta is None or step is None:
        missing = _BETA if beta is None else _STEP
        raise UserError(
            f"the RoPE parameters of a ministral3 lack {missing}, which transformers needs to "
            f"scale queries; add it. With {_BETA}=0, queries are not scaled."
        )
    parameters.pop("max_position_embeddings", None)
    if not of_rope:
        parameters.pop(_STEP, None)
    keys = _ROPE.read(given | {"rope_scaling": None, "rope_parameters": parameters})
    if not beta or step >= longest:
        return keys
    return keys | {
        "query_scaling": "ministral3",
        "query_scaling_interval": step,
        "query_scaling_factor": beta,
    }


def _write_scaled_queries(config: ModelArchitectureConfig) -> Fields:
    layer = next(filter(rotates, config.kinds), None)
    if layer is None:
        return {}
    scaled = layer.query_scaling == "ministral3"
    return {
        "rope_parameters": {
            "rope_theta": layer.rope_theta,
            _STEP: layer.query_scaling_interval if scaled else config.block_size,
            **(scaling_fields(layer) or {"rope_type": "default"}),
            _BETA: layer.query_scaling_factor if scaled else 0.0,
        }
    }


_MINISTRAL3 = Family(
    model_type="ministral3",
    architecture="Ministral3ForCausalLM",
    fixed=LLAMA_KEYS,
    aspects=(
        *LLAMA_ASPECTS,
        Aspect(_read_scaled_queries, _write_scaled_queries),
        WINDOW_EVERYWHERE,
    ),
    defaults={
        **UNTIED,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "num_key_value_heads": 8,
        "head_dim": 128,
        "sliding_window": None,
    },
    weights=LLAMA_WEIGHTS,
)

_PERSIMMON = Family(
    model_type="persimmon",
    architecture="PersimmonForCausalLM",
    fixed={**PLAIN_NORMS, **ROPE, "norm_position": "pre", "ffn_type": "standard"},
    aspects=(
        SIZES,
        LAYER_NORM_EPS,
        activation("hidden_act"),
        QK_LAYER_NORM,
        NO_HEAD_DIM,
        rope(fraction_field="partial_rotary_factor", fraction=0.5),
    ),
    defaults={
        **UNTIED,
        "layer_norm_eps": 1e-5,
        "hidden_act": "relu2",
        "qk_layernorm": True,
    },
    weights={
        "embedding": LLAMA_WEIGHTS["embedding"],
        "blocks.{}.mixer_norm": LLAMA_WEIGHTS["blocks.{}.mixer_norm"],
        "blocks.{}.mixer.qkv": Weights(("model.layers.{}.self_attn.query_key_value",), HEAD_MAJOR),
        "blocks.{}.mixer.q_norm": layer_weights("self_attn.q_layernorm"),
        "blocks.{}.mixer.k_norm": layer_weights("self_attn.k_layernorm"),
        "blocks.{}.mixer.out": layer_weights("self_attn.dense"),
        "blocks.{}.ffn_norm": LLAMA_WEIGHTS["blocks.{}.ffn_norm"],
        "blocks.{}.ffn.up": layer_weights("mlp.dense_h_to_4h"),
        "blocks.{}.ffn.down": layer_weights("mlp.dense_4h_to_h"),
        "final_norm": Weights(("model.final_layernorm",)),
        "head": LLAMA_WEIGHTS["head"],
    },
)

ATTENTION_FAMILIES = (_DIFFLLAMA, _MINISTRAL3, _PERSIMMON)
