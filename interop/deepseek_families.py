"""Tables of the families that route tokens as DeepSeek does, with its latent attention or not."""

from __future__ import annotations

import dataclasses

from components.attention_backends import query_key_dim
from components.layer_config import LayerConfig
from errors import UserError
from interop.activation_fields import gate
from interop.family import Family, WeightTable
from interop.family_tables import LLAMA_KEYS, RMS_EPS, SIZES, UNTIED, layer_weights
from interop.fields import (
    ATTENTION_BIAS,
    HEAD_DIM,
    KEY_HEADS,
    WHOLE_HEADS,
    Aspect,
    Fields,
    Keys,
    same,
)
from interop.file_forms import LaterLayers
from interop.layouts import PAIRED_LATENT, PAIRED_QUERIES
from interop.moe_families import BIAS_RATE, EXPERT_WEIGHTS, STACKED
from interop.moe_fields import (
    AFTER_DENSE,
    BEST_GROUPS,
    GROUPS,
    NORMALIZED,
    SCALED,
    mixture,
    shared_experts,
)
from interop.rope_fields import rope, shared_parameters, yarn_scale
from interop.window_fields import late_windows_if_any, windows_by_layer
from model_config import ModelArchitectureConfig

# Latent attention


def _refuse_other_heads(given: Fields) -> Keys:
    rotated = given["qk_rope_head_dim"]
    if given.get("head_dim", rotated) != rotated:
        raise UserError(
            f"head_dim={given['head_dim']} cannot be expressed here: it must be "
            f"qk_rope_head_dim={rotated}, of which transformers makes the angles; drop head_dim."
        )
    heads, keys = given["num_attention_heads"], given.get("num_key_value_heads")
    if keys not in (None, heads):
        raise UserError(
            f"num_key_value_heads={keys} cannot be expressed here: latent attention has as many "
            f"as num_attention_heads={heads}."
        )
    return {}


_LATENT = same(
    q_lora_rank="q_lora_rank",
    kv_lora_rank="kv_lora_rank",
    qk_nope_head_dim="qk_nope_head_dim",
    qk_rope_head_dim="qk_rope_head_dim",
    v_head_dim="v_head_dim",
)
_ALL_KEY_HEADS = Aspect(_refuse_other_heads, lambda config: {"num_key_value_heads": config.n_head})


def _refuse_odd(sizes: dict[str, int]) -> None:
    odd = next((f"{name}={size}" for name, size in sizes.items() if size % 2), None)
    if odd:
        raise UserError(
            f"{odd} is odd, but transformers needs even ones to rotate pairs as complex numbers."
        )


def _refuse_odd_fields(given: Fields) -> Keys:
    _refuse_odd({name: given[name] for name in _BEFORE_ROTATED})
    return {}


def _refuse_odd_keys(config: ModelArchitectureConfig) -> Fields:
    _refuse_odd({name: getattr(config.layers[0], name) for name in _BEFORE_ROTATED})
    return {}


_BEFORE_ROTATED = ("qk_nope_head_dim", "kv_lora_rank")
_EVEN = Aspect(_refuse_odd_fields, _refuse_odd_keys)
"""DeepSeek-V2 in transformers."""


def _read_scale(given: Fields) -> Keys:
    parameters = shared_parameters(given)
    share = parameters.get("mscale_all_dim")
    if not share or parameters.get("factor") is None:
        return {}
    dim = given["qk_nope_head_dim"] + given["qk_rope_head_dim"]
    return {"attention_scale": _sharpened(dim, parameters["factor"], share)}


def _sharpened(dim: int, factor: float, share: float) -> float:
    scale = yarn_scale(factor, share)
    return dim**-0.5 * scale * scale


def _write_scale(config: ModelArchitectureConfig) -> Fields:
    """The share of YaRN's scale that makes the attention's scale; nothing where no share does."""
    fields, layer = _LATENT_ROPE.write(config), config.layers[0]
    scaling = fields.get("rope_scaling") or {}
    dim = query_key_dim(layer)
    if layer.attention_scale == dim**-0.5 or scaling.get("rope_type") != "yarn":
        return fields
    whole = yarn_scale(scaling["factor"]) - 1
    share = round(((layer.attention_scale * dim**0.5) ** 0.5 - 1) / whole, 12)
    if _sharpened(dim, scaling["factor"], share) == layer.attention_scale:
        scaling["mscale_all_dim"] = share
    return fields


_LATENT_ROPE = rope()
_SHARPENED_ROPE = Aspect(lambda given: _LATENT_ROPE.read(given) | _read_scale(given), _write_scale)
"""YaRN with `mscale_all_dim`, which sharpens all of attention, the rotated part or not."""


def _of_queries(layer: LayerConfig) -> WeightTable:
    name = "self_attn.q_b_proj" if layer.q_lora_rank else "self_attn.q_proj"
    weights = dataclasses.replace(layer_weights(name), layout=PAIRED_QUERIES)
    return {"blocks.{}.mixer.q": weights}


