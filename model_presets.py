"""Named architectures: the keys that differ from the defaults.

A preset chooses components, not sizes. `config/arch_NAME.py` adds the sizes of a published model,
and `config/arch_NAME_tiny.py` sizes for a laptop.
"""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named architecture: the keys that differ from the defaults."""

    description: str
    keys: dict[str, Any]


_GPT2 = {
    "position_encoding": "learned",
    "normalization": "layernorm",
    "norm_position": "pre",
    "ffn_type": "standard",
    "bias": True,
    "weight_tying": True,
}
_LLAMA = {
    "position_encoding": "rope",
    "normalization": "rmsnorm",
    "norm_position": "pre",
    "ffn_type": "swiglu",
    "bias": False,
    "weight_tying": False,
}
_QWEN3 = {**_LLAMA, "qk_norm": True, "norm_eps": 1e-6, "rope_theta": 1e6, "weight_tying": True}
_GEMMA3 = {
    **_LLAMA,
    "normalization": "rmsnorm_unit_offset",
    "norm_position": "sandwich",
    "norm_eps": 1e-6,
    "ffn_type": "geglu",
    "activation": "gelu_tanh",
    "qk_norm": True,
    "sliding_window": "512*5+none",
    "rope_theta": "10000*5+1000000",
    "weight_tying": True,
}
_OLMO2 = {
    **_LLAMA,
    "norm_position": "res_post",
    "norm_eps": 1e-6,
    "qk_norm": True,
    "qk_norm_over": "projection",
    "rope_theta": 5e5,
}
_LFM2 = {
    **_LLAMA,
    "mixer": "short_conv*2+attention",
    "qk_norm": True,
    "rope_theta": 1e6,
    "weight_tying": True,
}
_MAMBA2 = {
    "mixer": "mamba2",
    "ffn_type": "none",
    "normalization": "rmsnorm",
    "norm_position": "pre",
    "bias": False,
    "weight_tying": True,
}
_FALCON_H1 = {**_LLAMA, "mixer": "attention_mamba2", "mamba_norm": "none", "rope_theta": 1e11}
_NANOCHAT = {
    **_LLAMA,
    "normalization": "rmsnorm_nogain",
    "norm_eps": 1e-6,
    "embedding_norm": True,
    "ffn_type": "standard",
    "activation": "relu2",
    "qk_norm": True,
    "qk_norm_after_rope": True,
    "output_softcap": 15.0,
}
_MODDED_NANOGPT = {
    **_LLAMA,
    "normalization": "rmsnorm_nogain",
    "norm_eps": 2.0**-23,
    "ffn_type": "standard",
    "activation": "relu2",
    "qk_norm": True,
    "weight_tying": True,
    "zero_init": True,
}
_DEEPSEEK_V3 = {
    **_LLAMA,
    "mixer": "mla",
    "norm_eps": 1e-6,
    "ffn_type": "swiglu*3+moe*",
    "n_shared_experts": 1,
    "router_score": "sigmoid",
    "router_renormalize": True,
    "router_scale": 2.5,
    "router_bias_rate": 0.001,
    "balance_loss_coef": 0.0001,
    "mtp": "sequential",
}
_GPT_OSS = {
    **_LLAMA,
    "bias": True,
    "ffn_type": "moe",
    "activation": "quick_gelu",
    "glu_limit": 7.0,
    "glu_shift": 1.0,
    "n_experts_per_token": 4,
    "router_renormalize": True,
    "router_logit_bias": True,
    "attention_sinks": True,
    "sliding_window": "128+none",
    "rope_theta": 150_000.0,
}
_QWEN3_NEXT = {
    **_LLAMA,
    "normalization": "rmsnorm_unit_offset",
    "norm_eps": 1e-6,
    "mixer": "gated_deltanet*3+attention",
    "attention_gate": "channel",
    "qk_norm": True,
    "rope_theta": 1e7,
    "rope_fraction": 0.25,
    "ffn_type": "moe",
    "n_shared_experts": 1,
    "shared_expert_gate": True,
    "router_renormalize": True,
    "balance_loss_coef": 0.001,
}

PRESETS: dict[str, Preset] = {
    "gpt2": Preset("GPT-2: learned positions, LayerNorm before each sublayer, GELU, tied", _GPT2),
    "llama": Preset("LLaMA: RoPE, RMSNorm, SwiGLU, no biases, untied", _LLAMA),
    "llama3": Preset("LLaMA 3: llama with a RoPE base of 500,000", {**_LLAMA, "rope_theta": 5e5}),
    "qwen3": Preset("Qwen3: llama with QK norm, tied", _QWEN3),
    "gemma3": Preset(
        "Gemma 3: QK norm, GeGLU, norms around sublayers, windows, tied; set embedding_scale to "
        "sqrt(n_embd)",
        _GEMMA3,
    ),
    "olmo2": Preset("OLMo 2: norms after the sublayers, QK norm of whole projections", _OLMO2),
    "lfm2": Preset("LFM2: gated short convolutions and attention with QK norm, tied", _LFM2),
    "mamba2": Preset("Mamba-2: state-space layers without FFN and attention, tied", _MAMBA2),
    "falcon_h1": Preset("Falcon-H1: attention and Mamba-2 side by side, scales", _FALCON_H1),
    "nanochat": Preset("nanochat: norms without gain, squared ReLU, capped logits", _NANOCHAT),
    "modded_nanogpt": Preset(
        "modded-nanogpt, record of 2024-10-14: norms without gain, squared ReLU, zero_init, tied",
        _MODDED_NANOGPT,
    ),
    "deepseek_v3": Preset(
        "DeepSeek-V3: latent attention, mixture of experts, multi-token prediction", _DEEPSEEK_V3
    ),
    "gpt_oss": Preset("gpt-oss: attention sinks, windows, mixture of experts", _GPT_OSS),
    "qwen3_next": Preset("Qwen3-Next: Gated DeltaNet and gated attention, MoE", _QWEN3_NEXT),
    "team": Preset("model_v1: the components of llama", _LLAMA),
    "hybrid": Preset(
        "RoPE, LayerNorm without bias and GPT-2's GELU FFN, tied",
        {**_GPT2, "position_encoding": "rope", "normalization": "layernorm_nobias", "bias": False},
    ),
    "custom": Preset("a template: every key at its default", {}),
    "legacy": Preset(
        "nanoGPT's flat keys: the components of GPT-2, with `bias` also controlling the norms",
        {**_GPT2, "normalization": "auto", "bias": False},
    ),
}
