"""Random architectures, most of them near to one that some family of transformers has."""

from __future__ import annotations

from random import Random
from typing import Any

from errors import ConfigError
from experiment.matching import parameters
from interop.families import FAMILIES
from model_config import ModelArchitectureConfig
from tests.interop.references import LONGEST, VOCABULARY
from tests.tiny import MOST_PARAMETERS

Keys = dict[str, Any]

_CHANGES: dict[str, tuple[Any, ...]] = {
    "norm_eps": (1e-3,),
    "activation": ("gelu", "gelu_tanh", "relu2", "silu", "relu", "leaky_relu"),
    "leaky_relu_slope": (0.01, 0.2),
    "ffn_type": ("standard", "swiglu", "geglu"),
    "n_kv_head": (1, 2, "1+2"),
    "head_dim": (8, 10, 14),
    "qk_norm": (True, False),
    "attention_scale": (24**-0.5, 0.3),
    "sliding_window": (1, 7, LONGEST - 1, LONGEST, 400, "7+none", "7*2+none", "none+400", "7+3"),
    "attention_softcap": (1.5,),
    "output_softcap": (2.0,),
    "attention_bias": (True, False, "true+false"),
    "attention_out_bias": (True, False),
    "bias": (True, False),
    "head_bias": (True,),
    "weight_tying": (True, False),
    "position_encoding": ("none", "rope", "learned", "rope+none", "rope*2+none", "none+rope"),
    "rope_theta": (100.0, 5e5, "50+1e4", "1e4*2+50"),
    "rope_fraction": (0.25, 0.3, 0.4, 0.5, 0.29, 6 / 7, 10 / 11, 0.8),
    "embedding_scale": (2.0,),
    "embedding_norm": (True, False),
    "residual_scale": (0.3,),
    "logit_scale": (0.25, 0.3),
    "qk_norm_after_rope": (True, False),
    "qk_norm_type": ("rmsnorm", "layernorm"),
    "query_scaling": ("none", "ministral3", "ssmax"),
    "query_scaling_interval": (5, LONGEST),
    "differential_attention": (True, False),
    "attention_sinks": (True, False),
}
"""Values that a key may get."""
_CHANGES_OF_EXPERTS: dict[str, tuple[Any, ...]] = {
    "n_experts": (6, 12),
    "n_experts_per_token": (1, 3),
    "router_renormalize": (True, False),
    "router_scale": (1.5, 2),
    "router_score": ("softmax", "sigmoid"),
    "router_bias_rate": (0.0, 0.01),
    "router_logit_bias": (True, False),
    "n_shared_experts": (0, 1, 2),
    "shared_expert_gate": (True, False),
    "expert_group_score": ("top2", "max"),
    "glu_limit": (0.5,),
    "ffn_type": ("moe", "swiglu+moe*", "moe+swiglu"),
    "ffn_hidden": (12, "40+12*"),
    "balance_loss_coef": (0.0,),
}
"""The same for mixtures of experts."""
_SCALINGS: tuple[Keys, ...] = (
    {"rope_scaling": "linear"},
    {"rope_scaling": "yarn", "rope_beta_fast": 16.0},
    {"rope_scaling": "llama3", "rope_high_freq_factor": 3.0},
    {"rope_scaling": "ntk"},
    {"rope_scaling": "yarn+none"},
    {"rope_scaling": "linear+llama3", "rope_scaling_factor": "2+4"},
)
_GATES = {"silu": "swiglu", "gelu_tanh": "geglu"}


def random_architecture(model_type: str, random: Random) -> ModelArchitectureConfig:
    """An architecture of a family with a few keys changed, those without a use dropped."""
    while True:
        keys = _family_keys(model_type, random)
        for key in random.sample(sorted(_CHANGES), random.randint(0, 4)):
            keys[key] = random.choice(_CHANGES[key])
        if "moe" in str(keys.get("ffn_type")):
            for key in random.sample(sorted(_CHANGES_OF_EXPERTS), random.randint(0, 2)):
                keys[key] = random.choice(_CHANGES_OF_EXPERTS[key])
        if random.random() < 0.3:
            keys |= {"rope_scaling_factor": 4.0, "rope_original_block_size": 12}
            keys |= random.choice(_SCALINGS)
        try:
            config = ModelArchitectureConfig.from_dict(keys)
        except ConfigError:
            continue
        size = parameters(config)
        assert size <= MOST_PARAMETERS, f"{size:,} parameters; bound the sizes of {keys}"
        return config