_LATENT_WEIGHTS: WeightTable = EXPERT_WEIGHTS | {
    "blocks.{}.mixer.q_latent": layer_weights("self_attn.q_a_proj"),
    "blocks.{}.mixer.q_norm": layer_weights("self_attn.q_a_layernorm"),
    "blocks.{}.mixer.kv_latent": dataclasses.replace(
        layer_weights("self_attn.kv_a_proj_with_mqa"), layout=PAIRED_LATENT
    ),
    "blocks.{}.mixer.kv_norm": layer_weights("self_attn.kv_a_layernorm"),
    "blocks.{}.mixer.kv": layer_weights("self_attn.kv_b_proj"),
}
_OF_THE_LATENTS = {"rms_norm_eps": (1e-6,)}
"""The epsilon of the norms of latents, whatever a file says of the others."""

# The tables

_MIXTURE = mixture(gate("hidden_act"), AFTER_DENSE, experts="n_routed_experts")
_DEFAULTS: Fields = {
    **UNTIED,
    "hidden_act": "silu",
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
}
_OF_V3 = {"router_score": "sigmoid", "router_bias_rate": BIAS_RATE}

_DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    fixed={**LLAMA_KEYS, **_OF_V3, "mixer": "mla"},
    aspects=(
        SIZES,
        RMS_EPS,
        _ALL_KEY_HEADS,
        _LATENT,
        ATTENTION_BIAS,
        _MIXTURE,
        shared_experts("n_shared_experts", at_least=1),
        NORMALIZED,
        SCALED,
        GROUPS,
        _SHARPENED_ROPE,
    ),
    defaults={
        **_DEFAULTS,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "moe_intermediate_size": 2048,
        "n_shared_experts": 1,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "routed_scaling_factor": 2.5,
        "n_group": 8,
        "topk_group": 4,
        "first_k_dense_replace": 3,
        "norm_topk_prob": True,
    },
    aliases={"num_local_experts": "n_routed_experts"},
    # Its class in transformers never reads the last three.
    required={
        **_OF_THE_LATENTS,
        "rope_interleave": (True,),
        "topk_method": ("noaux_tc",),
        "scoring_func": ("sigmoid",),
        "moe_layer_freq": (1,),
    },
    mixers=("mla",),
    weights=_LATENT_WEIGHTS,
    weights_of=_of_queries,
    file_forms=(LaterLayers(), *STACKED),
)

_DEEPSEEK_V2 = dataclasses.replace(
    _DEEPSEEK_V3,
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    fixed={**LLAMA_KEYS, "mixer": "mla", "router_renormalize": False},
    aspects=(
        SIZES,
        RMS_EPS,
        _ALL_KEY_HEADS,
        WHOLE_HEADS,
        _LATENT,
        _EVEN,
        ATTENTION_BIAS,
        _MIXTURE,
        shared_experts("n_shared_experts", at_least=1),
        SCALED,
        BEST_GROUPS,
        _SHARPENED_ROPE,
    ),
    defaults={
        **_DEEPSEEK_V3.defaults,
        "moe_intermediate_size": 1407,
        "n_shared_experts": 2,
        "n_routed_experts": 64,
        "routed_scaling_factor": 1.0,
        "topk_method": "greedy",
        "first_k_dense_replace": 0,
    },
    aliases={"num_experts": "n_routed_experts"},
    # Its class in transformers reads norm_topk_prob, but never applies it, and never reads the
    # last two.
    required={
        **_OF_THE_LATENTS,
        "mlp_bias": (False,),
        "norm_topk_prob": (False, None),
        "moe_layer_freq": (1,),
        "scoring_func": ("softmax",),
    },
)

_GLM4_MOE = Family(
    model_type="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    fixed={**LLAMA_KEYS, **_OF_V3},
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        same(attention_bias="attention_bias", qk_norm="use_qk_norm"),
        _MIXTURE,
        shared_experts("n_shared_experts", at_least=1),
        NORMALIZED,
        SCALED,
        GROUPS,
        rope(fraction_field="partial_rotary_factor", fraction=0.5),
    ),
    defaults={
        **_DEFAULTS,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "use_qk_norm": False,
        "moe_intermediate_size": 1408,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "num_experts_per_tok": 8,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
    },
    aliases={"num_local_experts": "n_routed_experts"},
    weights=EXPERT_WEIGHTS,
    file_forms=(LaterLayers(), *STACKED),
)

_DOTS1 = Family(
    model_type="dots1",
    architecture="Dots1ForCausalLM",
    fixed={**LLAMA_KEYS, **_OF_V3, "qk_norm": True},
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        ATTENTION_BIAS,
        _MIXTURE,
        shared_experts("n_shared_experts", at_least=1),
        NORMALIZED,
        SCALED,
        GROUPS,
        rope(),
        windows_by_layer(late_windows_if_any),
    ),
    defaults={
        **_DEFAULTS,
        "num_key_value_heads": 32,
        "moe_intermediate_size": 1408,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 0,
        "norm_topk_prob": False,
        "sliding_window": 4096,
        "max_window_layers": 62,
    },
    aliases={"num_local_experts": "n_routed_experts"},
    weights=EXPERT_WEIGHTS,
    file_forms=STACKED,
)

DEEPSEEK_FAMILIES = (_DEEPSEEK_V3, _DEEPSEEK_V2, _GLM4_MOE, _DOTS1)
