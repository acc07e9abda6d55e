"""Contextual position encoding: positions that count tokens chosen by the content."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.attention_backends import visible
from components.context import Context
from components.layer_config import LayerConfig
from components.pair_scores import PairScores
from components.positions import POSITIONS, PositionEncoding
from components.tensor_split import TensorSplit
from options import option


@POSITIONS.register("cope", label="CoPE", paper="Golovneva et al. 2024, arXiv 2405.18719")
class CoPE(PositionEncoding):
    """Measure the distance from query i to key j by gates: p_ij = sum_{k=j}^{i} sigmoid(s_ik).

    s are the scaled scores, before a softcap. e[p_ij], interpolated between learned vectors at the
    integers 0 .. P - 1, is added to the key: the score is s_ij + q_i . e[p_ij], where the second
    product is not scaled. Distances above P - 1 count as P - 1, P = `cope_max_positions`. Each
    layer has its own vectors, which all heads share and which are initialized to 0.
    """

    computes_scores = learns_scores = True
    scales_with_width = False

    class Options:
        cope_max_positions: int = option(
            64,
            "CoPE: number of distances with a learned vector",
            at_least=2,
            per_layer=True,
            tag="CoPE{}",
        )

    @classmethod
    def scoring(cls, config: LayerConfig) -> ContextualScores:
        return ContextualScores(config)


class ContextualScores(PairScores):
    """The scores of a layer with CoPE. The positions are computed in at least float32."""

    multiplies_weights = True

    def __init__(self, config: LayerConfig):
        super().__init__(config)
        self.n_head = config.n_head
        self.vectors = nn.Parameter(torch.empty(config.cope_max_positions, config.head_dim))

    def init_parameters(self, config: LayerConfig) -> None:
        """Initialize the vectors with 0."""
        nn.init.zeros_(self.vectors)

    def forward(
        self, q: Tensor, k: Tensor, x: Tensor, context: Context
    ) -> tuple[Tensor, Tensor | None]:
        scores, _ = super().forward(q, k, x, context)
        return scores, self._interpolated(
            F.linear(q, self.vectors), self._distances(scores, context)
        )

    def _distances(self, scores: Tensor, context: Context) -> Tensor:
        """The distances p (B, H, T, T_k), which are at most P - 1."""
        start = context.start if isinstance(context.start, Tensor) else None
        seen = visible(*scores.shape[-2:], None, scores.device, start)
        gates = scores.to(torch.promote_types(scores.dtype, torch.float32)).sigmoid()
        total = gates.masked_fill(~seen, 0.0).flip(-1).cumsum(dim=-1).flip(-1)
        return total.clamp(max=len(self.vectors) - 1)

    @staticmethod
    def _interpolated(products: Tensor, p: Tensor) -> Tensor:
        """Interpolate the products with the vectors, (B, H, T, P), at the distances p."""
        below = p.detach().long().clamp(max=products.shape[-1] - 2)
        low, high = products.gather(-1, below), products.gather(-1, below + 1)
        return low + (p - below) * (high - low)

    def split(self, over: TensorSplit) -> bool:
        over.add_gradients(self.vectors)
        return True

    def forward_flops(self, seq_len: int, causal: bool = False) -> int:
        """FLOPs of the products of queries and vectors."""
        return 2 * self.n_head * self.vectors.numel() * seq_len
