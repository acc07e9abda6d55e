"""Lion: sign momentum, with updates of equal magnitude for all elements."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from options import Role, Section
from recipe.optimizers import OPTIMIZERS, PerParameter
from recipe.parameters import parameter_groups

_lion = Section("Optimizer", Role.RECIPE)


@OPTIMIZERS.register("lion", label="Lion", paper="Chen et al. 2023, arXiv 2302.06675")
class Lion(PerParameter):
    """Follows the sign of the averaged gradient; needs about a tenth of AdamW's learning rate."""

    class Options:
        lion_beta1: float = _lion.option(
            0.9, "weight of the gradient average in the update direction", at_least=0, below=1
        )
        lion_beta2: float = _lion.option(
            0.99, "decay rate of the gradient average", at_least=0, below=1
        )

    least_bytes = 4
    elementwise = True
    takes_scales = True

    def __init__(self, model: nn.Module, config: Any):
        groups = parameter_groups(model, config.weight_decay)
        super().__init__(
            groups, {"lr": config.learning_rate, "betas": (config.lion_beta1, config.lion_beta2)}
        )

    def update(
        self,
        parameter: nn.Parameter,
        gradient: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
    ) -> None:
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
        average, (beta1, beta2) = state["exp_avg"], group["betas"]
        direction = gradient.lerp(average, beta1).sign_()
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-group["lr"])
        average.lerp_(gradient, 1 - beta2)
