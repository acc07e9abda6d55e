"""Optimizers: `optimizer`. One is made with the training config, and makes torch's for a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from components.registry import Registry
from errors import UserError
from options import Role, Section

_optimizer = Section("Optimizer", Role.RECIPE)


class Recipe:
    """How a model's parameters are updated."""

    class Options:
        weight_decay: float = _optimizer.option(
            0.1, "weight decay of matrices; vectors are not decayed", at_least=0
        )

    def __init__(self, config: Any):
        self.config = config

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of every parameter that requires a gradient.

        A group's `rate_scale`, 1 if it has none, is a factor on the learning rate of the step.
        Parameters are split by `parameter_groups`, or by rules of the optimizer's own.
        """
        raise NotImplementedError


OPTIMIZERS = Registry(
    "optimizer", "Optimizer", variable="OPTIMIZERS", base=Recipe, role=Role.RECIPE
)


class Moments:
    """The options of optimizers that average the gradient and its square."""

    beta1: float = _optimizer.option(0.9, "decay rate of the first moment", at_least=0, below=1)
    beta2: float = _optimizer.option(0.95, "decay rate of the second moment", at_least=0, below=1)
    adam_eps: float = _optimizer.option(1e-8, "added to the denominator", above=0)


@OPTIMIZERS.register("adamw", label="AdamW", paper="Loshchilov and Hutter 2019, arXiv 1711.05101")
class AdamW(Recipe):
    """Adam with decoupled weight decay, fused into one kernel per group."""

    Options = Moments

    def make(self, model: nn.Module) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            parameter_groups(model, self.config.weight_decay),
            lr=self.config.learning_rate,
            betas=(self.config.beta1, self.config.beta2),
            eps=self.config.adam_eps,
            fused=True,
        )


def make_optimizer(model: nn.Module, config: Any) -> torch.optim.Optimizer:
    """The optimizer that a training config chooses, for a model."""
    return OPTIMIZERS[config.optimizer](config).make(model)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups: weight decay for matrices (two dimensions or more), none for vectors.

    Every parameter that requires a gradient is in one group, once; a tied weight counts once.

    Raises:
        UserError: if nothing is trainable, or two parameters share memory without being the same
            parameter (both would be updated).
    """
    parameters = [parameter for _, parameter in trainable_parameters(model)]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def trainable_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Every parameter that requires a gradient, once, with its name; see `parameter_groups`."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise UserError(
            f"{type(model).__name__} has 0 parameters that require a gradient; "
            "there is nothing to train."
        )
    _refuse_shared_memory(named)
    return named


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
