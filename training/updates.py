"""Distribute optimizer updates: which parameters this worker updates, and with which gradients.

Optimizers only see plain tensors. If parameters are sharded and the optimizer is elementwise
(`UpdateRule.elementwise`), each worker updates its slices. If the optimizer needs whole matrices,
such as Muon, each worker gathers and updates a share of the parameters; the same is done for any
optimizer if only the optimizer state is to be divided (ZeRO-1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from errors import UserError
from recipe.parameters import is_sharded, local, slice_of
from training.gradients import Gradients, SharedGradients
from training.optimizer_state import create_state
from training.sharded_tensors import (
    Parts,
    ToCpu,
    gathered_slices,
    on_cpu,
    on_first,
    sharded_like,
)
from training.workers import Workers

MOST_UNDER_WAY = 4
"""Parameters that are broadcast at the same time; each takes the memory of a whole parameter."""


class Updates:
    """The updates of one optimizer. In this base class, every worker updates all parameters.

        loss.backward()
        updates.take_gradients()
        optimizer.step()
        updates.give_parameters()
        optimizer.zero_grad()

    Attributes:
        optimizer: The optimizer, which updates the parameters in `own`.
        own: The parameters that this worker updates, by their names in the model.
        elsewhere: The names of parameters that only other workers update.

    Args:
        model: The model.
        optimizer: An optimizer of the model's parameters; its groups are changed.
        parts: The parts of the model's tensors that this worker holds. Defaults to whole tensors.
        partial: Names of parameters whose gradients must be summed over the workers of the tensor
            group.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        parts: Parts | None = None,
        partial: Collection[str] = (),
    ):
        self.optimizer = optimizer
        self._parts = parts or Parts()
        self._workers = self._parts.workers
        self._partial = partial
        self._parameters = dict(model.named_parameters())
        self.own = self._own_parameters()
        self.elsewhere = self._parameters.keys() - self.own.keys()
        if self.own is not self._parameters:
            self._hand_over()

    def _own_parameters(self) -> dict[str, nn.Parameter]:
        return self._parameters

    def _hand_over(self) -> None:
        """Replace the model's parameters in the optimizer's groups by those in `own`."""
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
        """This worker's part of the initial optimizer state of a sharded parameter."""
        return local(value)

    # Around a step

    def take_gradients(self) -> None:
        """After the backward pass: give the optimizer its gradients."""
        for name in self._partial:
            gradient = self._parameters[name].grad
            if gradient is not None:
                dist.all_reduce(local(gradient), group=self._workers.tensor_group)

    def give_parameters(self) -> None:
        """After the optimizer step: give the model its new parameters."""

    @property
    def gradients(self) -> Gradients:
        """The gradients of the whole model."""
        if self._workers.tensor == 1:
            return Gradients(self.own.values())
        return self._shared_gradients()

    def _shared_gradients(self) -> Gradients:
        copies = {own: self._copies(name) for name, own in self.own.items()}
        return SharedGradients(copies, self._workers)

    def _copies(self, name: str) -> int:
        """Number of workers that update the same elements of a parameter."""
        return self._parts.copies(name, self._parameters[name])

    # Optimizer state

    def kept(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the optimizer state of all workers as whole tensors, named `parameter.key`. All
        workers must iterate together, as each tensor is gathered from them."""
        for name, own in self.own.items():
            for key, value in self.optimizer.state.get(own, {}).items():
                yield f"{name}.{key}", self._whole(name, value)

    def _whole(self, name: str, value: Tensor) -> Tensor:
        """Gather a state tensor of a parameter into that of the whole parameter."""
        like = self._parameters[name]
        if not self._is_of_each_number(name, value):
            return value
        own = sharded_like(value, like) if is_sharded(like) else value
        return self._parts.whole(name, own)

    def _is_of_each_number(self, name: str, value: Tensor) -> bool:
        return value.shape == self.own[name].shape

    def gathered(self, to_cpu: ToCpu = on_cpu) -> dict[str, Tensor]:
        """The tensors of `kept` on the CPU of the first worker; an empty dict on the others."""
        return on_first(self.kept(), self._workers, to_cpu)

    def create_state(self, names: Collection[str]) -> None:
        """Replace the optimizer state by newly created state for the parameters in `names`."""
        self.optimizer.state.clear()
        create_state(self.optimizer)
        for name, own in self.own.items():
            if name not in names:
                self.optimizer.state.pop(own, None)

    def slots(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtype and whole shape of each state tensor of this worker, by `parameter.key`."""
        return {
            f"{name}.{key}": (value.dtype, self._whole_shape(name, value))
            for name, own in self.own.items()
            for key, value in self.optimizer.state.get(own, {}).items()
        }

    def _whole_shape(self, name: str, value: Tensor) -> tuple[int, ...]:
        if self._is_of_each_number(name, value):
            return self._parts.shape(name, self._parameters[name])
        return tuple(value.shape)

    def put(self, entry: str, value: Tensor) -> None:
        """Load a state tensor from `kept`."""
        name, _, key = entry.rpartition(".")
        slot = self.optimizer.state[self.own[name]][key]
        slot.copy_(self._part(name, value) if self._is_of_each_number(name, slot) else value)

    def _part(self, name: str, value: Tensor) -> Tensor:
        """This worker's part of the state tensor of a whole parameter."""
        return self._parts.part(name, value, self._parameters[name])


class SlicedUpdates(Updates):
    """Every worker updates its slice of each parameter."""

    def _own_parameters(self) -> dict[str, nn.Parameter]:
        return {
            name: nn.Parameter(local(p.detach())) if is_sharded(p) else p
            for name, p in self._parameters.items()
        }

    def take_gradients(self) -> None:
        average_replicated(self._parameters.values(), self._workers)
        super().take_gradients()
        for name, p in self._parameters.items():
            if is_sharded(p):
                self.own[name].grad = None if p.grad is None else local(p.grad)
                p.grad = None

    @property
    def gradients(self) -> Gradients:
        """See `Updates.gradients`."""
        return self._shared_gradients()


class OwnedUpdates(Updates):
    """Every worker updates some of the parameters, gathering them first if FSDP sharded them.

    Raises:
        UserError: If there are fewer parameters than workers.
    """

    def _own_parameters(self) -> dict[str, nn.Parameter]:
        workers, sizes = self._workers, {name: p.numel() for name, p in self._parameters.items()}
        if len(sizes) < workers.data_size:
            raise UserError(
                f"{len(sizes)} parameters cannot be divided among {workers.data_size} workers; "
                "use parallelism='ddp'."
            )
        self._owners = owners_of(sizes, workers.data_size)
        return {
            name: nn.Parameter(torch.zeros(p.shape, device=p.device)) if is_sharded(p) else p
            for name, p in self._parameters.items()
            if self._owners[name] == workers.data_rank
        }

    def _own_part(self, value: Tensor) -> Tensor:
        return gathered_slices(value)

    @torch.no_grad()
    def take_gradients(self) -> None:
        sharded = any(is_sharded(p) for p in self._parameters.values())
        if sharded:  # otherwise they were averaged in the backward pass
            average_replicated(self._parameters.values(), self._workers)
        super().take_gradients()
        for name, p in self._parameters.items():
            own = self.own.get(name)
            if own is p:
                continue
            if is_sharded(p):
                gradient, values = p.grad, gathered_slices(p)
                gradient = None if gradient is None else gathered_slices(gradient)
                if own is not None:
                    own.grad = gradient
                    own.copy_(values)
            p.grad = None

    @torch.no_grad()
    def give_parameters(self) -> None:
        under_way: deque[tuple[dist.Work, str, Tensor]] = deque()
        for name, p in self._parameters.items():
            under_way.append(self._send(name, p))
            if len(under_way) > MOST_UNDER_WAY:
                self._receive(*under_way.popleft())
        for sent in under_way:
            self._receive(*sent)

    def _receive(self, message: dist.Work, name: str, values: Tensor) -> None:
        message.wait()
        parameter = self._parameters[name]
        if is_sharded(parameter):
            local(parameter).copy_(slice_of(values, parameter))

    def _send(self, name: str, parameter: nn.Parameter) -> tuple[dist.Work, str, Tensor]:
        """Start broadcasting a parameter from its owner."""
        values = self.own.get(name, parameter).detach()
        if is_sharded(values):
            values = torch.empty(values.shape, device=values.device)
        return self._broadcast(values, self._owners[name], wait=False), name, values

    def _broadcast(self, tensor: Tensor, owner: int, *, wait: bool = True) -> dist.Work | None:
        """Broadcast from the worker with `data_rank` `owner` to those with the same share of the
        blocks."""
        group = self._workers.data_group
        return dist.broadcast(tensor, group=group, group_src=owner, async_op=not wait)

    @property
    def gradients(self) -> Gradients:
        """See `Updates.gradients`."""
        return self._shared_gradients()

    def _copies(self, name: str) -> int:
        return 1 if self._parts.are_of(name) else self._workers.tensor

    def kept(self) -> Iterator[tuple[str, Tensor]]:
        """See `Updates.kept`."""
        workers = self._workers
        mine = {
            f"{name}.{key}": (value.shape, value.dtype)
            for name, own in self.own.items()
            for key, value in self.optimizer.state.get(own, {}).items()
        }
        found: list[dict[str, tuple[torch.Size, torch.dtype]]] = [{}] * workers.data_size
        dist.all_gather_object(found, mine, workers.data_group)
        device = next(iter(self.own.values())).device
        for owner, entries in enumerate(found):
            for entry, (shape, dtype) in entries.items():
                name, _, key = entry.rpartition(".")
                if owner == workers.data_rank:
                    value = self.optimizer.state[self.own[name]][key]
                else:
                    value = torch.empty(shape, dtype=dtype, device=device)
                self._broadcast(value, owner)
                of_each = shape == self._parameters[name].shape
                yield entry, self._parts.whole(name, value) if of_each else value

    def _part(self, name: str, value: Tensor) -> Tensor:
        return self._parts.part(name, value, self.own[name])


def owners_of(sizes: Mapping[str, int], workers: int) -> dict[str, int]:
    """Assign each parameter to the worker that updates it, balancing the number of elements."""
    loads, owners = [0] * workers, {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += max(sizes[name], 1)
    return {name: owners[name] for name in sizes}


def average_replicated(parameters: Iterable[nn.Parameter], workers: Workers) -> None:
    """Average the gradients of the parameters that are not sharded in a sharded model."""
    plain = [p for p in parameters if not is_sharded(p) and p.grad is not None]
    if plain:
        for parameter, mean in zip(plain, workers.mean([p.grad for p in plain]), strict=True):
            parameter.grad = mean
