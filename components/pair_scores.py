"""The part of an attention layer that computes the scores of queries and keys, for position
encodings that depend on the content of a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from components.attention_backends import scaled_products
from components.context import Context, State
from components.layer_config import LayerConfig
from components.part import Part
from components.tensor_split import TensorSplit


class PairScores(Part):
    """Compute the scores of queries and keys; by default, their scaled products."""

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.scale = config.attention_scale

    def forward(
        self, q: Tensor, k: Tensor, x: Tensor, context: Context
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the scores of queries and keys.

        Args:
            q: Queries (B, H, T, D).
            k: Keys (B, H_kv, T_k, D), including those in the decoding state; if the encoding
                `changes_keys`, only those of the T tokens.
            x: Input of the layer (B, T, C).
            context: The context of the layer, with its decoding state.

        Returns:
            The scores (B, H, T, T_k), and what is added to them after a softcap, or None. The
            causal mask is applied later.
        """
        return scaled_products(q, k, self.scale), None

    def new_state(
        self, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> State:
        """Entries of the layer's decoding state besides keys and values, or in place of the keys;
        see `Sublayer.new_state`."""
        return {}

    def split(self, over: TensorSplit) -> bool:
        """Keep this worker's share of the heads; see `Sublayer.split`."""
        return False
