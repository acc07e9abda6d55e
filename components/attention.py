"""Causal self-attention with grouped-query heads, the default mixer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.attention_backends import ATTENTION_BACKENDS, attention_needs, window_of
from components.attention_logits import LARGEST_LOGIT, divided, largest_logits, measuring_flops
from components.attention_options import (
    ATTENTION_SECTION,
    BiasOptions,
    HeadOptions,
    KeyHeadOptions,
    PositionOptions,
    ScoreOptions,
)
from components.canon import CanonOptions, canon_at
from components.context import Context, State, appended
from components.differential_attention import HeadDifference
from components.forget_gate import ForgetGate
from components.kv_sharing import shared_names, sharing_problems, unsourced
from components.layer_config import LayerConfig
from components.mixers import MIXERS, Mixer
from components.norms import LayerNorm, NormOptions, RMSNorm, idle_epsilon, make_qk_norm
from components.parametrizations import PARAMETRIZATIONS
from components.part import GradientFlow
from components.positions import POSITIONS, PositionEncoding
from components.query_scaling import QueryScalingOptions, idle_query_scaling, query_scaling
from components.sphere import Gain, on_sphere
from components.tensor_split import TensorSplit
from components.value_embeddings import ValueEmbedding
from errors import Problem


@MIXERS.register("attention", label="Attn", paper="Vaswani et al. 2017, arXiv 1706.03762")
class Attention(Mixer):
    """Softmax attention of H query heads over H_kv <= H key heads.

    H_kv = H is multi-head attention (Vaswani et al. 2017), H_kv = 1 is multi-query attention
    (Shazeer 2019, arXiv 1911.02150), and values in between are grouped-query attention (Ainslie et
    al. 2023, arXiv 2305.13245). `qk_norm` applies an RMSNorm, or with `qk_norm_type=layernorm` a
    LayerNorm (Persimmon), to queries and keys before rotation (Henry et al. 2020, arXiv
    2010.04245); `qk_norm_over` chooses between each head (Qwen3) and the whole projection (OLMo 2),
    and `qk_norm_after_rope` normalizes each rotated head instead, as in HunYuan. `value_residual`
    mixes the values of the first layer into those of later ones (ResFormer, Zhou et al. 2024, arXiv
    2410.17897): v = (1 - share) v + share v_first, where the share is 1/2, or a learned scalar per
    layer that is initialized to 1/2. `value_embedding` adds an embedding of the token to its value
    (`ValueEmbedding`).

    `qk_sphere` scales rotated queries and keys to length 1, then multiplies both by a learned
    vector that starts at 1 (nGPT, Loshchilov et al. 2024, arXiv 2410.01131).

    `query_scaling` scales queries by the log of the number of keys (`QueryScaling`). `forget_gate`
    makes scores decay with the tokens in between (`ForgetGate`). `attention_sinks` adds a learned
    logit per head to the denominator of the softmax, so that a query may attend to nothing
    (gpt-oss, OpenAI 2025, arXiv 2508.10925). `exclusive_attention` removes the component of a
    head's output o_t along the token's own value v_t: o - c (o.u) u with u = v/|v| (XSA, Zhai 2026,
    arXiv 2603.09078), where c is 1, or tanh of a learned scalar per head that is initialized to 0.
    `differential_attention` combines the heads in pairs (`HeadDifference`). `attention_gate`
    multiplies the result by sigmoid(W x), with one gate per channel or per head, or per pair of
    heads (Qiu et al. 2025, arXiv 2505.06708; Qwen3-Next).

    With `kv_sharing`, the layer projects only queries, and attends to the keys and values of the
    nearest earlier layer that computes its own and has the same window, key heads and position
    encoding. Gemma 3n uses it in all of its last layers, cross-layer attention (CLA, Brandon et al.
    2024, arXiv 2405.12981) in every second layer. `canon` then acts only on the queries.

    The decoding state holds the keys and values of `capacity` tokens, unless another layer holds
    them, and the state of `canon` and `forget_gate`.
    """

    residual_projections = ("out",)
    output_gates = ("gate",)
    canon_position = "b"
    scales_with_width = takes_sphere = has_logits = True

    class Options(
        BiasOptions,
        ScoreOptions,
        KeyHeadOptions,
        HeadOptions,
        PositionOptions,
        NormOptions,
        CanonOptions,
        QueryScalingOptions,
    ):
        forget_gate: bool = ATTENTION_SECTION.option(
            False,
            "add the log forget gates of the tokens between key and query to the scores",
            per_layer=True,
            tag=("NoForget", "Forget"),
        )
        value_residual: str = ATTENTION_SECTION.option(
            "none",
            "mix the values of the first layer into those of this one; fixed: in equal shares; "
            "learned: by a learned weight",
            choices=("none", "fixed", "learned"),
            per_layer=True,
            tag={"none": "NoValueRes", "fixed": "ValueRes", "learned": "LearnedValueRes"},
        )
        kv_sharing: bool = ATTENTION_SECTION.option(
            False,
            "use the keys and values of the nearest earlier layer that computes its own and has "
            "the same window, key heads and position encoding",
            per_layer=True,
            tag=("OwnKV", "SharedKV"),
        )
        value_embedding: str = ATTENTION_SECTION.option(
            "none",
            "add an embedding of the token to its value; mixed: learned weights for both; gated: "
            "a gate per key head",
            choices=("none", "mixed", "gated"),
            per_layer=True,
            tag={"none": "NoValueEmb", "mixed": "ValueEmb", "gated": "GatedValueEmb"},
        )
        exclusive_attention: str = ATTENTION_SECTION.option(
            "none",
            "remove the component of a head's output along the token's own value; full: all of "
            "it; learned: a learned share per head",
            choices=("none", "full", "learned"),
            per_layer=True,
            tag={"none": "NoXSA", "full": "XSA", "learned": "LearnedXSA"},
        )
        differential_attention: bool = ATTENTION_SECTION.option(
            False,
            "subtract the attention map of the second half of the heads from that of the first",
            per_layer=True,
            tag=("NoDiff", "Diff"),
        )
        attention_gate: str = ATTENTION_SECTION.option(
            "none",
            "sigmoid gate on the attention output: one per channel or per head",
            choices=("none", "channel", "head"),
            per_layer=True,
            tag={"none": "NoAttnGate", "channel": "AttnGate", "head": "HeadGate"},
        )

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.n_head, self.head_dim = config.n_head, config.head_dim
        self.own_heads = slice(None)  # this worker's heads of the score bias, if split
        self.window = window_of(config)
        # A single matmul computes queries, keys and values, in this order.
        self.widths = qkv_widths(config)[: 1 if config.kv_sharing else 3]
        self.qkv = nn.Linear(config.n_embd, sum(self.widths), bias=config.attention_bias)
        self.out = nn.Linear(self.widths[0], config.n_embd, bias=config.attention_out_bias)
        self.q_norm, self.k_norm = _qk_norms(config)
        self.canon = canon_at("b", sum(self.widths), config)
        self.query_scaling = query_scaling(config)
        stored = config.n_embd**-0.5
        self.qk_gain = Gain(self.widths[1], 1.0, stored) if config.qk_sphere else None
        self.norms_last = config.qk_norm and config.qk_norm_after_rope
        self.values_name = _values_name(config)
        self.gives = self.takes = (self.values_name,) if self.values_name else ()
        self.shared_names = shared_names(config)
        if config.kv_sharing:
            self.takes = self.shared_names
        else:
            self.gives += self.shared_names
        # The keys pass through this module, so that their gradient flow is recorded.
        self.shared_keys = nn.Identity() if config.kv_sharing else None
        learned = config.value_residual == "learned"
        self.value_share = nn.Parameter(torch.tensor(0.5)) if learned else 0.5
        self.forget = ForgetGate(config) if config.forget_gate else None
        self.sinks = nn.Parameter(torch.zeros(self.n_head)) if config.attention_sinks else None
        embeds = config.value_embedding != "none"
        self.value_embedding = ValueEmbedding(config) if embeds else None
        self.exclusion = _exclusion(config)
        self.difference = HeadDifference(config) if config.differential_attention else None
        outputs = self.n_head // 2 if config.differential_attention else self.n_head
        gates = {"none": 0, "channel": self.widths[0], "head": outputs}[config.attention_gate]
        self.gate = nn.Linear(config.n_embd, gates, bias=config.attention_bias) if gates else None
        self.scoring = POSITIONS[config.position_encoding].scoring(config)
        self.changes_keys = POSITIONS[config.position_encoding].changes_keys
        self.backend = ATTENTION_BACKENDS[config.attention_backend](attention_needs(config))
        self.weight_dropout = config.dropout
        self.dropout = nn.Dropout(config.dropout)

    @property
    def matrix_rows(self) -> Mapping[str, tuple[int, ...]]:
        return {"qkv": self.widths}

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        if config.n_head % config.n_kv_head:
            yield Problem(
                ("n_kv_head", "n_head"),
                f"n_head={config.n_head} is not a multiple of n_kv_head={config.n_kv_head}; each "
                "key head must serve the same number of query heads.",
            )
        yield from sharing_problems(config)
        if config.differential_attention:
            yield from _unpaired(config)
        if config.qk_norm and config.qk_sphere:
            yield Problem(
                ("qk_sphere", "qk_norm"),
                "qk_sphere=True and qk_norm=True both normalize queries and keys; drop one.",
            )
        scaled = PARAMETRIZATIONS[config.parametrization].scales_with_width
        if scaled and config.value_embedding == "gated":
            yield Problem(
                ("parametrization", "value_embedding"),
                f"parametrization={config.parametrization!r} is not defined for "
                "value_embedding='gated', whose gate reads the same number of channels at every "
                "width; use value_embedding='mixed', or parametrization='standard'.",
            )
        if config.qk_norm and config.qk_norm_after_rope and config.qk_norm_over != "head":
            yield Problem(
                ("qk_norm_after_rope", "qk_norm_over"),
                f"qk_norm_over={config.qk_norm_over!r} cannot be combined with "
                "qk_norm_after_rope=True, which normalizes each rotated head; drop one.",
            )

    @classmethod
    def problems_among(
        cls, config: LayerConfig, layers: Sequence[LayerConfig]
    ) -> Iterator[Problem]:
        yield from unsourced(config, layers)

    @classmethod
    def idle(cls, config: LayerConfig) -> Iterator[Problem]:
        """Attention keys without effect in this layer; errors if they have none in any layer."""
        for key in ("qk_norm_over", "qk_norm_type"):
            value, default = getattr(config, key), getattr(KeyHeadOptions, key).default
            if not config.qk_norm and value != default:
                yield Problem(
                    (key, "qk_norm"),
                    f"{key}={value!r} has no effect without qk_norm; set qk_norm=True or drop it.",
                )
        yield from idle_query_scaling(config)
        if config.sliding_window == 1 and not config.attention_sinks:
            yield from _idle_scores(config)
        if config.qk_norm_after_rope and not (config.qk_norm and _rotates(config)):
            yield Problem(
                ("qk_norm_after_rope", "qk_norm", "position_encoding"),
                "qk_norm_after_rope=True has no effect without both qk_norm and "
                "position_encoding='rope'; set them, or drop it.",
            )
        if not (config.qk_norm or config.differential_attention):
            yield from idle_epsilon(config, "without qk_norm")

    @classmethod
    def idle_among(cls, config: LayerConfig, layers: Sequence[LayerConfig]) -> Iterator[Problem]:
        name = _values_name(config)
        if name and not any(
            _values_name(layer) == name for layer in layers if layer.index != config.index
        ):
            yield Problem(
                ("value_residual",),
                f"value_residual={config.value_residual!r} has no effect: no other attention layer "
                f"has it with n_kv_head={config.n_kv_head} and head_dim={config.head_dim}, so "
                "there are no values to share; use it in at least two such layers, or drop it.",
            )

    def forward(self, x: Tensor, context: Context) -> Tensor:
        B, T, _ = x.shape
        if self.shared_keys is None:
            q, k, own_v = self._queries_keys_values(x, context)
            k, v = self._kept(k, own_v, context)
        else:
            q, k, v = self._queries_for_shared_keys(x, context)
            own_v = None  # options that need it do not allow shared values
        if self.query_scaling is not None:
            q = self.query_scaling(q, context.start)
        if context.measures:
            largest = largest_logits(q, k, self.backend.needs.scale, self.window)
            context.add_metric(LARGEST_LOGIT, largest)
        y = self._attended(q, k, v, x, context)
        if self.difference is not None:
            y = self.difference(y)
        if self.exclusion is not None:
            y = y - self._along_own_value(y, own_v)
        y = y.transpose(1, 2)
        if self.gate is not None:
            y = y * self.gate(x).sigmoid().view(B, T, y.shape[2], -1)
        return self.dropout(self.out(y.reshape(B, T, -1)))

    def _queries_keys_values(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, D), and keys and values (B, H_kv, T, D) of the layer's input x."""
        q, k, v = (self._heads(part) for part in self._projected(x, context))
        if self.values_name:
            v = self._with_first_values(v, context)
        if self.value_embedding is not None:
            v = self.value_embedding(v, x, context.tokens)
        q, k = context.positions.rotate(q, k, context.start)
        if self.norms_last:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.qk_gain is not None:
            q, k = self._on_sphere(q, k)
        return q.to(v.dtype), k.to(v.dtype), v

    def _kept(self, k: Tensor, v: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Store keys and values, and give all of them to the layers that share them."""
        if context.state is not None and self.changes_keys:
            (v,) = appended(context.state, context.start, v=v)
        elif context.state is not None:
            k, v = appended(context.state, context.start, k=k, v=v)
        for name, value in zip(self.shared_names, (k, v), strict=False):
            context.give(name, value)
        return k, v

    def _queries_for_shared_keys(
        self, x: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, D), and the keys and values (B, H_kv, T_k, D) of an earlier layer."""
        k, v = (context.take(name) for name in self.takes)
        q = self._heads(self._projected(x, context)[0])
        q, _ = context.positions.rotate(q, q[:, :1], context.start)
        if self.norms_last:
            q = self.q_norm(q)
        return q.to(v.dtype), self.shared_keys(k), v

    def _projected(self, x: Tensor, context: Context) -> Sequence[Tensor]:
        """Queries (B, T, H*D), and keys and values (B, T, H_kv*D) if they are the layer's own."""
        parts = self.qkv(x).split(self.widths, dim=-1)
        dtype = parts[-1].dtype
        if not self.norms_last:
            norms = (self.q_norm, self.k_norm, None)
            parts = [_normed(part, norm) for part, norm in zip(parts, norms, strict=False)]
        if self.canon is None:
            return parts
        together = torch.cat([part.to(dtype) for part in parts], dim=-1)
        return self.canon(together, context).split(self.widths, dim=-1)

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, context: Context) -> Tensor:
        """Attend to keys and values (B, H_kv, T_k, D); returns (B, H, T, D_v)."""
        dropout = self.weight_dropout if self.training else 0.0
        static_start = context.start if isinstance(context.start, Tensor) else None
        if self.difference is not None:
            v = self.difference.paired_values(v)
        bias = self._score_bias(x, context)
        if self.scoring is None:
            return self.backend(q, k, v, bias, dropout, static_start, self.sinks)
        scores, added = self.scoring(q, k, x, context)
        if added is not None:
            bias = added if bias is None else added + bias
        return self.backend.attend(scores, v, bias, dropout, static_start, self.sinks)

    def _score_bias(self, x: Tensor, context: Context) -> Tensor | None:
        """The bias of the scores: (H, T, T_k), or (B, H, T, T_k) with a forget gate, or None."""
        bias = None if context.score_bias is None else context.score_bias[self.own_heads]
        if self.forget is None:
            return bias
        decay = self.forget(x, context)
        return decay if bias is None else decay + bias

    def _on_sphere(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, H, T, D) and keys (B, H_kv, T, D) of length 1, times the learned vectors."""
        gain = self.qk_gain().view(-1, 1, self.head_dim)
        of_queries = gain.repeat_interleave(q.shape[1] // len(gain), dim=0)
        return on_sphere(q) * of_queries, on_sphere(k) * gain

    def split(self, over: TensorSplit) -> bool:
        """Split by heads. Not possible if a norm covers the whole projection, if other layers,
        which may be whole, share keys or values, with differential attention, whose pairs are not
        neighbors, or with dropout, whose masks would be the same on all workers."""
        norms = [norm for norm in (self.q_norm, self.k_norm) if norm is not None]
        if any(norm.normalized_shape != (self.head_dim,) for norm in norms):
            return False
        if self.values_name or self.shared_names or self.weight_dropout:
            return False
        if self.value_embedding is not None or self.difference is not None:
            return False
        over.share_of("n_kv_head", self.widths[1] // self.head_dim)
        heads = over.share_of("n_head", self.n_head)
        if self.scoring is not None and not self.scoring.split(over):
            return False
        over.columns(self.qkv, self.widths)
        over.rows(self.out)
        if self.forget is not None:
            over.columns(self.forget.gate, (self.n_head,))
        if self.canon is not None:
            self.canon.divide(over, self.widths)
        if self.query_scaling is not None and self.query_scaling.bases is not None:
            over.heads(self.query_scaling, "bases")
        if self.gate is not None:
            over.columns(self.gate, (self.gate.out_features,))
        for name in ("sinks", "exclusion"):
            if isinstance(getattr(self, name), nn.Parameter):
                over.heads(self, name)
        if self.qk_gain is not None:
            over.heads(self.qk_gain, "stored")
        self.own_heads = slice(over.rank * heads, (over.rank + 1) * heads)
        self.n_head, self.widths = heads, tuple(width // over.size for width in self.widths)
        for norm in norms:
            for parameter in norm.parameters():
                over.add_gradients(parameter)
        return True

    @property
    def _keys_serve_several(self) -> bool:
        """Whether keys serve several heads, or several layers."""
        whole = self.shared_names or self.shared_keys is not None
        return bool(whole) or self.widths[1] < self.widths[0]

    def logit_rows(self, factors: Tensor) -> dict[nn.Parameter, Tensor]:
        queries, keys = divided(factors, shared_keys=self._keys_serve_several)
        unchanged = torch.ones_like(factors)
        sections = zip((queries, keys, unchanged), self.widths, strict=False)
        rows = [own[: w // self.head_dim].repeat_interleave(self.head_dim) for own, w in sections]
        return dict.fromkeys(self.qkv.parameters(), torch.cat(rows))

    def measuring_flops(self, seq_len: int) -> int:
        return measuring_flops(seq_len, self.window, self.n_head, self.head_dim)

    def connect(self, given: Collection[str]) -> None:
        if self.values_name and self.values_name not in given:
            self.takes, self.value_share = (), None  # the first layer has nothing to mix in

    def _with_first_values(self, v: Tensor, context: Context) -> Tensor:
        """Mix the values of the first layer of the same shape into values (B, H_kv, T, D)."""
        if not self.takes:
            context.give(self.values_name, v)
            return v
        first = context.take(self.values_name)
        return v + self.value_share * (first - v)

    def _along_own_value(self, y: Tensor, v: Tensor) -> Tensor:
        """The part of y (B, H, T, D) along v (B, H_kv, T, D) that `exclusive_attention` removes."""
        own = F.normalize(v, dim=-1).unsqueeze(2)  # (B, H_kv, 1, T, D), for all heads it serves
        grouped = y.unflatten(1, (v.shape[1], -1))
        along = ((grouped * own).sum(-1, keepdim=True) * own).flatten(1, 2)
        if isinstance(self.exclusion, Tensor):
            along = along * self.exclusion.tanh()[:, None, None].to(y.dtype)
        return along

    def new_state(
        self, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> State:
        state: State = {}
        if self.shared_keys is None:
            shape = (batch, self.widths[1] // self.head_dim, capacity, self.head_dim)
            state = {name: torch.zeros(shape, device=device, dtype=dtype) for name in ("k", "v")}
        if self.canon is not None:
            state |= self.canon.new_state(batch, capacity, device=device, dtype=dtype)
        if self.forget is not None:
            state |= self.forget.new_state(batch, capacity, device=device, dtype=dtype)
        if self.scoring is not None:
            state |= self.scoring.new_state(batch, capacity, device=device, dtype=dtype)
        return state

    def _heads(self, x: Tensor) -> Tensor:
        """Reshape (B, T, H*D) to (B, H, T, D)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward_flops(self, seq_len: int, causal: bool = False) -> int:
        """FLOPs of the projections, and of two matmuls over the query-key pairs: scores, and
        weights times values, which are twice as wide in differential attention."""
        pairs = attended_pairs(seq_len, self.window, causal)
        dims = self.head_dim * (2 if self.difference is None else 3)
        return super().forward_flops(seq_len, causal) + 2 * self.n_head * dims * pairs

    def own_backward_flops(self, own: int, flow: GradientFlow) -> int:
        """Queries may have a gradient without shared keys and values; the attention weights without
        either, through forget gates and position encodings; and values through their embedding."""
        queries = flow.out_of(self.qkv)
        keys = queries if self.shared_keys is None else flow.out_of(self.shared_keys)
        values = keys or (self.value_embedding is not None and flow.out_of(self.value_embedding))
        weights = queries or keys or any(map(flow.out_of, self._linears_of_scores()))
        scores = own // (2 if self.difference is None else 3)
        return scores * (queries + keys) + (own - scores) * (weights + values)

    def _linears_of_scores(self) -> Iterator[nn.Linear]:
        """The Linear layers that change the scores of given queries and keys."""
        parts = (part for part in (self.forget, self.scoring) if part is not None)
        return (m for part in parts for m in part.modules() if isinstance(m, nn.Linear))


