"""Differential attention: subtract a second attention map from the first."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from components.layer_config import LayerConfig
from components.norms import RMSNormWithoutGain
from components.part import Part

LAMBDA_STD = 0.1
"""Standard deviation of the initial vectors that lambda is computed from."""


class HeadDifference(Part):
    """Heads i and i + H/2 are a pair: RMSNorm(A_i V - lambda A_{i+H/2} V) (1 - lambda_init).

    A are the attention weights (Ye et al. 2024, arXiv 2410.05258; DiffLlama's layout of heads). V
    are the values of both heads of a pair of key heads side by side, of 2 D dimensions.
    lambda = exp(a.b) - exp(c.d) + lambda_init, with four learned vectors per layer, and
    lambda_init = 0.8 - 0.6 exp(-0.3 l) for layer l = 0, 1, .... The norm is that of each pair,
    without a gain.
    """

    undecayed = ("lambdas",)

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * config.index)
        self.lambdas = nn.Parameter(torch.empty(4, config.head_dim))  # a, b, c, d
        self.norm = RMSNormWithoutGain(2 * config.head_dim, config)

    def init_parameters(self, config: LayerConfig) -> None:
        """Initialize the vectors with N(0, LAMBDA_STD)."""
        nn.init.normal_(self.lambdas, std=LAMBDA_STD)

    def paired_values(self, v: Tensor) -> Tensor:
        """The values that each key head has: (B, H_kv, T, D) to (B, H_kv, T, 2 D)."""
        pairs = torch.cat(v.chunk(2, dim=1), dim=-1)
        return pairs.repeat(1, 2, 1, 1)

    def forward(self, y: Tensor) -> Tensor:
        """Combine the outputs (B, H, T, 2 D) of both heads of each pair: (B, H/2, T, 2 D)."""
        first, second = y.chunk(2, dim=1)
        a, b, c, d = self.lambdas
        # Not as matmuls, which autocast would compute in half precision.
        share = (a * b).sum().exp() - (c * d).sum().exp() + self.lambda_init
        difference = self.norm(first - share.to(y.dtype) * second)
        return ((1 - self.lambda_init) * difference).to(y.dtype)
