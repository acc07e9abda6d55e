"""The architecture config: what it derives, refuses and is called; and that no key lies."""

from __future__ import annotations

import ast
import json
import re
import runpy
from pathlib import Path
from time import process_time
from typing import ClassVar

import pytest
import torch

from components.head import LMHead
from errors import ConfigError
from model_builder import GPT
from model_components import FFNS
from model_config import ModelArchitectureConfig
from model_keys import REPLACED, architecture_keys
from model_presets import PRESETS
from patterns import Pattern, spelled
from tests.parametrized import one_in
from tests.tiny import ROPE, SIZES, layer_inputs, tiny_config, tiny_file, tiny_model, tokens

CONFIG_FOLDER = Path(__file__).parents[2] / "config"

# Names


def test_names_of_the_presets():
    names = {name: ModelArchitectureConfig.from_preset(name).architecture_name for name in PRESETS}
    assert {name: names[name] for name in sorted(names) if not tiny_file(name).exists()} == {
        "gpt2": "12L-12H-768D-AbsPos-LN-GELU-PreNorm",
        "llama": "12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm-NoBias-Untied",
        "team": "12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm-NoBias-Untied",
        "hybrid": "12L-12H-768D-RoPE-LN-NB-GELU-PreNorm-NoBias",
        "custom": "12L-12H-768D-AbsPos-LN-GELU-PreNorm",
        "legacy": "12L-12H-768D-AbsPos-LN-NB-GELU-PreNorm-NoBias",
    }


def test_tags_of_a_name():
    config = ModelArchitectureConfig.from_preset(
        "llama", n_kv_head=4, qk_norm=True, sliding_window="256*2+none", bias=True
    )
    tags = config.architecture_name.removeprefix("12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm-")
    assert tags == "4KV-QKNorm-SWA(2x256+none)-Untied"


def test_tying_and_biases_are_tagged_where_they_depart_from_their_defaults():
    """Whatever network or norm there is."""
    names = [
        ModelArchitectureConfig.from_preset("gpt2", **keys).architecture_name
        for keys in ({"normalization": "rmsnorm"}, {"ffn_type": "swiglu"})
    ]
    assert names == [
        "12L-12H-768D-AbsPos-RMS-GELU-PreNorm",
        "12L-12H-768D-AbsPos-LN-SwiGLU-PreNorm",
    ]


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"position_encoding": "rope*2+none"}, "(2xRoPE+NoPos)-LN-GELU-PreNorm-T24"),
        ({"ffn_type": "standard+swiglu*"}, "AbsPos-LN-(GELU+2xSwiGLU)-PreNorm-T24"),
        ({"activation": "gelu+relu"}, "AbsPos-LN-(GELU+ReLU)-PreNorm-T24"),
        ({"normalization": "none+rmsnorm"}, "AbsPos-(NoNorm+RMS)-GELU-PreNorm-T24"),
        ({"norm_position": "pre+post"}, "AbsPos-LN-GELU-(PreNorm+PostNorm)-T24"),
        ({"qk_norm": "true+false"}, "AbsPos-LN-GELU-PreNorm-T24-(QKNorm+NoQKNorm)"),
        ({**ROPE, "rope_theta": "50+1e4"}, "RoPE-LN-GELU-PreNorm-T24-Theta(50+10000)"),
        (
            {**ROPE, "rope_scaling": "none+linear", "rope_scaling_factor": 4.0},
            "RoPE-LN-GELU-PreNorm-T24-(Unscaled+Linear)-x4",
        ),
    ],
)
def test_names_spell_patterns(keys, name):
    """A rest by the layers it stands for, since the number of layers is in the name."""
    assert tiny_config(**keys, n_layer=3).architecture_name == f"3L-4H-32D-{name}"


def test_a_network_of_ones_own_is_in_the_name():
    class Wider(FFNS["standard"]):
        """As wide and as active as the plain one, but another."""

    FFNS.register("wider", label="Wider")(Wider)
    assert "-Wider-" in tiny_config(ffn_type="wider").architecture_name


CHUNKS = {"linear_chunk", "mamba_chunk", "path_chunk", "rwkv_chunk"}
NOT_IN_THE_NAME = {"vocab_size", "attention_backend", *CHUNKS}

