"""The tables: published models, what cannot be expressed, and what files may not say."""

from __future__ import annotations

import json
import os
import re

import pytest
import torch

from errors import ConfigError, UserError
from interop.families import FAMILIES, family_of, read_fields
from interop.huggingface import choose_family, read_tensors
from model_builder import GPT
from model_config import ModelArchitectureConfig
from tests.interop.published import PUBLISHED
from tests.interop.published_mixtures import PUBLISHED_MIXTURES
from tests.parametrized import one_in
from tests.tiny import ROPE, SIZES, tiny_config

every_published = pytest.mark.parametrize(
    ("parameters", "fields"), PUBLISHED.values(), ids=PUBLISHED.keys()
)


def architecture(fields: dict) -> ModelArchitectureConfig:
    return ModelArchitectureConfig.from_dict(family_of(fields).read(fields))


@pytest.mark.parametrize("name", one_in(6, list(PUBLISHED)))
def test_published_models_have_the_parameters_they_are_known_for(name):
    parameters, fields = PUBLISHED[name]
    with torch.device("meta"):
        model = GPT(architecture(fields))
    assert model.num_parameters() == parameters
    used = PUBLISHED_MIXTURES[name][1] if name in PUBLISHED_MIXTURES else parameters
    assert model.active_parameters() == used


@every_published
def test_published_models_read_as_transformers_reads_them(parameters, fields):
    """The fields that it fills in and rewrites come to the same architecture."""
    transformers = pytest.importorskip("transformers", reason="see requirements-dev.txt")
    kind = transformers.AutoConfig.for_model(fields["model_type"])
    assert architecture(type(kind).from_dict(fields).to_dict()) == architecture(fields)


NOT_PUBLISHED = {"diffllama"}
"""Families without a known config.json of a published model."""


def test_every_family_has_a_published_model():
    published = {fields["model_type"] for _, fields in PUBLISHED.values()}
    assert published == set(FAMILIES) - NOT_PUBLISHED


@every_published
def test_what_is_written_reads_as_the_same(parameters, fields):
    config = architecture(fields)
    family = family_of(fields)
    assert not family.misfits(config)
    assert ModelArchitectureConfig.from_dict(family.read(family.write(config))) == config


# What a family cannot express

_LLAMA = {
    **ROPE,
    "normalization": "rmsnorm",
    "ffn_type": "swiglu",
    "bias": False,
    "weight_tying": False,
}
_GEMMA2 = {
    **_LLAMA,
    "normalization": "rmsnorm_unit_offset",
    "norm_position": "sandwich",
    "ffn_type": "geglu",
    "activation": "gelu_tanh",
    "embedding_scale": 32**0.5,
}
_COHERE = {
    **_LLAMA,
    "normalization": "layernorm_nobias",
    "norm_position": "parallel_shared",
    "logit_scale": 0.25,
}
_GEMMA3 = {**_GEMMA2, "qk_norm": True, "sliding_window": "5+none"}
_MIXTRAL = {**_LLAMA, "ffn_type": "moe"}
_HUNYUAN = {**_MIXTRAL, "n_shared_experts": 1, "qk_norm": True, "qk_norm_after_rope": True}
_STEPS = {"query_scaling": "ministral3", "query_scaling_interval": 5}
_PERSIMMON = {**ROPE, "qk_norm": True, "qk_norm_type": "layernorm"}
_DEEPSEEK = {
    **_LLAMA,
    "ffn_type": "moe",
    "mixer": "mla",
    "norm_eps": 1e-6,
    "n_shared_experts": 1,
    "router_score": "sigmoid",
    "router_bias_rate": 0.01,
    "n_expert_groups": 4,
    "n_groups_per_token": 2,
}
_QWEN3_NEXT = {
    **_LLAMA,
    "normalization": "rmsnorm_unit_offset",
    "ffn_type": "moe",
    "n_shared_experts": 1,
    "shared_expert_gate": True,
    "qk_norm": True,
    "attention_gate": "channel",
    "mixer": "gated_deltanet+attention",
}
_OF_ATTENTION = ("position_encoding", "qk_norm", "attention_gate")
_WITHOUT_ATTENTION = {
    **{key: value for key, value in _QWEN3_NEXT.items() if key not in _OF_ATTENTION},
    "mixer": "gated_deltanet",
}

