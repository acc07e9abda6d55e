"""What the tests compare each component with, and how far apart the results were.

`python scripts/verification.py --references` measures the differences and writes them to
docs/differences.json; `scripts/catalogue.py` shows them beside each component.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from components.registry import Registry
from options import Key

DIFFERENCES = Path(__file__).resolve().parents[1] / "docs" / "differences.json"


class Reference(NamedTuple):
    """An independent implementation and the tests that compare a component with it.

    Attributes:
        name: The name of the implementation.
        tests: Test functions, as `unit/test_x.py::test_y`; `unit/test_x.py::test_y[gelu]` has
            only the cases with `gelu` in their id.
    """

    name: str
    tests: tuple[str, ...] = ()


def covers(test: str, case: str) -> bool:
    """Whether a test of a reference has a case, both as `unit/test_x.py::test_y[...]`."""
    function, _, wanted = test.partition("[")
    own_function, _, parameters = case.partition("[")
    of_case = parameters.rstrip("]").split("-")
    return function == own_function and (not wanted or wanted.rstrip("]") in of_case)


def _formula(*tests: str) -> Reference:
    return Reference("formula", tests)


_FAMILIES = Reference("[model families](interop.md)", ("interop/test_parity.py::test_logits",))

_HYPER_SITE = Reference(
    "HyperConnections of hyper-connections",
    (
        "unit/test_residuals.py::TestHyperConnections"
        "::test_a_site_is_that_of_the_package_of_that_name",
    ),
)
_MHC_SITE = Reference(
    "DeepseekV4HyperConnection",
    ("unit/test_residuals.py::TestManifoldConnections::test_a_site_is_that_of_deepseek_v4",),
)
_LOSSES = "unit/test_routing.py::TestAuxiliaryLosses"
_COEFFICIENTS = (f"{_LOSSES}::test_they_are_left_with_their_coefficients",)
_MOE = "unit/test_moe.py::TestPublishedLayers"
_POINTWISE = "unit/test_pointwise_parts.py"
_VARIANTS = "unit/test_attention_variants.py"

COMPONENTS: dict[tuple[str, str], Reference] = {
    ("mixer", "attention"): _FAMILIES,
    ("mixer", "mla"): Reference(
        "DeepseekV3Attention",
        ("unit/test_latent_attention.py::test_it_is_the_layer_of_deepseek_v3",),
    ),
    ("mixer", "gated_deltanet"): Reference(
        "Qwen3NextGatedDeltaNet",
        ("unit/test_mixers.py::test_gated_deltanet_is_the_layer_of_qwen3_next",),
    ),
    ("mixer", "kda"): Reference(
        "KimiLinearDeltaAttention",
        ("unit/test_linear_mixers.py::test_kda_is_the_layer_of_kimi_linear",),
    ),
    ("mixer", "mamba2"): Reference(
        "Mamba2Mixer, BambaMixer, FalconH1Mixer",
        ("unit/test_mamba2.py::test_it_is_the_layer_of_transformers",),
    ),
    ("mixer", "attention_mamba2"): _FAMILIES,
    ("mixer", "short_conv"): Reference(
        "Lfm2ShortConv", ("unit/test_mixers.py::test_short_conv_is_the_layer_of_lfm2",)
    ),
    ("mixer", "rwkv7"): _formula("unit/test_rwkv7.py::test_the_layer_is_the_equations"),
    ("ffn_type", "moe"): Reference(
        "MixtralSparseMoeBlock, DeepseekV3MoE",
        (f"{_MOE}::test_mixtral", f"{_MOE}::test_deepseek_v3"),
    ),
    **{("position_encoding", name): _FAMILIES for name in ("learned", "rope", "alibi")},
    ("position_encoding", "none"): _formula(),
    ("position_encoding", "sinusoidal"): _formula("unit/test_positions.py::test_sinusoidal_table"),
    ("position_encoding", "fire"): _formula("unit/test_fire.py::test_by_pairs"),
    ("position_encoding", "cope"): _formula("unit/test_cope.py::test_by_queries"),
    ("position_encoding", "path"): _formula(
        "unit/test_path_attention.py::test_by_products_of_matrices"
    ),
    **{("rope_scaling", name): _FAMILIES for name in ("none", "linear", "llama3")},
    ("rope_scaling", "ntk"): _formula(
        "unit/test_positions.py::test_ntk_is_rope_with_a_larger_theta"
    ),
    ("rope_scaling", "yarn"): Reference(
        "ROPE_INIT_FUNCTIONS", ("unit/test_positions.py::test_yarn_is_that_of_transformers",)
    ),
    ("activation", "xielu"): Reference(
        "XIELUActivation", (f"{_POINTWISE}::TestActivations::test_xielu_is_that_of_transformers",)
    ),
    ("activation", "quick_gelu"): Reference(
        "ACT2FN", (f"{_POINTWISE}::TestActivations::test_quick_gelu_is_that_of_transformers",)
    ),
    ("residual", "plain"): _FAMILIES,
    ("residual", "unet"): _formula(
        "unit/test_residuals.py::TestUNet::test_the_second_half_adds_what_its_mirror_passed_on"
    ),
    ("residual", "ngpt"): _formula("unit/test_ngpt.py::test_the_model_is_that_of_the_paper"),
    ("residual", "attention"): _formula(
        "unit/test_residuals.py::TestAttentionResidual::test_a_model_by_the_algorithm_of_the_paper"
    ),
    ("residual", "hyper_connections"): _HYPER_SITE,
    ("residual", "mhc"): _MHC_SITE,
    ("normalization", "rmsnorm_unit_offset"): Reference("Gemma 2 and 3", _FAMILIES.tests),
    ("normalization", "layernorm_unit_offset"): Reference(
        "NemotronLayerNorm1P",
        (f"{_POINTWISE}::TestNorms::test_a_layer_norm_with_an_offset_is_that_of_nemotron",),
    ),
}
"""References of components that are not compared by the test of their registry."""

FORMULAS = {
    "mixer": "unit/test_linear_mixers.py::test_it_is_the_definition_of_the_paper",
    "normalization": "unit/test_formulas.py::test_norms",
    "norm_position": "unit/test_formulas.py::test_blocks",
    "ffn_type": "unit/test_formulas.py::test_feed_forward_networks",
    "activation": "unit/test_formulas.py::test_activations",
    "mtp": "unit/test_multi_token.py::test_losses_and_gradients_are_those_of_the_papers",
}
"""The test that compares the other components of a registry with their formulas."""

_LLAMA4 = Reference(
    "Llama4TextAttention", ("unit/test_query_scaling.py::test_steps_are_those_of_llama_4",)
)
_LLAMA3 = Reference(
    "ROPE_INIT_FUNCTIONS", ("unit/test_positions.py::test_llama3_scaling_is_that_of_transformers",)
)
_GPT_OSS = Reference("GptOssExperts", (f"{_POINTWISE}::test_experts_of_gpt_oss",))
SCALES_OF_FALCON_H1 = ("in", "out", "z", "x", "b", "c", "dt")
"""Scales of its Mamba-2."""

_CANON = _formula("unit/test_canon.py::test_all_four_positions_by_the_formula")
_NGPT = COMPONENTS["residual", "ngpt"]

OPTIONS: dict[str, Reference] = {
    **dict.fromkeys(("n_head", "n_kv_head", "head_dim", "norm_eps", "ffn_hidden"), _FAMILIES),
    **dict.fromkeys(("qk_norm", "qk_norm_over", "qk_norm_after_rope"), _FAMILIES),
    "qk_norm_type": Reference("layernorm: Persimmon and Phi", _FAMILIES.tests),
    **dict.fromkeys(("attention_scale", "attention_softcap", "sliding_window"), _FAMILIES),
    **dict.fromkeys(("attention_bias", "attention_out_bias"), _FAMILIES),
    **dict.fromkeys(("rope_theta", "rope_fraction", "rope_scaling_factor"), _FAMILIES),
    **dict.fromkeys(("rope_original_block_size", "glu_gate_scale", "glu_out_scale"), _FAMILIES),
    **dict.fromkeys(("rope_low_freq_factor", "rope_high_freq_factor"), _LLAMA3),
    **dict.fromkeys((f"mamba_{name}_scale" for name in SCALES_OF_FALCON_H1), _FAMILIES),
    "attention_sinks": Reference(
        "GptOssAttention", (f"{_VARIANTS}::test_sinks_are_those_of_gpt_oss",)
    ),
    "attention_gate": Reference(
        "channel: Qwen3NextAttention; head: formula",
        (f"{_VARIANTS}::test_the_gate_is_that_of_qwen3_next", f"{_VARIANTS}::test_by_the_formulas"),
    ),
    "exclusive_attention": _formula(f"{_VARIANTS}::test_by_the_formulas"),
    "value_embedding": _formula(f"{_VARIANTS}::test_value_embeddings_by_the_formulas"),
    "value_residual": _formula(
        "unit/test_residuals.py::TestValueResidual"
        "::test_later_layers_attend_to_a_share_of_the_first_values"
    ),
    "forget_gate": _formula("unit/test_forget_gate.py::test_by_products_of_gates"),
    **dict.fromkeys(("canon", "canon_kernel"), _CANON),
    **dict.fromkeys(("qk_sphere", "hidden_gain"), _NGPT),
    "differential_attention": Reference(
        "DiffLlamaAttention",
        ("unit/test_differential_attention.py::test_it_is_the_layer_of_diffllama",),
    ),
    "kv_sharing": Reference(
        "Gemma3nTextAttention", ("unit/test_kv_sharing.py::test_layers_are_those_of_gemma_3n",)
    ),
    "query_scaling": Reference(
        "Llama4TextAttention; get_llama_4_attn_scale of Ministral 3; ssmax: formula",
        (
            *_LLAMA4.tests,
            "unit/test_query_scaling.py::test_steps_are_those_of_ministral_3",
            "unit/test_query_scaling.py::test_ssmax_is_a_softmax_with_base_n_to_the_s",
        ),
    ),
    **dict.fromkeys(("query_scaling_interval", "query_scaling_factor"), _LLAMA4),
    "per_layer_embedding": Reference(
        "Gemma4TextModel", ("unit/test_per_layer_embedding.py::test_layers_are_those_of_gemma_4",)
    ),
    "per_layer_vocab_size": Reference(
        "Gemma3nTextModel",
        ("unit/test_per_layer_embedding.py::test_rows_of_tokens_are_those_of_gemma_3n",),
    ),
    "linear_n_value_head": COMPONENTS["mixer", "gated_deltanet"],
    "token_shift": Reference(
        "ffn: RwkvFeedForward; mixer: formula",
        (
            "unit/test_token_shift.py::test_the_network_is_that_of_rwkv_without_its_gate",
            "unit/test_token_shift.py::test_each_sublayer_reads_a_mixture_of_two_tokens",
        ),
    ),
    "residual_scale": Reference(
        "GraniteForCausalLM",
        ("unit/test_parametrizations.py::test_granite_is_llama_with_four_scales",),
    ),
    "layer_norm_scaling": _formula(
        f"{_POINTWISE}::test_layer_norm_scaling_divides_by_the_root_of_the_layer"
    ),
    "leaky_relu_slope": _formula(
        "unit/test_formulas.py::test_the_slope_of_leaky_relu_is_an_option"
    ),
    "norm_alpha": _formula(f"{_POINTWISE}::TestNorms::test_their_first_scale"),
    **dict.fromkeys(("glu_limit", "glu_shift"), _GPT_OSS),
    "router_logit_bias": Reference("GptOssTopKRouter", (f"{_MOE}::test_the_router_of_gpt_oss",)),
    "expert_group_score": Reference("DeepseekV2Moe", (f"{_MOE}::test_deepseek_v2",)),
    "balance_loss_coef": Reference(
        "load_balancing_loss_func of Mixtral",
        (f"{_LOSSES}::test_balance_loss_is_that_of_transformers", *_COEFFICIENTS),
    ),
    "router_z_loss_coef": _formula(f"{_LOSSES}::test_router_z_loss", *_COEFFICIENTS),
    "shared_expert_gate": Reference(
        "Qwen2MoeSparseMoeBlock", (f"{_MOE}::test_qwen2_with_a_gated_shared_expert",)
    ),
    "hyper_streams": Reference(
        "HyperConnections of hyper-connections; DeepseekV4HyperConnection",
        (*_HYPER_SITE.tests, *_MHC_SITE.tests),
    ),
    **dict.fromkeys(("mtp_depth", "mtp_weight"), _formula(FORMULAS["mtp"])),
}

GROUPS = {
    "engram": _formula("unit/test_engram.py::test_by_the_formulas"),
    "linear_": _formula(FORMULAS["mixer"]),
    "mamba_": COMPONENTS["mixer", "mamba2"],
}
"""References of options by how their names begin."""

EXTENDED = {("mixer", "attention")}
"""Components with options that their reference lacks."""


def of_component(registry: Registry, name: str) -> Reference:
    """The reference of a component."""
    found = COMPONENTS.get((registry.key, name))
    if found is not None:
        return found
    test = FORMULAS.get(registry.key)
    return _formula(f"{test}[{name}]") if test else _formula()


def of_option(registry: Registry, key: Key, owners: Sequence[str]) -> Reference:
    """The reference of an option, which by default is that of its only owner."""
    if key.name in OPTIONS:
        return OPTIONS[key.name]
    for start, reference in GROUPS.items():
        if key.name.startswith(start):
            return reference
    if len(owners) == 1 and (registry.key, owners[0]) not in EXTENDED:
        return of_component(registry, owners[0])
    return _formula()


def files(references: Iterable[Reference]) -> list[str]:
    """The test files of references, each once."""
    return sorted({test.partition("::")[0] for test in named_tests(references)})


def named_tests(references: Iterable[Reference]) -> list[str]:
    """The tests of references, each once."""
    return sorted({test for each in references for test in each.tests})


def largest_differences(
    references: Iterable[Reference], measured: Mapping[str, float]
) -> dict[str, float]:
    """Test of a reference -> the largest difference that its cases measured, to two digits.

    Args:
        references: The references.
        measured: Case, as `unit/test_x.py::test_y[...]` -> the largest difference in it.

    Raises:
        ValueError: If no case of a test measured a difference.
    """
    found = {}
    for test in named_tests(references):
        errors = [error for case, error in measured.items() if covers(test, case)]
        if not errors:
            raise ValueError(f"{test} measures no difference")
        found[test] = float(f"{max(errors):.1e}")
    return found


def shown_difference(reference: Reference, differences: Mapping[str, float]) -> str:
    """The largest difference of a reference; "-" if none was measured."""
    found = [differences[test] for test in reference.tests if test in differences]
    if not found:
        return "-"
    return f"{max(found):.1e}" if max(found) else "0"


def saved_differences() -> dict[str, float]:
    """What `scripts/verification.py` measured last."""
    return json.loads(DIFFERENCES.read_text(encoding="utf-8"))
