"""Random config.json files of every family, as transformers and people have written them."""

from __future__ import annotations

from random import Random
from typing import Any

from interop.families import FAMILIES
from tests.interop.references import LONGEST, VOCABULARY

Fields = dict[str, Any]

_ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2", "gelu_fast")
_TYPES = ("sliding_attention", "full_attention")
_WINDOWS = (1, 3, 7, LONGEST - 1, LONGEST, LONGEST + 1, 4096)
_FRACTIONS = (0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 2 / 3, 0.29)


def random_file(model_type: str, random: Random) -> Fields:
    """The fields of one file; it may hold what transformers or nanoarch refuses."""
    fields = {"model_type": model_type, "vocab_size": VOCABULARY}
    fields |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    sizes = _old_sizes if model_type in _OLD_NAMES else _sizes
    fields |= sizes(model_type, random) | _FLAGS[model_type](random)
    if FAMILIES[model_type].needs_bos:
        fields["bos_token_id"] = 0
    if "layer_types" in fields and random.random() < 0.95:
        layers = fields["num_hidden_layers"]
        fields["layer_types"] = (fields["layer_types"] * layers)[:layers]
    if "attention_types" in fields and random.random() < 0.95:
        layers = fields.get("num_layers") or fields["num_hidden_layers"]
        fields["attention_types"] = [[(fields["attention_types"] * layers)[:layers], 1]]
    if random.random() < 0.3:
        fields["tie_word_embeddings"] = random.random() < 0.5
    return fields


def _maybe(random: Random, share: float, **fields: Any) -> Fields:
    return {name: value for name, value in fields.items() if random.random() < share}


