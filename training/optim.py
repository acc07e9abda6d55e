"""The optimizer, the learning rate of each step, and the clipping of gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from errors import UserError
from training_config import TrainingConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups: weight decay for matrices (two dimensions or more), none for vectors.

    Every parameter that requires a gradient is in one group, once; a tied weight counts once.

    Raises:
        UserError: where nothing is trainable, or two parameters share memory without being the
            same parameter (both would be updated).
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise UserError(
            f"{type(model).__name__} has 0 parameters that require a gradient; "
            "there is nothing to train."
        )
    _refuse_shared_memory(named)
    parameters = [p for _, p in named]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _refuse_shared_memory(named: Iterable[tuple[str, nn.Parameter]]) -> None:
    owners: dict[tuple[torch.device, int], str] = {}
    for name, parameter in named:
        if parameter.numel() == 0:
            continue
        owner = owners.setdefault((parameter.device, parameter.data_ptr()), name)
        if owner != name:
            raise UserError(
                f"{owner} and {name} are two parameters in the same memory, and would be updated "
                "twice; tie them by assigning the same nn.Parameter to both."
            )


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), fused into one kernel per group."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.adam_eps,
        fused=True,
    )


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters that an optimizer updates, group by group."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def clip_gradients(optimizer: torch.optim.Optimizer, norm: Tensor, longest: float) -> None:
    """Scale all gradients, of norm `norm`, to a norm of at most `longest`; 0: no clipping."""
    if longest > 0:
        clip_grads_with_norm_(trained_parameters(optimizer), longest, norm)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def _cosine(position: float, config: TrainingConfig) -> float:
    """Half a cosine (SGDR without restarts, arXiv:1608.03983)."""
    progress = _progress(position, config.warmup_iters, config.lr_decay_iters)
    return _above_min_lr(0.5 * (1.0 + math.cos(math.pi * progress)), config)


def _linear(position: float, config: TrainingConfig) -> float:
    return _above_min_lr(
        1.0 - _progress(position, config.warmup_iters, config.lr_decay_iters), config
    )


def _wsd(position: float, config: TrainingConfig) -> float:
    """Warm-up, stable, decay (MiniCPM, arXiv:2404.06395), here with a linear decay."""
    decay_starts = config.lr_decay_iters * (1.0 - config.wsd_decay_fraction)
    decay_starts = max(decay_starts, config.warmup_iters)
    return _above_min_lr(1.0 - _progress(position, decay_starts, config.lr_decay_iters), config)


def _constant(position: float, config: TrainingConfig) -> float:
    return config.learning_rate


_SCHEDULES: dict[str, Callable[[float, TrainingConfig], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "wsd": _wsd,
    "constant": _constant,
}


def _progress(position: float, begin: float, end: float) -> float:
    """How far `position` is from `begin` to `end`, in [0, 1]."""
    if position >= end:
        return 1.0
    return max(position - begin, 0.0) / (end - begin)


def _above_min_lr(share: float, config: TrainingConfig) -> float:
    return config.min_lr + share * (config.learning_rate - config.min_lr)


def learning_rate_at(position: float, config: TrainingConfig) -> float:
    """The learning rate at a position on the schedule: a step, counted from 0, or between two.

    Linear warm-up over `warmup_iters` steps, above zero from the first; then `lr_schedule`, which
    is at `min_lr` from `lr_decay_iters` on. Needs a config whose derived values are filled in.
    """
    if position < config.warmup_iters:
        return config.learning_rate * (position + 1) / (config.warmup_iters + 1)
    return _SCHEDULES[config.lr_schedule](position, config)
