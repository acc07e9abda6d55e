"""Multi-head latent attention: the mixer of DeepSeek-V2 and V3."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from components.adapted_linear import merged_weight
from components.attention import attended_pairs
from components.attention_backends import ATTENTION_BACKENDS, attention_needs, window_of
from components.attention_logits import LARGEST_LOGIT, divided, largest_logits, measuring_flops
from components.attention_options import BiasOptions, HeadOptions, PositionOptions, ScoreOptions
from components.context import Context, State, appended
from components.layer_config import LayerConfig
from components.mixers import MIXERS, Mixer
from components.norms import NormOptions, RMSNorm
from components.part import GradientFlow
from components.positions import POSITIONS
from errors import Problem
from options import Role, Section

_mla = Section("Multi-head latent attention", Role.ARCHITECTURE)


@MIXERS.register("mla", label="MLA", paper="DeepSeek-AI 2024 (DeepSeek-V2), arXiv 2405.04434")
class LatentAttention(Mixer):
    """Softmax attention with keys and values computed from a low-rank latent of each token.

    With c = RMSNorm(W_c x) of `kv_lora_rank` dimensions, each head has the key [W_k c, rope(W_r x)]
    and the value W_v c. The rotated part, of `qk_rope_head_dim` dimensions, is shared by all heads;
    `qk_nope_head_dim` dimensions are not rotated. Queries are computed from x, or from a latent
    RMSNorm(W_q x) of `q_lora_rank` dimensions.

    The decoding state holds c and the rotated part of the keys: r + D_rope numbers per token.
    Decoding attends to the latents directly, with W_k absorbed into the queries and W_v into the
    outputs (section 2.1.2), which gives the same result.
    """

    residual_projections = ("out",)
    scales_with_width = has_logits = True

    class Options(BiasOptions, ScoreOptions, HeadOptions, PositionOptions, NormOptions):
        q_lora_rank: int | None = _mla.option(
            None,
            "dimension of the latent of the queries; none: queries from the input itself",
            at_least=1,
            per_layer=True,
            tag="QRank{}",
        )
        kv_lora_rank: int | None = _mla.option(
            None,
            "dimension of the latent of keys and values; none: 4*qk_nope_head_dim",
            at_least=1,
            per_layer=True,
            derive=lambda config: 4 * config.qk_nope_head_dim,
            tag="Rank{}",
        )
        qk_nope_head_dim: int | None = _mla.option(
            None,
            "dimension of the unrotated part of queries and keys; none: n_embd/n_head",
            at_least=1,
            per_layer=True,
            derive=lambda config: max(config.n_embd // config.n_head, 1),
            tag="Nope{}",
        )
        qk_rope_head_dim: int | None = _mla.option(
            None,
            "dimension of the rotated part of queries and keys; none: half of qk_nope_head_dim, "
            "rounded down to an even number",
            at_least=1,
            per_layer=True,
            derive=lambda config: 2 * max(config.qk_nope_head_dim // 4, 1),
            tag="RopeDim{}",
        )
        v_head_dim: int | None = _mla.option(
            None,
            "dimension of a value; none: qk_nope_head_dim",
            at_least=1,
            per_layer=True,
            derive=lambda config: config.qk_nope_head_dim,
            tag="Value{}",
        )

    def __init__(self, config: LayerConfig):
        super().__init__()
        C, H = config.n_embd, config.n_head
        self.n_head, self.rank = H, config.kv_lora_rank
        self.query_dims = (config.qk_nope_head_dim, config.qk_rope_head_dim)
        self.value_dim = config.v_head_dim
        self.window = window_of(config)
        queries, rank = H * sum(self.query_dims), config.q_lora_rank
        bias = config.attention_bias
        self.q_latent = nn.Linear(C, rank, bias=bias) if rank else None
        self.q_norm = RMSNorm(rank, config) if rank else None
        self.q = nn.Linear(rank or C, queries, bias=False)
        self.kv_latent = nn.Linear(C, self.rank + config.qk_rope_head_dim, bias=bias)
        self.kv_norm = RMSNorm(self.rank, config)
        self.kv = nn.Linear(self.rank, H * (config.qk_nope_head_dim + self.value_dim), bias=False)
        self.out = nn.Linear(H * self.value_dim, C, bias=config.attention_out_bias)
        self.sinks = nn.Parameter(torch.zeros(H)) if config.attention_sinks else None
        self.backend = ATTENTION_BACKENDS[config.attention_backend](attention_needs(config))
        self.weight_dropout = config.dropout
        self.dropout = nn.Dropout(config.dropout)

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        if POSITIONS[config.position_encoding].computes_scores:
            yield Problem(
                ("mixer", "position_encoding"),
                f"mixer='mla' does not support position_encoding={config.position_encoding!r}, "
                "which computes the scores from whole keys; use mixer='attention', or another "
                "position encoding.",
            )

    @property
    def matrix_rows(self) -> dict[str, tuple[int, ...]]:
        return {"kv_latent": (self.rank, self.query_dims[1])}

    def forward(self, x: Tensor, context: Context) -> Tensor:
        q_nope, q_rope = self._queries(x).split(self.query_dims, dim=-1)
        latent, k_rope = self.kv_latent(x).unsqueeze(1).split((self.rank, self.query_dims[1]), -1)
        latent = self.kv_norm(latent).to(q_nope.dtype)  # (B, 1, T, r)
        q_rope, k_rope = context.positions.rotate(q_rope, k_rope, context.start)
        q_rope, k_rope = q_rope.to(q_nope.dtype), k_rope.to(q_nope.dtype)
        state, start = context.state, context.start
        if state is not None:
            kept = appended(state, start, latent=latent, k_rope=k_rope)
        if state is None or (isinstance(start, int) and start == 0):
            y = self._attend_expanded(q_nope, q_rope, latent, k_rope, context)
        else:
            y = self._attend_latents(q_nope, q_rope, *kept, context)
        return self.dropout(self.out(y.transpose(1, 2).flatten(2)))

    def _queries(self, x: Tensor) -> Tensor:
        """The queries (B, H, T, D_nope + D_rope)."""
        if self.q_latent is not None:
            x = self.q_norm(self.q_latent(x)).to(x.dtype)
        return self.q(x).unflatten(-1, (self.n_head, -1)).transpose(1, 2)

    def _attend_expanded(
        self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, context: Context
    ) -> Tensor:
        """Attend to the keys and values of each head; returns (B, H, T, D_v)."""
        kv = self.kv(latent.squeeze(1)).unflatten(-1, (self.n_head, -1)).transpose(1, 2)
        k_nope, v = kv.split((self.query_dims[0], self.value_dim), dim=-1)
        k = torch.cat((k_nope, k_rope.expand(-1, self.n_head, -1, -1)), dim=-1)
        q = torch.cat((q_nope, q_rope), dim=-1)
        if context.measures:
            largest = largest_logits(q, k, self.backend.needs.scale, self.window)
            context.add_metric(LARGEST_LOGIT, largest)
        return self._attend(q, k, v, context)

    def _attend_latents(
        self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, context: Context
    ) -> Tensor:
        """Attend to the latents, which are the keys and values of all heads; (B, H, T, D_v)."""
        weight = merged_weight(self.kv).to(q_nope.dtype).unflatten(0, (self.n_head, -1))
        of_keys, of_values = weight.split((self.query_dims[0], self.value_dim), dim=1)
        q = torch.cat((q_nope @ of_keys, q_rope), dim=-1)
        y = self._attend(q, torch.cat((latent, k_rope), dim=-1), latent, context)
        return y @ of_values.transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        dropout = self.weight_dropout if self.training else 0.0
        start = context.start if isinstance(context.start, Tensor) else None
        return self.backend(q, k, v, context.score_bias, dropout, start, self.sinks)

    def logit_rows(self, factors: Tensor) -> dict[nn.Parameter, Tensor]:
        """All heads share the rotated part of the keys, but not the other part."""
        queries, keys = divided(factors, shared_keys=False)
        rotated, _ = divided(factors, shared_keys=True)
        values = torch.ones_like(factors)
        return {
            self.q.weight: _by_head((queries, rotated), self.query_dims),
            self.kv.weight: _by_head((keys, values), (self.query_dims[0], self.value_dim)),
        }

    def measuring_flops(self, seq_len: int) -> int:
        return measuring_flops(seq_len, self.window, self.n_head, sum(self.query_dims))

    def new_state(
        self, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> State:
        widths = {"latent": self.rank, "k_rope": self.query_dims[1]}
        return {
            name: torch.zeros(batch, 1, capacity, width, device=device, dtype=dtype)
            for name, width in widths.items()
        }

    def forward_flops(self, seq_len: int, causal: bool = False) -> int:
        """FLOPs of the projections, and 2 (D_nope + D_rope + D_v) for each head and pair."""
        pairs = attended_pairs(seq_len, self.window, causal)
        dims = sum(self.query_dims) + self.value_dim
        return super().forward_flops(seq_len, causal) + 2 * self.n_head * dims * pairs

    def own_backward_flops(self, own: int, flow: GradientFlow) -> int:
        """Scores have a gradient for queries and keys, outputs for the weights and values."""
        queries = flow.out_of(self.q)
        keys = flow.out_of(self.kv)  # whose input has a gradient if kv_latent has adapters
        scores = own * sum(self.query_dims) // (sum(self.query_dims) + self.value_dim)
        return scores * (queries + keys) + (own - scores) * ((queries or keys) + keys)


def _by_head(factors: tuple[Tensor, ...], dims: tuple[int, ...]) -> Tensor:
    """Repeat factors (H,) for the rows of each head; `dims`: the rows per head for each factor."""
    parts = [own[:, None].expand(-1, rows) for own, rows in zip(factors, dims, strict=True)]
    return torch.cat(parts, dim=1).flatten()