_FALCON_H1 = {
    **_LLAMA,
    "mixer": "attention_mamba2",
    "mamba_head_dim": 8,
    "mamba_norm": "none",
}
_BAMBA = {**_LLAMA, "mixer": "mamba2+attention", "mamba_head_dim": 8, "rope_fraction": 0.5}
_MAMBA2 = {
    "mixer": "mamba2",
    "ffn_type": "none",
    "normalization": "rmsnorm",
    "bias": False,
    "mamba_head_dim": 8,
}

INEXPRESSIBLE = {
    "falcon_h1": [
        ({**_FALCON_H1, "mixer": "attention_mamba2+attention"}, "no mixer=attention;"),
        ({**_FALCON_H1, "mamba_out_scale": "0.5+1"}, "mamba_out_scale='0.5+1'"),
        ({**_FALCON_H1, "mamba_n_head": "4+8"}, "mamba_n_head='4+8'"),
        ({**_FALCON_H1, "attention_sinks": True}, "attention_sinks=True"),
        ({**_FALCON_H1, "ffn_type": "none+swiglu"}, "ffn_type='none+swiglu'"),
        ({**_FALCON_H1, "rope_fraction": 0.5}, "rope_fraction=0.5"),
    ],
    "bamba": [
        (
            {**_MAMBA2, "ffn_type": "swiglu"},
            "needs both mixer=attention and mixer=mamba2",
        ),
        ({**_BAMBA, "mamba_norm": "none"}, "which would make it 'after_gate+none'"),
        ({**_BAMBA, "glu_gate_scale": 0.5}, "glu_gate_scale=0.5"),
        ({**_BAMBA, "mamba_n_head": 5}, "mamba_n_head=5 x mamba_head_dim=8 = 40 is not a multiple"),
    ],
    "mamba2": [
        ({**_MAMBA2, "ffn_type": "none+swiglu"}, "ffn_type='none+swiglu' cannot be expressed"),
        ({**_MAMBA2, "mixer": "mamba2+attention"}, "no mixer=attention"),
        ({**_MAMBA2, "mamba_norm": "before_gate"}, "mamba_norm='before_gate'"),
        (
            {**_MAMBA2, "mamba_n_head": 5},
            "mamba_n_head=5 x mamba_head_dim=8 = 40 is not a multiple",
        ),
        ({**_MAMBA2, "mamba_n_head": "4+8"}, "mamba_n_head='4+8'"),
        ({**_MAMBA2, "mamba_kernel": "3+4"}, "mamba_kernel='3+4'"),
    ],
    "gpt2": [
        ({"position_encoding": "alibi"}, "position_encoding='alibi' cannot be expressed by gpt2"),
        ({"n_kv_head": 2}, "n_kv_head=2"),
        ({"head_dim": 16}, "head_dim=16"),
        ({"qk_norm": True}, "qk_norm=True"),
        ({"head_bias": True}, "head_bias=True"),
        ({"ffn_type": "swiglu"}, "ffn_type='swiglu'"),
        ({"norm_position": "post"}, "norm_position='post'"),
        ({"normalization": "rmsnorm"}, "normalization='rmsnorm'"),
        ({"sliding_window": 5}, "sliding_window=5"),
        ({"attention_scale": 0.3}, "attention_scale=0.3"),
        ({"output_softcap": 5.0}, "output_softcap=5.0"),
        ({"embedding_scale": 2.0}, "embedding_scale=2.0"),
    ],
    "llama": [
        ({**_LLAMA, "attention_bias": True, "attention_out_bias": False}, "attention_bias=True"),
        ({**_LLAMA, "rope_fraction": 0.5}, "rope_fraction=0.5"),
        ({**_LLAMA, "position_encoding": "rope+none"}, "position_encoding='rope+none'"),
        ({**_LLAMA, "n_kv_head": "2+4"}, "n_kv_head='2+4' cannot be expressed by llama"),
        ({**_LLAMA, "head_dim": "8+16"}, "head_dim='8+16'"),
        ({**_LLAMA, "ffn_hidden": "40+48"}, "ffn_hidden='40+48'"),
        ({**_LLAMA, "ffn_type": "swiglu+standard"}, "ffn_type='swiglu+standard'"),
        ({**_LLAMA, "norm_eps": "1e-5+1e-6"}, "norm_eps='1e-05+1e-06'"),
        ({**_LLAMA, "norm_position": "pre+sandwich"}, "norm_position='pre+sandwich'"),
        ({**_LLAMA, "rope_theta": "1e4+5e5"}, "rope_theta='10000+500000'"),
        ({**_LLAMA, "rope_fraction": "1+0.5"}, "rope_fraction='1+0.5'"),
        ({**_LLAMA, "qk_norm": "true+false"}, "qk_norm='true+false'"),
        (
            {**_LLAMA, "ffn_type": "glu", "activation": "leaky_relu", "leaky_relu_slope": 0.2},
            "leaky_relu_slope=0.2 cannot be expressed by llama, which would make it 0.01",
        ),
        (
            {**_LLAMA, "rope_scaling": "ntk", "rope_scaling_factor": 2.0},
            "rope_scaling='ntk' cannot be expressed by llama, which would make it 'none'",
        ),
        ({**_LLAMA, "n_embd": 30, "head_dim": 8}, "n_embd=30 is not a multiple of n_head=4"),
    ],
    "mistral": [
        (
            {**_LLAMA, "sliding_window": "5+none"},
            "sliding_window='5+none' cannot be expressed by mistral, which would make it 5",
        ),
    ],
    "gpt_neox": [
        ({**ROPE, "norm_position": "parallel_shared"}, "norm_position='parallel_shared'"),
        ({**ROPE, "n_kv_head": "2+4"}, "n_kv_head='2+4'"),
    ],
    "gemma2": [
        ({**_GEMMA2, "sliding_window": "5+3"}, "sliding_window='5+3'"),
        ({**_GEMMA2, "attention_scale": 0.3}, "attention_scale=0.3"),
        ({**_GEMMA2, "embedding_scale": 2.0}, "embedding_scale=2.0"),
    ],
    "gemma3_text": [
        (
            {**_GEMMA3, "n_layer": 3, "sliding_window": "5+none", "rope_theta": [50.0, 60.0, 70.0]},
            "rope_theta",
        ),
        (
            {**_GEMMA3, "attention_softcap": 2.0},
            "attention_softcap=2.0 cannot be expressed by gemma3_text, which would make it None",
        ),
    ],
    "phi3": [
        (
            {**_LLAMA, "rope_scaling": "linear", "rope_scaling_factor": 2.0},
            "rope_scaling='linear'",
        ),
    ],
    "stablelm": [({**_LLAMA, "normalization": "layernorm", "qk_norm": True}, "qk_norm=True")],
    "mixtral": [
        (_LLAMA, "mixtral: this family needs ffn_type='moe' in at least one layer"),
        ({**_MIXTRAL, "ffn_type": "swiglu+moe"}, "ffn_type='swiglu+moe' cannot be expressed by"),
        ({**_MIXTRAL, "n_shared_experts": 1}, "n_shared_experts=1"),
        ({**_MIXTRAL, "router_score": "sigmoid"}, "router_score='sigmoid'"),
        ({**_MIXTRAL, "router_bias_rate": 0.01}, "router_bias_rate=0.01"),
        ({**_MIXTRAL, "router_logit_bias": True}, "router_logit_bias=True"),
        ({**_MIXTRAL, "router_renormalize": False}, "router_renormalize=False"),
        ({**_MIXTRAL, "glu_limit": 7.0}, "glu_limit=7.0"),
        ({**_MIXTRAL, "mixer": "mla"}, "mixtral has no mixer=mla; only models whose layers all"),
    ],
    "deepseek_v3": [
        ({**_DEEPSEEK, "expert_group_score": "max"}, "expert_group_score='max'"),
        ({**_DEEPSEEK, "ffn_type": "moe+swiglu"}, "ffn_type='moe+swiglu'"),
        ({**_DEEPSEEK, "n_expert_groups": 8, "n_groups_per_token": 4}, "have one expert each"),
        ({**_DEEPSEEK, "norm_eps": 1e-5}, "norm_eps=1e-05"),
        ({**_DEEPSEEK, "attention_scale": 0.3}, "attention_scale=0.3"),
        ({**_DEEPSEEK, "sliding_window": 5}, "sliding_window=5"),
    ],
    "qwen3_next": [
        (_WITHOUT_ATTENTION, "needs mixer=attention in at least one"),
        ({**_QWEN3_NEXT, "attention_gate": "head"}, "attention_gate='none+head'"),
    ],
    "granitemoe": [
        (
            {**_MIXTRAL, "n_shared_experts": 1, "residual_scale": 0.3},
            "n_shared_experts=1 cannot be expressed by granitemoe, which would make it 0",
        ),
    ],
    "hunyuan_v1_moe": [
        ({**_HUNYUAN, "n_shared_experts": 2}, "n_shared_experts=2"),
        ({**_HUNYUAN, "qk_norm_after_rope": False}, "qk_norm_after_rope=False"),
    ],
    "diffllama": [
        ({**_LLAMA, "differential_attention": "true+false"}, "differential_attention='true+false'"),
        ({**_LLAMA, "differential_attention": True, "qk_norm": True}, "qk_norm=True"),
    ],
    "ministral3": [
        ({**_LLAMA, **_STEPS, "query_scaling": "llama4"}, "query_scaling='llama4'"),
        ({**_LLAMA, **_STEPS, "query_scaling": "ministral3+none"}, "query_scaling='ministral3+no"),
        (
            {
                **_LLAMA,
                **_STEPS,
                "rope_scaling": "yarn",
                "rope_scaling_factor": 2.0,
                "rope_original_block_size": 12,
            },
            "query_scaling_interval=5 cannot be expressed by ministral3, which would make it 12",
        ),
    ],
    "persimmon": [
        ({**_PERSIMMON, "qk_norm_type": "rmsnorm"}, "qk_norm_type='rmsnorm'"),
        ({**_PERSIMMON, "qk_norm_over": "projection"}, "qk_norm_over='projection'"),
        ({**_PERSIMMON, "n_kv_head": 2}, "n_kv_head=2"),
    ],
    "cohere2": [
        (
            {**_COHERE, "sliding_window": "5+none", "position_encoding": "rope"},
            "sliding_window='5+none' cannot be expressed by cohere2, which would make it 5",
        ),
        (
            {**_COHERE, "sliding_window": "5+none", "position_encoding": "rope+none", "bias": True},
            "bias=True cannot be expressed by cohere2",
        ),
    ],
    "granite": [({**_LLAMA, "norm_position": "sandwich"}, "norm_position='sandwich'")],
    "hyperclovax": [({**_LLAMA, "qk_norm": True, "residual_scale": 0.3}, "qk_norm=True")],
    "exaone4": [
        (
            {
                **_LLAMA,
                "norm_position": "res_post",
                "qk_norm": True,
                "sliding_window": "5+none",
            },
            "sliding_window='5+none' cannot be expressed by exaone4, which would make it 5",
        ),
    ],
    "falcon": [
        ({**ROPE, "norm_position": "pre", "n_kv_head": 2}, "n_kv_head=2"),
        ({**ROPE, "norm_position": "post"}, "norm_position='post'"),
    ],
    "codegen": [
        (
            {**ROPE, "norm_position": "parallel_shared", "n_head": 2},
            "codegen: n_head=2 is not a mu",
        ),
    ],
    "openai-gpt": [
        ({"norm_position": "post"}, "activation='gelu' cannot be expressed by openai-gpt"),
        ({"norm_position": "post", "activation": "relu", "ffn_hidden": 40}, "ffn_hidden=40"),
    ],
    "mpt": [({"position_encoding": "alibi", "normalization": "rmsnorm"}, "normalization='rms")],
    "bloom": [
        ({"position_encoding": "alibi", "activation": "gelu_tanh"}, "embedding_norm=False"),
    ],
    "lfm2": [
        (
            {**_LLAMA, "mixer": "short_conv+attention", "qk_norm": True, "bias": True},
            "bias=True cannot be expressed by lfm2",
        ),
        (
            {**ROPE, "mixer": "mla"},
            "lfm2 has no mixer=mla; only models whose layers all use mixer=att",
        ),
    ],
    "gptj": [
        ({**ROPE, "head_dim": 16}, "gptj: head_dim=16 of n_head=4 heads does not make n_embd=32"),
        ({**ROPE, "norm_position": "parallel_shared", "attention_bias": True}, "attention_b"),
    ],
}


