"""Optimizer operations of the training loop: set the learning rate, clip gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters that an optimizer updates, group by group."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def clip_gradients(optimizer: torch.optim.Optimizer, norm: Tensor, longest: float) -> None:
    """Scale gradients with total norm `norm` to a norm of at most `longest`; 0: no clipping."""
    if longest > 0:
        clip_grads_with_norm_(trained_parameters(optimizer), longest, norm)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every group, scaled by the group's `rate_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("rate_scale", 1.0)
