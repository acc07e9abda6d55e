"""Grouped linear layers, as in mixtures of experts: a separate matrix for each group of rows.

Rows are sorted by group, and a group may have any number of rows. `grouped_linear` and its gradient
are custom operators, because the sizes of the groups depend on the data: torch.compile,
FakeTensorMode and FlopCounterMode see operators whose shapes do not depend on them. On CUDA in
bfloat16 they are a single kernel, otherwise a loop over the groups, which reads their sizes on the
host.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

ALIGNMENT = 8
"""The CUDA kernel requires widths that are multiples of this: 16 bytes of bfloat16."""


@torch.library.custom_op(
    "nanoarch::grouped_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor ends) -> Tensor",
)
def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply each row of x by the transpose of its group's matrix; returns (N, O).

    Args:
        x: Rows (N, I), sorted by group.
        weight: The matrices (G, O, I), with the dtype of x.
        ends: One past the last row of each group, (G,) int32; the last is N.
    """
    if _has_kernel(x, weight.shape[1]):
        return F.grouped_mm(x.contiguous(), weight.transpose(-2, -1), offs=ends)
    y = x.new_empty(x.shape[0], weight.shape[1])
    for rows, matrix in zip(_groups(ends), weight, strict=True):
        torch.mm(x[rows], matrix.T, out=y[rows])
    return y


@torch.library.custom_op(
    "nanoarch::grouped_outer",
    mutates_args=(),
    schema="(Tensor y, Tensor x, Tensor ends) -> Tensor",
)
def grouped_outer(y: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """Compute y^T x over the rows of each group, (G, O, I); zero for a group without rows.

    Args:
        y: Rows (N, O), sorted by group.
        x: Rows (N, I), with the dtype of y.
        ends: See `grouped_linear`.
    """
    if _has_kernel(x, y.shape[1]):
        products = F.grouped_mm(y.contiguous().T, x.contiguous(), offs=ends)
        # The kernels of some GPUs do not write the zeros (pytorch/pytorch#172439).
        without_rows = torch.diff(ends, prepend=ends.new_zeros(1)) == 0
        return products.masked_fill_(without_rows[:, None, None], 0)
    products = x.new_empty(len(ends), y.shape[1], x.shape[1])
    for rows, product in zip(_groups(ends), products, strict=True):
        torch.mm(y[rows].T, x[rows], out=product)
    return products


def _has_kernel(x: Tensor, other_width: int) -> bool:
    """Whether `F.grouped_mm` has a CUDA kernel for rows x and matrices with this other width."""
    return (
        x.is_cuda
        and x.dtype is torch.bfloat16
        and x.shape[1] % ALIGNMENT == other_width % ALIGNMENT == 0
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
    )


def _groups(ends: Tensor) -> Iterator[slice]:
    """The rows of each group."""
    start = 0
    for end in ends.tolist():
        yield slice(start, end)
        start = end


@grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@grouped_outer.register_fake
def _(y: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(ends.shape[0], y.shape[1], x.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, of_y: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, ends = ctx.saved_tensors
    wants_x, wants_weight, _ = ctx.needs_input_grad
    of_x = grouped_linear(of_y, weight.transpose(-2, -1), ends) if wants_x else None
    of_weight = grouped_outer(of_y, x, ends) if wants_weight else None
    return of_x, of_weight, None


grouped_linear.register_autograd(_gradients, setup_context=_save)


@register_flop_formula([torch.ops.nanoarch.grouped_linear, torch.ops.nanoarch.grouped_outer])
def _flops(
    rows: Sequence[int], others: Sequence[int], ends: Sequence[int], *, out_shape: Sequence[int]
) -> int:
    """2 N O I, for rows (N, I) and matrices (G, O, I), or rows (N, O) and (N, I)."""
    return 2 * rows[0] * rows[1] * (others[1] if len(others) == 2 else others[-2])
