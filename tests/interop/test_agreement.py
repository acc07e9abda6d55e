"""Any config.json is read as transformers reads it or refused; what is written is the model."""

from __future__ import annotations

import copy
import itertools
from random import Random
from typing import Any

import pytest
import torch

from errors import ConfigError, UserError
from interop.families import FAMILIES, family_of
from interop.huggingface import load, save
from interop.weights import copy_weights
from model_builder import GPT
from model_config import ModelArchitectureConfig
from tests.interop.random_architectures import random_architecture
from tests.interop.random_files import Fields, random_file
from tests.interop.references import (
    LONGEST,
    REFERENCES,
    VOCABULARY,
    WINDOW,
    assert_close,
    enlarged,
    from_config,
    from_folder,
    reference,
    tokens,
    transformers,
)
from tests.parametrized import one_in

every_family = pytest.mark.parametrize("model_type", FAMILIES)


def read(fields: Fields) -> GPT:
    """The model that a file describes, with weights of its own."""
    return GPT(ModelArchitectureConfig.from_dict(family_of(fields).read(copy.deepcopy(fields))))


def of_transformers(fields: Fields) -> Any:
    """The model that transformers makes of a file."""
    kind = type(transformers.AutoConfig.for_model(fields["model_type"]))
    torch.manual_seed(0)
    return enlarged(from_config(kind.from_dict(copy.deepcopy(fields))))


@torch.no_grad()
def assert_read_alike(fields: Fields, tolerance: float = 1e-5) -> None:
    """The file, and what transformers makes of it, come to the same logits."""
    ours, theirs, idx = read(fields).eval(), of_transformers(fields), tokens(LONGEST)
    copy_weights(ours, family_of(fields), theirs.state_dict())
    expected = theirs(idx).logits
    assert_close(ours(idx), expected, tolerance)
    assert_close(load(theirs)(idx), expected, tolerance)


# Files that were once read otherwise, or refused

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": LONGEST,
}
_WIDE = {**_SIZES, "intermediate_size": 48}
_LLAMA = {**_WIDE, "model_type": "llama", "pad_token_id": None}
_GEMMA = {
    **_WIDE,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": WINDOW,
}
_GEMMA3 = {**_GEMMA, "model_type": "gemma3_text", "sliding_window_pattern": 2}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
_LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LINEAR = {"rope_type": "linear", "factor": 4.0}
_NEOX = {**_WIDE, "model_type": "gpt_neox", "hidden_size": 200, "num_attention_heads": 2}

