"""The unit hypersphere: vectors of length 1 and learned scales (nGPT, Loshchilov et al. 2024, arXiv
2410.01131)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def on_sphere(x: Tensor, dim: int = -1) -> Tensor:
    """Scale the vectors along a dimension to length 1, in at least float32."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=dim)


class Gain(nn.Module):
    """A learned vector that starts at `initial` but is stored at `stored` times a constant, so that
    Adam, whose steps do not depend on the scale of the gradient, changes it faster if `stored` is
    smaller (section 2.5)."""

    def __init__(self, size: int, initial: float, stored: float):
        super().__init__()
        self.factor = initial / stored
        self.stored = nn.Parameter(torch.full((size,), stored))

    def forward(self) -> Tensor:
        """The vector (size,)."""
        return self.stored * self.factor