CHANGES = {
    "n_layer": {"n_layer": 3},
    "n_head": {"n_head": 2},
    "n_embd": {"n_embd": 48},
    "block_size": {"block_size": 32},
    "vocab_size": {"vocab_size": 67},
    "normalization": {"normalization": "rmsnorm"},
    "norm_position": {"norm_position": "post"},
    "norm_eps": {"norm_eps": 0.1},
    "ffn_type": {"ffn_type": "swiglu"},
    "activation": {"activation": "relu"},
    "leaky_relu_slope": {"leaky_relu_slope": 0.3},
    "ffn_multiplier": {"ffn_multiplier": 3.0},
    "ffn_multiple_of": {"ffn_multiple_of": 96},
    "ffn_hidden": {"ffn_hidden": 50},
    "glu_limit": {"glu_limit": 0.1},
    "glu_shift": {"glu_shift": 1.0},
    "norm_alpha": {"norm_alpha": 1.5},
    "layer_norm_scaling": {"layer_norm_scaling": True},
    "token_shift": {"token_shift": "ffn"},
    "engram": {"engram": True},
    "engram_order": {"engram_order": 2},
    "engram_heads": {"engram_heads": 4},
    "engram_table_size": {"engram_table_size": 20},
    "engram_width": {"engram_width": 16},
    "engram_kernel": {"engram_kernel": 2},
    "per_layer_embedding": {"per_layer_embedding": 6},
    "per_layer_vocab_size": {"per_layer_vocab_size": 20},
    "canon": {"canon": "a"},
    "canon_kernel": {"canon_kernel": 2},
    "n_experts": {"n_experts": 4},
    "n_experts_per_token": {"n_experts_per_token": 3},
    "router_score": {"router_score": "sigmoid"},
    "router_renormalize": {"router_renormalize": False},
    "router_scale": {"router_scale": 2.0},
    "n_expert_groups": {"n_expert_groups": 2},
    "n_groups_per_token": {"n_groups_per_token": 2},
    "expert_group_score": {"expert_group_score": "max"},
    "router_logit_bias": {"router_logit_bias": True},
    "n_shared_experts": {"n_shared_experts": 2},
    "shared_expert_gate": {"shared_expert_gate": True},
    "router_bias_rate": {"router_bias_rate": 0.1},
    "balance_loss_coef": {"balance_loss_coef": 0.5},
    "router_z_loss_coef": {"router_z_loss_coef": 0.5},
    "n_kv_head": {"n_kv_head": 2},
    "head_dim": {"head_dim": 16},
    "qk_norm": {"qk_norm": True},
    "qk_norm_over": {"qk_norm": True, "qk_norm_over": "projection"},
    "qk_norm_type": {"qk_norm": True, "qk_norm_type": "layernorm"},
    "qk_norm_after_rope": {"qk_norm_after_rope": True},
    "attention_scale": {"attention_scale": 0.1},
    "sliding_window": {"sliding_window": 5},
    "attention_softcap": {"attention_softcap": 0.5},
    "attention_bias": {"attention_bias": False},
    "attention_out_bias": {"attention_out_bias": False},
    "attention_backend": {"attention_backend": "sdpa"},
    "mixer": {"mixer": "short_conv"},
    "short_conv_kernel": {"short_conv_kernel": 2},
    "q_lora_rank": {"q_lora_rank": 8},
    "kv_lora_rank": {"kv_lora_rank": 8},
    "qk_nope_head_dim": {"qk_nope_head_dim": 6},
    "qk_rope_head_dim": {"qk_rope_head_dim": 6},
    "v_head_dim": {"v_head_dim": 6},
    "linear_n_head": {"linear_n_head": 2},
    "linear_n_value_head": {"linear_n_value_head": 8},
    "linear_key_dim": {"linear_key_dim": 5},
    "linear_value_dim": {"linear_value_dim": 5},
    "linear_kernel": {"linear_kernel": 2},
    "linear_feature_map": {"linear_feature_map": "relu"},
    "retnet_theta": {"retnet_theta": 50.0},
    "gla_rank": {"gla_rank": 5},
    "gla_temperature": {"gla_temperature": 1.0},
    "kda_rank": {"kda_rank": 5},
    "linear_chunk": {"linear_chunk": 5},
    "zero_init": {"zero_init": True},
    "mamba_expand": {"mamba_expand": 1.5},
    "mamba_n_head": {"mamba_n_head": 4},
    "mamba_head_dim": {"mamba_head_dim": 16},
    "mamba_state_dim": {"mamba_state_dim": 5},
    "mamba_n_group": {"mamba_n_group": 2},
    "mamba_kernel": {"mamba_kernel": 2},
    "mamba_conv_bias": {"mamba_conv_bias": False},
    "mamba_norm": {"mamba_norm": "before_gate"},
    "mamba_dt_min": {"mamba_dt_min": 0.5},
    "mamba_dt_max": {"mamba_dt_max": 0.01},
    "mamba_chunk": {"mamba_chunk": 5},
    "attention_in_scale": {"attention_in_scale": 0.5},
    "attention_out_scale": {"attention_out_scale": 0.5},
    "mamba_in_scale": {"mamba_in_scale": 0.5},
    "mamba_out_scale": {"mamba_out_scale": 0.5},
    "mamba_z_scale": {"mamba_z_scale": 0.5},
    "mamba_x_scale": {"mamba_x_scale": 0.5},
    "mamba_b_scale": {"mamba_b_scale": 0.5},
    "mamba_c_scale": {"mamba_c_scale": 0.5},
    "mamba_dt_scale": {"mamba_dt_scale": 0.5},
    "glu_gate_scale": {"glu_gate_scale": 0.5},
    "glu_out_scale": {"glu_out_scale": 0.5},
    "rwkv_head_dim": {"rwkv_head_dim": 16},
    "rwkv_decay_rank": {"rwkv_decay_rank": 5},
    "rwkv_rate_rank": {"rwkv_rate_rank": 5},
    "rwkv_value_rank": {"rwkv_value_rank": 5},
    "rwkv_gate_rank": {"rwkv_gate_rank": 5},
    "rwkv_chunk": {"rwkv_chunk": 5},
    "value_residual": {"value_residual": "fixed"},
    "kv_sharing": {"kv_sharing": "false+true"},
    "value_embedding": {"value_embedding": "mixed"},
    "attention_sinks": {"attention_sinks": True},
    "exclusive_attention": {"exclusive_attention": "full"},
    "attention_gate": {"attention_gate": "head"},
    "query_scaling": {"query_scaling": "ssmax"},
    "query_scaling_interval": {"query_scaling_interval": 4},
    "query_scaling_factor": {"query_scaling_factor": 2.0},
    "forget_gate": {"forget_gate": True},
    "differential_attention": {"differential_attention": True},
    "residual": {"residual": "unet"},
    "residual_scale": {"residual_scale": 0.5},
    "parametrization": {"parametrization": "mup"},
    "mup_base_width": {"parametrization": "mup", "mup_base_width": 64},
    "completep_base_depth": {"parametrization": "completep", "completep_base_depth": 6},
    "hyper_streams": {"hyper_streams": 2},
    "hyper_dynamic": {"hyper_dynamic": False},
    "mhc_steps": {"residual": "mhc", "mhc_steps": 1},
    "attn_res_block": {"residual": "attention", "attn_res_block": 1},
    "loop_count": {"loop_count": 3},
    "loop_prelude": {"loop_count": 2, "loop_prelude": 1},
    "loop_coda": {"loop_count": 2, "loop_coda": 1},
    "ngpt_rate": {"residual": "ngpt", "normalization": "none", "ngpt_rate": 0.2},
    "qk_sphere": {"qk_sphere": True},
    "hidden_gain": {"hidden_gain": True},
    "logit_gain": {"logit_gain": True},
    "sphere_weights": {"sphere_weights": True, "bias": False},
    "mtp": {"mtp": "sequential"},
    "mtp_depth": {"mtp_depth": 2},
    "mtp_weight": {"mtp_weight": 0.1},
    "position_encoding": {"position_encoding": "alibi"},
    "rope_theta": {**ROPE, "rope_theta": 50.0},
    "rope_fraction": {**ROPE, "rope_fraction": 0.5},
    "rope_scaling": {**ROPE, "rope_scaling": "ntk", "rope_scaling_factor": 4.0},
    "rope_scaling_factor": {**ROPE, "rope_scaling": "linear", "rope_scaling_factor": 4.0},
    "rope_original_block_size": {"rope_original_block_size": 64},
    "rope_beta_fast": {"rope_beta_fast": 2.0},
    "rope_beta_slow": {"rope_beta_slow": 0.1},
    "rope_attention_factor": {"rope_attention_factor": 2.0},
    "rope_truncate": {"rope_truncate": False},
    "rope_low_freq_factor": {"rope_low_freq_factor": 0.1},
    "rope_high_freq_factor": {"rope_high_freq_factor": 8.0},
    "fire_width": {"fire_width": 8},
    "fire_scale": {"fire_scale": 2.0},
    "fire_threshold": {"fire_threshold": 4.0},
    "cope_max_positions": {"cope_max_positions": 4},
    "path_rank": {"path_rank": 5},
    "path_kernel": {"path_kernel": 2},
    "path_chunk": {"path_chunk": 5},
    "bias": {"bias": False},
    "head_bias": {"head_bias": True},
    "weight_tying": {"weight_tying": False},
    "dropout": {"dropout": 0.3},
    "output_softcap": {"output_softcap": 0.5},
    "embedding_scale": {"embedding_scale": 2.0},
    "logit_scale": {"logit_scale": 0.5},
    "embedding_norm": {"embedding_norm": True},
    "init_std": {"init_std": 0.1},
}
"""For every key, something that sets it to another value."""

