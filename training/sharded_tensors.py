"""Tensors of which each worker holds a part: how to make them whole, and take a part of a whole.

A parameter may be divided twice: a share of its sections by tensor parallelism, see
`components.tensor_split`; and of that, a slice by FSDP, which is a DTensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from components.tensor_split import Division
from training.workers import ALONE, Workers


class Parts:
    """The parts of a model's tensors that this worker holds.

    Args:
        workers: All workers.
        divided: By name, the parameters of which a worker has a share by tensor parallelism.
    """

    def __init__(
        self,
        workers: Workers = ALONE,
        divided: Mapping[str, Division] = MappingProxyType({}),
    ):
        self.workers = workers
        self._divided = divided

    def are_of(self, name: str) -> bool:
        """Whether tensor parallelism divides the parameter of this name."""
        return name in self._divided

    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """The parameter of this name, or what is kept of each of its numbers, as a whole. All
        workers must call this together."""
        tensor = gathered_slices(tensor)
        if name not in self._divided:
            return tensor
        shares = [torch.empty_like(tensor) for _ in range(self.workers.tensor)]
        dist.all_gather(shares, tensor.contiguous(), group=self.workers.tensor_group)
        return self._divided[name].whole(shares)

    def part(self, name: str, whole: Tensor, like: Tensor) -> Tensor:
        """What this worker has of a whole, the parameter being `like`; no messages."""
        if name in self._divided:
            workers = self.workers
            whole = self._divided[name].share(whole, workers.tensor_rank, workers.tensor)
        return slice_of(whole, like)

    def copy(self, name: str, whole: Tensor, into: Tensor) -> None:
        """Copy a whole tensor into the parameter of this name; no messages."""
        with torch.no_grad():
            local(into).copy_(self.part(name, whole.to(into.device), into))

    def shape(self, name: str, parameter: Tensor) -> tuple[int, ...]:
        """That of the whole parameter."""
        shape = tuple(parameter.shape)
        return self._divided[name].shape(shape) if name in self._divided else shape

    def copies(self, name: str, parameter: Tensor) -> int:
        """How many workers hold the same part of a parameter."""
        held = self.workers.tensor if name in self._divided else 1
        if isinstance(parameter, DTensor):
            sizes = zip(parameter.placements, parameter.device_mesh.shape, strict=True)
            held *= math.prod(size for placement, size in sizes if placement.is_shard())
        return self.workers.size // held


def gathered_slices(tensor: Tensor) -> Tensor:
    """A tensor that FSDP sharded as its workers hold it together; they must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This worker's slice, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def slice_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This worker's slice of a tensor that is to be sharded like another; no messages."""
    if not isinstance(like, DTensor):
        return tensor
    mesh, placements = like.device_mesh, like.placements
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None).to_local()


def sharded_like(part: Tensor, like: DTensor) -> DTensor:
    """The tensor of which `part` is this worker's slice, sharded like another of its shape."""
    return DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model's state_dict, a tied one once, by its first name."""
    first: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), (name, tensor))
    return {name: tensor.detach() for name, tensor in first.values()}


ToCpu = Callable[[str, Tensor], Tensor]
"""Gives the CPU's form of a named tensor."""


def on_cpu(name: str, tensor: Tensor) -> Tensor:
    """A tensor on the CPU; itself, if it is there."""
    return tensor.cpu()


def gathered_weights(
    model: nn.Module, parts: Parts | None = None, to_cpu: ToCpu = on_cpu
) -> dict[str, Tensor]:
    """A model's `own_tensors`, whole, on the CPU of the first worker; empty on the others. All
    workers must call this together."""
    parts = parts or Parts()
    whole = ((name, parts.whole(name, own)) for name, own in own_tensors(model).items())
    return on_first(whole, parts.workers, to_cpu)


def on_first(
    tensors: Iterable[tuple[str, Tensor]], workers: Workers, to_cpu: ToCpu = on_cpu
) -> dict[str, Tensor]:
    """Named tensors, one after the other, on the CPU of the first worker; empty on the others."""
    kept = {}
    for name, tensor in tensors:  # on all workers: to make a tensor whole takes all of them
        if workers.first:
            kept[name] = to_cpu(name, tensor)
    return kept