def _values_name(config: LayerConfig) -> str | None:
    """The name under which layers share values of the same shape; None if they do not."""
    if config.get("value_residual", "none") == "none":
        return None
    return f"values of {config.n_kv_head} heads of {config.head_dim}"


def qkv_widths(config: LayerConfig) -> tuple[int, int, int]:
    """Rows of queries, keys and values in the combined projection matrix."""
    keys = config.n_kv_head * config.head_dim
    return config.n_head * config.head_dim, keys, keys


def _rotates(config: LayerConfig) -> bool:
    """Whether the position encoding of a layer rotates queries and keys."""
    return POSITIONS[config.position_encoding].rotate is not PositionEncoding.rotate


def _qk_norms(config: LayerConfig) -> Iterator[RMSNorm | LayerNorm | None]:
    """The norm of queries, and that of the layer's own keys; None if there is none."""
    for own, width in zip((True, not config.kv_sharing), qkv_widths(config), strict=False):
        dim = config.head_dim if config.qk_norm_over == "head" else width
        yield make_qk_norm(dim, config) if config.qk_norm and own else None


OF_SCORES = (
    "forget_gate",
    "qk_norm",
    "qk_sphere",
    "query_scaling",
    "attention_scale",
    "attention_softcap",
)
"""Keys that only affect the scores of queries and keys."""