_YARN = {
    **ROPE,
    "head_dim": 32,
    "rope_theta": 100.0,
    "rope_scaling": "yarn",
    "rope_scaling_factor": 4.0,
    "rope_original_block_size": 16,
    "rope_beta_fast": 1.0,
    "rope_beta_slow": 0.2,
}
_LLAMA3 = {
    **ROPE,
    "rope_scaling": "llama3",
    "rope_scaling_factor": 4.0,
    "rope_original_block_size": 16,
}
_STEPS = {"query_scaling": "llama4", "query_scaling_interval": 2}
_HYPER = {"residual": "hyper_connections"}
_MOE = {"ffn_type": "moe"}
_GROUPS = {**_MOE, "n_expert_groups": 4, "n_groups_per_token": 1}
_MAMBA = {"mixer": "mamba2", "mamba_head_dim": 8, "mamba_state_dim": 6}
_RWKV = {"mixer": "rwkv7", "rwkv_head_dim": 8}
_GDN = {"mixer": "gated_deltanet", "linear_n_head": 4}
BEFORE = {
    "short_conv_kernel": {"mixer": "short_conv"},
    **{key: _MAMBA for key in CHANGES if key.startswith("mamba_")},
    **{
        f"{half}_{part}_scale": {**_MAMBA, "mixer": "attention_mamba2"}
        for half, parts in {
            "attention": ("in", "out"),
            "mamba": ("in", "out", "z", "x", "b", "c", "dt"),
        }.items()
        for part in parts
    },
    **{key: _RWKV for key in CHANGES if key.startswith("rwkv_")},
    **{key: _GDN for key in CHANGES if key.startswith("linear_")},
    "linear_feature_map": {"mixer": "linear_attention"},
    "retnet_theta": {"mixer": "retnet"},
    "gla_rank": {"mixer": "gla"},
    "gla_temperature": {"mixer": "gla"},
    "kda_rank": {"mixer": "kda"},
    **{
        key: _MOE
        for key in CHANGES
        if key.startswith(("n_experts", "n_shared", "router", "balance"))
    },
    **dict.fromkeys(
        ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
        {**ROPE, "mixer": "mla"},
    ),
    "n_expert_groups": _GROUPS,
    "n_groups_per_token": _GROUPS,
    "expert_group_score": {**_GROUPS, "router_score": "sigmoid"},
    "shared_expert_gate": {**_MOE, "n_shared_experts": 1},
    "hyper_streams": _HYPER,
    "hyper_dynamic": _HYPER,
    "canon_kernel": {"canon": "c"},
    **dict.fromkeys(("mtp_depth", "mtp_weight"), {"mtp": "sequential"}),
    **dict.fromkeys(
        ("engram_order", "engram_heads", "engram_table_size", "engram_width", "engram_kernel"),
        {"engram": True},
    ),
    "per_layer_vocab_size": {"per_layer_embedding": 6},
    "query_scaling_interval": _STEPS,
    "query_scaling_factor": _STEPS,
    "mhc_steps": {"residual": "mhc"},
    "attn_res_block": {"residual": "attention"},
    "loop_prelude": {"loop_count": 2},
    "loop_coda": {"loop_count": 2},
    "ngpt_rate": {"residual": "ngpt", "normalization": "none"},
    "sphere_weights": {"bias": False},
    "mup_base_width": {"parametrization": "mup"},
    "completep_base_depth": {"parametrization": "completep"},
    "leaky_relu_slope": {"activation": "leaky_relu"},
    "glu_limit": {"ffn_type": "swiglu"},
    "glu_shift": {"ffn_type": "swiglu"},
    "glu_gate_scale": {"ffn_type": "swiglu"},
    "glu_out_scale": {"ffn_type": "swiglu"},
    "norm_alpha": {"normalization": "dyt"},
    "qk_norm_over": {"qk_norm": True},
    "qk_norm_type": {"qk_norm": True},
    "qk_norm_after_rope": {**_YARN, "qk_norm": True},  # a rotation keeps the norm, YaRN does not
    **{key: {"position_encoding": "fire"} for key in CHANGES if key.startswith("fire_")},
    "cope_max_positions": {"position_encoding": "cope"},
    **{key: {"position_encoding": "path"} for key in CHANGES if key.startswith("path_")},
    "rope_theta": ROPE,
    "rope_fraction": ROPE,
    "rope_scaling": {**ROPE, "rope_scaling": "linear", "rope_scaling_factor": 4.0},
    "rope_scaling_factor": {**ROPE, "rope_scaling": "linear", "rope_scaling_factor": 2.0},
    "rope_original_block_size": _YARN,
    "rope_beta_fast": _YARN,
    "rope_beta_slow": _YARN,
    "rope_attention_factor": _YARN,
    "rope_truncate": _YARN,
    "rope_low_freq_factor": _LLAMA3,
    "rope_high_freq_factor": _LLAMA3,
}
"""What the key is changed from, where the tiny defaults have no use for it."""


