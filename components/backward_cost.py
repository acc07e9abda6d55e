"""FLOPs of the backward pass if only adapters are trained.

Without adapters, the backward pass costs twice the forward pass: each matmul has a gradient for
both of its factors. With them, the frozen weights have none, and nothing before the first adapter
has any. Which activations have one is found by a forward pass of one token.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from components.adapted_linear import AdaptedLinear, Adapter
from components.part import Part


class GradientFlow:
    """Which modules have an input or output with a gradient, noted while the model runs."""

    def __init__(self) -> None:
        self._into: dict[nn.Module, list[bool]] = {}
        self._out_of: dict[nn.Module, list[bool]] = {}
        self._application, self._applications = 0, 1

    def of(self, application: int, applications: int) -> GradientFlow:
        """The flow in one of several applications of a module and its submodules."""
        flow = copy.copy(self)
        flow._application, flow._applications = application, applications
        return flow

    def _noted(self, calls: list[bool]) -> bool:
        return calls[(self._application + 1) * len(calls) // self._applications - 1]

    def into(self, module: nn.Module) -> bool:
        """Whether the input of a module has a gradient. True for one that was not called, so that
        the cost of unknown modules is not underestimated."""
        return self._noted(self._into.get(module, [True] * self._applications))

    def out_of(self, module: nn.Module) -> bool:
        """Whether the output of a module has a gradient; True for one that was not called."""
        return self._noted(self._out_of.get(module, [True] * self._applications))

    def note(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A forward hook."""
        if args and isinstance(args[0], Tensor):
            self._into.setdefault(module, []).append(args[0].requires_grad)
        if isinstance(output, Tensor):
            self._out_of.setdefault(module, []).append(output.requires_grad)


def has_adapters(model: nn.Module) -> bool:
    """Whether a model has adapters, so that only they are trained."""
    return any(isinstance(module, AdaptedLinear) for module in model.modules())


def backward_flops(model: Part, seq_len: int, causal: bool = False) -> int:
    """FLOPs of the backward matmuls of a model for one sequence of `seq_len` tokens."""
    if not has_adapters(model):
        return 2 * model.forward_flops(seq_len, causal)
    return _backward_flops(model, seq_len, causal, _gradient_flow(model))


def _gradient_flow(model: Part) -> GradientFlow:
    """The gradient flow of a forward pass of one token in evaluation mode.

    On the meta device, which estimates use, some parts cannot run. All activations of such a model
    are taken to have a gradient, which can only overestimate its cost.
    """
    flow, device = GradientFlow(), next(model.parameters()).device
    token = torch.zeros(1, 1, dtype=torch.long, device=device)
    try:
        with _hooked(model, flow), _evaluating(model), torch.enable_grad():
            model(token)
    except RuntimeError:
        if device.type != "meta":
            raise
        return GradientFlow()
    return flow


def pass_flops(model: nn.Module) -> int:
    """FLOPs of adapters once per forward pass, at any batch size; see `Adapter.pass_flops`."""
    own = model.pass_flops() if isinstance(model, Adapter) else 0
    return getattr(model, "applications", 1) * (own + sum(map(pass_flops, model.children())))


@contextlib.contextmanager
def _hooked(model: nn.Module, flow: GradientFlow) -> Iterator[None]:
    handles = [module.register_forward_hook(flow.note) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    trains = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(trains)


def _backward_flops(module: nn.Module, seq_len: int, causal: bool, flow: GradientFlow) -> int:
    times = getattr(module, "applications", 1)
    flows = (flow.of(application, times) for application in range(times)) if times > 1 else [flow]
    return sum(_backward_flops_once(module, seq_len, causal, each) for each in flows)


def _backward_flops_once(module: nn.Module, seq_len: int, causal: bool, flow: GradientFlow) -> int:
    if isinstance(module, AdaptedLinear):
        return module.backward_flops(seq_len, flow.into(module))
    if isinstance(module, nn.Linear):  # frozen
        return 2 * module.in_features * module.out_features * seq_len * flow.into(module)
    children = (_backward_flops(child, seq_len, causal, flow) for child in module.children())
    total = sum(children)
    if isinstance(module, Part):
        own = module.forward_flops(seq_len, causal) - module.children_flops(seq_len, causal)
        total += module.own_backward_flops(own, flow) if own else 0
    return total
