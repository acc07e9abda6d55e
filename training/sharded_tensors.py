"""Gather tensors of which each worker holds a part, and take a worker's part of a whole tensor.

A parameter may be divided twice: tensor parallelism gives each worker a share of its sections (see
`components.tensor_split`), and FSDP a slice of that share, as a DTensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import torch
import torch.distributed as dist
from torch import Tensor, nn

from components.tensor_split import Division
from recipe.parameters import is_sharded, local, slice_of
from training.workers import ALONE, Workers


class Parts:
    """The parts of a model's tensors that this worker holds.

    Args:
        workers: All workers.
        divided: How tensor parallelism divides parameters, by parameter name.
    """

    def __init__(
        self,
        workers: Workers = ALONE,
        divided: Mapping[str, Division] = MappingProxyType({}),
    ):
        self.workers = workers
        self._divided = divided

    def are_of(self, name: str) -> bool:
        """Whether tensor parallelism divides the parameter with this name."""
        return name in self._divided

    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """Gather a parameter, or its elementwise optimizer state, from all workers. All workers
        must call this together."""
        tensor = gathered_slices(tensor)
        if name not in self._divided:
            return tensor
        shares = [torch.empty_like(tensor) for _ in range(self.workers.tensor)]
        dist.all_gather(shares, tensor.contiguous(), group=self.workers.tensor_group)
        return self._divided[name].whole(shares)

    def part(self, name: str, whole: Tensor, like: Tensor) -> Tensor:
        """This worker's part of a whole tensor; `like` is its parameter. Does not communicate."""
        if name in self._divided:
            workers = self.workers
            whole = self._divided[name].share(whole, workers.tensor_rank, workers.tensor)
        return slice_of(whole, like)

    def copy(self, name: str, whole: Tensor, into: Tensor) -> None:
        """Copy this worker's part of a whole tensor into `into`. Does not communicate."""
        with torch.no_grad():
            local(into).copy_(self.part(name, whole.to(into.device), into))

    def shape(self, name: str, parameter: Tensor) -> tuple[int, ...]:
        """The shape of the whole parameter."""
        shape = tuple(parameter.shape)
        return self._divided[name].shape(shape) if name in self._divided else shape

    def copies(self, name: str, parameter: Tensor) -> int:
        """Number of workers that hold the same part of a parameter."""
        held = self.workers.tensor if name in self._divided else 1
        if is_sharded(parameter):
            sizes = zip(parameter.placements, parameter.device_mesh.shape, strict=True)
            held *= math.prod(size for placement, size in sizes if placement.is_shard())
        return self.workers.size // held


def gathered_slices(tensor: Tensor) -> Tensor:
    """Gather the slices of a tensor that FSDP sharded. All its workers must call this together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def sharded_like(part: Tensor, like: Tensor) -> Tensor:
    """Create a DTensor sharded like `like`, of which `part` is this worker's slice."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model's state_dict by name; tied tensors once, under their first name. Those
    of a model with adapters are the adapters', since its other weights are frozen."""
    only_trained = getattr(model, "adapted", False)
    first: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.requires_grad or not only_trained:
            first.setdefault(id(tensor), (name, tensor))
    return {name: tensor.detach() for name, tensor in first.values()}


ToCpu = Callable[[str, Tensor], Tensor]
"""Copies a named tensor to the CPU."""


def on_cpu(name: str, tensor: Tensor) -> Tensor:
    """Move a tensor to the CPU."""
    return tensor.cpu()


def gathered_weights(
    model: nn.Module, parts: Parts | None = None, to_cpu: ToCpu = on_cpu
) -> dict[str, Tensor]:
    """Gather a model's `own_tensors` on the CPU of the first worker; returns an empty dict on the
    others. All workers must call this together."""
    parts = parts or Parts()
    whole = ((name, parts.whole(name, own)) for name, own in own_tensors(model).items())
    return on_first(whole, parts.workers, to_cpu)


def on_first(
    tensors: Iterable[tuple[str, Tensor]], workers: Workers, to_cpu: ToCpu = on_cpu
) -> dict[str, Tensor]:
    """Copy named tensors one by one to the CPU of the first worker; returns an empty dict on the
    others."""
    kept = {}
    for name, tensor in tensors:  # iterated on all workers, since gathering involves all of them
        if workers.first:
            kept[name] = to_cpu(name, tensor)
    return kept