def before_and_after(key: str) -> tuple[dict, dict]:
    before = BEFORE.get(key, {})
    return before, {**before, **CHANGES[key]}


def test_every_key_is_walked():
    assert set(CHANGES) == set(architecture_keys())


ONLY_IN_TRAINING = (
    *("router_bias_rate", "balance_loss_coef", "router_z_loss_coef"),
    *("mtp", "mtp_depth", "mtp_weight"),
)


class NoObjective:
    """An objective that is always 0, so that only the auxiliary losses remain."""

    trains = True

    def __call__(self, x: torch.Tensor, head: LMHead, targets: torch.Tensor) -> tuple:
        return x.new_zeros(()), {}


def after_training(**keys) -> tuple[float, float]:
    """The auxiliary losses of a model, and its loss once its buffers were updated."""
    model, idx = tiny_model(**keys), tokens(24)
    auxiliary = model(idx, idx, objective=NoObjective())
    model.after_step(auxiliary.metrics)
    return auxiliary.loss.item(), model(idx, idx)[1].item()


@pytest.mark.parametrize("key", CHANGES)
def test_no_key_is_ignored(key):
    """It changes the output, the shape of it, or, of execution, nothing but how it is computed."""
    before, after = before_and_after(key)
    assert tiny_config(**before).layers[0].get(key) != tiny_config(**after).said(key)
    outputs = []
    for keys in (before, after):
        torch.manual_seed(0)
        model = GPT(tiny_config(**keys)) if key == "init_std" else tiny_model(**keys)
        model.train(key == "dropout")
        outputs.append(model(tokens(24)))
    if key.endswith("_chunk"):
        assert torch.allclose(*outputs, atol=2e-5)
    elif key == "attention_backend":
        assert torch.allclose(*outputs, atol=2e-5)
        backends = [type(GPT(tiny_config(**k)).blocks[0].mixer.backend) for k in (before, after)]
        assert backends[0] is not backends[1]
    elif key in ONLY_IN_TRAINING:
        assert torch.equal(*outputs)
        assert after_training(**before) != after_training(**after)
    elif key == "block_size":
        longer = tiny_model(**after)
        assert longer(tokens(32)).shape[1] == 32
        with pytest.raises(ValueError, match="32 tokens do not fit block_size=24"):
            tiny_model(**before)(tokens(32))
    else:
        assert outputs[0].shape != outputs[1].shape or not torch.allclose(*outputs, atol=1e-4)


LAYERS_MAY_DIFFER_IN = [
    key
    for key in CHANGES
    if architecture_keys()[key].per_layer
    and key not in ("value_residual", "kv_sharing", *ONLY_IN_TRAINING)  # the first two: of several
    and not key.startswith("rwkv_")  # which do nothing at first: unit/test_rwkv7.py
]


@pytest.mark.parametrize("key", one_in(2, LAYERS_MAY_DIFFER_IN))
def test_each_layer_is_made_with_its_own_value(key):
    """It computes what that layer does in a model that has the value throughout, to the bit."""
    before, after = before_and_after(key)
    if key == "position_encoding":  # learned positions are of the whole model
        before = ROPE
    values = [tiny_config(**keys).layers[0].get(key) for keys in (before, after)]
    alone = [tiny_config(**{**after, key: value}, init_std=0.5) for value in values]
    pattern = "+".join(map(spelled, values))
    mixed = tiny_config(**{**after, key: pattern}, init_std=0.5)
    for layer, config in enumerate(alone):
        assert mixed.layers[layer] == config.layers[layer]
        assert torch.equal(block_output(mixed, layer), block_output(config, layer))
    same = torch.allclose(*(block_output(config, 0) for config in alone), atol=1e-4)
    assert same == (key == "cope_max_positions")  # whose vectors are 0 at first


def block_output(config: ModelArchitectureConfig, layer: int) -> torch.Tensor:
    """What a block of a new model makes of the same numbers each time."""
    torch.manual_seed(0)
    model = GPT(config)
    with torch.no_grad():
        for vector in (p for p in model.parameters() if p.ndim == 1):
            # Biases begin at zero, and equal ones of a softmax have no effect.
            vector.add_(torch.linspace(0.1, 0.3, len(vector)))
    encoding = model.position_encodings[model._position_of_layer[layer]]
    x = torch.randn(2, 16, config.n_embd)
    return model.blocks[layer](x, layer_inputs(x, encoding))[0]


