"""Softmax attention over depth, with a learned query (attention residuals, Kimi Team 2026, arXiv
2603.15031)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from components.part import GradientFlow, Part

KEY_EPS = 1e-6
"""Added to the mean square of a source before the root, in the RMSNorm of the keys."""


class DepthAttention(Part):
    """A mixture of n sources v_i (..., C) of each token, such as the outputs of earlier sublayers.

        h = sum_i a_i v_i        a = softmax_i(w . (g * RMSNorm(v_i)))

    The query w and the gain g of the keys are learned and do not depend on the token. w starts at
    zero, so that h is the mean of the sources at first; g starts at one.
    """

    def __init__(self, width: int, sources: int):
        """`sources`: the number n of sources in a call, for `forward_flops`."""
        super().__init__()
        self.sources, self.width = sources, width
        self.query = nn.Parameter(torch.zeros(width))
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, *sources: Tensor) -> Tensor:
        """The mixture (..., C), computed in at least float32."""
        wide = torch.promote_types(sources[0].dtype, torch.float32)
        query = (self.query * self.gain).to(wide)
        with torch.autocast(query.device.type, enabled=False):  # autocast would round the sources
            mixed = _Mixture.apply(query, *(source.to(wide) for source in sources))
        return mixed.to(sources[0].dtype)

    def forward_flops(self, seq_len: int, causal: bool = False) -> int:
        """FLOPs: per token 2 n C for the scores and 2 n C for the mixture."""
        return 4 * self.sources * self.width * seq_len

    def own_backward_flops(self, own: int, flow: GradientFlow) -> int:
        """The mixture needs gradients of both factors, the scores only of the sources."""
        return own * 3 // 2 * flow.out_of(self)


class _Mixture(torch.autograd.Function):
    """h (..., C) from a query (C,) and sources (..., C).

    It keeps only the sources, which later layers keep as well, and a few numbers per source and
    token. The n sources, stacked, would otherwise be kept for every sublayer.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, *sources: Tensor) -> Tensor:
        values = torch.stack(sources, dim=-2)
        scales = (values.square().mean(dim=-1) + KEY_EPS).rsqrt()
        scores = (values @ query.unsqueeze(-1)).squeeze(-1) * scales
        weights = scores.softmax(dim=-1)
        ctx.save_for_backward(query, scores, scales, weights, *sources)
        return (weights.unsqueeze(-2) @ values).squeeze(-2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, scores, scales, weights, *sources = ctx.saved_tensors
        with torch.autocast(query.device.type, enabled=False):
            values = torch.stack(sources, dim=-2)
            of_weights = (values @ grad.unsqueeze(-1)).squeeze(-1)
            mean = (weights * of_weights).sum(dim=-1, keepdim=True)
            of_scores = weights * (of_weights - mean)
            of_products = (of_scores * scales).unsqueeze(-1)  # of values . query
            of_values = weights.unsqueeze(-1) @ grad.unsqueeze(-2)
            of_values = of_values + of_products @ query.unsqueeze(0)
            of_squares = of_scores * scores * scales.square() / query.shape[0]
            of_values.addcmul_(of_squares.unsqueeze(-1), values, value=-1)
            of_query = None
            if ctx.needs_input_grad[0]:
                of_query = of_products.reshape(1, -1) @ values.reshape(-1, query.shape[0])
                of_query = of_query.squeeze(0)
        return of_query, *of_values.unbind(-2)
