"""Tensor parallelism: divide a part's weights among workers, each of which computes a share of the
heads or hidden units (Shoeybi et al. 2019, "Megatron-LM", arXiv 1909.08053).

Parts implement `Sublayer.split` with the `TensorSplit` defined here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from errors import ConfigError, Problem


@dataclasses.dataclass(frozen=True)
class Division:
    """How a tensor is divided among workers: each has an equal share of every section.

    Attributes:
        dim: The dimension that is divided.
        sections: Sizes of the sections of the whole tensor, such as queries, keys and values.
    """

    dim: int
    sections: tuple[int, ...]

    def share(self, whole: Tensor, rank: int, size: int) -> Tensor:
        """A worker's share of a whole tensor."""
        parts = [part.chunk(size, self.dim)[rank] for part in whole.split(self.sections, self.dim)]
        return torch.cat(parts, self.dim)

    def whole(self, shares: Sequence[Tensor]) -> Tensor:
        """The whole tensor, given all shares in order of rank."""
        widths = [section // len(shares) for section in self.sections]
        sections = zip(*(share.split(widths, self.dim) for share in shares), strict=True)
        return torch.cat([part for section in sections for part in section], self.dim)

    def shape(self, share: Sequence[int]) -> tuple[int, ...]:
        """The shape of the whole tensor, given that of a share."""
        return (*share[: self.dim], sum(self.sections), *share[self.dim + 1 :])


class TensorSplit:
    """Divides the weights of one part; see `Sublayer.split`.

    Args:
        rank: Rank of this worker in the group, from 0.
        size: Number of workers that share the part.
        group: Their process group; None: do not communicate, to trace the work of one worker.
    """

    def __init__(self, rank: int, size: int, group: dist.ProcessGroup | None = None):
        self.rank = rank
        self.size = size
        self._group = group
        self.divided: dict[nn.Parameter, Division] = {}
        """The parameters of which each worker has a share."""
        self.partial: list[nn.Parameter] = []
        """Whole parameters whose gradients must be summed over the workers."""

    def share_of(self, key: str, count: int) -> int:
        """A worker's share of a number of heads or units; `key` is the config key of that number.

        Raises:
            ConfigError: If the number is not divisible.
        """
        if count % self.size:
            fitting = [str(n) for n in range(2, count + 1) if count % n == 0]
            fix = f"use one of 1, {', '.join(fitting)}" if fitting else "drop tensor_parallel"
            message = f"tensor_parallel={self.size} does not divide {key}={count}; {fix}."
            raise ConfigError([Problem(("tensor_parallel", key), message)])
        return count // self.size

    def columns(self, linear: nn.Linear, sections: Sequence[int]) -> None:
        """Make a Linear compute only a share of each section of its outputs."""
        self._divide(linear, "weight", Division(0, tuple(sections)))
        if linear.bias is not None:
            self._divide(linear, "bias", Division(0, tuple(sections)))
        linear.out_features //= self.size
        linear.__class__ = ColumnLinear
        linear.group = self._group

    def rows(self, linear: nn.Linear) -> None:
        """Make a Linear read only a share of its inputs; the outputs of all workers are summed."""
        self._divide(linear, "weight", Division(1, (linear.in_features,)))
        linear.in_features //= self.size
        linear.__class__ = RowLinear
        linear.group = self._group

    def heads(self, part: nn.Module, name: str) -> None:
        """Keep a share of a part's own parameter, which has one element per head."""
        self.rows_of(part, name, (getattr(part, name).numel(),))

    def rows_of(self, part: nn.Module, name: str, sections: Sequence[int]) -> None:
        """Keep a share of each section of the first dimension of a part's own parameter."""
        self._divide(part, name, Division(0, tuple(sections)))

    def add_gradients(self, parameter: nn.Parameter) -> None:
        """Sum the gradients of a whole parameter that each worker uses only for its share, such as
        the norm of all heads."""
        self.partial.append(parameter)

    def _divide(self, owner: nn.Module, name: str, division: Division) -> None:
        whole = getattr(owner, name)
        share = nn.Parameter(division.share(whole.detach(), self.rank, self.size).clone())
        setattr(owner, name, share)
        self.divided[share] = division


class ColumnLinear(nn.Linear):
    """A Linear that computes a worker's share of the outputs."""

    group: dist.ProcessGroup | None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(_Shared.apply(x, self.group), self.weight, self.bias)


class RowLinear(nn.Linear):
    """A Linear that reads a worker's share of the inputs; its bias is added once."""

    group: dist.ProcessGroup | None

    def forward(self, x: Tensor) -> Tensor:
        y = _Sum.apply(F.linear(x, self.weight), self.group)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _Shared(torch.autograd.Function):
    """Identity whose gradients are summed over the workers, for inputs that all workers read."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _added_up(gradient, ctx.group), None


class _Sum(torch.autograd.Function):
    """Sum over the workers; the gradient is passed to each of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        return _added_up(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _added_up(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    if group is None:
        return x.view_as(x)
    total = x.contiguous().clone()
    dist.all_reduce(total, group=group)
    return total


def split_of(part: Any) -> Any:
    """A part's `split`; None if the part's class overrides any code of the class that defines it.

    Class data, such as defaults, may differ.
    """
    for kind in type(part).__mro__:
        if "split" in vars(kind):
            return part.split
        changed = {name for name, value in vars(kind).items() if not _is_data(name, value)}
        if changed:
            return None
    raise AssertionError(f"{type(part).__name__} is not a Sublayer")


def _is_data(name: str, value: Any) -> bool:
    """Whether a class attribute is not code: a plain value, or its Options class."""
    if name == "Options" or (name.startswith("__") and name.endswith("__") and name != "__init__"):
        return True
    return isinstance(value, bool | int | float | str | tuple | frozenset | None)