@pytest.mark.parametrize("key", CHANGES)
def test_every_key_is_in_the_name(key):
    """`ffn_multiplier` and `ffn_multiple_of` by the width that they make."""
    before, after = (tiny_config(**keys).architecture_name for keys in before_and_after(key))
    assert (before == after) == (key in NOT_IN_THE_NAME)


# What is derived


def test_derived_sizes():
    config = ModelArchitectureConfig.from_preset("llama")
    assert (config.ffn_hidden, config.head_dim, config.n_kv_head) == (2048, 64, 12)
    assert (config.activation, config.attention_bias) == ("silu", False)
    assert ModelArchitectureConfig.from_preset("gpt2").ffn_hidden == 3072
    assert tiny_config(ffn_multiplier=2.6, ffn_multiple_of=16).ffn_hidden == 96
    assert tiny_config(normalization="auto", bias=False).normalization == "layernorm_nobias"
    assert tiny_config(normalization="auto").normalization == "layernorm"
    assert tiny_config(position_encoding="learned_absolute").position_encoding == "learned"


def test_gated_networks_have_the_parameters_of_the_standard_one():
    sizes = dict(SIZES, n_embd=96, bias=False)
    counts = {
        kind: GPT(ModelArchitectureConfig(**sizes, ffn_type=kind)).num_parameters()
        for kind in ("standard", "glu", "swiglu", "geglu", "reglu")
    }
    assert len(set(counts.values())) == 1, counts


def test_changed_derives_anew():
    config = ModelArchitectureConfig.from_preset("llama").changed(n_embd=384, n_head=6)
    assert (config.ffn_hidden, config.head_dim, config.n_kv_head) == (1024, 64, 6)
    fixed = ModelArchitectureConfig.from_preset("llama", ffn_hidden=2048).changed(n_embd=384)
    assert fixed.ffn_hidden == 2048


def test_to_dict_and_back():
    config = ModelArchitectureConfig.from_preset("hybrid", n_kv_head=4, sliding_window=100)
    assert ModelArchitectureConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="unknown key 'n_heads'; did you mean 'n_head'"):
        ModelArchitectureConfig.from_dict({"n_heads": 3})


@pytest.mark.parametrize(
    ("keys", "given"),
    [
        ({}, {"ffn_multiplier": 4.0}),
        ({}, {"ffn_multiplier": 4.0, "ffn_multiple_of": 32}),
        ({}, {"ffn_hidden": 128}),
        ({"ffn_type": "swiglu"}, {"ffn_multiplier": 8 / 3}),
        ({"ffn_type": "standard+swiglu"}, {"ffn_multiplier": [4.0, 8 / 3]}),
        ({"ffn_type": "standard+swiglu"}, {"ffn_multiplier": [None, 8 / 3]}),
    ],
)
def test_a_default_width_is_saved_alike_however_it_was_given(keys, given):
    config, same = tiny_config(**keys), tiny_config(**keys, **given)
    assert same.to_dict() == config.to_dict()
    assert same == config
    assert same.to_dict()["ffn_multiplier"] is None
    assert ModelArchitectureConfig.from_dict(same.to_dict()) == config


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ffn_multiplier": 3.0}, (3.0, 1, 96)),
        ({"ffn_multiple_of": 96}, (None, 96, 192)),
        ({"ffn_multiplier": [4.0, 3.0]}, ("none+3", 1, "128+96")),
    ],
)
def test_another_width_is_saved_as_it_was_given(given, said):
    saved = tiny_config(**given).to_dict()
    assert tuple(saved[k] for k in ("ffn_multiplier", "ffn_multiple_of", "ffn_hidden")) == said
    assert ModelArchitectureConfig.from_dict(saved).to_dict() == saved


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sliding_window": "100*5+none"}, {"sliding_window": "100*5+none"}),
        ({"sliding_window": [100, None]}, {"sliding_window": "100+none"}),
        (
            {"ffn_type": "standard+swiglu*"},
            {"activation": "gelu+silu*", "ffn_type": "standard+swiglu*"},
        ),
        ({"position_encoding": "rope+none*2+rope+none*2"}, {"position_encoding": "rope+none*2"}),
        ({"position_encoding": "alibi+none"}, {}),
    ],
)
def test_patterns_are_saved_as_text(given, said):
    """The keys that a layer has a use for, and what was derived by layer."""
    config = ModelArchitectureConfig.from_preset("llama", **given)
    saved = config.to_dict()
    assert {key: saved[key] for key in said} == said
    assert ("rope_theta" in saved) == ("alibi" not in str(given))
    again = ModelArchitectureConfig.from_dict(json.loads(json.dumps(saved)))
    assert again == config
    assert list(again.layers) == list(config.layers)
    assert again.architecture_name == config.architecture_name


def test_a_pattern_names_parts_by_their_own_names():
    """So that one architecture is spelled in one way, whatever auto and aliases were written."""
    mixed = ["layernorm", "rmsnorm", "auto", "rmsnorm"]
    config = tiny_config(normalization=mixed, n_layer=4)
    assert config.to_dict()["normalization"] == "layernorm+rmsnorm"
    unbiased = config.changed(bias=False)
    assert unbiased.to_dict()["normalization"] == "layernorm+rmsnorm+layernorm_nobias+rmsnorm"
    with pytest.raises(ConfigError, match="gives every layer learned; write"):
        tiny_config(position_encoding="learned+learned_absolute")


def test_what_layers_differ_in_is_read_from_them():
    config = tiny_config(sliding_window="5+none")
    with pytest.raises(
        AttributeError, match=r"differ in 'sliding_window'; read it from config\.lay"
    ):
        config.sliding_window  # noqa: B018
    with pytest.raises(AttributeError, match="no key 'rope_theta', which belongs to position_enc"):
        config.rope_theta  # noqa: B018
    with pytest.raises(AttributeError, match="no part of this layer has the option 'rope_theta'"):
        config.layers[0].rope_theta  # noqa: B018


