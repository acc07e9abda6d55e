"""Mixtures of experts by themselves, and tokens to route."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from components.moe import MoE
from tests.tiny import tiny_layer

MOE = {"ffn_type": "moe", "ffn_hidden": 10, "bias": False}
DEEPSEEK = {
    **MOE,
    "router_score": "sigmoid",
    "router_scale": 2.5,
    "n_expert_groups": 4,
    "n_groups_per_token": 2,
    "n_shared_experts": 2,
    "router_bias_rate": 0.001,
}


def made(dtype: torch.dtype = torch.float64, **keys: Any) -> MoE:
    """A mixture in which nothing is zero, so that experts are used unevenly."""
    torch.manual_seed(0)
    ffn = MoE(tiny_layer(**keys)).to(dtype)
    with torch.no_grad():
        for tensor in (*ffn.parameters(), *ffn.buffers()):
            tensor.copy_(0.5 * torch.randn(tensor.shape))
    return ffn


def hidden(dtype: torch.dtype = torch.float64) -> Tensor:
    """x (2, 9, 32)."""
    return torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
