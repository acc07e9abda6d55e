"""The architecture config: what it derives, refuses and is called; and that no key lies."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

import pytest
import torch

from errors import ConfigError
from model_builder import GPT
from model_components import FFNS
from model_config import PRESETS, ModelArchitectureConfig
from tests.tiny import ROPE, SIZES, tiny_config, tiny_model, tokens

CONFIG_FOLDER = Path(__file__).parents[2] / "config"

# Names


def test_names_of_the_presets():
    names = {name: ModelArchitectureConfig.from_preset(name).architecture_name for name in PRESETS}
    assert names == {
        "gpt2": "12L-12H-768D-AbsPos-LN-GELU-PreNorm",
        "llama": "12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm",
        "team": "12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm",
        "hybrid": "12L-12H-768D-RoPE-LN-NB-GELU-PreNorm",
        "custom": "12L-12H-768D-AbsPos-LN-GELU-PreNorm",
        "legacy": "12L-12H-768D-AbsPos-LN-NB-GELU-PreNorm",
    }


def test_tags_of_a_name():
    config = ModelArchitectureConfig.from_preset(
        "llama", n_kv_head=4, qk_norm=True, sliding_window=256, window_pattern="SSL", bias=True
    )
    tags = config.architecture_name.removeprefix("12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm-")
    assert tags == "4KV-QKNorm-SWA256-SSL-Bias"


def test_a_network_of_ones_own_is_in_the_name(monkeypatch):
    class Wider(FFNS["standard"]):
        """As wide and as active as the plain one, but another."""

    for table in ("_entries", "_canonical"):
        monkeypatch.setattr(FFNS, table, dict(getattr(FFNS, table)))
    FFNS.register("wider", label="Wider")(Wider)
    assert "-Wider-" in tiny_config(ffn_type="wider").architecture_name


NOT_IN_THE_NAME = {"vocab_size", "attention_backend"}

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
    "ffn_multiplier": {"ffn_multiplier": 3.0},
    "ffn_multiple_of": {"ffn_multiple_of": 96},
    "ffn_hidden": {"ffn_hidden": 50},
    "n_kv_head": {"n_kv_head": 2},
    "head_dim": {"head_dim": 16},
    "qk_norm": {"qk_norm": True},
    "qk_norm_over": {"qk_norm": True, "qk_norm_over": "projection"},
    "attention_scale": {"attention_scale": 0.1},
    "sliding_window": {"sliding_window": 5},
    "window_pattern": {"sliding_window": 5, "window_pattern": "SL"},
    "attention_softcap": {"attention_softcap": 0.5},
    "attention_bias": {"attention_bias": False},
    "attention_out_bias": {"attention_out_bias": False},
    "attention_backend": {"attention_backend": "sdpa"},
    "position_encoding": {"position_encoding": "alibi"},
    "rope_theta": {**ROPE, "rope_theta": 50.0},
    "rope_fraction": {**ROPE, "rope_fraction": 0.5},
    "rope_local_theta": {"rope_local_theta": 50.0},
    "rope_pattern": {"rope_pattern": "RN"},
    "rope_scaling": {**ROPE, "rope_scaling": "ntk", "rope_scaling_factor": 4.0},
    "rope_scaling_factor": {**ROPE, "rope_scaling": "linear", "rope_scaling_factor": 4.0},
    "rope_original_block_size": {"rope_original_block_size": 64},
    "rope_beta_fast": {"rope_beta_fast": 2.0},
    "rope_beta_slow": {"rope_beta_slow": 0.1},
    "rope_low_freq_factor": {"rope_low_freq_factor": 0.1},
    "rope_high_freq_factor": {"rope_high_freq_factor": 8.0},
    "bias": {"bias": False},
    "head_bias": {"head_bias": True},
    "weight_tying": {"weight_tying": False},
    "dropout": {"dropout": 0.3},
    "output_softcap": {"output_softcap": 0.5},
    "embedding_scale": {"embedding_scale": 2.0},
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
BEFORE = {
    "window_pattern": {"sliding_window": 5},
    "qk_norm_over": {"qk_norm": True},
    "rope_theta": ROPE,
    "rope_fraction": ROPE,
    "rope_local_theta": {**ROPE, "sliding_window": 5},
    "rope_pattern": ROPE,
    "rope_scaling": {**ROPE, "rope_scaling": "linear", "rope_scaling_factor": 4.0},
    "rope_scaling_factor": {**ROPE, "rope_scaling": "linear", "rope_scaling_factor": 2.0},
    "rope_original_block_size": _YARN,
    "rope_beta_fast": _YARN,
    "rope_beta_slow": _YARN,
    "rope_low_freq_factor": _LLAMA3,
    "rope_high_freq_factor": _LLAMA3,
}
"""What the key is changed from, where the tiny defaults have no use for it."""


def before_and_after(key: str) -> tuple[dict, dict]:
    before = BEFORE.get(key, {})
    return before, {**before, **CHANGES[key]}


def test_every_key_is_walked():
    assert set(CHANGES) == {field.name for field in dataclasses.fields(ModelArchitectureConfig)}


@pytest.mark.parametrize("key", CHANGES)
def test_no_key_is_ignored(key):
    """It changes the output, the shape of it, or, the backend, nothing but how it is computed."""
    before, after = before_and_after(key)
    assert getattr(tiny_config(**before), key) != getattr(tiny_config(**after), key)
    outputs = []
    for keys in (before, after):
        torch.manual_seed(0)
        model = GPT(tiny_config(**keys)) if key == "init_std" else tiny_model(**keys)
        model.train(key == "dropout")
        outputs.append(model(tokens(24)))
    if key == "attention_backend":
        assert torch.allclose(*outputs, atol=2e-5)
        backends = [
            type(GPT(tiny_config(**k)).blocks[0].attention.backend) for k in (before, after)
        ]
        assert backends[0] is not backends[1]
    elif key == "block_size":
        longer = tiny_model(**after)
        assert longer(tokens(32)).shape[1] == 32
        with pytest.raises(ValueError, match="32 tokens do not fit block_size=24"):
            tiny_model(**before)(tokens(32))
    else:
        assert outputs[0].shape != outputs[1].shape or not torch.allclose(*outputs, atol=1e-4)


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


def test_summary_has_every_key():
    config = ModelArchitectureConfig.from_preset("llama")
    lines = config.summary().splitlines()
    assert lines[0] == config.architecture_name
    assert {line.split()[0] for line in lines[1:]} == set(config.to_dict())


# What is refused


def test_a_window_over_everything_says_which_layers_have_the_local_base():
    config = tiny_config(**ROPE, sliding_window=99, window_pattern="SL", rope_local_theta=50.0)
    assert [config.windowed(layer) for layer in (0, 1)] == [True, False]
    assert [config.window(layer) for layer in (0, 1)] == [None, None]


REFUSED = {
    "n_embd=30 is not a multiple of n_head=4": {"n_embd": 30},
    "n_embd=32 is not a multiple of n_head=33": {"n_head": 33},
    "n_head=4 is not a multiple of n_kv_head=3": {"n_kv_head": 3},
    "ffn_multiplier=1e+308 must be at most 10000": {"ffn_multiplier": 1e308},
    "unknown normalization 'rmsnrom'; did you mean 'rmsnorm'": {"normalization": "rmsnrom"},
    "unknown ffn_type 'moe'": {"ffn_type": "moe"},
    "does not go with ffn_type='swiglu'": {"ffn_type": "swiglu", "activation": "relu"},
    "ffn_hidden=50 is not a multiple of ffn_multiple_of=16": {
        "ffn_hidden": 50,
        "ffn_multiple_of": 16,
    },
    "makes 64, disagree": {"ffn_hidden": 50, "ffn_multiplier": 2.0},
    "must be letters S": {"sliding_window": 5, "window_pattern": "SX"},
    "window_pattern='' must be letters S": {"sliding_window": 5, "window_pattern": ""},
    "does nothing without sliding_window": {"window_pattern": "SL"},
    "makes none of the n_layer=2 layers sliding": {"sliding_window": 5, "window_pattern": "LLS"},
    "reaches over the whole block_size=24": {"sliding_window": 24},
    "rope_theta=500.0 does nothing here": {"rope_theta": 500.0},
    "rope_fraction=0.5 does nothing here": {"rope_fraction": 0.5},
    "rope_pattern=RN does nothing here": {"rope_pattern": "RN"},
    "rope_local_theta=50.0 does nothing here": {"rope_local_theta": 50.0, "sliding_window": 5},
    "rope_local_theta=50 does nothing without windowed": {**ROPE, "rope_local_theta": 50.0},
    "must be letters R (rotated) and N (not)": {**ROPE, "rope_pattern": "RS"},
    "rotates none of the n_layer=2 layers": {**ROPE, "rope_pattern": "N"},
    "rotates all of the n_layer=2 layers": {**ROPE, "rope_pattern": "RRN"},
    "qk_norm_over='projection' does nothing without qk_norm": {"qk_norm_over": "projection"},
    "rope_scaling=linear does nothing here": {"rope_scaling": "linear"},
    "rope_scaling_factor=2.0 does nothing here": {**ROPE, "rope_scaling_factor": 2.0},
    "rope_beta_fast=9.0 does nothing here": {
        **ROPE,
        "rope_scaling": "linear",
        "rope_beta_fast": 9.0,
    },
    "norm_eps=0.1 does nothing here": {"normalization": "none", "norm_eps": 0.1},
    "rotates 3 dimensions": {**ROPE, "rope_fraction": 0.4},
    "rotates 0 dimensions": {**ROPE, "rope_fraction": 0.01},
    "n_embd=33 is odd": {"position_encoding": "sinusoidal", "n_embd": 33, "n_head": 3},
    "needs more than 2 rotated dimensions": {**ROPE, "rope_scaling": "ntk", "rope_fraction": 0.25},
    "rope_beta_slow=40 must be below": {**_YARN, "rope_beta_slow": 40.0},
    "rope_low_freq_factor=5 must be below": {**_LLAMA3, "rope_low_freq_factor": 5.0},
    "cannot do an attention softcap": {"attention_backend": "sdpa", "attention_softcap": 5.0},
    "rope_scaling='linear' does nothing with rope_scaling_factor=1": {
        **ROPE,
        "rope_scaling": "linear",
    },
    "cannot do an attention softcap together with dropout": {
        "attention_backend": "flash",
        "attention_softcap": 5.0,
        "dropout": 0.1,
    },
    "cannot do a head_dim above 256": {"attention_backend": "flash", "head_dim": 264},
    "cannot do a bias on the scores": {
        "attention_backend": "flash",
        "position_encoding": "alibi",
    },
    "cannot do dropout on the attention weights": {"attention_backend": "flex", "dropout": 0.1},
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


def test_the_time_to_check_does_not_grow_with_the_layers():
    config = tiny_config(n_layer=10**15, sliding_window=5, window_pattern="SSL", **ROPE)
    assert (config.period, config.distinct_layers) == (3, range(3))
    assert [config.window(10**12 + layer) for layer in range(3)] == [5, None, 5]
    assert config.attention_backends_on("cpu") == ["manual"]
    assert config.backend_refusals("cpu", torch.float32) == []


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
    assert files == set(PRESETS) - {"legacy"}
    for name in files:
        assert runpy.run_path(str(CONFIG_FOLDER / f"arch_{name}.py"))["arch_preset"] == name


def test_the_template_spells_every_key_at_its_default():
    values = runpy.run_path(str(CONFIG_FOLDER / "arch_custom.py"))
    default = ModelArchitectureConfig()
    for field in dataclasses.fields(ModelArchitectureConfig):
        if field.name == "vocab_size":
            continue
        assert field.name in values, f"{field.name} is missing"
        assert values[field.name] in (field.default, getattr(default, field.name)), field.name