def _idle_scores(config: LayerConfig) -> Iterator[Problem]:
    """Yield problems with keys that only affect scores, if each query attends to one key."""
    for key in OF_SCORES:
        if getattr(config, key) not in (False, None, "none"):
            yield Problem(
                (key, "sliding_window"),
                f"{key}={getattr(config, key)} has no effect with sliding_window=1, where queries "
                f"attend only to their own token; raise sliding_window, or drop {key}.",
            )


def _unpaired(config: LayerConfig) -> Iterator[Problem]:
    """Yield problems with differential attention."""
    for key in ("n_head", "n_kv_head"):
        if getattr(config, key) % 2:
            yield Problem(
                ("differential_attention", key),
                f"differential_attention=True pairs heads, but {key}={getattr(config, key)} is "
                "odd; use an even number.",
            )
    if config.exclusive_attention != "none":
        yield Problem(
            ("exclusive_attention", "differential_attention"),
            f"exclusive_attention={config.exclusive_attention!r} cannot be combined with "
            "differential_attention=True, whose output is not a mean of values; drop one.",
        )


def _normed(x: Tensor, norm: RMSNorm | LayerNorm | None) -> Tensor:
    """Normalize x (B, T, H*D) in groups of the norm's width."""
    if norm is None:
        return x
    return norm(x.unflatten(-1, (-1, *norm.normalized_shape))).flatten(2)


def _exclusion(config: LayerConfig) -> nn.Parameter | float | None:
    """What `exclusive_attention` removes of each head's own value: 1.0, all of it; or the tanh of a
    learned number per head; None, nothing."""
    if config.exclusive_attention == "learned":
        return nn.Parameter(torch.zeros(config.n_head))
    return 1.0 if config.exclusive_attention == "full" else None


def attended_pairs(seq_len: int, window: int | None, causal: bool) -> int:
    """Number of query-key pairs of a sequence: token t attends to min(t + 1, window) positions.

    Without `causal`, every token counts as min(seq_len, window) pairs.
    """
    reach = seq_len if window is None else min(seq_len, window)
    if not causal:
        return seq_len * reach
    return reach * (reach + 1) // 2 + (seq_len - reach) * reach