@pytest.mark.parametrize(
    ("family", "keys", "message"),
    [(family, *case) for family, cases in INEXPRESSIBLE.items() for case in cases],
)
def test_what_cannot_be_expressed_is_refused_by_name(family, keys, message):
    with pytest.raises(ConfigError) as raised:
        choose_family(tiny_config(**keys), family)
    assert message in str(raised.value)


# Of these the product of head_dim and the quotient of the two falls short.
SHORT = [
    (rotated, head_dim)
    for head_dim in range(2, 257)
    for rotated in range(2, head_dim, 2)
    if int(head_dim * (rotated / head_dim)) < rotated
]


def test_transformers_rotates_as_many_dimensions_as_the_model():
    assert len(SHORT) > 100
    for rotated, head_dim in SHORT[::10]:
        config = tiny_config(**ROPE, n_embd=4 * head_dim, rope_fraction=rotated / head_dim)
        family = FAMILIES["gpt_neox"]
        assert int(head_dim * family.write(config)["rotary_pct"]) == rotated
        assert not [one for one in family.misfits(config) if one.keys == ("rope_fraction",)]


def test_the_nearest_family_tells_what_is_in_the_way():
    with pytest.raises(ConfigError) as raised:
        choose_family(tiny_config(**_LLAMA, output_softcap=3.0))
    assert [problem.keys for problem in raised.value.problems] == [("output_softcap",)]