def _family_keys(model_type: str, random: Random) -> Keys:
    """The keys that every model of the family has, and what most of them have besides."""
    width = 4 * random.choice((8, 12, 22))
    keys: Keys = {
        "n_layer": random.randint(1, 4),
        "n_head": 4,
        "n_embd": width,
        "block_size": LONGEST,
        "vocab_size": VOCABULARY,
        **FAMILIES[model_type].fixed,
    }
    is_gemma = "gemma" in model_type
    gate = "gelu_tanh" if is_gemma else "silu"
    gated = keys.get("normalization", "layernorm") != "layernorm" or model_type == "stablelm"
    if "ffn_type" not in keys and gated:
        keys |= {"activation": gate, "ffn_type": _GATES[gate]}
    if is_gemma:
        keys["embedding_scale"] = width**0.5
    return keys | _TYPICAL.get(model_type, {})


_EXPERTS: Keys = {"ffn_type": "moe", "ffn_hidden": 20}
_SHARED: Keys = {**_EXPERTS, "n_shared_experts": 1, "ffn_type": "swiglu+moe*", "n_layer": 2}
_LATENT: Keys = {"norm_eps": 1e-6, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4}
_TYPICAL: dict[str, Keys] = {
    "gpt_neox": {"rope_fraction": 0.5, "norm_position": "parallel"},
    "stablelm": {"norm_position": "parallel_shared"},
    "gptj": {"weight_tying": False, "rope_fraction": 0.5},
    "gemma2": {"sliding_window": "7+none", "attention_softcap": 2.0},
    "gemma3_text": {"sliding_window": "7+none", "rope_theta": "50+1e4"},
    "smollm3": {"position_encoding": "rope+none"},
    "mixtral": _EXPERTS,
    "qwen3_moe": {**_EXPERTS, "ffn_type": "swiglu+moe*"},
    "qwen2_moe": {
        **_EXPERTS,
        "attention_bias": True,
        "n_shared_experts": 2,
        "shared_expert_gate": True,
    },
    "olmoe": _EXPERTS,
    "flex_olmo": _EXPERTS,
    "gpt_oss": {**_EXPERTS, "activation": "quick_gelu", "glu_limit": 2.0},
    "ernie4_5_moe": _EXPERTS,
    "deepseek_v3": {**_SHARED, **_LATENT, "n_expert_groups": 4, "n_groups_per_token": 2},
    "deepseek_v2": {**_SHARED, **_LATENT},
    "glm4_moe": {**_SHARED, "rope_fraction": 0.5},
    "dots1": _SHARED,
    "qwen3_next": {
        **_SHARED,
        "shared_expert_gate": True,
        "mixer": "gated_deltanet+attention",
        "linear_n_head": 2,
        "norm_eps": 1e-3,
        "n_layer": 2,
    },
    "codegen": {"weight_tying": False, "rope_fraction": 0.5, "head_bias": True},
    "openai-gpt": {"activation": "gelu_tanh"},
    "gpt_neo": {"sliding_window": "none+7"},
    "gpt_bigcode": {"n_kv_head": 1},
    "opt": {"norm_position": "post", "normalization": "layernorm_nogain"},
    "biogpt": {"activation": "gelu"},
    "falcon": {"norm_position": "parallel", "n_kv_head": 2},
    "granite": {"residual_scale": 0.3, "logit_scale": 0.25},
    "granite_swa": {"residual_scale": 0.3, "sliding_window": "none+7", "rope_theta": "50+1e4"},
    "hyperclovax": {"residual_scale": 0.3, "logit_scale": 0.3},
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"sliding_window": "7+none", "position_encoding": "rope+none"},
    "nemotron": {"activation": "relu2", "rope_fraction": 0.5},
    "jais2": {"activation": "relu2"},
    "apertus": {"activation": "xielu"},
    "nanochat": {"activation": "relu2", "output_softcap": 2.0},
    "ministral": {"sliding_window": "7+none"},
    "cwm": {"sliding_window": "none+7"},
    "olmo3": {"sliding_window": "7+none"},
    "exaone4": {"sliding_window": "7+none", "position_encoding": "rope+none"},
    "vaultgemma": {"sliding_window": "7+none", "attention_softcap": 2.0},
    "lfm2": {"mixer": "short_conv+attention"},
    "bamba": {
        "mixer": "mamba2+attention",
        "n_layer": 2,
        "mamba_head_dim": 8,
        "mamba_state_dim": 6,
        "rope_fraction": 0.5,
    },
    "falcon_h1": {
        "mamba_head_dim": 8,
        "mamba_state_dim": 6,
        "mamba_norm": "none",
        "mamba_x_scale": 0.5,
        "glu_out_scale": 0.7,
    },
    "mamba2": {"mamba_head_dim": 8, "mamba_state_dim": 6, "mamba_chunk": 5},
    "granitemoe": {**_EXPERTS, "residual_scale": 0.3, "logit_scale": 0.25},
    "hunyuan_v1_moe": _EXPERTS,
    "ministral3": {"query_scaling": "ministral3", "query_scaling_interval": 5},
    "persimmon": {"activation": "relu2", "rope_fraction": 0.5},
}
