"""Adafactor: second moments factored into row and column means."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from options import Role, Section
from recipe.optimizers import OPTIMIZERS, PerParameter
from recipe.parameters import parameter_groups

_adafactor = Section("Optimizer", Role.RECIPE)

SQUARE_EPS = 1e-30
"""Added to squared gradients; epsilon_1 in the paper."""

LEAST_RMS = 1e-3
"""Lower bound on a parameter's RMS, so that zeros can grow; epsilon_2 in the paper."""


@OPTIMIZERS.register("adafactor", label="Adafactor", paper="Shazeer and Stern 2018, 1804.04235")
class Adafactor(PerParameter):
    """Adam without momentum, with the second moment of a matrix factored into row and column means.

    Weights with more than two dimensions are stacks of matrices in the last two, such as experts.
    The learning rate comes from the schedule, instead of the paper's 1/sqrt(step).
    """

    class Options:
        adafactor_decay: float = _adafactor.option(
            0.8, "c in beta2 = 1 - step^-c, the decay rate of the second moment", above=0
        )
        adafactor_clip: float = _adafactor.option(
            1.0, "maximum root mean square of the update of a parameter", above=0
        )
        adafactor_relative: bool = _adafactor.option(
            True, "scale the update by the root mean square of the parameter"
        )

    def __init__(self, model: nn.Module, config: Any):
        defaults = {
            "lr": config.learning_rate,
            "decay": config.adafactor_decay,
            "clip": config.adafactor_clip,
            "relative": config.adafactor_relative,
        }
        super().__init__(parameter_groups(model, config.weight_decay), defaults)

    def update(
        self,
        parameter: nn.Parameter,
        gradient: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
    ) -> None:
        if not state:
            state |= _first_state(parameter)
        state["step"] += 1
        squares = gradient.square().add_(SQUARE_EPS)
        update = gradient * _inverse_root(squares, state, state["step"] ** -group["decay"])
        update /= (_rms(update) / group["clip"]).clamp_(min=1.0)
        if group["relative"]:
            update *= _rms(parameter).clamp_(min=LEAST_RMS)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"])


def _first_state(parameter: nn.Parameter) -> dict[str, Tensor]:
    """Initial state; for a matrix (..., R, C), row means (..., R, 1) and column means (..., 1,
    C)."""
    step = torch.zeros((), device=parameter.device)
    if parameter.ndim < 2:
        return {"step": step, "square": torch.zeros_like(parameter)}
    rows, columns = parameter[..., :1], parameter[..., :1, :]
    return {"step": step, "row": torch.zeros_like(rows), "column": torch.zeros_like(columns)}


def _inverse_root(squares: Tensor, state: dict[str, Tensor], new: Tensor) -> Tensor:
    """Update the second moment with `squares` at weight `new`; returns 1 over its square root."""
    if "square" in state:
        return state["square"].lerp_(squares, new).rsqrt()
    row = state["row"].lerp_(squares.mean(dim=-1, keepdim=True), new)
    column = state["column"].lerp_(squares.mean(dim=-2, keepdim=True), new)
    return (row / row.mean(dim=-2, keepdim=True)).rsqrt() * column.rsqrt()


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()