def test_what_a_run_decides_is_in_no_ones_way():
    config = tiny_config(dropout=0.3, ffn_multiplier=3.0, attention_backend="sdpa")
    assert choose_family(config).model_type == "gpt2"


def test_layers_that_differ_in_a_way_that_no_family_has():
    """The nearest family says which keys are in the way, though many could be named."""
    keys = {**_LLAMA, "n_layer": 3, "position_encoding": "rope*2+none", "n_kv_head": "4*2+1"}
    with pytest.raises(ConfigError) as raised:
        choose_family(tiny_config(**keys))
    assert [problem.message for problem in raised.value.problems] == [
        "n_kv_head='4*2+1' cannot be expressed by smollm3, which would make it 4."
    ]


@pytest.mark.parametrize("windows", ["5+none", [5, None], "5+none*"])
def test_patterns_of_the_same_layers_are_the_same(windows):
    config = tiny_config(**_GEMMA2, sliding_window=windows)
    assert choose_family(config).model_type == "gemma2"


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": "50+1e4"},
        {"rope_scaling": "linear", "rope_scaling_factor": 2.0},
        {"rope_scaling": "none+yarn", "rope_scaling_factor": 2.0},
        {"rope_scaling": "yarn+none", "rope_scaling_factor": 2.0},
        {"rope_scaling": "linear+yarn", "rope_scaling_factor": "2+4"},
    ],
)
@pytest.mark.parametrize("windows", ["5+none", None, 5])
def test_rope_of_gemma_3_that_differs_by_layer(keys, windows):
    """Layer types tell two kinds of RoPE apart, by windows or without any."""
    config = tiny_config(**{**_GEMMA3, **keys, "sliding_window": windows})
    one_kind = windows == 5 and "+" in str([*keys.values()])
    assert bool(FAMILIES["gemma3_text"].misfits(config)) == one_kind