def test_a_config_does_not_change():
    config = tiny_config()
    for frozen in (config, config.layers[0]):
        with pytest.raises(AttributeError, match="n_layer: a config is immutable"):
            frozen.n_layer = 3


class TestBases:
    """Values of a base, such as a preset, go with their part; a user's own need it."""

    BASE: ClassVar[dict] = {**ROPE, "rope_theta": "50*3+1e4", "ffn_type": "standard+swiglu*"}

    def make(self, **given) -> ModelArchitectureConfig:
        return ModelArchitectureConfig.make({**SIZES, **self.BASE, "n_layer": 4}, given)

    def test_a_part_that_is_replaced_takes_its_options_along(self) -> None:
        assert "rope_theta" not in self.make(position_encoding="alibi")

    def test_a_given_one_is_refused_without_its_part(self) -> None:
        with pytest.raises(ConfigError, match="rope_theta=50.0 belongs to position_encoding=rope"):
            self.make(position_encoding="alibi", rope_theta=50.0)

    def test_a_window_over_the_longest_sequence_may_be_the_base_s_alone(self) -> None:
        base = {**SIZES, "sliding_window": 24}
        assert ModelArchitectureConfig.make(base, {"n_layer": 1}).sliding_window == 24
        with pytest.raises(ConfigError, match="covers the whole block_size=24"):
            ModelArchitectureConfig.make(base, {"sliding_window": 25})

    def test_patterns_are_cut_to_fewer_layers(self) -> None:
        assert self.make(n_layer=4).to_dict()["rope_theta"] == "50*3+10000"
        assert self.make(n_layer=2).rope_theta == 50.0
        assert self.make(n_layer=1).ffn_type == "standard"

    def test_given_ones_are_not(self) -> None:
        with pytest.raises(ConfigError, match="needs at least 4 layers, but n_layer=2"):
            self.make(n_layer=2, rope_theta="50*3+1e4")

    def test_adapted_to_fewer_layers_nothing_is_refused(self) -> None:
        config = tiny_config(**self.BASE, n_layer=4)
        assert config.adapted(n_layer=1).rope_theta == 50.0
        assert config.adapted(n_layer=8).layers[7].rope_theta == 1e4
        with pytest.raises(ConfigError, match="needs at least 4 layers"):
            config.changed(n_layer=1)


def test_summary_has_every_key():
    config = ModelArchitectureConfig.from_preset("llama")
    lines = config.summary().splitlines()
    assert lines[0] == config.architecture_name
    assert {line.split()[0] for line in lines[1:]} == set(config.to_dict())


# What is refused