ALIKE: dict[str, Fields] = {
    "Gemma 3, a window of the longest sequence": {**_GEMMA3, "sliding_window": LONGEST},
    "Gemma 3, a window beyond it": {**_GEMMA3, "sliding_window": 4096},
    "Gemma 3, a window beyond it, scaled": {
        **_GEMMA3,
        "sliding_window": 4096,
        "rope_scaling": _LINEAR,
        "rope_local_base_freq": 50.0,
    },
    "Gemma 3, every layer windowed": {
        **_GEMMA3,
        "sliding_window": 4096,
        "layer_types": ["sliding_attention"] * 4,
    },
    "Gemma 3, all layers scaled alike": {
        **_GEMMA3,
        "rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), _LINEAR)
        | {"sliding_attention": {**_LINEAR, "rope_theta": 1e6}},
    },
    "Gemma 3, windowed layers scaled alone": {
        **_GEMMA3,
        "rope_parameters": {"sliding_attention": {**_YARN, "rope_theta": 50.0}},
    },
    "Gemma 3, windowed layers scaled alone, beyond the longest sequence": {
        **_GEMMA3,
        "sliding_window": 4096,
        "rope_parameters": {"sliding_attention": _LINEAR},
    },
    "Gemma 3, another scaling by layer type": {
        **_GEMMA3,
        "rope_parameters": {
            "full_attention": {**_LLAMA3, "original_max_position_embeddings": 16},
            "sliding_attention": {**_LINEAR, "factor": 2.0},
        },
    },
    "Qwen2, windows that are no shorter pattern repeated": {
        **_WIDE,
        "model_type": "qwen2",
        "num_key_value_heads": 4,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": [f"{kind}_attention" for kind in ("sliding", "full", "sliding", "sliding")],
    },
    "LLaMA with a leaky gate": {**_LLAMA, "hidden_act": "leaky_relu"},
    "Gemma 2, with Gemma 3's pattern": {
        **_GEMMA,
        "model_type": "gemma2",
        "sliding_window_pattern": 4,
        "use_sliding_window": False,
    },
    "an original length beside YaRN": {
        **_LLAMA,
        "rope_scaling": _YARN,
        "original_max_position_embeddings": 4096,
    },
    "an original length beside llama3": {
        **_LLAMA,
        "rope_parameters": _LLAMA3,
        "original_max_position_embeddings": 8,
    },
    "rope_scaling replaces rope_parameters": {
        **_LLAMA,
        "rope_scaling": _LINEAR,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    },
    "YaRN that ends before it begins": {
        **_LLAMA,
        "rope_theta": 10.0,
        "rope_scaling": {**_YARN, "original_max_position_embeddings": 131072},
    },
    "a fraction that falls short": {**_NEOX, "rotary_pct": 0.29},  # 28 of 100 dimensions
    "linear by 1": {**_LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 1.0}},
    "YaRN by 1": {**_LLAMA, "rope_scaling": {**_YARN, "factor": 1}},
    "llama3 by 1": {**_LLAMA, "rope_scaling": {**_LLAMA3, "factor": 1.0}},
    "SmolLM3 without RoPE": {
        **_WIDE,
        "model_type": "smollm3",
        "pad_token_id": None,
        "no_rope_layers": [0, 0, 0, 0, 1],
    },
    "GPT-2, newer names": {**_SIZES, "model_type": "gpt2", "n_embd": 16},
    "GPT-J, newer names": {**_SIZES, "model_type": "gptj", "rotary_dim": 4},
    "Mistral, its heads of keys left out": {
        **_WIDE,
        "model_type": "mistral",
        "num_attention_heads": 16,
    },
    "Phi-3 with wide heads": {
        **_WIDE,
        "model_type": "phi3",
        "pad_token_id": None,
        "head_dim": 10,
        "partial_rotary_factor": 0.8,
    },
}


@pytest.mark.parametrize("name", ALIKE)
def test_read_as_transformers_reads_it(name):
    assert_read_alike(ALIKE[name])


@pytest.mark.parametrize("name", [name for name in ALIKE if name.startswith("Gemma 3")])
@torch.no_grad()
def test_gemma_3_goes_both_ways(name, tmp_path):
    theirs, idx = of_transformers(ALIKE[name]), tokens(LONGEST)
    ours = load(theirs)
    save(ours, tmp_path / "saved")
    assert_close(from_folder(tmp_path / "saved")(idx).logits, theirs(idx).logits)
    assert load(tmp_path / "saved").config == ours.config


# Random files and architectures


def refused(fields: Fields) -> bool:
    """Whether a file is refused, which takes one line for each problem."""
    try:
        read(fields)
    except ConfigError as error:
        return all("\n" not in problem.message for problem in error.problems)
    except UserError as error:
        return "\n" not in str(error)
    return False


def runs(fields: Fields) -> bool:
    """Whether transformers makes a model of a file that computes logits."""
    try:
        of_transformers(fields)(tokens(LONGEST))
    except Exception:
        return False
    return True


ROUNDING_OF_MANY = 3e-5
"""Tolerance for many random files. Two of 992 differed by more than 1e-5 (1.8e-5), as much as
float32 differs from float64 in both libraries."""


@pytest.mark.parametrize("model_type", one_in(3, list(FAMILIES)))
def test_a_random_file_is_read_as_transformers_reads_it_or_refused(model_type):
    assert_random_files_are_read_alike(model_type, 1, 1e-5)