def _sizes(model_type: str, random: Random) -> Fields:
    heads = random.choice((2, 4))
    width = heads * random.choice((8, 12, 18, 22))
    groups = random.choice((1, heads // 2, heads))
    fields = {
        "hidden_size": width,
        "intermediate_size": random.choice((16, 40)),
        "num_hidden_layers": random.randint(1, 4),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": LONGEST,
    }
    if model_type in _WIDE_HEADS:
        fields["head_dim"] = random.choice((8, 14))
    elif model_type == "helium" and random.random() < 0.9:
        fields["head_dim"] = width // heads
    else:
        fields |= _maybe(random, 0.2, head_dim=random.choice((width // heads, 10)))
    return fields


_WIDE_HEADS = {
    *("gemma", "gemma2", "gemma3_text", "qwen3"),
    *("seed_oss", "ernie4_5", "glm", "glm4"),
    *("qwen3_moe", "gpt_oss", "ernie4_5_moe", "qwen3_next"),
    *("vaultgemma", "internlm3", "iquestcoder", "cwm", "ministral", "hunyuan_v1_dense"),
    *("hunyuan_v1_moe", "ministral3"),
}
"""Families whose head_dim does not follow from other fields."""


def _old_sizes(model_type: str, random: Random) -> Fields:
    heads = random.choice((2, 3, 4) if model_type in ("mpt", "bloom") else (2, 4))
    if model_type == "codegen" and random.random() < 0.9:
        heads = 4
    values = (heads * random.choice((8, 12)), random.randint(1, 3), heads, LONGEST)
    new = random.random() < 0.4
    names = _NEW_NAMES if new else _OLD_NAMES[model_type]
    fields = dict(zip(names, values, strict=True))
    if model_type in ("mpt", "bloom"):  # the longest sequence has one name
        fields[_OLD_NAMES[model_type][-1]] = LONGEST
    return fields


_GPT2_NAMES = ("n_embd", "n_layer", "n_head", "n_positions")
_OLD_NAMES = {
    **dict.fromkeys(("gpt2", "gptj", "codegen", "gpt_bigcode", "openai-gpt"), _GPT2_NAMES),
    "gpt_neo": ("hidden_size", "num_layers", "num_heads", "max_position_embeddings"),
    "mpt": ("d_model", "n_layers", "n_heads", "max_seq_len"),
    "bloom": ("hidden_size", "n_layer", "n_head", "seq_length"),
}
"""What families call width, layers, heads and the longest sequence besides `_NEW_NAMES`."""


_NEW_NAMES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


# RoPE


def _scaling(random: Random) -> Fields:
    kind = random.choice(("default", "linear", "yarn", "llama3", "dynamic"))
    factor = random.choice((1, 1.0, 2.0, 8.0))
    key = random.choice(("rope_type", "rope_type", "rope_type", "type"))
    fields: Fields = {key: kind}
    if kind != "default":
        fields["factor"] = factor
    if kind == "llama3":
        fields |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind in ("yarn", "llama3"):
        fields |= _maybe(random, 0.5, original_max_position_embeddings=random.choice((8, 16)))
    if kind == "yarn":
        fields |= _maybe(random, 0.2, beta_fast=16, beta_slow=2, attention_factor=0.9)
        fields |= _maybe(random, 0.2, mscale=1.0, truncate=random.random() < 0.5)
    return fields


def _rope(
    random: Random, theta: str = "rope_theta", share: str = "partial_rotary_factor"
) -> Fields:
    fields = _maybe(random, 0.4, **{theta: random.choice((100.0, 5e5))})
    form = random.choice(("none", "none", "old", "new", "both", "nested"))
    if form in ("old", "both"):
        fields["rope_scaling"] = _scaling(random)
    if form in ("new", "both"):
        fields["rope_parameters"] = {**_scaling(random), **_maybe(random, 0.5, rope_theta=300.0)}
    if form == "nested" and random.random() < 0.5:
        fields["rope_parameters"] = _by_layer_type(random)
    fields |= _maybe(random, 0.1, original_max_position_embeddings=random.choice((6, 20)))
    return fields | _maybe(random, 0.1, **{share: random.choice(_FRACTIONS)})


def _partial_rope(random: Random, theta: str, share: str) -> Fields:
    fields = _rope(random, theta, share)
    fields |= _maybe(random, 0.7, **{share: random.choice(_FRACTIONS)})
    if "rope_parameters" in fields:
        nested = _maybe(random, 0.3, partial_rotary_factor=random.choice(_FRACTIONS))
        fields["rope_parameters"] |= nested
    return fields


def _by_layer_type(random: Random) -> Fields:
    def entry() -> Fields:
        plain = {"rope_type": "default"} if random.random() < 0.6 else _scaling(random)
        return plain | _maybe(random, 0.7, rope_theta=random.choice((100.0, 1e4, 1e6)))

    return {name: entry() for name in _TYPES if random.random() < 0.9}


# Windows


def _layer_types(random: Random) -> Fields:
    """A pattern, which `random_file` nearly always repeats over the layers."""
    if random.random() < 0.6:
        return {}
    return {"layer_types": [random.choice(_TYPES) for _ in range(random.randint(1, 4))]}


def _window(random: Random) -> Fields:
    return {"sliding_window": random.choice((*_WINDOWS, None))}


def _optional_window(random: Random) -> Fields:
    fields = _maybe(random, 0.7, use_sliding_window=random.random() < 0.8)
    return fields | _maybe(random, 0.8, **_window(random)) | _layer_types(random)


# Families


def _act(random: Random, field: str) -> Fields:
    return _maybe(random, 0.4, **{field: random.choice(_ACTIVATIONS)})


def _biases(random: Random, *names: str) -> Fields:
    return _maybe(random, 0.5, **{name: random.random() < 0.5 for name in names})


def _gpt2(random: Random) -> Fields:
    fields = _act(random, "activation_function") | _maybe(random, 0.3, n_inner=24)
    return fields | _maybe(
        random,
        0.1,
        scale_attn_weights=False,
        scale_attn_by_inverse_layer_idx=True,
        reorder_and_upcast_attn=True,
        layer_norm_epsilon=1e-3,
    )


def _gptj(random: Random) -> Fields:
    return {"rotary_dim": random.choice((2, 4, 8))} | _act(random, "activation_function")


def _gpt_neox(random: Random) -> Fields:
    fields = _partial_rope(random, "rotary_emb_base", "rotary_pct")
    return (
        fields
        | _act(random, "hidden_act")
        | _biases(random, "attention_bias", "use_parallel_residual")
    )


def _llama(random: Random) -> Fields:
    return (
        _rope(random) | _act(random, "hidden_act") | _biases(random, "attention_bias", "mlp_bias")
    )


def _mistral(random: Random) -> Fields:
    fields = _maybe(random, 0.8, **_window(random)) | _biases(random, "attention_bias")
    return _rope(random) | fields | _layer_types(random)


def _qwen2(random: Random) -> Fields:
    fields = _rope(random) | _optional_window(random) | _biases(random, "attention_bias")
    return fields | _maybe(random, 0.6, max_window_layers=random.randint(0, 5))


def _gemma(random: Random) -> Fields:
    fields = _maybe(random, 0.3, hidden_activation="relu", use_bidirectional_attention=False)
    return fields | _llama(random)


def _gemma2(random: Random) -> Fields:
    fields = _rope(random) | _maybe(random, 0.8, **_window(random)) | _layer_types(random)
    fields |= _biases(random, "attention_bias") | _act(random, "hidden_activation")
    fields |= _maybe(
        random,
        0.4,
        query_pre_attn_scalar=random.choice((3, 24)),
        final_logit_softcapping=random.choice((2.0, None)),
        sliding_window_pattern=random.choice((1, 3)),
        use_sliding_window=False,
    )
    softcaps = (1.5, None, 50.0)
    return fields | _maybe(random, 0.3, attn_logit_softcapping=random.choice(softcaps))


def _gemma3(random: Random) -> Fields:
    fields = _gemma2(random)
    fields |= _maybe(random, 0.3, rope_local_base_freq=random.choice((50.0, 1e6)))
    if random.random() < 0.4:
        fields["rope_parameters"] = _by_layer_type(random)
    if random.random() < 0.7:
        fields.pop("attn_logit_softcapping", None)
    return fields


def _phi3(random: Random) -> Fields:
    fields = _partial_rope(random, "rope_theta", "partial_rotary_factor")
    return fields | _maybe(random, 0.6, **_window(random)) | _act(random, "hidden_act")


def _olmo2(random: Random) -> Fields:
    return _rope(random) | _act(random, "hidden_act") | _biases(random, "attention_bias")


def _smollm3(random: Random) -> Fields:
    fields = _llama(random) | _optional_window(random)
    fields |= _maybe(random, 0.3, no_rope_layer_interval=random.choice((1, 2, 3)))
    if random.random() < 0.4:
        fields["no_rope_layers"] = [random.randint(0, 1) for _ in range(random.choice((3, 4, 6)))]
    return fields | _maybe(random, 0.1, no_rope_layers=[0] * 6)


def _stablelm(random: Random) -> Fields:
    fields = _partial_rope(random, "rope_theta", "partial_rotary_factor")
    fields |= _maybe(random, 0.1, qk_layernorm=True)
    return (
        fields
        | _act(random, "hidden_act")
        | _biases(random, "use_qkv_bias", "use_parallel_residual")
    )


def _seed_oss(random: Random) -> Fields:
    return _llama(random) | _biases(random, "attention_out_bias")


def _ernie(random: Random) -> Fields:
    return _rope(random) | _act(random, "hidden_act") | _biases(random, "use_bias")


def _olmo(random: Random) -> Fields:
    return _olmo2(random) | _maybe(random, 0.1, clip_qkv=8.0)


def _starcoder2(random: Random) -> Fields:
    return _ernie(random) | _maybe(random, 0.6, **_window(random)) | _layer_types(random)


def _phi(random: Random) -> Fields:
    fields = _partial_rope(random, "rope_theta", "partial_rotary_factor")
    return fields | _act(random, "hidden_act") | _biases(random, "qk_layernorm")


def _glm(random: Random) -> Fields:
    fields = _partial_rope(random, "rope_theta", "partial_rotary_factor")
    return fields | _act(random, "hidden_act") | _biases(random, "attention_bias")


# Mixtures of experts


def _experts(random: Random, number: str, used: str = "num_experts_per_tok") -> Fields:
    """Never so many that a token uses all."""
    experts = random.choice((4, 6, 8))
    return {number: experts, used: random.choice((1, 2, 2, 2, 3, 3, 3))}


def _mixtral(random: Random) -> Fields:
    fields = _rope(random) | _act(random, "hidden_act") | _experts(random, "num_local_experts")
    fields |= _maybe(random, 0.1, num_experts=4, router_jitter_noise=0.1)
    return fields | _maybe(random, 0.3, **_window(random))


def _qwen_layers(random: Random) -> Fields:
    fields = _rope(random) | _act(random, "hidden_act") | _experts(random, "num_experts")
    fields |= {"moe_intermediate_size": random.choice((8, 12))}
    fields |= _maybe(random, 0.3, decoder_sparse_step=random.choice((1, 2)))
    dense = random.sample(range(5), random.randint(0, 3))
    fields |= _maybe(random, 0.4, mlp_only_layers=random.choice((None, dense)))
    return fields | _maybe(random, 0.7, norm_topk_prob=random.random() < 0.7)


def _qwen3_moe(random: Random) -> Fields:
    fields = _qwen_layers(random) | _biases(random, "attention_bias")
    fields |= _maybe(random, 0.5, use_sliding_window=random.random() < 0.8)
    return fields | _maybe(random, 0.8, **_window(random))


def _qwen2_moe(random: Random) -> Fields:
    fields = _qwen_layers(random) | _biases(random, "qkv_bias") | _optional_window(random)
    fields["shared_expert_intermediate_size"] = random.choice((24, 24, 24, 48, 10, 0))
    return fields | _maybe(random, 0.6, max_window_layers=random.randint(0, 5))


def _routed(random: Random) -> Fields:
    fields = _experts(random, "n_routed_experts")
    fields |= {"moe_intermediate_size": 12, "n_shared_experts": random.choice((1, 1, 1, 2, 2, 0))}
    fields["n_group"], fields["topk_group"] = random.choice(((1, 1), (1, 1), (2, 1), (2, 2)))
    fields |= _maybe(random, 0.5, norm_topk_prob=random.random() < 0.7)
    fields |= _maybe(random, 0.3, routed_scaling_factor=random.choice((1.5, 2.0)))
    if random.random() < 0.9:
        fields["first_k_dense_replace"] = random.choice((0, 0, 0, 1, 2))
    return fields | _act(random, "hidden_act")


def _deepseek(random: Random) -> Fields:
    fields = _rope(random) | _routed(random) | _biases(random, "attention_bias")
    fields |= {
        "q_lora_rank": random.choice((None, 14)),
        "kv_lora_rank": 12,
        "qk_nope_head_dim": random.choice((6, 8, 8, 9)),
        "qk_rope_head_dim": random.choice((4, 6)),
        "v_head_dim": 7,
        "num_key_value_heads": None,
    }
    scaling = fields.get("rope_parameters", {})
    if scaling.get("rope_type") == "yarn":
        scaling |= _maybe(random, 0.5, mscale=0.7) | _maybe(random, 0.5, mscale_all_dim=0.8)
    return fields | _maybe(random, 0.1, rms_norm_eps=1e-5, head_dim=5)


def _deepseek_v3(random: Random) -> Fields:
    return _deepseek(random) | _maybe(random, 0.1, rope_interleave=False)


def _deepseek_v2(random: Random) -> Fields:
    methods = ("greedy", "group_limited_greedy", "group_limited_greedy", "noaux_tc")
    fields = _deepseek(random) | _maybe(random, 0.9, qk_nope_head_dim=8)
    fields |= _maybe(random, 0.7, topk_method=random.choice(methods))
    if random.random() < 0.95:
        fields["norm_topk_prob"] = False
    return fields | _maybe(random, 0.1, mlp_bias=True)


def _glm4_moe(random: Random) -> Fields:
    fields = _partial_rope(random, "rope_theta", "partial_rotary_factor") | _routed(random)
    return fields | _biases(random, "attention_bias", "use_qk_norm")


def _dots1(random: Random) -> Fields:
    fields = _rope(random) | _routed(random) | _biases(random, "attention_bias")
    fields |= _maybe(random, 0.7, **_window(random)) | _layer_types(random)
    return fields | _maybe(random, 0.6, max_window_layers=random.randint(0, 5))


def _qwen3_next(random: Random) -> Fields:
    fields = _partial_rope(random, "rope_theta", "partial_rotary_factor")
    fields |= _qwen_layers(random) | _biases(random, "attention_bias")
    heads = random.randint(1, 2)
    fields |= {
        "shared_expert_intermediate_size": random.choice((24, 24, 24, 48, 10)),
        "linear_num_key_heads": heads,
        "linear_num_value_heads": heads * random.randint(1, 2),
        "linear_key_head_dim": random.choice((4, 7)),
        "linear_value_head_dim": random.choice((4, 5)),
        "linear_conv_kernel_dim": random.randint(2, 4),
        "rms_norm_eps": 1e-3,  # see references.py
    }
    types = ("linear_attention", "full_attention")
    if random.random() < 0.6:
        kinds = [random.choice(types) for _ in range(random.randint(0, 3))]
        fields["layer_types"] = [types[random.random() < 0.9], *kinds]
    fields["num_hidden_layers"] = random.randint(2, 5)
    if random.random() < 0.9:
        fields["hidden_act"] = "silu"
    return fields | {"full_attention_interval": random.choice((1, 2, 2, 2, 3))}


def _olmoe(random: Random) -> Fields:
    fields = _olmo(random) | _experts(random, "num_experts")
    return fields | _maybe(random, 0.7, norm_topk_prob=random.random() < 0.7)


def _gpt_oss(random: Random) -> Fields:
    fields = _rope(random) | _experts(random, "num_local_experts") | _layer_types(random)
    fields |= _biases(random, "attention_bias") | _maybe(random, 0.7, **_window(random))
    fields |= _maybe(random, 0.3, swiglu_limit=random.choice((0.5, 7)))
    if "sliding_window" not in fields:
        fields["sliding_window"] = 5
    return fields | _maybe(random, 0.1, swiglu_alpha=1.0, hidden_act="gelu")


def _ernie_moe(random: Random) -> Fields:
    fields = _rope(random) | _act(random, "hidden_act")
    fields |= _experts(random, "moe_num_experts", "moe_k")
    fields |= {"moe_intermediate_size": 12} | _maybe(random, 0.1, use_bias=random.random() < 0.5)
    fields |= _maybe(
        random,
        0.4,
        moe_num_shared_experts=random.randint(0, 2),
        moe_layer_start_index=random.randint(0, 2),
        moe_layer_end_index=random.choice((-1, 1, 2, 9)),
        moe_layer_interval=random.randint(1, 2),
    )
    return fields | _maybe(random, 0.1, moe_norm_min=random.choice((1e-12, 0.5)))


# GPTs


def _gpt_neo(random: Random) -> Fields:
    kinds = [random.choice(("global", "local")) for _ in range(random.randint(1, 2))]
    fields = {"attention_types": kinds}  # a pattern, which `random_file` repeats over the layers
    fields |= _maybe(random, 0.7, window_size=random.choice(_WINDOWS))
    fields |= _maybe(random, 0.1, attention_layers=["global", "local"])
    return fields | _act(random, "activation_function") | _maybe(random, 0.3, intermediate_size=24)


def _bigcode(random: Random) -> Fields:
    fields = _maybe(random, 0.6, multi_query=random.random() < 0.5, n_inner=24)
    fields |= _maybe(random, 0.1, scale_attn_weights=False, attention_softmax_in_fp32=False)
    return fields | _act(random, "activation_function")


def _gpt1(random: Random) -> Fields:
    fields = _maybe(random, 0.5, afn=random.choice(("gelu", "relu", "silu", "swish", "gelu_new")))
    return fields | _maybe(random, 0.1, n_inner=24, layer_norm_epsilon=1e-3)


def _opt(random: Random) -> Fields:
    fields = {"ffn_dim": random.choice((16, 40))} | _act(random, "activation_function")
    fields |= _biases(random, "enable_bias", "do_layer_norm_before")
    fields |= _biases(random, "layer_norm_elementwise_affine")
    return fields | _maybe(random, 0.1, word_embed_proj_dim=8, _remove_final_layer_norm=True)


def _biogpt(random: Random) -> Fields:
    fields = _act(random, "hidden_act") | _biases(random, "scale_embedding")
    return fields | _maybe(random, 0.3, layer_norm_eps=1e-3)


def _mpt(random: Random) -> Fields:
    attention = _maybe(random, 0.3, softmax_scale=random.choice((0.2, None)), attn_impl="torch")
    attention |= _maybe(random, 0.1, clip_qkv=random.choice((6.0, None)), qk_ln=True)
    attention |= _maybe(random, 0.1, alibi=False, alibi_bias_max=random.choice((4, 8)))
    fields = _maybe(random, 0.6, attn_config=attention, layer_norm_epsilon=1e-3)
    fields |= _maybe(random, 0.1, expansion_ratio=random.choice((2, 4)), no_bias=False)
    return fields | _maybe(random, 0.1, logit_scale=0.5, learned_pos_emb=False)


def _bloom(random: Random) -> Fields:
    fields = _maybe(random, 0.3, layer_norm_epsilon=1e-3, pretraining_tp=random.choice((1, 2)))
    fields |= _maybe(random, 0.1, apply_residual_connection_post_layernorm=True)
    return fields | _maybe(random, 0.2, slow_but_exact=True, n_embed=32, hidden_dropout=0.0)


def _falcon(random: Random) -> Fields:
    names = ("new_decoder_architecture", "multi_query", "parallel_attn", "bias")
    fields = _rope(random) | _act(random, "activation") | _biases(random, *names)
    fields |= _maybe(random, 0.4, num_kv_heads=random.choice((1, 2)), ffn_hidden_size=24)
    fields |= _maybe(random, 0.2, num_ln_in_parallel_attn=random.choice((1, 2, None)))
    return fields | _maybe(random, 0.1, alibi=True, layer_norm_epsilon=1e-3)


# Scales


def _granite(random: Random) -> Fields:
    fields = _maybe(
        random,
        0.6,
        embedding_multiplier=random.choice((1, 3.0)),
        residual_multiplier=random.choice((0.22, 2)),
        logits_scaling=random.choice((0.3, 3.0, 8)),
    )
    # Without a scale of the scores, they are so large that the rounding of RoPE's angles shows.
    return _llama(random) | fields | {"attention_multiplier": random.choice((0.05, 0.2))}


def _granite_swa(random: Random) -> Fields:
    fields = _granite(random) | _maybe(random, 0.7, **_window(random)) | _layer_types(random)
    if random.random() < 0.5:
        thetas = (0, 100.0, 100.0, 1e4)
        fields["layer_rope_theta"] = [random.choice(thetas) for _ in range(random.choice((3, 4)))]
    return fields


def _hyperclovax(random: Random) -> Fields:
    fields = _granite(random) | _biases(random, "use_post_norm")
    return fields | _maybe(random, 0.3, attention_multiplier=None)


def _cohere(random: Random) -> Fields:
    fields = _maybe(random, 0.5, logit_scale=random.choice((0.25, 2.0)), layer_norm_eps=1e-3)
    return _olmo2(random) | fields | _maybe(random, 0.1, use_qk_norm=True)


def _cohere2(random: Random) -> Fields:
    fields = _cohere(random) | _maybe(random, 0.7, **_window(random)) | _layer_types(random)
    return fields | _maybe(random, 0.3, sliding_window_pattern=random.choice((1, 2, 3)))


# LLaMA with one thing more


def _nemotron(random: Random) -> Fields:
    fields = _partial_rope(random, "rope_theta", "partial_rotary_factor")
    fields |= _act(random, "hidden_act") | _maybe(random, 0.3, norm_eps=1e-3)
    return fields | _biases(random, "attention_bias", "mlp_bias")


def _apertus(random: Random) -> Fields:
    fields = _olmo2(random)
    return fields | _maybe(random, 0.5, hidden_act="xielu", rope_parameters=None)


def _hunyuan(random: Random) -> Fields:
    fields = _olmo2(random)
    if random.random() < 0.3:
        fields["rope_scaling"] = {"type": "dynamic", "alpha": 100.0, "factor": 1.0}
        fields["rope_scaling"] |= _maybe(random, 0.3, beta_fast=32, mscale=1.0)
    return fields


def _nanochat(random: Random) -> Fields:
    softcaps = (2.0, None)
    return _olmo2(random) | _maybe(random, 0.4, final_logit_softcapping=random.choice(softcaps))


def _internlm3(random: Random) -> Fields:
    fields = _rope(random) | _act(random, "hidden_act") | _biases(random, "bias", "qkv_bias")
    return fields | _biases(random, "attention_bias", "mlp_bias")


def _iquestcoder(random: Random) -> Fields:
    return _llama(random) | _maybe(random, 0.1, clip_qkv=8.0, use_sliding_window=True)


# Layers that differ


def _cwm(random: Random) -> Fields:
    fields = _mistral(random) | _act(random, "hidden_act") | _biases(random, "mlp_bias")
    return fields | _maybe(random, 0.3, rope_parameters=None)


def _olmo3(random: Random) -> Fields:
    fields = _olmo2(random) | _maybe(random, 0.8, **_window(random)) | _layer_types(random)
    if random.random() < 0.4:
        fields["rope_parameters"] = _by_layer_type(random)
    return fields


def _exaone4(random: Random) -> Fields:
    fields = _rope(random) | _act(random, "hidden_act") | _layer_types(random)
    fields |= _maybe(random, 0.8, **_window(random))
    return fields | _maybe(random, 0.4, sliding_window_pattern=random.choice((1, 2, "LG", None)))


def _lfm2(random: Random) -> Fields:
    fields = _rope(random) | _maybe(random, 0.4, conv_L_cache=random.choice((1, 2, 4)))
    fields |= _biases(random, "block_auto_adjust_ff_dim") | {"block_multiple_of": 8}
    fields |= _maybe(random, 0.2, block_ff_dim=24, tie_embedding=False, conv_bias=True)
    fields |= _maybe(random, 0.2, block_ffn_dim_multiplier=random.choice((0.7, None)))
    if random.random() < 0.7:
        types = ("conv", "full_attention")
        fields["layer_types"] = [random.choice(types) for _ in range(random.randint(1, 4))]
    return fields | _maybe(random, 0.3, full_attn_idxs=[0, 2])


# State-space models


def _mamba2(random: Random) -> Fields:
    heads = random.choice((2, 4))
    dim = random.choice((4, 6))
    fields = {
        "hidden_size": heads * dim,
        "expand": random.choice((1, 2, 2, 2)),
        "head_dim": dim,
        "state_size": random.choice((3, 8)),
        "n_groups": random.choice((1, heads)),
        "conv_kernel": random.randint(1, 4),
        "chunk_size": random.choice((4, 256)),
        "layer_norm_epsilon": random.choice((1e-5, 1e-3)),
    }
    fields["num_heads"] = fields["expand"] * heads if random.random() < 0.9 else heads
    fields |= _maybe(random, 0.3, time_step_limit=random.choice(((0.0, 0.5), (0.01, float("inf")))))
    fields |= _maybe(random, 0.1, hidden_act=random.choice(_ACTIVATIONS), residual_in_fp32=False)
    return fields | _biases(random, "use_bias", "use_conv_bias")


# Mixtures of scaled and of shared experts


def _granite_moe(random: Random) -> Fields:
    return _granite(random) | _experts(random, "num_local_experts")


def _hunyuan_moe(random: Random) -> Fields:
    fields = _hunyuan(random) | _experts(random, "num_experts", "moe_topk")
    if random.random() < 0.3:
        fields["moe_topk"] = [random.choice((2, 3)) for _ in range(random.choice((3, 4)))]
    return fields | _maybe(random, 0.1, moe_intermediate_size=12, use_mixed_mlp_moe=True)


# Attention of another kind


def _diffllama(random: Random) -> Fields:
    return _olmo2(random) | _maybe(random, 0.2, lambda_std_dev=0.3, mlp_bias=True)


def _ministral3(random: Random) -> Fields:
    fields = _mistral(random) | _act(random, "hidden_act")
    for name in ("rope_parameters", "rope_scaling"):
        if name in fields and random.random() < 0.9:
            steps = random.choice((3, 5, LONGEST - 1, LONGEST, 64))
            fields[name] |= {"llama_4_scaling_beta": random.choice((0.1, 0.5, 0.0))}
            fields[name] |= _maybe(random, 0.8, original_max_position_embeddings=steps)
    return fields | _maybe(random, 0.1, sliding_window=None)


def _persimmon(random: Random) -> Fields:
    fields = _partial_rope(random, "rope_theta", "partial_rotary_factor")
    return fields | _act(random, "hidden_act") | _biases(random, "qk_layernorm")


def _spaces(random: Random) -> Fields:
    fields = {
        "mamba_n_heads": random.choice((2, 4)),
        "mamba_d_state": random.choice((3, 8)),
        "mamba_n_groups": random.choice((1, 2)),
        "mamba_d_conv": random.randint(1, 4),
        "mamba_chunk_size": random.choice((4, 256)),
        "hidden_act": "silu" if random.random() < 0.9 else "gelu",
    }
    fields |= _maybe(random, 0.3, time_step_limit=random.choice(((0.0, 0.5), (0.01, float("inf")))))
    fields |= _maybe(random, 0.1, mamba_d_head=random.choice((8, 12, "auto")))
    fields |= dict.fromkeys(
        ("mamba_proj_bias", "mlp_bias", "projectors_bias"), random.random() < 0.4
    )
    fields |= _maybe(random, 0.1, mamba_proj_bias=True)
    return fields | _biases(random, "mamba_conv_bias", "attention_bias")


def _bamba(random: Random) -> Fields:
    fields = _rope(random) | _spaces(random) | {"mamba_expand": random.choice((1, 2, 2))}
    fields["num_hidden_layers"] = random.randint(2, 4)
    if "rope_parameters" in fields:
        share = random.choice(_FRACTIONS)
        fields["rope_parameters"] |= _maybe(random, 0.3, partial_rotary_factor=share)
    attending = [layer for layer in range(4) if random.random() < 0.5]
    return fields | _maybe(random, 0.9, attn_layer_indices=attending)


def _falcon_h1(random: Random) -> Fields:
    fields = _rope(random) | _spaces(random)
    width = random.choice((None, 8 * fields["mamba_n_heads"]))
    fields |= {"mamba_d_ssm": width, "mamba_expand": random.choice((1, 2))}
    scales = ("attention_in", "attention_out", "ssm_in", "ssm_out", "key", "embedding", "lm_head")
    fields |= _maybe(
        random, 0.5, **{f"{name}_multiplier": random.choice((0.4, 1.3)) for name in scales}
    )
    fields |= _maybe(random, 0.5, mlp_multipliers=[0.5, 1.2])
    fields |= _maybe(random, 0.5, ssm_multipliers=[0.6, 0.8, 1.1, 1.2, random.choice((0.5, 1.5))])
    return fields | _biases(random, "mamba_rms_norm", "mamba_norm_before_gate")


_FLAGS = {
    "gpt2": _gpt2,
    "gptj": _gptj,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen2,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "phi3": _phi3,
    "olmo2": _olmo2,
    "smollm3": _smollm3,
    "stablelm": _stablelm,
    "seed_oss": _seed_oss,
    "ernie4_5": _ernie,
    "helium": _llama,
    "arcee": _llama,
    "olmo": _olmo,
    "starcoder2": _starcoder2,
    "phi": _phi,
    "glm": _glm,
    "glm4": _glm,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "qwen2_moe": _qwen2_moe,
    "olmoe": _olmoe,
    "flex_olmo": _olmoe,
    "gpt_oss": _gpt_oss,
    "ernie4_5_moe": _ernie_moe,
    "deepseek_v3": _deepseek_v3,
    "deepseek_v2": _deepseek_v2,
    "glm4_moe": _glm4_moe,
    "dots1": _dots1,
    "qwen3_next": _qwen3_next,
    "gpt_neo": _gpt_neo,
    "codegen": _gptj,
    "gpt_bigcode": _bigcode,
    "openai-gpt": _gpt1,
    "opt": _opt,
    "biogpt": _biogpt,
    "mpt": _mpt,
    "bloom": _bloom,
    "falcon": _falcon,
    "granite": _granite,
    "granite_swa": _granite_swa,
    "hyperclovax": _hyperclovax,
    "cohere": _cohere,
    "cohere2": _cohere2,
    "nemotron": _nemotron,
    "jais2": _llama,
    "apertus": _apertus,
    "hunyuan_v1_dense": _hunyuan,
    "nanochat": _nanochat,
    "internlm3": _internlm3,
    "iquestcoder": _iquestcoder,
    "vaultgemma": _gemma2,
    "ministral": _mistral,
    "cwm": _cwm,
    "olmo3": _olmo3,
    "exaone4": _exaone4,
    "lfm2": _lfm2,
    "mamba2": _mamba2,
    "granitemoe": _granite_moe,
    "hunyuan_v1_moe": _hunyuan_moe,
    "diffllama": _diffllama,
    "ministral3": _ministral3,
    "persimmon": _persimmon,
    "bamba": _bamba,
    "falcon_h1": _falcon_h1,
}
assert _FLAGS.keys() == FAMILIES.keys()