def test_a_window_beside_windows_that_hide_nothing():
    keys = {**SIZES, **_GEMMA2, "sliding_window": "5+400"}
    config = ModelArchitectureConfig.from_dict(keys)  # as saved; a user's own 400 is refused
    assert choose_family(config).model_type == "gemma2"


def test_an_unknown_family():
    with pytest.raises(ValueError, match="unknown family 'lama'; did you mean 'llama'"):
        choose_family(tiny_config(), "lama")


# What a file may not say

LLAMA2 = PUBLISHED["LLaMA 2 7B"][1]

REFUSED = {
    "model_type='llama4' is not supported. Choices: gpt2, gpt_neox": {"model_type": "llama4"},
    "model_type=None is not supported": {"model_type": None},
    "model_type=['llama'] is not supported": {"model_type": ["llama"]},
    "hidden_act='mish' is not a supported activation": {"hidden_act": "mish"},
    "rope_type='longrope' is not a supported RoPE scaling": {
        "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}
    },
    "rope_type='yarn' has low_freq_factor=0.7, which cannot be expressed": {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "low_freq_factor": 0.7}
    },
    "rope_type='default' has mrope_section=[1, 2], which cannot be expressed": {
        "rope_scaling": {"rope_type": "default", "mrope_section": [1, 2]}
    },
    "config.json of a llama has no 'factor'": {"rope_scaling": {"rope_type": "linear"}},
    "rope_type='yarn' has attention_factor=0.7 with factor=1": {
        "rope_scaling": {"rope_type": "yarn", "factor": 1.0, "attention_factor": 0.7}
    },
    "rope_type='yarn' has short_factor=[0.7]": {
        "rope_scaling": {"rope_type": "yarn", "factor": 1.0, "short_factor": [0.7]}
    },
    "rope_parameters has a separate entry for full_attention, but every layer": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}
    },
    "partial_rotary_factor=0.5 with rope_type='linear' cannot be expressed": {
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "partial_rotary_factor": 0.5,
    },
    "quantization_config={'bits': 4} cannot be expressed here": {
        "quantization_config": {"bits": 4}
    },
    "is_causal=False cannot be expressed here; only True can": {"is_causal": False},
    "per_layer_config={'1': {'intermediate_size': 16}} cannot be expressed here": {
        "per_layer_config": {"1": {"intermediate_size": 16}}
    },
    "kv_sharing_modes=['reuse'] cannot be expressed here": {"kv_sharing_modes": ["reuse"]},
}


