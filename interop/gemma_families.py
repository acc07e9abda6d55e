"""Tables of the Gemma families."""

from __future__ import annotations

from interop.activation_fields import gate
from interop.family import Family
from interop.family_tables import (
    LLAMA_KEYS,
    LLAMA_WEIGHTS,
    RMS_EPS,
    SANDWICH_WEIGHTS,
    SIZES,
    TIED,
    layer_weights,
)
from interop.fields import (
    ATTENTION_BIAS,
    HEAD_DIM,
    HEAD_DIM_OF_WHOLE_HEADS,
    KEY_HEADS,
    Aspect,
    same,
    value_of,
)
from interop.rope_by_type import rope_by_layer_type
from interop.rope_fields import rope
from interop.window_fields import FULL, SLIDING, alternating, every_nth_full, windows_by_layer

_QUERY_SCALAR = Aspect(
    lambda given: {"attention_scale": given["query_pre_attn_scalar"] ** -0.5},
    lambda config: {"query_pre_attn_scalar": round(value_of(config, "attention_scale") ** -2)},
)
"""Gemma says the attention's scale by the number whose root divides the scores."""
_ROOT_OF_WIDTH = Aspect(
    lambda given: {"embedding_scale": given["hidden_size"] ** 0.5}, lambda _: {}
)
"""Gemma's token embeddings are multiplied by the root of their width."""

_GEMMA_KEYS = {**LLAMA_KEYS, "normalization": "rmsnorm_unit_offset"}
_GEMMA_LIMITS = {"use_bidirectional_attention": (None, False)}
_GEMMA_DEFAULTS = {**TIED, "rms_norm_eps": 1e-6, "attention_bias": False, "head_dim": 256}
_GEMMA = Family(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    fixed=_GEMMA_KEYS,
    aspects=(
        SIZES,
        RMS_EPS,
        KEY_HEADS,
        HEAD_DIM,
        gate("hidden_act", also={"gelu": "gelu_pytorch_tanh"}),
        ATTENTION_BIAS,
        _ROOT_OF_WIDTH,
        rope(),
    ),
    defaults={
        **_GEMMA_DEFAULTS,
        "hidden_act": "gelu_pytorch_tanh",
        "num_key_value_heads": 16,
    },
    required=_GEMMA_LIMITS,
    weights=LLAMA_WEIGHTS,
)

_LATER_GEMMA = (
    SIZES,
    RMS_EPS,
    KEY_HEADS,
    HEAD_DIM_OF_WHOLE_HEADS,
    gate("hidden_activation"),
    ATTENTION_BIAS,
    _ROOT_OF_WIDTH,
    _QUERY_SCALAR,
    same(output_softcap="final_logit_softcapping"),
)
_GEMMA2 = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    fixed={**_GEMMA_KEYS, "norm_position": "sandwich"},
    aspects=(
        *_LATER_GEMMA,
        same(attention_softcap="attn_logit_softcapping"),
        rope(),
        windows_by_layer(alternating),
    ),
    defaults={
        **_GEMMA_DEFAULTS,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "num_key_value_heads": 4,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    required=_GEMMA_LIMITS,
    weights=SANDWICH_WEIGHTS,
)
_GEMMA3 = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    fixed={**_GEMMA2.fixed, "qk_norm": True},
    aspects=(
        *_LATER_GEMMA,
        rope_by_layer_type(
            {FULL: ("rope_theta", 1e6), SLIDING: ("rope_local_base_freq", 10_000.0)},
            lambda given: every_nth_full(given, given.get("sliding_window_pattern", 6)),
        ),
    ),
    defaults={**_GEMMA2.defaults, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    # Its class in transformers reads attn_logit_softcapping, but never applies it.
    required={**_GEMMA_LIMITS, "attn_logit_softcapping": (None,)},
    weights=SANDWICH_WEIGHTS,
)
_VAULT_GEMMA = Family(
    model_type="vaultgemma",
    architecture="VaultGemmaForCausalLM",
    fixed=_GEMMA_KEYS,
    aspects=_GEMMA2.aspects,
    defaults=_GEMMA2.defaults,
    weights=LLAMA_WEIGHTS | {"blocks.{}.ffn_norm": layer_weights("pre_feedforward_layernorm")},
)

GEMMA_FAMILIES = (_GEMMA, _GEMMA2, _GEMMA3, _VAULT_GEMMA)
