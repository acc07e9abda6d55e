"""Which parameters the optimizer of this worker updates, and how it gets their gradients.

An optimizer sees plain tensors only. If parameters are sharded and the update of a number depends
on that number alone (`UpdateRule.elementwise`), each worker updates its slices. An optimizer that
treats a matrix as a whole, such as Muon, updates a share of the parameters, gathered; so does any
optimizer if only what it keeps is to be divided (ZeRO-1).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from errors import UserError
from training.gradients import Gradients, SharedGradients
from training.optimizer_state import create_state
from training.sharded_tensors import local, on_first, sharded_like, slice_of, whole
from training.workers import ALONE, Workers


class Updates:
    """The updates of one optimizer. By itself, every worker makes all of them.

        loss.backward()
        updates.take_gradients()
        optimizer.step()
        updates.give_parameters()
        optimizer.zero_grad()

    Attributes:
        optimizer: What updates the parameters of `own`.
        own: The parameters that it updates, by the name of the model's.
        elsewhere: The names of those that only other workers update.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, workers: Workers = ALONE
    ):
        self.optimizer = optimizer
        self._workers = workers
        self._parameters = dict(model.named_parameters())
        self.own = self._own_parameters()
        self.elsewhere = self._parameters.keys() - self.own.keys()
        if self.own is not self._parameters:
            self._hand_over()

    def _own_parameters(self) -> dict[str, nn.Parameter]:
        return self._parameters

    def _hand_over(self) -> None:
        """Let the optimizer, which was made with the model's parameters, have `own` instead."""
        named = {self._parameters[name]: own for name, own in self.own.items()}
        for group in self.optimizer.param_groups:
            group["params"] = [named[p] for p in group["params"] if p in named]
        self.optimizer.param_groups = [own for own in self.optimizer.param_groups if own["params"]]
        kept = {p: state for p, state in self.optimizer.state.items() if p in named}
        self.optimizer.state.clear()
        for parameter, state in kept.items():
            own = named[parameter]
            same = own is parameter
            self.optimizer.state[own] = {
                key: value if same else self._own_part(value) for key, value in state.items()
            }

    def _own_part(self, value: Tensor) -> Tensor:
        """Of what an optimizer kept of a sharded parameter from the start."""
        return local(value)

    # Around a step

    def take_gradients(self) -> None:
        """After the backward pass: hand the optimizer its gradients."""

    def give_parameters(self) -> None:
        """After the optimizer's step: hand the model its new parameters."""

    @property
    def gradients(self) -> Gradients:
        """The gradients of the whole model."""
        return Gradients(self.own.values())

    # What is kept from step to step

    def kept(self) -> Iterator[tuple[str, Tensor]]:
        """All that the optimizers of all workers keep, whole, by parameter and key. All workers
        iterate together, and only the first is given anything."""
        for name, own in self.own.items():
            for key, value in self.optimizer.state.get(own, {}).items():
                yield f"{name}.{key}", self._whole(name, value)

    def _whole(self, name: str, value: Tensor) -> Tensor:
        return value

    def gathered(self) -> dict[str, Tensor]:
        """What `kept` gives, on the CPU of the first worker; empty on the others."""
        return on_first(self.kept(), self._workers)

    def create_state(self, names: Collection[str]) -> None:
        """Let the optimizer create what it keeps of some of the parameters, in place of what it
        keeps so far."""
        self.optimizer.state.clear()
        create_state(self.optimizer)
        for name, own in self.own.items():
            if name not in names:
                self.optimizer.state.pop(own, None)

    def slots(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """What this worker's optimizer keeps, by parameter and key: dtype, and shape as a whole."""
        return {
            f"{name}.{key}": (value.dtype, self._shape(name, value))
            for name, own in self.own.items()
            for key, value in self.optimizer.state.get(own, {}).items()
        }

    def _shape(self, name: str, value: Tensor) -> tuple[int, ...]:
        return tuple(value.shape)

    def put(self, entry: str, value: Tensor) -> None:
        """Take up what was `kept` under a name."""
        name, _, key = entry.rpartition(".")
        slot = self.optimizer.state[self.own[name]][key]
        slot.copy_(self._slice(name, slot, value))

    def _slice(self, name: str, slot: Tensor, value: Tensor) -> Tensor:
        return value


class SlicedUpdates(Updates):
    """Every worker updates its slice of each parameter."""

    def _own_parameters(self) -> dict[str, nn.Parameter]:
        return {
            name: nn.Parameter(local(p.detach())) if isinstance(p, DTensor) else p
            for name, p in self._parameters.items()
        }

    def take_gradients(self) -> None:
        average_replicated(self._parameters.values(), self._workers)
        for name, p in self._sharded():
            self.own[name].grad = None if p.grad is None else local(p.grad)
            p.grad = None

    def _sharded(self) -> Iterator[tuple[str, DTensor]]:
        return ((name, p) for name, p in self._parameters.items() if isinstance(p, DTensor))

    @property
    def gradients(self) -> Gradients:
        copies = {own: self._copies(name) for name, own in self.own.items()}
        return SharedGradients(copies, self._workers)

    def _copies(self, name: str) -> int:
        """How many workers hold the same slice of a parameter."""
        parameter = self._parameters[name]
        if not isinstance(parameter, DTensor):
            return self._workers.size
        sizes = zip(parameter.placements, parameter.device_mesh.shape, strict=True)
        slices = 1
        for placement, size in sizes:
            slices *= size if placement.is_shard() else 1
        return self._workers.size // slices

    def _whole(self, name: str, value: Tensor) -> Tensor:
        like = self._parameters[name]
        return whole(sharded_like(value, like)) if self._is_slice(name, value) else value

    def _shape(self, name: str, value: Tensor) -> tuple[int, ...]:
        sliced = self._is_slice(name, value)
        return tuple(self._parameters[name].shape if sliced else value.shape)

    def _slice(self, name: str, slot: Tensor, value: Tensor) -> Tensor:
        return slice_of(value, self._parameters[name]) if self._is_slice(name, slot) else value

    def _is_slice(self, name: str, value: Tensor) -> bool:
        """Whether something kept is of each number of a sharded parameter."""
        return value.ndim > 0 and isinstance(self._parameters[name], DTensor)


class OwnedUpdates(Updates):
    """Every worker updates some of the parameters, as a whole.

    Raises:
        UserError: there are fewer parameters than workers.
    """

    def _own_parameters(self) -> dict[str, nn.Parameter]:
        sizes = {name: p.numel() for name, p in self._parameters.items()}
        if len(sizes) < self._workers.size:
            raise UserError(
                f"{len(sizes)} parameters cannot be divided among {self._workers.size} workers; "
                "use parallelism='ddp'."
            )
        self._owners = owners_of(sizes, self._workers.size)
        return {
            name: nn.Parameter(torch.zeros(p.shape, device=p.device))
            if isinstance(p, DTensor)
            else p
            for name, p in self._parameters.items()
            if self._owners[name] == self._workers.rank
        }

    def _own_part(self, value: Tensor) -> Tensor:
        return whole(value)

    @torch.no_grad()
    def take_gradients(self) -> None:
        sharded = any(isinstance(p, DTensor) for p in self._parameters.values())
        if sharded:  # else they are averaged in the backward pass
            average_replicated(self._parameters.values(), self._workers)
        for name, p in self._parameters.items():
            own = self.own.get(name)
            if own is p:
                continue
            if isinstance(p, DTensor) and p.grad is not None:
                gradient, values = whole(p.grad), whole(p)
                if own is not None:
                    own.grad = gradient
                    own.copy_(values)
            p.grad = None

    @torch.no_grad()
    def give_parameters(self) -> None:
        sent = [self._send(name, p) for name, p in self._parameters.items()]
        for message, name, values in sent:
            message.wait()
            p = self._parameters[name]
            if isinstance(p, DTensor):
                local(p).copy_(slice_of(values, p))

    def _send(self, name: str, parameter: nn.Parameter) -> tuple[dist.Work, str, Tensor]:
        """Begin to broadcast a parameter from its owner."""
        values = self.own.get(name, parameter).detach()
        if isinstance(values, DTensor):
            values = torch.empty(values.shape, device=values.device)
        group, owner = self._workers.group, self._owners[name]
        return dist.broadcast(values, owner, group, async_op=True), name, values

    @property
    def gradients(self) -> Gradients:
        return SharedGradients(dict.fromkeys(self.own.values(), 1), self._workers)

    def kept(self) -> Iterator[tuple[str, Tensor]]:
        """See `Updates.kept`."""
        workers = self._workers
        mine = {entry: (value.shape, value.dtype) for entry, value in super().kept()}
        found: list[dict[str, tuple[torch.Size, torch.dtype]]] = [{} for _ in range(workers.size)]
        dist.all_gather_object(found, mine, workers.group)
        device = next(iter(self.own.values())).device
        for owner, entries in enumerate(found):
            for entry, (shape, dtype) in entries.items():
                if owner == workers.rank:
                    name, _, key = entry.rpartition(".")
                    value = self.optimizer.state[self.own[name]][key]
                else:
                    value = torch.empty(shape, dtype=dtype, device=device)
                if owner:
                    dist.broadcast(value, owner, workers.group)
                yield entry, value


def owners_of(sizes: Mapping[str, int], workers: int) -> dict[str, int]:
    """The worker that updates each parameter, so that all update about as many numbers."""
    loads, owners = [0] * workers, {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += max(sizes[name], 1)
    return {name: owners[name] for name in sizes}


def average_replicated(parameters: Iterable[nn.Parameter], workers: Workers) -> None:
    """Average the gradients of parameters that are not sharded beside others that are."""
    plain = [p for p in parameters if not isinstance(p, DTensor) and p.grad is not None]
    if plain:
        for parameter, mean in zip(plain, workers.mean([p.grad for p in plain]), strict=True):
            parameter.grad = mean