REFUSED = {
    "n_embd=30 is not a multiple of n_head=4": {"n_embd": 30},
    "n_embd=32 is not a multiple of n_head=33": {"n_head": 33},
    "n_head=4 is not a multiple of n_kv_head=3": {"n_kv_head": 3},
    "ffn_multiplier=1e+308 must be at most 10000": {"ffn_multiplier": 1e308},
    "unknown normalization 'rmsnrom'; did you mean 'rmsnorm'": {"normalization": "rmsnrom"},
    "unknown ffn_type 'mlp'. Choices": {"ffn_type": "mlp"},
    "cannot be combined with ffn_type='swiglu'": {"ffn_type": "swiglu", "activation": "relu"},
    "ffn_hidden=50 is not a multiple of ffn_multiple_of=16": {
        "ffn_hidden": 50,
        "ffn_multiple_of": 16,
    },
    "which gives 64; drop one": {"ffn_hidden": 50, "ffn_multiplier": 2.0},
    "sliding_window='5*3+none' needs at least 4 layers, but n_layer=2; shorten it, or raise "
    "n_layer.": {"sliding_window": "5*3+none"},
    "sliding_window='5*2+none*' needs at least 3 layers": {"sliding_window": "5*2+none*"},
    "sliding_window='5*2' gives every layer 5; write sliding_window=5.": {"sliding_window": "5*2"},
    "ffn_hidden='50+50' gives every layer 50": {"ffn_hidden": "50+50"},
    "position_encoding='learned' acts on the embedding, so every layer must use it, but "
    "other layers use rope.": {"position_encoding": "learned+rope"},
    "position_encoding='sinusoidal' acts on the embedding": {
        "position_encoding": "sinusoidal+none"
    },
    "sliding_window=[5, 5] gives every layer 5; write sliding_window=5.": {
        "sliding_window": [5, 5]
    },
    "sliding_window=[5, 5, 5] needs at least 3 layers, but n_layer=2": {
        "sliding_window": [5, 5, 5]
    },
    "n_kv_head='2+3', layer 1: n_head=4 is not a multiple of n_kv_head=3": {"n_kv_head": "2+3"},
    "ffn_type='standard+swiglu', layer 1: activation='relu' cannot be combined with "
    "ffn_type='swiglu'": {"ffn_type": "standard+swiglu", "activation": "relu"},
    "rope_theta='50+1e6', layer 1: rope_theta=1000000 has no effect: no layer with this value "
    "uses position_encoding=rope; remove it, or select that component there.": {
        "position_encoding": "rope+none",
        "rope_theta": "50+1e6",
    },
    "rope_theta='50+60+50*', layer 1: rope_theta=60 has no effect: no layer": {
        "position_encoding": "rope+none",
        "rope_theta": "50+60+50*",
        "n_layer": 6,
    },
    "n_kv_head='4+2', layer 1: n_kv_head=2 has no effect: no layer with this value uses "
    "mixer=attention": {"mixer": "attention+short_conv", "n_kv_head": "4+2"},
    "qk_norm_over='head+projection', layer 1: qk_norm_over='projection' has no effect without": {
        "qk_norm": "true+false",
        "qk_norm_over": "head+projection",
    },
    "n_embd takes int, not '32+48' (str)": {"n_embd": "32+48"},
    "unknown ffn_type 'mlp2'. Choices": {"ffn_type": "standard+mlp2"},
    "sliding_window=0 must be at least 1": {"sliding_window": "5+0"},
    "rope_theta=500.0 belongs to position_encoding=rope, which no layer uses; drop it, or select "
    "that component.": {"rope_theta": 500.0},
    "rope_theta=10000.0 belongs to position_encoding=rope": {"rope_theta": 10000.0},
    "rope_fraction=0.5 belongs to position_encoding=rope": {"rope_fraction": 0.5},
    "leaky_relu_slope=0.2 belongs to activation=leaky_relu": {"leaky_relu_slope": 0.2},
    "sliding_window='5+24', layer 1: sliding_window=24 has no effect: it covers the whole "
    "block_size=24; lower it, or set it to none.": {"sliding_window": "5+24"},
    "- sliding_window=24 has no effect": {"sliding_window": 24, "ffn_type": "standard+swiglu"},
    "qk_norm_over='projection' has no effect without qk_norm": {"qk_norm_over": "projection"},
    "qk_norm_after_rope=True has no effect without both qk_norm and position_encoding='rope'": {
        "qk_norm": True,
        "qk_norm_after_rope": True,
    },
    "qk_norm_over='projection' cannot be combined with qk_norm_after_rope=True": {
        **ROPE,
        "qk_norm": True,
        "qk_norm_over": "projection",
        "qk_norm_after_rope": True,
    },
    "rope_scaling='linear' belongs to position_encoding=rope": {"rope_scaling": "linear"},
    "rope_scaling_factor=2.0 belongs to rope_scaling=linear, ntk, yarn or llama3": {
        **ROPE,
        "rope_scaling_factor": 2.0,
    },
    "rope_beta_fast=9.0 belongs to rope_scaling=yarn": {
        **ROPE,
        "rope_scaling": "linear",
        "rope_beta_fast": 9.0,
    },
    "norm_position='post' has no effect with normalization='none', which leaves no norms": {
        "normalization": "none",
        "norm_position": "post",
    },
    "embedding_norm=True has no effect: it is a norm of the first layer, which has": {
        "normalization": "none+rmsnorm",
        "embedding_norm": True,
    },
    "layer_norm_scaling=True has no effect with n_layer=1": {
        "layer_norm_scaling": True,
        "n_layer": 1,
    },
    "embedding_scale=3 has no effect with residual='ngpt', which scales the stream": {
        "residual": "ngpt",
        "normalization": "none",
        "embedding_scale": 3.0,
    },
    "glu_out_scale=3 has no effect with residual='ngpt'": {
        "residual": "ngpt",
        "normalization": "none",
        "ffn_type": "swiglu",
        "glu_out_scale": 3.0,
    },
    "norm_eps=0.1 has no effect with normalization='none' and without qk_norm": {
        "normalization": "none",
        "norm_eps": 0.1,
    },
    "normalization='dyt' and mixer='linear_attention'; drop it": {
        "mixer": "linear_attention",
        "normalization": "dyt",
        "norm_eps": 0.1,
    },
    "normalization='dyt' and mamba_norm='none'; drop it": {
        "mixer": "mamba2",
        "mamba_head_dim": 8,
        "mamba_norm": "none",
        "normalization": "dyt",
        "norm_eps": 0.1,
    },
    "rotates 3 dimensions": {**ROPE, "rope_fraction": 0.4},
    "rotates 0 dimensions": {**ROPE, "rope_fraction": 0.01},
    "n_embd=33 is odd": {"position_encoding": "sinusoidal", "n_embd": 33, "n_head": 3},
    "needs more than 2 rotated dimensions": {**ROPE, "rope_scaling": "ntk", "rope_fraction": 0.25},
    "rope_beta_slow=40 must be below": {**_YARN, "rope_beta_slow": 40.0},
    "rope_low_freq_factor=5 must be below": {**_LLAMA3, "rope_low_freq_factor": 5.0},
    "does not support an attention softcap": {
        "attention_backend": "sdpa",
        "attention_softcap": 5.0,
    },
    "rope_scaling='linear' has no effect with rope_scaling_factor=1": {
        **ROPE,
        "rope_scaling": "linear",
    },
    "does not support an attention softcap together with dropout": {
        "attention_backend": "flash",
        "attention_softcap": 5.0,
        "dropout": 0.1,
    },
    "does not support a head_dim above 256": {"attention_backend": "flash", "head_dim": 264},
    "does not support a bias on the scores": {
        "attention_backend": "flash",
        "position_encoding": "alibi",
    },
    "does not support dropout on the attention weights": {
        "attention_backend": "flex",
        "dropout": 0.1,
    },
    "dropout=1.0 must be below 1": {"dropout": 1.0},
    "n_layer=0 must be at least 1": {"n_layer": 0},
    "n_layer takes int, not True": {"n_layer": True},
    "bias takes True or False, not 1": {"bias": 1},
    "norm_eps=0.0 must be above 0": {"norm_eps": 0.0},
}


@pytest.mark.parametrize(("message", "keys"), REFUSED.items(), ids=REFUSED.keys())
def test_refused(message, keys):
    with pytest.raises(ConfigError) as raised:
        tiny_config(**keys)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"position_encoding": "rope+none", "rope_theta": "50*2+60*2", "n_layer": 4},
        {"position_encoding": "rope*2+none", "rope_theta": "50+60+50", "n_layer": 6},
        {"position_encoding": "rope+none", "rope_scaling": "ntk+none", "rope_scaling_factor": 2.0},
        {"mixer": "attention+short_conv", "sliding_window": "5+none", "qk_norm": "true+false"},
    ],
)
def test_patterns_of_which_every_value_has_an_effect_are_accepted(keys):
    """Of a layer without the part, none and False are true."""
    tiny_config(**keys)


