"""Small models that differ in one thing each, swept by the contract tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from components.context import TOKEN_EMBEDDING, Context, LayerInputs
from components.layer_config import LayerConfig
from components.positions import POSITIONS, PositionEncoding
from model_builder import GPT
from model_components import REGISTRIES
from model_config import ModelArchitectureConfig
from model_presets import PRESETS
from recipe.objectives import make_objective
from tests.parametrized import one_in
from training_config import TrainingConfig

ROOT = Path(__file__).parents[1]

SIZES = {
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 32,
    "block_size": 24,
    "vocab_size": 61,
    "attention_backend": "manual",
}

ROPE = {"position_encoding": "rope"}

MOST_PARAMETERS = 10**6
"""Size limit of random models."""

COMPANIONS: dict[str, dict[str, Any]] = {
    "mixer": {
        "linear_n_head": 4,
        "linear_chunk": 5,
        "mamba_head_dim": 8,
        "mamba_state_dim": 6,
        "mamba_chunk": 5,
        "rwkv_head_dim": 8,
        "rwkv_chunk": 5,
    },
    "rope_scaling": {**ROPE, "rope_scaling_factor": 4.0, "rope_original_block_size": 8},
    "residual": {"normalization": "none"},
    "parametrization": {"mup_base_width": 16, "completep_base_depth": 4},
}
"""What a part of a registry needs beside it to do anything."""

OPTIONS: dict[str, dict[str, Any]] = {
    "n_kv_head=2": {"n_kv_head": 2},
    "n_kv_head=1": {"n_kv_head": 1},
    "head_dim=16": {"head_dim": 16},
    "qk_norm": {"qk_norm": True},
    "qk_norm over the projection": {
        "qk_norm": True,
        "qk_norm_over": "projection",
        "n_kv_head": 2,
    },
    "qk_norm_type=layernorm": {
        "qk_norm": True,
        "qk_norm_type": "layernorm",
        "n_kv_head": 2,
        **ROPE,
    },
    "unit offset, qk_norm": {"normalization": "rmsnorm_unit_offset", "qk_norm": True},
    "attention_scale": {"attention_scale": 0.1},
    "attention_scale softcap": {"attention_scale": 0.6, "attention_softcap": 0.5},
    "attention_out_bias=False": {"attention_out_bias": False},
    "head_bias": {"head_bias": True, "weight_tying": False},
    "sliding_window=5": {"sliding_window": 5},
    "sliding_window=1": {"sliding_window": 1},
    "attention_softcap": {"attention_softcap": 0.5},
    "attention_softcap alibi": {"attention_softcap": 0.5, "position_encoding": "alibi"},
    "alibi window": {"position_encoding": "alibi", "sliding_window": 5, "n_kv_head": 2},
    "alibi of 3 heads": {"position_encoding": "alibi", "n_head": 3, "n_embd": 36},
    "attention_bias=False": {"attention_bias": False},
    "bias=False": {"bias": False},
    "bias=False, attention_bias": {"bias": False, "attention_bias": True},
    "untied": {"weight_tying": False},
    "output_softcap": {"output_softcap": 0.5},
    "embedding_scale": {"embedding_scale": 3.0},
    "scales of Granite": {"residual_scale": 0.3, "logit_scale": 0.4, "attention_scale": 0.5},
    "fire, window": {
        "position_encoding": "fire",
        "fire_width": 5,
        "fire_scale": 0.5,
        "fire_threshold": 4.0,
        "sliding_window": 5,
        "attention_sinks": True,
        "n_kv_head": 2,
    },
    "path, window": {
        "position_encoding": "path",
        "path_rank": 6,
        "path_kernel": 2,
        "path_chunk": 5,
        "sliding_window": 9,
        "attention_sinks": True,
        "attention_softcap": 0.5,
        "n_kv_head": 2,
    },
    "path, forget_gate, differential_attention": {
        "position_encoding": "path",
        "path_rank": 0,
        "path_kernel": 0,
        "path_chunk": 4,
        "forget_gate": True,
        "differential_attention": True,
        "qk_norm": True,
        "canon": "b",
    },
    "cope of few positions, window": {
        "position_encoding": "cope",
        "cope_max_positions": 4,
        "sliding_window": 9,
        "attention_sinks": True,
        "attention_softcap": 0.5,
        "n_kv_head": 2,
    },
    "cope, kv_sharing": {
        "position_encoding": "cope",
        "kv_sharing": "false+true",
        "n_kv_head": 2,
    },
    "cope, forget_gate, differential_attention": {
        "position_encoding": "cope",
        "forget_gate": True,
        "differential_attention": True,
        "qk_norm": True,
    },
    "embedding_norm": {"embedding_norm": True, "position_encoding": "alibi"},
    "qk_norm_after_rope": {**ROPE, "qk_norm": True, "qk_norm_after_rope": True, "n_kv_head": 2},
    "ffn_multiplier": {"ffn_multiplier": 2.5, "ffn_multiple_of": 16},
    "ffn_hidden": {"ffn_hidden": 50},
    "rope_fraction": {**ROPE, "rope_fraction": 0.5},
    "rope_theta": {**ROPE, "rope_theta": 100.0},
    "glu of relu2": {"ffn_type": "glu", "activation": "relu2"},
    "geglu of gelu_tanh": {"ffn_type": "geglu", "activation": "gelu_tanh"},
    "value_residual=fixed": {"value_residual": "fixed", "n_kv_head": 2},
    "value_residual=learned": {"value_residual": "learned", "n_layer": 3},
    "attention_sinks": {"attention_sinks": True, "n_kv_head": 2},
    "attention_sinks, window": {"attention_sinks": True, "sliding_window": 5, **ROPE},
    "attention_sinks, alibi": {"attention_sinks": True, "position_encoding": "alibi"},
    "attention_gate=channel": {"attention_gate": "channel", "n_kv_head": 2},
    "attention_gate=head": {"attention_gate": "head", "head_dim": 16},
    "exclusive_attention=full": {"exclusive_attention": "full", "n_kv_head": 2},
    "exclusive_attention=learned": {"exclusive_attention": "learned", "attention_gate": "head"},
    "differential_attention": {
        "differential_attention": True,
        "n_kv_head": 2,
        "attention_gate": "head",
        **ROPE,
    },
    "differential_attention, window": {
        "differential_attention": True,
        "sliding_window": 5,
        "attention_sinks": True,
        "position_encoding": "alibi",
    },
    "query_scaling=ssmax": {"query_scaling": "ssmax", "sliding_window": 5, "n_kv_head": 2},
    "query_scaling=ministral3": {
        "query_scaling": "ministral3",
        "query_scaling_interval": 5,
        "query_scaling_factor": 0.7,
        **ROPE,
    },
    "query_scaling=llama4": {
        "query_scaling": "llama4",
        "query_scaling_interval": 4,
        "query_scaling_factor": 0.7,
    },
    "forget_gate": {"forget_gate": True, "position_encoding": "none", "n_kv_head": 2},
    "forget_gate, alibi": {
        "forget_gate": True,
        "position_encoding": "alibi",
        "sliding_window": 5,
        "attention_softcap": 0.5,
        "attention_sinks": True,
        "bias": False,
    },
    "mla": {"mixer": "mla", **ROPE},
    "mla of compressed queries": {
        "mixer": "mla",
        **ROPE,
        "q_lora_rank": 12,
        "kv_lora_rank": 10,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4,
        "v_head_dim": 5,
        "sliding_window": 5,
        "attention_sinks": True,
        "bias": False,
    },
    "mla, alibi": {"mixer": "mla", "position_encoding": "alibi", "attention_softcap": 0.5},
    "engram, attention residuals": {"engram": True, "engram_heads": 2, "residual": "attention"},
    "engram of some layers": {
        "engram": "false+true",
        "engram_order": 4,
        "engram_heads": 3,
        "engram_table_size": 20,
        "engram_width": 12,
        "engram_kernel": 3,
        "per_layer_embedding": 5,
        "residual": "hyper_connections",
        "normalization": "rmsnorm",
        "bias": False,
    },
    "per_layer_embedding": {"per_layer_embedding": 5, **ROPE},
    "per_layer_embedding of some tokens": {
        "per_layer_embedding": "6+none",
        "per_layer_vocab_size": 40,
        "embedding_scale": 3.0,
        "norm_position": "sandwich",
        "normalization": "rmsnorm",
        "residual": "hyper_connections",
        "bias": False,
    },
    "layer_norm_scaling": {"layer_norm_scaling": True, "n_layer": 3},
    "norm_alpha of derf": {"normalization": "derf", "norm_alpha": 1.5},
    "swiglu as in gpt-oss": {
        "ffn_type": "glu",
        "activation": "quick_gelu",
        "glu_limit": 0.3,
        "glu_shift": 1.0,
    },
    "experts as in gpt-oss": {
        "ffn_type": "moe",
        "activation": "quick_gelu",
        "glu_limit": 0.3,
        "glu_shift": 1.0,
        "router_logit_bias": True,
    },
    "kv_sharing of the last layers": {
        "kv_sharing": "false*2+true*",
        "n_layer": 4,
        "sliding_window": "5+none",
        "n_kv_head": 2,
        "qk_norm": True,
        **ROPE,
    },
    "kv_sharing of pairs": {
        "kv_sharing": "false+true",
        "canon": "b",
        "attention_gate": "head",
        "value_embedding": "mixed+none",
    },
    "value_embedding=mixed": {"value_embedding": "mixed", "n_kv_head": 2},
    "value_embedding=gated": {"value_embedding": "gated", "value_residual": "fixed"},
    "canon=abcd": {"canon": "abcd", "n_kv_head": 2, "qk_norm": True},
    "attention without an FFN": {"ffn_type": "none", "n_kv_head": 2},
    "mamba2 without an FFN": {
        "mixer": "mamba2",
        "ffn_type": "none",
        "mamba_head_dim": 8,
        "mamba_chunk": 5,
        "norm_position": "sandwich",
        "normalization": "rmsnorm",
    },
    "canon, token_shift of swiglu": {
        "canon": "acd",
        "canon_kernel": 3,
        "token_shift": "both",
        "ffn_type": "swiglu",
    },
    "nGPT": {
        **ROPE,
        "residual": "ngpt",
        "normalization": "none",
        "ffn_type": "swiglu",
        "n_kv_head": 2,
        "bias": False,
        "weight_tying": False,
        "qk_sphere": True,
        "hidden_gain": True,
        "logit_gain": True,
        "sphere_weights": True,
    },
    "logit_gain, tied": {"logit_gain": True, "sphere_weights": True, "bias": False},
    "hidden_gain of a plain network": {"hidden_gain": True},
    "mhc of three streams": {"residual": "mhc", "hyper_streams": 3, "mhc_steps": 2},
    "attention residuals of blocks": {
        "residual": "attention",
        "attn_res_block": 2,
        "n_layer": 3,
        "norm_position": "parallel",
    },
    "looped layers": {"loop_count": 3},
    "looped layers between others": {
        "loop_count": 2,
        "loop_prelude": 1,
        "loop_coda": 1,
        "n_layer": 4,
        "ffn_type": "swiglu+moe",
        "value_residual": "learned",
    },
    "static hyper-connections": {
        "residual": "hyper_connections",
        "hyper_streams": 2,
        "hyper_dynamic": False,
        "norm_position": "parallel",
    },
    "gated_deltanet of shared keys": {
        "mixer": "gated_deltanet",
        "linear_n_head": 2,
        "linear_n_value_head": 4,
        "linear_key_dim": 8,
        "linear_value_dim": 12,
        "linear_chunk": 4,
        "bias": False,
    },
    "linear attention of relu": {
        "mixer": "linear_attention",
        "linear_feature_map": "relu",
        "linear_n_head": 4,
        "linear_kernel": 3,
        "linear_chunk": 5,
    },
    "retnet of shared keys": {
        "mixer": "retnet",
        "retnet_theta": 50.0,
        "linear_n_head": 2,
        "linear_n_value_head": 4,
        "linear_key_dim": 6,
        "linear_value_dim": 5,
        "linear_chunk": 4,
        "bias": False,
    },
    "gla of shared keys": {
        "mixer": "gla",
        "gla_rank": 6,
        "gla_temperature": 2.0,
        "linear_n_head": 2,
        "linear_n_value_head": 4,
        "linear_kernel": 2,
        "linear_chunk": 16,
    },
    "kda of shared keys": {
        "mixer": "kda",
        "kda_rank": 5,
        "linear_n_head": 2,
        "linear_n_value_head": 4,
        "linear_key_dim": 8,
        "linear_value_dim": 6,
        "linear_kernel": 0,
        "linear_chunk": 16,
    },
    "mamba2 of groups": {
        "mixer": "mamba2",
        "mamba_expand": 1.0,
        "mamba_head_dim": 8,
        "mamba_state_dim": 5,
        "mamba_n_group": 2,
        "mamba_kernel": 3,
        "mamba_conv_bias": False,
        "mamba_norm": "before_gate",
        "mamba_dt_min": 0.005,
        "mamba_dt_max": 2.0,
        "mamba_chunk": 4,
    },
    "rwkv7 of small ranks": {
        "mixer": "rwkv7",
        "rwkv_head_dim": 16,
        "rwkv_decay_rank": 3,
        "rwkv_rate_rank": 4,
        "rwkv_value_rank": 5,
        "rwkv_gate_rank": 6,
        "rwkv_chunk": 64,
        "norm_eps": 1e-3,
        "bias": False,
        "token_shift": "ffn",
        "activation": "relu2",
        "embedding_norm": True,
    },
    "mtp of experts, two tokens": {
        **ROPE,
        "mtp": "sequential",
        "mtp_depth": 2,
        "mtp_weight": 0.7,
        "ffn_type": "standard+moe",
        "value_residual": "learned",
        "normalization": "rmsnorm",
        "bias": False,
        "weight_tying": False,
    },
    "attention_mamba2 as in Falcon-H1": {
        "mixer": "attention_mamba2",
        "ffn_type": "swiglu",
        **ROPE,
        "n_kv_head": 2,
        "mamba_n_head": 4,
        "mamba_head_dim": 6,
        "mamba_state_dim": 5,
        "mamba_norm": "none",
        "mamba_chunk": 4,
        "attention_in_scale": 0.7,
        "attention_out_scale": 1.2,
        "mamba_in_scale": 0.8,
        "mamba_out_scale": 1.3,
        "mamba_z_scale": 0.6,
        "mamba_x_scale": 1.4,
        "mamba_b_scale": 0.9,
        "mamba_c_scale": 1.1,
        "mamba_dt_scale": 0.5,
        "glu_gate_scale": 0.8,
        "glu_out_scale": 1.5,
        "bias": False,
    },
    "attention_mamba2, canon, values": {
        "mixer": "attention_mamba2",
        "mamba_head_dim": 8,
        "mamba_chunk": 5,
        "canon": "ab",
        "value_residual": "learned",
        "position_encoding": "alibi",
        "sliding_window": 5,
    },
    "zero_init": {"zero_init": True, "ffn_type": "moe+swiglu", "norm_position": "sandwich"},
    "no norm, qk_norm": {"normalization": "none", "qk_norm": True},
    "moe as in DeepSeek-V3": {
        "ffn_type": "moe",
        "ffn_hidden": 12,
        "router_score": "sigmoid",
        "router_scale": 2.5,
        "n_expert_groups": 4,
        "n_groups_per_token": 2,
        "n_shared_experts": 2,
        "router_bias_rate": 0.001,
        "bias": False,
    },
}


PATTERNS: dict[str, dict[str, Any]] = {
    "sliding_window=5+none": {"sliding_window": "5+none"},
    "sliding_window=none+5*": {"sliding_window": "none+5*", "n_layer": 3},
    "window, theta, scaling": {
        **ROPE,
        "sliding_window": "5+none",
        "rope_theta": "50+1e4",
        "rope_scaling": "none+linear",
        "rope_scaling_factor": 4.0,
    },
    "position_encoding=rope+none": {"position_encoding": "rope+none"},
    "position_encoding=rope+alibi*": {"position_encoding": "rope+alibi*", "n_layer": 3},
    "rope_theta=50+1e4": {**ROPE, "rope_theta": "50+1e4"},
    "rope_fraction=0.5+1": {**ROPE, "rope_fraction": "0.5+1"},
    "rope_scaling=none+yarn": {**COMPANIONS["rope_scaling"], "rope_scaling": "none+yarn"},
    "ffn_type=standard+swiglu": {"ffn_type": "standard+swiglu"},
    "ffn_type=standard+glu*": {"ffn_type": "standard+glu*", "n_layer": 3},
    "ffn_type=swiglu+moe*": {"ffn_type": "swiglu+moe*", "n_layer": 3},
    "activation=gelu+relu": {"activation": "gelu+relu"},
    "ffn_hidden=50+90": {"ffn_hidden": "50+90"},
    "normalization=layernorm+rmsnorm": {"normalization": "layernorm+rmsnorm"},
    "normalization=none*2+rmsnorm": {"normalization": "none*2+rmsnorm", "n_layer": 3},
    "norm_eps=1e-5+0.1": {"norm_eps": "1e-5+0.1"},
    "norm_position=pre+post": {"norm_position": "pre+post"},
    "norm_position=post+sandwich*": {"norm_position": "post+sandwich*", "n_layer": 3},
    "n_kv_head=1+4": {"n_kv_head": "1+4"},
    "head_dim=8+16": {"head_dim": "8+16", **ROPE},
    "qk_norm=true+false": {"qk_norm": "true+false"},
    "qk_norm_over=head+projection": {"qk_norm": True, "qk_norm_over": "head+projection"},
    "attention_scale=0.1+none": {"attention_scale": "0.1+none"},
    "attention_bias=true+false": {"attention_bias": "true+false"},
    "gate, sinks, exclusion by layer": {
        "attention_gate": "channel+none+head",
        "attention_sinks": "true+false",
        "exclusive_attention": "none+full+learned",
        "n_layer": 3,
    },
    "mixer=gated_deltanet+attention": {
        "mixer": "gated_deltanet+attention",
        "linear_n_head": 4,
        "linear_chunk": 5,
        **ROPE,
    },
    "mixer=retnet+kda+gla": {
        "mixer": "retnet+kda+gla",
        "n_layer": 3,
        "linear_n_head": 4,
        "linear_value_dim": "16+8+16",
        "linear_chunk": 5,
    },
    "mixer=attention+rwkv7*": {
        "mixer": "attention+rwkv7*",
        "n_layer": 3,
        "rwkv_head_dim": "8+8+16",
        "rwkv_chunk": 5,
    },
    "mixer=attention_mamba2+attention": {
        "mixer": "attention_mamba2+attention",
        "mamba_head_dim": 8,
        "mamba_chunk": 5,
        "kv_sharing": "false+true",
        **ROPE,
    },
    "canon=ac+abcd": {"canon": "ac+abcd", "ffn_type": "moe+standard", "bias": False},
    "layers of one sublayer": {
        "mixer": "attention+none",
        "ffn_type": "none+swiglu",
        "residual": "hyper_connections",
        "norm_position": "post",
    },
    "mixer=none+attention of parallel blocks": {
        "mixer": "none+attention*",
        "norm_position": "parallel",
        "canon": "c+ac*",
        "token_shift": "ffn",
        "n_layer": 3,
    },
    "mixer=short_conv+attention*": {"mixer": "short_conv+attention*", "n_layer": 3},
    "everything differs": {
        "n_layer": 3,
        "position_encoding": "rope*2+none",
        "sliding_window": "5+none*",
        "n_kv_head": "2+4",
        "ffn_type": "swiglu+standard",
        "normalization": "rmsnorm+layernorm*",
    },
}
"""Layers that differ: by each key that may, in patterns that repeat and with a rest."""


def parts_of_registries() -> dict[str, dict[str, Any]]:
    """A variant for every registered part but the backends."""
    return {
        f"{key}={name}": {**_companions(key, name), key: name}
        for key, registry in REGISTRIES.items()
        if key != "attention_backend"
        for name in registry.names
    }


def _companions(key: str, name: str) -> dict[str, Any]:
    """Those that the part uses."""
    owned = {*REGISTRIES[key].entry(name).keys, *(["normalization"] if name == "ngpt" else [])}
    uses = {"position_encoding", *owned} if key == "rope_scaling" else set(owned)
    return {k: v for k, v in COMPANIONS.get(key, {}).items() if k in uses}


def presets() -> dict[str, dict[str, Any]]:
    """A variant for every preset without layers of several kinds or a tiny file of its own (see
    tests/unit/test_presets.py)."""
    return {
        f"preset {name}": dict(preset.keys)
        for name, preset in PRESETS.items()
        if not tiny_file(name).exists()
    }


def tiny_file(preset: str) -> Path:
    """The config file with sizes for a laptop, which some presets have."""
    return ROOT / "config" / f"arch_{preset}_tiny.py"


VARIANTS = {**parts_of_registries(), **presets(), **OPTIONS, **PATTERNS}


def some_variants(start: int) -> pytest.MarkDecorator:
    """Parametrize `keys` by `VARIANTS`. In every run of the tests it is every third, counted from
    `start`; tests that start differently together have them all."""
    return pytest.mark.parametrize("keys", one_in(3, VARIANTS, start))


def tiny_config(**keys: Any) -> ModelArchitectureConfig:
    """A config of the tiny sizes, with some keys changed."""
    return ModelArchitectureConfig.make(SIZES, keys)


def tiny_layer(**keys: Any) -> LayerConfig:
    """The config of the first layer, as its parts see it."""
    return tiny_config(**keys).layers[0]


def tiny_model(seed: int = 0, **keys: Any) -> GPT:
    """A tiny model in evaluation mode whose weights are large enough for every part to matter."""
    torch.manual_seed(seed)
    model = GPT(tiny_config(**keys))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def training_loss(model: GPT, idx: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss that training minimizes, which uses every parameter."""
    return model(idx, targets, objective=make_objective(TrainingConfig())).loss


def layer_inputs(x: torch.Tensor, positions: PositionEncoding | None = None) -> LayerInputs:
    """The inputs of a block besides x (B, T, C), which also serves as the token embeddings: no
    state and nothing from earlier layers."""
    length = x.shape[1]
    positions = positions or POSITIONS["none"](tiny_layer())
    bias = positions.score_bias(0, length, length)
    idx = torch.zeros(x.shape[:2], dtype=torch.long)
    return LayerInputs(idx, positions, bias, start=0, states=None, taken={TOKEN_EMBEDDING: x})


def context(x: torch.Tensor, positions: PositionEncoding | None = None) -> Context:
    """The context in which a part by itself is called on x (B, T, C)."""
    return Context(layer_inputs(x, positions)).of("mixer")


def tokens(length: int, batch: int = 2, seed: int = 1) -> torch.Tensor:
    """Random tokens (batch, length)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SIZES["vocab_size"], (batch, length), generator=generator)
