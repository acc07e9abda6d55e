"""Causal self-attention with grouped key heads, and its key-value cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from components.attention_backends import ATTENTION_BACKENDS
from components.part import Part
from components.positions import PositionEncoding
from options import Problem

if TYPE_CHECKING:
    from model_config import ModelArchitectureConfig


class KeyValueCache:
    """Keys and values of the tokens that one layer has seen."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add k and v (B, H_kv, T, D); give all so far (B, H_kv, length, D)."""
        if self._keys is None:
            batch, heads, _, dim = k.shape
            self._keys = k.new_empty(batch, heads, self.capacity, dim)
            self._values = torch.empty_like(self._keys)
        end = self.length + k.shape[2]
        assert end <= self.capacity, f"{end} tokens in a cache for {self.capacity}"
        self._keys[:, :, self.length : end] = k
        self._values[:, :, self.length : end] = v
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]


class Attention(Part):
    """Softmax attention of H query heads over H_kv <= H key heads.

    H_kv = H is multi-head attention (Vaswani et al. 2017), H_kv = 1 multi-query (Shazeer 2019,
    arXiv 1911.02150), between them grouped-query (Ainslie et al. 2023, arXiv 2305.13245).
    `qk_norm` puts an RMSNorm on each head's queries and keys before they are rotated
    (Henry et al. 2020, arXiv 2010.04245; as in Qwen3).
    """

    residual_projections = ("out",)

    def __init__(self, config: ModelArchitectureConfig, layer: int):
        super().__init__()
        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head
        self.head_dim = config.head_dim
        self.window = config.window(layer)
        # One matmul makes all three: queries first, then keys, then values.
        width = (self.n_head + 2 * self.n_kv_head) * self.head_dim
        self.qkv = nn.Linear(config.n_embd, width, bias=config.attention_bias)
        self.out = nn.Linear(self.n_head * self.head_dim, config.n_embd, bias=config.attention_bias)
        self.q_norm, self.k_norm = (
            nn.RMSNorm(self.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()
            for _ in range(2)
        )
        self.backend = ATTENTION_BACKENDS[config.attention_backend](config.attention_needs(layer))
        self.weight_dropout = config.dropout
        self.dropout = nn.Dropout(config.dropout)

    @classmethod
    def problems(cls, config: ModelArchitectureConfig) -> Iterator[Problem]:
        if config.n_head % config.n_kv_head:
            yield Problem(
                ("n_kv_head", "n_head"),
                f"n_head={config.n_head} is not a multiple of n_kv_head={config.n_kv_head}; each "
                "key head serves the same number of query heads.",
            )

    def forward(
        self,
        x: Tensor,
        positions: PositionEncoding,
        bias: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """x (B, T, C) to (B, T, C); with a cache, T tokens that follow those it holds."""
        B, T, _ = x.shape
        heads = (self.n_head, self.n_kv_head, self.n_kv_head)
        qkv = self.qkv(x).view(B, T, sum(heads), self.head_dim)
        q, k, v = qkv.transpose(1, 2).split(heads, dim=1)  # each (B, H or H_kv, T, D)
        start = 0 if cache is None else cache.length
        q, k = positions.rotate(self.q_norm(q), self.k_norm(k), start)
        q, k = q.to(v.dtype), k.to(v.dtype)
        if cache is not None:
            k, v = cache.append(k, v)
        y = self.backend(q, k, v, bias, self.weight_dropout if self.training else 0.0)
        return self.dropout(self.out(y.transpose(1, 2).reshape(B, T, -1)))

    def forward_flops(self, seq_len: int, causal: bool = False) -> int:
        """The projections, and two matmuls (scores, and weights times values) over the pairs."""
        pairs = attended_pairs(seq_len, self.window, causal)
        return super().forward_flops(seq_len, causal) + 4 * self.n_head * self.head_dim * pairs


def attended_pairs(seq_len: int, window: int | None, causal: bool) -> int:
    """Query-key pairs of a sequence: token t attends to min(t + 1, window) positions.

    Without `causal` every token is charged min(seq_len, window).
    """
    reach = seq_len if window is None else min(seq_len, window)
    if not causal:
        return seq_len * reach
    return reach * (reach + 1) // 2 + (seq_len - reach) * reach