def test_a_pattern_of_a_base_may_have_values_without_effect():
    base = {**SIZES, "position_encoding": "rope+none", "rope_theta": "50+60"}
    config = ModelArchitectureConfig.make(base)
    assert [layer.get("rope_theta") for layer in config.layers] == [50.0, None]
    assert ModelArchitectureConfig.make(base, {"n_embd": 64}).layers[0].rope_theta == 50.0
    with pytest.raises(ConfigError, match="rope_theta=60 has no effect"):
        ModelArchitectureConfig.make(base, {"rope_theta": "50+60"})


def test_a_problem_is_told_of_the_first_layer_that_has_it():
    with pytest.raises(ConfigError) as raised:
        tiny_config(n_kv_head="2+3", sliding_window="1+2+3+4+5", n_layer=10)
    [problem] = raised.value.problems
    assert problem.message.startswith("n_kv_head='2+3', layer 1: n_head=4 is not a multiple of")


def test_the_time_to_check_does_not_grow_with_the_layers():
    config = tiny_config(n_layer=10**15, **ROPE)
    assert len(config.layers) == 10**15
    assert config.layers[10**12].index == 10**12
    assert config.attention_backends_on("cpu") == ["manual"]
    assert config.backend_refusals("cpu", torch.float32) == []
    assert config.architecture_name.startswith("1000000000000000L-")


def test_layers_that_differ_are_checked_once_for_each_kind():
    config = tiny_config(n_layer=10_000, sliding_window="5*2+none", ffn_type="standard*2+swiglu*")
    assert (config.prefix, config.period, len(config.kinds)) == (2, 3, 5)
    assert [config.layers[layer].sliding_window for layer in (-1, 0, 2, 9001)] == [5, 5, None, 5]
    assert [config.layers[layer].ffn_type for layer in (1, 2)] == ["standard", "swiglu"]


@pytest.mark.slow
def test_thousands_of_kinds_of_layers_are_checked_in_seconds():
    windows = "+".join(map(str, range(1, 10_000)))
    started = process_time()
    config = tiny_config(n_layer=10_000, sliding_window=windows, block_size=20_000)
    assert len(config.kinds) == 9_999
    assert config.layers[9_999].sliding_window == 1
    assert config.to_dict()["sliding_window"].endswith("+9999")
    assert process_time() - started < 20  # in quadratic time, some minutes


def test_too_many_layers_to_differ_are_refused():
    with pytest.raises(
        ConfigError, match="n_layer=10001 is more than the 10,000 layers that a pattern"
    ):
        tiny_config(n_layer=10_001, sliding_window="5+none")


@pytest.mark.parametrize("key", REPLACED)
def test_a_key_of_earlier_versions_is_answered_with_the_pattern_to_write(key):
    with pytest.raises(ConfigError, match=f"the key '{key}' was removed; write "):
        tiny_config(**{key: "SL"})
    for spelling in re.findall(r"(\w+=(?:'[^']+'|\d+))", REPLACED[key]):
        name, _, text = spelling.partition("=")
        pattern = architecture_keys()[name].read(text.strip("'"))
        assert isinstance(pattern, Pattern), spelling


def test_every_problem_is_told_at_once():
    with pytest.raises(ConfigError) as raised:
        tiny_config(n_embd=30, ffn_type="swiglu", activation="relu", rope_theta=5.0, n_kv_head=3)
    assert len(raised.value.problems) == 4


def test_an_unknown_preset():
    with pytest.raises(ValueError, match="unknown preset 'lama'; did you mean 'llama'"):
        ModelArchitectureConfig.from_preset("lama")


def test_an_int_is_taken_for_a_float():
    config = tiny_config(dropout=0, embedding_scale=2)
    assert isinstance(config.dropout, float)
    assert config.architecture_name.endswith("Emb2-T24") or "Emb2" in config.architecture_name


# Files of the presets


def test_every_preset_has_a_file():
    files = {path.stem.removeprefix("arch_") for path in CONFIG_FOLDER.glob("arch_*.py")}
    assert {name.removesuffix("_tiny") for name in files} == set(PRESETS) - {"legacy"}
    for name in files:
        chosen = runpy.run_path(str(CONFIG_FOLDER / f"arch_{name}.py"))["arch_preset"]
        assert chosen == name.removesuffix("_tiny")


def test_the_template_spells_every_key_at_its_default():
    """As a comment where it belongs to a part that the template does not choose."""
    file = CONFIG_FOLDER / "arch_custom.py"
    values, default = runpy.run_path(str(file)), ModelArchitectureConfig()
    commented = dict(
        re.findall(r"^# (\w+) = ([^#\n:]+?) *(?:#.*)?$", file.read_text(), re.MULTILINE)
    )
    keys = architecture_keys()
    assert commented.keys() == keys.keys() - default.to_dict().keys()
    assert values.keys() & keys.keys() == default.to_dict().keys() - {"vocab_size"}
    for name in values.keys() & keys.keys():
        assert values[name] in (keys[name].default, getattr(default, name)), name
    for name, text in commented.items():
        assert ast.literal_eval(text) == keys[name].default, name


@pytest.mark.parametrize(
    "keys",
    [
        {"normalization": "rmsnorm+none", "norm_eps": 0.1},
        {"qk_norm": "true+false", "qk_norm_over": "projection"},
    ],
)
def test_a_key_that_one_layer_uses_is_no_error(keys):
    tiny_config(**keys)
    unused = {"normalization": "none"} if "norm_eps" in keys else {"qk_norm": False}
    with pytest.raises(ConfigError, match="has no effect"):
        tiny_config(**{**keys, **unused})