@pytest.mark.parametrize(("message", "fields"), REFUSED.items(), ids=REFUSED.keys())
def test_what_a_file_may_not_say(message, fields):
    with pytest.raises(ValueError, match=re.escape(message)):
        architecture({**LLAMA2, **fields})


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        ("GPT-J 6B", {"rotary_dim": None}, "config.json of a gptj has a value of the wrong type"),
        ("GPT-2", {"scale_attn_by_inverse_layer_idx": True}, "only False can"),
        ("Pythia 160M", {"rotary_pct": float("nan")}, "config.json of a gpt_neox has a value of"),
        ("HunYuan A13B", {"rope_scaling": "x"}, "hunyuan_v1_moe has a value of the wrong type"),
        ("StableLM 3B 4E1T", {"qk_layernorm": True}, "qk_layernorm=True cannot be expressed"),
        ("Gemma 2B", {"use_bidirectional_attention": True}, "only None or False can"),
        ("Gemma 2 2B", {"layer_types": ["chunked_attention"]}, "layer_types has 'chunked_att"),
        (
            "Gemma 3 1B",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            "rope_parameters has rope_type, but a gemma3_text has RoPE parameters by layer type",
        ),
        ("Gemma 3 1B", {"attn_logit_softcapping": 50.0}, "only None can"),
        ("Gemma 3 1B", {"num_hidden_layers": 10**9}, "must be from 1 to 10,000 in a"),
        ("SmolLM3 3B", {"num_hidden_layers": 0}, "num_hidden_layers=0 must be from 1 to"),
        ("Gemma 3 1B", {"sliding_window_pattern": 0}, "has a value of the wrong type"),
        ("Gemma 2 2B", {"sliding_window": None}, "need a sliding_window; config.json has none"),
        ("Gemma 2 2B", {"layer_types": ["full_attention"]}, "1 entries, num_hidden_layers is 26"),
        (
            "Qwen3 0.6B",
            {"layer_types": ["sliding_attention"] * 28, "sliding_window": 9},
            "but use_sliding_window is false",
        ),
        ("SmolLM3 3B", {"no_rope_layers": [1, 0]}, "has 2 entries, num_hidden_layers is 36"),
        (
            "Phi-3 mini 4k",
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "not support this scaling",
        ),
        ("Pythia 160M", {"head_dim": 32}, "head_dim=32 cannot be expressed here"),
        ("Qwen3 30B-A3B", {"mlp_only_layers": [*range(48)]}, "no layer has experts; give the"),
        (
            "Qwen1.5 MoE A2.7B",
            {"shared_expert_intermediate_size": 5000},
            "must be a multiple of moe_intermediate_size=1408",
        ),
        ("gpt-oss 20B", {"swiglu_alpha": 1.0}, "only 1.702 can"),
        (
            "Ministral 3 8B",
            {"rope_parameters": {"rope_type": "default", "llama_4_scaling_beta": 0.1}},
            "ministral3 lack original_max_position_embeddings, which transformers needs to",
        ),
        (
            "Ministral 3 8B",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
            "ministral3 lack llama_4_scaling_beta, which transformers needs to scale queries",
        ),
        ("HunYuan A13B", {"moe_topk": [8]}, "moe_topk has 1 entries, num_hidden_layers is 32"),
        ("HunYuan A13B", {"moe_topk": 1}, "router_renormalize=True sets every weight to 1"),
        ("ERNIE 4.5 21B-A3B", {"use_bias": True}, "use_bias=True cannot be expressed"),
        ("DeepSeek-V3", {"rms_norm_eps": 1e-5}, "only 1e-06 can"),
        ("DeepSeek-V3", {"num_key_value_heads": 8}, "as many as num_attention_heads=128"),
        (
            "DeepSeek-V3",
            {"head_dim": 56},
            "head_dim=56 cannot be expressed here: it must be",
        ),
        ("DeepSeek-V3", {"n_shared_experts": 0}, "this model_type has at least 1"),
        ("DeepSeek-V2 Lite", {"topk_method": "noaux_tc"}, "topk_method='noaux_tc' cannot be"),
        ("DeepSeek-V2 Lite", {"norm_topk_prob": True}, "only False or None can"),
        ("DeepSeek-V2 Lite", {"kv_lora_rank": 511}, "kv_lora_rank=511 is odd"),
        ("Qwen3-Next 80B-A3B", {"layer_types": ["linear_attention"] * 48}, "needs in at least one"),
        ("Qwen3-Next 80B-A3B", {"layer_types": ["full_attention"]}, "for each of num_hidden_la"),
        ("GPT-1", {"afn": "gelu_new"}, "afn='gelu_new' is not an activation of GPT-1"),
        ("GPT-Neo 125M", {"num_layers": 3}, "has 12 layers, num_layers is 3"),
        ("GPT-Neo 125M", {"attention_layers": ["wide"] * 12}, "has 'wide', which is not supported"),
        ("CodeGen 350M", {"n_head": 2}, "n_head=2 is not a multiple of 4"),
        ("StarCoderBase 1B", {"scale_attn_weights": False}, "only True can"),
        ("OPT 125M", {"word_embed_proj_dim": 512}, "word_embed_proj_dim=512 cannot be expressed"),
        ("OPT 125M", {"_remove_final_layer_norm": True}, "only False can"),
        ("MPT 7B", {"attn_config": {"clip_qkv": 6}}, "attn_config has clip_qkv=6, which cannot"),
        ("MPT 7B", {"expansion_ratio": 2}, "only 4 can"),
        ("BLOOM 560M", {"slow_but_exact": True}, "only False can"),
        ("Falcon 7B", {"alibi": True}, "alibi=True cannot be expressed here"),
        ("Falcon 7B", {"num_ln_in_parallel_attn": 2}, "cannot be computed by transformers"),
        ("Falcon 40B", {"parallel_attn": False}, "cannot be computed by transformers"),
        ("Falcon 7B", {"multi_query": False, "num_kv_heads": 2}, "needs new_decoder_architecture"),
        ("Command R 35B", {"use_qk_norm": True}, "use_qk_norm=True cannot be expressed"),
        ("Granite 3.1 2B", {"logits_scaling": 0}, "has a value of the wrong type: .*division"),
        ("Granite SWASH 2B", {"layer_rope_theta": [1e4]}, "has 1 entries, num_hidden_layers is 24"),
        ("EXAONE 4 32B", {"layer_types": None}, "sliding_window_pattern='LLLG' needs layer_types"),
        (
            "EXAONE 4 32B",
            {"layer_types": None, "sliding_window": None},
            "sliding_window=None needs layer_types",
        ),
        ("InternLM 3 8B", {"bias": True}, "qkv_bias=False with bias=True cannot be computed"),
        (
            "Bamba 9B",
            {"mlp_bias": True},
            "mamba_proj_bias=False, mlp_bias=True cannot be expressed",
        ),
        ("Bamba 9B", {"mamba_d_head": 32}, "mamba_d_head=32 is not the width 8192 of Mamba-2"),
        ("Bamba 9B", {"hidden_act": "relu"}, "hidden_act='relu' cannot be expressed here"),
        ("Falcon-H1 0.5B", {"projectors_bias": True}, "they must be equal"),
        (
            "Falcon-H1 0.5B",
            {"ssm_multipliers": [1.0]},
            "ssm_multipliers has 1 entries; it must have 5",
        ),
        ("Mamba-2 130M", {"hidden_act": "gelu"}, "hidden_act='gelu' cannot be expressed here"),
        (
            "Mamba-2 130M",
            {"expand": 3},
            "expand=3 x hidden_size=768 is not num_heads=24 x head_dim",
        ),
        ("LFM2 1.2B", {"conv_bias": True}, "conv_bias=True cannot be expressed here"),
        ("LFM2 1.2B", {"layer_types": ["conv"]}, "1 entries, num_hidden_layers is 16"),
        ("LFM2 1.2B", {"layer_types": ["sliding"]}, "layer_types has 'sliding', which is not"),
    ],
)
def test_what_a_file_of_a_family_may_not_say(model, fields, message):
    with pytest.raises(ValueError, match=message):
        architecture({**PUBLISHED[model][1], **fields})


