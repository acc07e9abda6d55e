"""Muon: orthogonalized momentum for hidden matrices, AdamW for all other parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from options import Role, Section
from recipe.optimizers import OPTIMIZERS, Moments, PerParameter, adamw_update
from recipe.parameters import decay_groups, hidden_matrices, trainable_parameters

_muon = Section("Optimizer", Role.RECIPE)

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of Jordan's odd polynomial a x + b x^3 + c x^5. It is steep at 0: five iterations
map singular values in [0.002, 1] to [0.68, 1.21], but do not converge to exactly 1."""

LEAST_NORM = 1e-7


@OPTIMIZERS.register(
    "muon", label="Muon", paper="Jordan et al. 2024, kellerjordan.github.io/posts/muon"
)
class Muon(PerParameter):
    """Orthogonalized momentum for hidden matrices; AdamW for embeddings, LM head and vectors.

    Matrices stacked in one weight, such as queries, keys and values, or experts, are orthogonalized
    separately; see `Part.matrix_rows`.
    """

    class Options(Moments):
        muon_momentum: float = _muon.option(
            0.95, "decay rate of the gradient average", at_least=0, below=1
        )
        muon_nesterov: bool = _muon.option(True, "use Nesterov momentum")
        muon_steps: int = _muon.option(
            5, "number of Newton-Schulz iterations for orthogonalization", at_least=1, at_most=99
        )
        muon_dtype: str = _muon.option(
            "bfloat16",
            "compute dtype of the Newton-Schulz iterations",
            choices=("bfloat16", "float32"),
        )
        muon_adjust: str = _muon.option(
            "match_rms_adamw",
            "update scale of an (A, B) matrix: 0.2 sqrt(max(A, B)), to reuse AdamW's learning "
            "rates (Liu et al. 2025, arXiv 2502.16982); original: sqrt(max(1, A/B))",
            choices=("match_rms_adamw", "original"),
        )
        muon_rate_scale: float = _muon.option(
            1.0, "learning rate of hidden matrices relative to that of other parameters", above=0
        )

    least_bytes = 4

    def __init__(self, model: nn.Module, config: Any):
        matrices = hidden_matrices(model)
        alike: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for parameter, rows in matrices.items():
            alike.setdefault(rows, []).append(parameter)
        hidden = [
            {
                "params": parameters,
                "rows": rows,
                "weight_decay": config.weight_decay,
                "rate_scale": config.muon_rate_scale,
            }
            for rows, parameters in alike.items()
        ]
        rest = [p for _, p in trainable_parameters(model) if p not in matrices]
        defaults = {
            "lr": config.learning_rate,
            "rows": None,
            "momentum": config.muon_momentum,
            "nesterov": config.muon_nesterov,
            "steps": config.muon_steps,
            "dtype": config.muon_dtype,
            "adjust": config.muon_adjust,
            "betas": (config.beta1, config.beta2),
            "eps": config.adam_eps,
        }
        super().__init__([*hidden, *decay_groups(model, rest, config.weight_decay)], defaults)

    def update(
        self,
        parameter: nn.Parameter,
        gradient: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
    ) -> None:
        if group["rows"] is None:
            adamw_update(parameter, gradient, state, group)
            return
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum, average = group["momentum"], state["momentum_buffer"]
        average.lerp_(gradient, 1 - momentum)
        direction = gradient.lerp(average, momentum) if group["nesterov"] else average
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parts = (_matrices(weight, group["rows"]) for weight in (parameter, direction))
        for matrix, raw in zip(*parts, strict=True):
            step = orthogonalized(raw, group["steps"], getattr(torch, group["dtype"]))
            matrix.add_(step, alpha=-group["lr"] * _adjustment(matrix, group["adjust"]))

    def step_flops(self) -> int:
        """Matmul FLOPs of the Newton-Schulz iterations."""
        return sum(
            orthogonalization_flops(
                (*parameter.shape[:-2], rows, parameter.shape[-1]), group["steps"]
            )
            for group in self.param_groups
            for parameter in group["params"]
            for rows in group["rows"] or ()
        )


def _matrices(weight: Tensor, rows: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Views of the matrices stacked in a weight. If the matrices of a weight (A, B) all have the
    same shape, this is one view (matrices, rows, B), which needs one batched matmul instead of
    several."""
    if weight.ndim == 2 and len(rows) > 1 and len(set(rows)) == 1:
        return (weight.unflatten(0, (len(rows), rows[0])),)
    return weight.split(rows, dim=-2)


def orthogonalized(x: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Approximate U V^T for matrices x = U S V^T of shape (..., A, B), by Newton-Schulz iterations.

    Raises:
        RuntimeError: If x has more than three dimensions.
    """
    a, b, c = COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    y = x.to(dtype, copy=True)
    y = y.mT if tall else y
    y /= y.norm(dim=(-2, -1), keepdim=True).clamp(min=LEAST_NORM)
    add_product = torch.addmm if x.ndim == 2 else torch.baddbmm
    for _ in range(steps):
        square = y @ y.mT
        polynomial = add_product(square, square, square, beta=b, alpha=c)
        y = add_product(y, polynomial, y, beta=a)
    return y.mT if tall else y


def orthogonalization_flops(shape: tuple[int, ...], steps: int) -> int:
    """FLOPs of the matmuls of `orthogonalized`; a multiply-add counts as 2. For an m x n matrix
    with m <= n, each iteration has two m x m x n matmuls and one m x m x m matmul."""
    m, n = sorted(shape[-2:])
    return steps * math.prod(shape[:-2]) * (4 * m * m * n + 2 * m**3)


def _adjustment(matrix: Tensor, kind: str) -> float:
    """The learning-rate factor of a matrix (..., A, B)."""
    a, b = matrix.shape[-2:]
    return max(1, a / b) ** 0.5 if kind == "original" else 0.2 * max(a, b) ** 0.5
