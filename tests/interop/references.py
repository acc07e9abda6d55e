"""Small random models made by transformers, one or more of each family."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from tests.measured import assert_within
from tests.parametrized import one_in

transformers = pytest.importorskip("transformers", reason="see requirements-dev.txt")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

VOCABULARY = 61
LONGEST = 48
WINDOW = 7

_TOKENS = {
    "vocab_size": VOCABULARY,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_SIZES = {
    **_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": LONGEST,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_OLD_SIZES = {**_TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LONGEST}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_NO_SEED_DROPOUT = {"attention_dropout": 0.0, "residual_dropout": 0.0}
_NO_BIOGPT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_NO_FFN_SIZES = {name: size for name, size in _SIZES.items() if name != "intermediate_size"}
_MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.1,
    "logits_scaling": 2.0,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_GEMMA2 = {
    **_GROUPED,
    "head_dim": 16,
    "sliding_window": WINDOW,
    "query_pre_attn_scalar": 24,
    "attn_logit_softcapping": 1.5,
    "final_logit_softcapping": 2.0,
}
_GEMMA3 = {
    **_GROUPED,
    "num_hidden_layers": 7,
    "head_dim": 16,
    "sliding_window": WINDOW,
    "query_pre_attn_scalar": 24,
}

_EXPERTS = {"num_experts_per_tok": 3, "moe_intermediate_size": 20}
_QWEN_MOE = {**_GROUPED, **_EXPERTS, "num_experts": 6}
_FEW_EXPERTS = {**_GROUPED, "num_experts_per_tok": 3, "num_experts": 6}
_FEW_LOCAL = {**_GROUPED, "num_experts_per_tok": 3, "num_local_experts": 6}
_GPT_OSS = {**_FEW_LOCAL, "head_dim": 16, "sliding_window": WINDOW}
_ERNIE = {
    **_GROUPED,
    "head_dim": 16,
    "moe_intermediate_size": 20,
    "moe_k": 3,
    "moe_num_experts": 6,
}
_ROUTED = {**_GROUPED, **_EXPERTS, "n_routed_experts": 8, "n_shared_experts": 2}
_DEEPSEEK = {
    **_ROUTED,
    "num_key_value_heads": 4,
    "q_lora_rank": 14,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8,
    "v_head_dim": 6,
    "first_k_dense_replace": 1,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
_QWEN3_NEXT = {
    **_QWEN_MOE,
    "head_dim": 16,
    "shared_expert_intermediate_size": 20,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
    "linear_conv_kernel_dim": 3,
    # A smaller one magnifies float32 rounding in both libraries, where a head's output is near 0.
    "rms_norm_eps": 1e-3,
}

_MAMBA2 = {
    **_TOKENS,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_heads": 8,
    "head_dim": 8,
    "state_size": 6,
    "n_groups": 2,
    "conv_kernel": 3,
    "chunk_size": 5,
}

_BAMBA = {
    **_GROUPED,
    "attn_layer_indices": [1],
    "mamba_n_heads": 8,
    "mamba_d_state": 6,
    "mamba_n_groups": 2,
    "mamba_d_conv": 3,
    "mamba_chunk_size": 5,
}
_FALCON_H1 = {
    "mamba_n_heads": 4,
    "mamba_d_state": 6,
    "mamba_n_groups": 2,
    "mamba_d_conv": 3,
    "mamba_chunk_size": 5,
}
_FALCON_SCALES = {
    "embedding_multiplier": 3.0,
    "lm_head_multiplier": 0.4,
    "key_multiplier": 0.7,
    "attention_in_multiplier": 0.8,
    "attention_out_multiplier": 0.9,
    "ssm_in_multiplier": 1.25,
    "ssm_out_multiplier": 0.6,
    "mlp_multipliers": [0.9, 1.3],
    "ssm_multipliers": [0.7, 0.8, 1.1, 1.2, 0.5],
}

REFERENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2Config", {**_OLD_SIZES, **_NO_DROPOUT}),
    "GPT-2, wide, untied": (
        "GPT2Config",
        {
            **_OLD_SIZES,
            **_NO_DROPOUT,
            "n_inner": 40,
            "activation_function": "relu",
            "tie_word_embeddings": False,
        },
    ),
    "LLaMA 2": ("LlamaConfig", _SIZES),
    "LLaMA 3": ("LlamaConfig", {**_GROUPED, "rope_parameters": _LLAMA3_ROPE}),
    "LLaMA, biased, wide heads, tied": (
        "LlamaConfig",
        {
            **_GROUPED,
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 16,
            "tie_word_embeddings": True,
            "hidden_act": "gelu",
        },
    ),
    "LLaMA, YaRN": (
        "LlamaConfig",
        {
            **_GROUPED,
            "rope_parameters": _YARN,
        },
    ),
    "LLaMA, YaRN with its own scale, not rounded": (
        "LlamaConfig",
        {
            **_GROUPED,
            "rope_parameters": {**_YARN, "attention_factor": 0.9, "truncate": False},
        },
    ),
    "LLaMA, linear": (
        "LlamaConfig",
        {
            **_GROUPED,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
        },
    ),
    "Mistral": ("MistralConfig", {**_GROUPED, "sliding_window": WINDOW}),
    "Mistral, no window": ("MistralConfig", {**_GROUPED, "sliding_window": None}),
    "Qwen2": ("Qwen2Config", _GROUPED),
    "Qwen2, windows": (
        "Qwen2Config",
        {
            **_GROUPED,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 1,
        },
    ),
    "Qwen3": ("Qwen3Config", {**_GROUPED, "head_dim": 16}),
    "GPT-NeoX": ("GPTNeoXConfig", _SIZES),
    "GPT-NeoX, sequential": (
        "GPTNeoXConfig",
        {**_SIZES, "use_parallel_residual": False, "rotary_pct": 0.5, "attention_bias": False},
    ),
    "Gemma": ("GemmaConfig", {**_GROUPED, "head_dim": 16}),
    "Gemma 2": ("Gemma2Config", _GEMMA2),
    "Gemma 3": ("Gemma3TextConfig", _GEMMA3),
    "Gemma 3, stretched": (
        "Gemma3TextConfig",
        {
            **_GEMMA3,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
    "Gemma 3, stretched in all layers, not alike": (
        "Gemma3TextConfig",
        {
            **_GEMMA3,
            "rope_parameters": {
                "full_attention": _LLAMA3_ROPE,
                "sliding_attention": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "rope_theta": 100.0,
                    "original_max_position_embeddings": 12,
                },
            },
        },
    ),
    "Phi-3": ("Phi3Config", {**_GROUPED, "sliding_window": WINDOW}),
    "Phi-4-mini": ("Phi3Config", {**_GROUPED, "partial_rotary_factor": 0.75}),
    "OLMo 2": ("Olmo2Config", _GROUPED),
    "SmolLM3": ("SmolLM3Config", _GROUPED),
    "StableLM": ("StableLmConfig", {**_GROUPED, "use_qkv_bias": True}),
    "StableLM, parallel": (
        "StableLmConfig",
        {**_GROUPED, "use_parallel_residual": True, "partial_rotary_factor": 0.5},
    ),
    "GPT-J": ("GPTJConfig", {**_OLD_SIZES, **_NO_DROPOUT, "rotary_dim": 4}),
    "Seed-OSS": ("SeedOssConfig", {**_GROUPED, "head_dim": 16, **_NO_SEED_DROPOUT}),
    "Seed-OSS, biased": (
        "SeedOssConfig",
        {
            **_GROUPED,
            **_NO_SEED_DROPOUT,
            "head_dim": 16,
            "attention_out_bias": True,
            "mlp_bias": True,
        },
    ),
    "ERNIE 4.5": ("Ernie4_5Config", {**_GROUPED, "head_dim": 16}),
    "ERNIE 4.5, biased, untied": (
        "Ernie4_5Config",
        {**_GROUPED, "head_dim": 16, "use_bias": True, "tie_word_embeddings": False},
    ),
    "Helium": ("HeliumConfig", {**_GROUPED, "head_dim": 8}),
    "Arcee": ("ArceeConfig", {**_GROUPED, "head_dim": 16}),
    "Arcee, biased": (
        "ArceeConfig",
        {**_GROUPED, "head_dim": 8, "attention_bias": True, "mlp_bias": True},
    ),
    "OLMo": ("OlmoConfig", _GROUPED),
    "StarCoder2": ("Starcoder2Config", {**_GROUPED, "sliding_window": WINDOW}),
    "StarCoder2, no biases, untied": (
        "Starcoder2Config",
        {**_GROUPED, "use_bias": False, "tie_word_embeddings": False},
    ),
    "Phi": ("PhiConfig", _GROUPED),
    "Phi, QK norm": ("PhiConfig", {**_SIZES, "qk_layernorm": True}),
    "GLM": ("GlmConfig", {**_GROUPED, "head_dim": 16}),
    "GLM, no biases": ("GlmConfig", {**_GROUPED, "head_dim": 16, "attention_bias": False}),
    "GLM-4": ("Glm4Config", {**_GROUPED, "head_dim": 16}),
    "Mixtral": ("MixtralConfig", _FEW_LOCAL),
    "Qwen3-MoE": ("Qwen3MoeConfig", {**_QWEN_MOE, "head_dim": 16, "norm_topk_prob": True}),
    "Qwen3-MoE, some layers dense": (
        "Qwen3MoeConfig",
        {**_QWEN_MOE, "head_dim": 8, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
    ),
    "Qwen2-MoE": ("Qwen2MoeConfig", {**_QWEN_MOE, "shared_expert_intermediate_size": 40}),
    "OLMoE": ("OlmoeConfig", _FEW_EXPERTS),
    "FlexOlmo": ("FlexOlmoConfig", {**_FEW_EXPERTS, "norm_topk_prob": True}),
    "gpt-oss": ("GptOssConfig", _GPT_OSS),
    "gpt-oss, unscaled": (
        "GptOssConfig",
        {**_GPT_OSS, "rope_parameters": {"rope_type": "default"}},
    ),
    "DeepSeek-V3": ("DeepseekV3Config", {**_DEEPSEEK, "n_group": 2, "topk_group": 1}),
    "DeepSeek-V3, YaRN, biased, queries not compressed": (
        "DeepseekV3Config",
        {
            **_DEEPSEEK,
            "q_lora_rank": None,
            "n_group": 4,
            "topk_group": 2,
            "attention_bias": True,
            "norm_topk_prob": False,
            "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
        },
    ),
    "DeepSeek-V2": ("DeepseekV2Config", {**_DEEPSEEK, "rope_parameters": _YARN}),
    "DeepSeek-V2, groups": (
        "DeepseekV2Config",
        {**_DEEPSEEK, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
    ),
    "GLM-4.5": ("Glm4MoeConfig", {**_ROUTED, "head_dim": 16, "attention_bias": True}),
    "GLM-4.5, QK norm": ("Glm4MoeConfig", {**_ROUTED, "head_dim": 8, "use_qk_norm": True}),
    "dots.llm1": (
        "Dots1Config",
        {**_ROUTED, "first_k_dense_replace": 1, "sliding_window": WINDOW, "max_window_layers": 2},
    ),
    "Qwen3-Next": ("Qwen3NextConfig", _QWEN3_NEXT),
    "Qwen3-Next, biased, mostly attention": (
        "Qwen3NextConfig",
        {
            **_QWEN3_NEXT,
            "attention_bias": True,
            "linear_num_value_heads": 2,
            "layer_types": ["full_attention", "linear_attention", *2 * ["full_attention"]],
            "mlp_only_layers": [1],
        },
    ),
    "ERNIE 4.5 MoE": ("Ernie4_5_MoeConfig", _ERNIE),
    "ERNIE 4.5 MoE, every other layer, nothing shared": (
        "Ernie4_5_MoeConfig",
        {**_ERNIE, "moe_num_shared_experts": 0, "moe_layer_interval": 2},
    ),
    "GPT-1": ("OpenAIGPTConfig", {**_OLD_SIZES, **_NO_DROPOUT}),
    "GPT-Neo": (
        "GPTNeoConfig",
        {
            **_TOKENS,
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "max_position_embeddings": LONGEST,
            "attention_types": [[["global", "local"], 2]],
            "window_size": WINDOW,
        },
    ),
    "CodeGen": ("CodeGenConfig", {**_OLD_SIZES, **_NO_DROPOUT, "rotary_dim": 4}),
    "StarCoder": ("GPTBigCodeConfig", {**_OLD_SIZES, **_NO_DROPOUT}),
    "StarCoder, all key heads": (
        "GPTBigCodeConfig",
        {**_OLD_SIZES, **_NO_DROPOUT, "multi_query": False, "n_inner": 40},
    ),
    "Nemotron": ("NemotronConfig", {**_GROUPED, "head_dim": 16}),
    "Nemotron, biased": (
        "NemotronConfig",
        {**_GROUPED, "attention_bias": True, "mlp_bias": True, "partial_rotary_factor": 1.0},
    ),
    "Jais 2": ("Jais2Config", _GROUPED),
    "Apertus": ("ApertusConfig", {**_GROUPED, "rope_parameters": _LLAMA3_ROPE}),
    "Apertus, SiLU": (
        "ApertusConfig",
        {**_GROUPED, "hidden_act": "silu", "rope_parameters": {"rope_type": "default"}},
    ),
    "HunYuan": ("HunYuanDenseV1Config", {**_GROUPED, "head_dim": 16}),
    "HunYuan, static NTK": (
        "HunYuanDenseV1Config",
        {
            **_GROUPED,
            "head_dim": 16,
            "rope_parameters": {"rope_type": "dynamic", "factor": 1.0, "alpha": 1000.0},
        },
    ),
    "nanochat": ("NanoChatConfig", _GROUPED),
    "OPT": ("OPTConfig", {**_NO_FFN_SIZES, "ffn_dim": 48}),
    "OPT, post-norm, no biases": (
        "OPTConfig",
        {
            **_NO_FFN_SIZES,
            "ffn_dim": 48,
            "do_layer_norm_before": False,
            "enable_bias": False,
            "activation_function": "gelu",
        },
    ),
    "OPT, no gains": (
        "OPTConfig",
        {**_NO_FFN_SIZES, "ffn_dim": 48, "layer_norm_elementwise_affine": False},
    ),
    "BioGPT": ("BioGptConfig", {**_SIZES, **_NO_BIOGPT_DROPOUT}),
    "MPT": (
        "MptConfig",
        {**_TOKENS, "d_model": 32, "n_heads": 4, "n_layers": 4, "max_seq_len": LONGEST},
    ),
    "MPT, 6 heads, scaled": (
        "MptConfig",
        {
            **_TOKENS,
            "d_model": 48,
            "n_heads": 6,
            "n_layers": 2,
            "max_seq_len": LONGEST,
            "attn_config": {"softmax_scale": 0.3},
        },
    ),
    "BLOOM": (
        "BloomConfig",
        {**_TOKENS, "hidden_size": 32, "n_layer": 2, "n_head": 4, "seq_length": LONGEST},
    ),
    "BLOOM, 6 heads": (
        "BloomConfig",
        {**_TOKENS, "hidden_size": 48, "n_layer": 2, "n_head": 6, "seq_length": LONGEST},
    ),
    "Falcon": ("FalconConfig", {**_NO_FFN_SIZES, "ffn_hidden_size": 48}),
    "Falcon 40B": (
        "FalconConfig",
        {**_NO_FFN_SIZES, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "Falcon 2": (
        "FalconConfig",
        {
            **_NO_FFN_SIZES,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
        },
    ),
    "Falcon, sequential, biased": (
        "FalconConfig",
        {**_NO_FFN_SIZES, "parallel_attn": False, "multi_query": False, "bias": True},
    ),
    "Granite": ("GraniteConfig", {**_GROUPED, **_MULTIPLIERS}),
    "Granite, windows": (
        "GraniteSWAConfig",
        {
            **_GROUPED,
            **_MULTIPLIERS,
            "sliding_window": WINDOW,
            "layer_rope_theta": [0, 100.0, 1e4, 100.0],
        },
    ),
    "HyperCLOVA X": ("HyperCLOVAXConfig", {**_GROUPED, **_MULTIPLIERS}),
    "HyperCLOVA X, pre-norm": ("HyperCLOVAXConfig", {**_GROUPED, "use_post_norm": False}),
    "Cohere": ("CohereConfig", {**_GROUPED, "logit_scale": 0.25}),
    "Cohere 2": ("Cohere2Config", {**_GROUPED, "sliding_window": WINDOW}),
    "Ministral": (
        "MinistralConfig",
        {
            **_GROUPED,
            "head_dim": 16,
            "sliding_window": WINDOW,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
    ),
    "CWM": ("CwmConfig", {**_GROUPED, "bos_token_id": 0, "head_dim": 16, "sliding_window": WINDOW}),
    "GraniteMoE": ("GraniteMoeConfig", {**_FEW_LOCAL, **_MULTIPLIERS}),
    "GraniteMoE, biased, tied": (
        "GraniteMoeConfig",
        {**_FEW_LOCAL, **_MULTIPLIERS, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "HunYuan MoE": (
        "HunYuanMoEV1Config",
        {**_GROUPED, "head_dim": 8, "num_experts": 6, "moe_topk": 3},
    ),
    "HunYuan MoE, experts by layer, static NTK": (
        "HunYuanMoEV1Config",
        {
            **_GROUPED,
            "num_experts": 6,
            "moe_topk": [2, 3, 6, 2],
            "head_dim": 16,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "dynamic", "factor": 1.0, "alpha": 1000.0},
        },
    ),
    "DiffLlama": ("DiffLlamaConfig", _GROUPED),
    "DiffLlama, biased, wide heads": (
        "DiffLlamaConfig",
        {**_SIZES, "head_dim": 16, "attention_bias": True, "hidden_act": "gelu"},
    ),
    "Ministral 3": (
        "Ministral3Config",
        {
            **_GROUPED,
            "head_dim": 16,
            "rope_parameters": {
                **_YARN,
                "original_max_position_embeddings": 6,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.4,
            },
        },
    ),
    "Ministral 3, windows, RoPE not scaled": (
        "Ministral3Config",
        {
            **_GROUPED,
            "head_dim": 8,
            "sliding_window": WINDOW,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 100.0,
                "original_max_position_embeddings": 5,
                "llama_4_scaling_beta": 0.7,
            },
        },
    ),
    "Persimmon": ("PersimmonConfig", _SIZES),
    "Persimmon, no QK norm": (
        "PersimmonConfig",
        {**_SIZES, "qk_layernorm": False, "partial_rotary_factor": 1.0, "hidden_act": "gelu"},
    ),
    "OLMo 3": ("Olmo3Config", {**_GROUPED, "sliding_window": WINDOW}),
    "OLMo 3, stretched": (
        "Olmo3Config",
        {
            **_GROUPED,
            "sliding_window": WINDOW,
            "rope_parameters": {
                "full_attention": _LLAMA3_ROPE,
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
    "EXAONE 4": ("Exaone4Config", {**_GROUPED, "sliding_window": WINDOW}),
    "EXAONE 4, no windows": (
        "Exaone4Config",
        {**_GROUPED, "sliding_window": None, "layer_types": ["full_attention"] * 4},
    ),
    "VaultGemma": ("VaultGemmaConfig", _GEMMA2),
    "InternLM 3": ("InternLM3Config", {**_GROUPED, "head_dim": 16}),
    "InternLM 3, biased": (
        "InternLM3Config",
        {**_GROUPED, "head_dim": 8, "attention_bias": True, "mlp_bias": True},
    ),
    "IQuest-Coder": ("IQuestCoderConfig", {**_GROUPED, "head_dim": 16}),
    "Mamba-2": ("Mamba2Config", _MAMBA2),
    "Mamba-2, biased, limited steps": (
        "Mamba2Config",
        {
            **_MAMBA2,
            "n_groups": 1,
            "use_bias": True,
            "use_conv_bias": False,
            "time_step_limit": (0.01, 0.3),
            "tie_word_embeddings": True,
        },
    ),
    "Bamba": ("BambaConfig", _BAMBA),
    "Bamba, biased, mostly attention, all rotated": (
        "BambaConfig",
        {
            **_BAMBA,
            "head_dim": 12,
            "attn_layer_indices": [0, 2, 3],
            "attention_bias": True,
            "mamba_proj_bias": True,
            "mlp_bias": True,
            "mamba_conv_bias": False,
            "rope_parameters": {
                "rope_type": "linear",
                "factor": 4.0,
                "rope_theta": 100.0,
                "partial_rotary_factor": 1.0,
            },
        },
    ),
    "Falcon-H1": (
        "FalconH1Config",
        {**_GROUPED, **_FALCON_H1, **_FALCON_SCALES, "head_dim": 12, "mamba_d_ssm": 24},
    ),
    "Falcon-H1, biased, norm before the gate": (
        "FalconH1Config",
        {
            **_GROUPED,
            **_FALCON_H1,
            **_FALCON_SCALES,
            "mamba_d_ssm": None,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": True,
            "attention_bias": True,
            "mamba_proj_bias": True,
            "projectors_bias": True,
            "mlp_bias": True,
            "time_step_limit": (0.01, 0.5),
            "rope_parameters": _LLAMA3_ROPE,
        },
    ),
    "Falcon-H1, norm after the gate": (
        "FalconH1Config",
        {
            **_GROUPED,
            **_FALCON_H1,
            "mamba_d_ssm": 16,
            "mamba_n_groups": 1,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            "tie_word_embeddings": True,
        },
    ),
    "LFM2": (
        "Lfm2Config",
        {
            **_GROUPED,
            "layer_types": ["conv", "full_attention", "conv", "conv"],
            "block_multiple_of": 16,
        },
    ),
}
"""The class of its config, and what that is given."""

every_reference = pytest.mark.parametrize("name", one_in(2, list(REFERENCES)))

OFTEN = (
    *("GPT-2", "LLaMA 3", "Gemma 3", "Mistral", "BLOOM", "Granite, windows", "LFM2", "Mixtral"),
    *("Mamba-2", "Bamba", "Falcon-H1"),
)
"""References of each kind of position, window, mixer and network; the others are slow in tests of
what depends on no more than that."""

often = pytest.mark.parametrize(
    "name",
    [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in REFERENCES],
)


@functools.cache
def reference(name: str) -> Any:
    """A model in evaluation mode whose weights are large enough for every part to matter."""
    kind, values = REFERENCES[name]
    torch.manual_seed(0)
    return enlarged(from_config(getattr(transformers, kind)(**values)))


@torch.no_grad()
def enlarged(model: Any) -> Any:
    """The model, its weights made so large that every part matters."""
    saved = model.state_dict().keys()
    learned = {name: x for name, x in model.named_buffers() if name in saved}
    buffers = [x for name, x in learned.items() if ".act_fn." not in name]  # xIELU's are fixed
    for tensor in (*model.parameters(), *buffers):
        tensor.add_(0.15 * torch.randn_like(tensor))
    return model


def from_config(config: Any) -> Any:
    """A random model of a config, in float32, its attention written out."""
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return model.float().eval()


def from_folder(folder: Any) -> Any:
    """What transformers makes of a folder; every weight used, none made up."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval()


def tokens(length: int, batch: int = 2, seed: int = 1) -> torch.Tensor:
    """Random tokens (batch, length)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (batch, length), generator=generator)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Equal at every position, relative to the largest logit there."""
    error = (ours - theirs).abs().amax(-1) / theirs.abs().amax(-1)
    assert_within(error.max().item(), tolerance)