@pytest.mark.parametrize("field", ["hidden_size", "vocab_size", "max_position_embeddings"])
def test_a_missing_field_is_named(field):
    fields = {name: value for name, value in LLAMA2.items() if name != field}
    with pytest.raises(ValueError, match=f"config.json of a llama has no '{field}'"):
        architecture(fields)


def test_a_missing_or_broken_config(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json cannot be read: No such file"):
        read_fields(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        read_fields(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json has no fields: \[1\]"):
        read_fields(tmp_path)


def test_a_window_as_long_as_the_longest_sequence_is_none():
    fields = {**PUBLISHED["Mistral 7B"][1], "sliding_window": 32768}
    assert architecture(fields).sliding_window is None


class TestForeignFolders:
    """What a folder from elsewhere names is read only if it is a regular file in that folder."""

    @pytest.mark.parametrize("name", ["../weights.safetensors", "/weights.safetensors", 3])
    def test_an_index_cannot_name_files_elsewhere(self, tmp_path, name):
        index = {"weight_map": {"wte.weight": name}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match="weight_map must name files in the same folder"):
            read_tensors(tmp_path)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
    def test_a_config_that_is_a_fifo_is_refused(self, tmp_path):
        os.mkfifo(tmp_path / "config.json")
        with pytest.raises(UserError, match="is not a regular file"):
            read_fields(tmp_path)
