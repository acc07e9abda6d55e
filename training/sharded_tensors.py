"""Tensors of which each worker holds a slice: torch's DTensors, and what they are as a whole."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from training.workers import ALONE, Workers


def whole(tensor: Tensor) -> Tensor:
    """A tensor as a whole. All workers that hold a slice must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This worker's slice, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def slice_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This worker's slice of a whole tensor that is to be sharded like another; no messages."""
    if not isinstance(like, DTensor):
        return tensor
    mesh, placements = like.device_mesh, like.placements
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None).to_local()


@torch.no_grad()
def copy_whole(tensor: Tensor, into: Tensor) -> None:
    """Copy a whole tensor into one of the same shape, which may be sharded; no messages."""
    local(into).copy_(slice_of(tensor.to(into.device), into))


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


def gathered_weights(model: nn.Module, workers: Workers = ALONE) -> dict[str, Tensor]:
    """A model's `own_tensors`, whole, on the CPU of the first worker; empty on the others. All
    workers must call this together."""
    return on_first(((name, whole(own)) for name, own in own_tensors(model).items()), workers)


def on_first(tensors: Iterable[tuple[str, Tensor]], workers: Workers) -> dict[str, Tensor]:
    """Named tensors, one after the other, on the CPU of the first worker; empty on the others."""
    kept = {}
    for name, tensor in tensors:  # on all workers: to make a tensor whole takes all of them
        if workers.first:
            kept[name] = tensor.cpu()
    return kept
