"""Options shared by the mixers with softmax attention."""

from __future__ import annotations

from typing import Any

from components.attention_backends import ATTENTION_BACKENDS, query_key_dim
from components.parametrizations import parametrization_of
from components.positions import POSITIONS
from options import Role, Section

_sizes = Section("Sizes", Role.ARCHITECTURE)
ATTENTION_SECTION = Section("Attention", Role.ARCHITECTURE)


class HeadOptions:
    """The number of heads, for mixers with heads."""

    n_head: int = _sizes.option(12, "number of query heads", at_least=1, tag=None)


class PositionOptions:
    """The position encoding, for mixers that use it."""

    position_encoding: str = ATTENTION_SECTION.option(
        "learned", "position encoding", choices=POSITIONS, per_layer=True, tag=None
    )


class KeyHeadOptions:
    """The heads of attention whose keys and values are projections of the input."""

    n_kv_head: int | None = ATTENTION_SECTION.option(
        None,
        "number of key and value heads; none: n_head; 1: multi-query attention",
        at_least=1,
        per_layer=True,
        derive=lambda config: config.n_head,
        tag="{}KV",
    )
    head_dim: int | None = ATTENTION_SECTION.option(
        None,
        "dimension of a head; none: n_embd/n_head",
        at_least=1,
        per_layer=True,
        derive=lambda config: max(config.n_embd // config.n_head, 1),
        tag="HD{}",
    )
    qk_norm: bool = ATTENTION_SECTION.option(
        False, "normalize queries and keys", per_layer=True, tag=("NoQKNorm", "QKNorm")
    )
    qk_norm_type: str = ATTENTION_SECTION.option(
        "rmsnorm",
        "norm used by qk_norm; rmsnorm: the layer's norm if it is a kind of RMSNorm, else RMSNorm; "
        "layernorm: LayerNorm with bias",
        choices=("rmsnorm", "layernorm"),
        per_layer=True,
        tag={"rmsnorm": "RMSQK", "layernorm": "LNQK"},
    )
    qk_norm_over: str = ATTENTION_SECTION.option(
        "head",
        "what qk_norm normalizes: each head or the whole projection",
        choices=("head", "projection"),
        per_layer=True,
        tag={"head": "HeadQK", "projection": "WholeQK"},
    )
    qk_norm_after_rope: bool = ATTENTION_SECTION.option(
        False,
        "apply qk_norm to the rotated queries and keys, not before the rotation",
        per_layer=True,
        tag=("QKNormFirst", "QKNormLast"),
    )
    qk_sphere: bool = ATTENTION_SECTION.option(
        False,
        "scale rotated queries and keys to length 1, then by a learned vector per key head",
        per_layer=True,
        tag=("NoQKSphere", "QKSphere"),
    )


def _attention_scale(config: Any) -> float:
    dim = query_key_dim(config)
    if "qk_sphere" in config and config.qk_sphere:
        return dim**0.5
    return parametrization_of(config).attention_scale(dim)


class ScoreOptions:
    """The computation of attention weights from queries and keys."""

    attention_backend: str = ATTENTION_SECTION.option(
        "auto",
        "attention implementation; does not change the result",
        choices=ATTENTION_BACKENDS,
        role=Role.EXECUTION,
        tag=None,
    )
    attention_scale: float | None = ATTENTION_SECTION.option(
        None,
        "scale of query-key products; none: 1/sqrt(d) for queries of dimension d, 1/d with a "
        "parametrization that depends on the width, sqrt(d) with qk_sphere",
        above=0,
        per_layer=True,
        derive=_attention_scale,
        tag="AttnScale{}",
    )
    sliding_window: int | None = ATTENTION_SECTION.option(
        None,
        "number of tokens that a query attends to, including its own; none: all",
        at_least=1,
        per_layer=True,
        tag="SWA{}",
    )
    attention_softcap: float | None = ATTENTION_SECTION.option(
        None,
        "soft cap c: scores = c tanh(scores/c); none: no cap",
        above=0,
        per_layer=True,
        tag="AttnCap{}",
    )
    attention_sinks: bool = ATTENTION_SECTION.option(
        False,
        "a learned logit per head in the denominator of the softmax",
        per_layer=True,
        tag=("NoSinks", "Sinks"),
    )


class BiasOptions:
    """The biases of the projections."""

    attention_bias: bool | None = ATTENTION_SECTION.option(
        None,
        "biases in the attention projections; none: same as bias",
        per_layer=True,
        derive=lambda config: config.bias,
        tag=("NoAttnBias", "AttnBias"),
    )
    attention_out_bias: bool | None = ATTENTION_SECTION.option(
        None,
        "bias in the attention output projection; none: same as attention_bias",
        per_layer=True,
        derive=lambda config: config.attention_bias,
        tag=("NoAttnOutBias", "AttnOutBias"),
    )