@every_family
@pytest.mark.slow
def test_random_files_are_read_as_transformers_reads_them_or_refused(model_type):
    assert_random_files_are_read_alike(model_type, 12, ROUNDING_OF_MANY)


def assert_random_files_are_read_alike(model_type: str, number: int, tolerance: float) -> None:
    """As many random files of a family as can be read by both libraries."""
    seeds = range(20 * number)
    files = (random_file(model_type, Random(f"{model_type}{seed}")) for seed in seeds)
    wanted = (fields for fields in files if not refused(fields) and runs(fields))
    alike = list(itertools.islice(wanted, number))
    assert len(alike) == number
    for fields in alike:
        assert_read_alike(fields, tolerance)


FIELDS_OF_SOME_FAMILY: Fields = {
    "attention_bias": True,
    "attention_multiplier": 0.3,
    "attn_logit_softcapping": 1.0,
    "clip_qkv": 1.0,
    "embedding_multiplier": 2.0,
    "final_logit_softcapping": 1.0,
    "head_dim": 10,
    "hidden_act": "relu",
    "is_causal": False,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "logit_scale": 0.3,
    "max_window_layers": 1,
    "mlp_bias": True,
    "moe_intermediate_size": 12,
    "n_inner": 24,
    "no_rope_layers": [1, 0, 1, 0],
    "norm_eps": 0.1,
    "norm_topk_prob": True,
    "num_key_value_heads": 1,
    "partial_rotary_factor": 0.5,
    "qk_layernorm": True,
    "query_pre_attn_scalar": 9,
    "residual_multiplier": 0.3,
    "rope_interleave": False,
    "rope_local_base_freq": 50.0,
    "rope_theta": 77.0,
    "routed_scaling_factor": 1.7,
    "scale_embedding": True,
    "sliding_window": 5,
    "use_bias": True,
    "use_qk_norm": True,
    "use_sliding_window": True,
}
FLAGS_OF_OUTPUTS = {
    *("return_dict", "use_cache", "is_encoder_decoder"),
    *("output_attentions", "output_hidden_states", "output_router_logits"),
}
"""Fields that choose what transformers returns besides the logits, and in which form."""


@every_family
@pytest.mark.slow
def test_a_field_changed_alone_is_read_as_transformers_reads_it_or_refused(model_type):
    """Every flag, and fields of other families, which transformers may read although the class of
    this family does not define them."""
    named = (name for name in REFERENCES if reference(name).config.model_type == model_type)
    fields = reference(next(named)).config.to_dict()
    flags = {name: not value for name, value in fields.items() if isinstance(value, bool)}
    flags = {name: value for name, value in flags.items() if name not in FLAGS_OF_OUTPUTS}
    files = [{**fields, name: value} for name, value in (flags | FIELDS_OF_SOME_FAMILY).items()]
    alike = [file for file in files if not refused(file) and runs(file)]
    assert alike
    for file in alike:
        assert_read_alike(file, 1e-4)


@every_family
@pytest.mark.slow
@torch.no_grad()
def test_random_architectures_are_written_as_they_are_or_refused(model_type, tmp_path):
    number = 3
    seeds = range(20 * number)
    configs = (random_architecture(model_type, Random(f"{model_type}{seed}")) for seed in seeds)
    written = list(itertools.islice((config for config in configs if fits(config)), number))
    assert len(written) == number
    for index, config in enumerate(written):
        torch.manual_seed(0)
        model, folder, idx = enlarged(GPT(config).eval()), tmp_path / str(index), tokens(LONGEST)
        save(model, folder, None if FAMILIES[model_type].misfits(config) else model_type)
        assert_close(from_folder(folder)(idx).logits, model(idx))


def fits(config: ModelArchitectureConfig) -> bool:
    """Whether some family can express an architecture."""
    return any(not family.misfits(config) for family in FAMILIES.values())
