"""Initial values of decays exp(-exp(A_log) softplus(a + dt_bias)), as in the code of Mamba-2."""

from __future__ import annotations

import math

import torch
from torch import Tensor


@torch.no_grad()
def draw_log_rates(A_log: Tensor, low: float, high: float) -> None:
    """Make exp(A_log) uniform in (low, high)."""
    A_log.uniform_(low, high).clamp_(min=1e-4).log_()


@torch.no_grad()
def draw_step_biases(dt_bias: Tensor) -> None:
    """Make softplus(dt_bias) log-uniform in (0.001, 0.1)."""
    dt = torch.empty_like(dt_bias).uniform_(math.log(0.001), math.log(0.1)).exp()
    dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
