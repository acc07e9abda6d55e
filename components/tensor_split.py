"""Tensor parallelism: a part's weights divided among workers, each of which computes a share of its
heads or hidden units (Shoeybi et al. 2019, "Megatron-LM", arXiv 1909.08053).

A part says how by `Sublayer.split`, with the instrument defined here.
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
    """How a tensor is divided among workers: each has as much of every section.

    Attributes:
        dim: Along which dimension.
        sections: Sizes of the sections of the whole, such as queries, keys and values.
    """

    dim: int
    sections: tuple[int, ...]

    def share(self, whole: Tensor, rank: int, size: int) -> Tensor:
        """What a worker has of a whole tensor."""
        parts = [part.chunk(size, self.dim)[rank] for part in whole.split(self.sections, self.dim)]
        return torch.cat(parts, self.dim)

    def whole(self, shares: Sequence[Tensor]) -> Tensor:
        """The tensor of which these are the shares, by rank."""
        widths = [section // len(shares) for section in self.sections]
        sections = zip(*(share.split(widths, self.dim) for share in shares), strict=True)
        return torch.cat([part for section in sections for part in section], self.dim)

    def shape(self, share: Sequence[int]) -> tuple[int, ...]:
        """The shape of the whole."""
        return (*share[: self.dim], sum(self.sections), *share[self.dim + 1 :])


class TensorSplit:
    """What divides the weights of one part; see `Sublayer.split`.

    Args:
        rank: Which of the workers this is, from 0.
        size: How many workers share the part.
        group: Their process group; None: nothing is sent, to trace what one worker computes.
    """

    def __init__(self, rank: int, size: int, group: dist.ProcessGroup | None = None):
        self.rank = rank
        self.size = size
        self._group = group
        self.divided: dict[nn.Parameter, Division] = {}
        """The parameters of which each worker has a share."""
        self.partial: list[nn.Parameter] = []
        """Whole parameters whose gradients must be added up over the workers."""

    def share_of(self, key: str, count: int) -> int:
        """What a worker has of a number of heads or units.

        Raises:
            ConfigError: the number does not divide; `key` is the config's.
        """
        if count % self.size:
            fitting = [str(n) for n in range(2, count + 1) if count % n == 0]
            fix = f"use one of 1, {', '.join(fitting)}" if fitting else "drop tensor_parallel"
            message = f"tensor_parallel={self.size} does not divide {key}={count}; {fix}."
            raise ConfigError([Problem(("tensor_parallel", key), message)])
        return count // self.size

    def columns(self, linear: nn.Linear, sections: Sequence[int]) -> None:
        """Compute a share of each section of a Linear's outputs."""
        self._divide(linear, "weight", Division(0, tuple(sections)))
        if linear.bias is not None:
            self._divide(linear, "bias", Division(0, tuple(sections)))
        linear.out_features //= self.size
        linear.__class__ = ColumnLinear
        linear.group = self._group

    def rows(self, linear: nn.Linear) -> None:
        """Read a share of a Linear's inputs; the outputs of all workers are added up."""
        self._divide(linear, "weight", Division(1, (linear.in_features,)))
        linear.in_features //= self.size
        linear.__class__ = RowLinear
        linear.group = self._group

    def heads(self, part: nn.Module, name: str) -> None:
        """Use a share of a part's own parameter, which has one element per head."""
        self._divide(part, name, Division(0, (getattr(part, name).numel(),)))

    def add_gradients(self, parameter: nn.Parameter) -> None:
        """Of a parameter that each worker uses for its share alone, such as a norm of all heads."""
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
    """What all workers read: its gradients are added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _added_up(gradient, ctx.group), None


class _Sum(torch.autograd.Function):
    """The sum over the workers: its gradient is that of each."""

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
    """A part's own `split`; None if a subclass of the class that has it computes anything else.

    Class data, such as defaults, may differ.
    """
    for kind in type(part).__mro__:
        if "split" in vars(kind):
            return part.split
        changed = {name for name, value in vars(kind).items() if not _is_data(name, value)}
        if changed:
            return None
    raise AssertionError(f"{type(part).__name__} is no Sublayer")


def _is_data(name: str, value: Any) -> bool:
    """Whether a class attribute is no code: a plain value, or the class of its options."""
    if name == "Options" or (name.startswith("__") and name.endswith("__") and name != "__init__"):
        return True
    return isinstance(value, bool | int | float | str | tuple | frozenset | None)
