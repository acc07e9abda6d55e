"""Optimizer state: create it, and check that steps can be undone and runs can resume."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from errors import UserError
from training.optim import trained_parameters

Settings = list[dict[str, Any]]


def takes_found_inf(optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
    """Whether a step changes nothing if `optimizer.found_inf` is 1, as in torch's fused optimizers.

    torch's MPS kernels ignore `found_inf`.
    """
    return device.type != "mps" and getattr(optimizer, "_step_supports_amp_scaling", False)


def settings_of(optimizer: torch.optim.Optimizer) -> Settings:
    """The options of each group, except the learning rate, which every step sets."""
    return [
        {
            key: value.clone() if isinstance(value, Tensor) else value
            for key, value in group.items()
            if key not in ("params", "lr")
        }
        for group in optimizer.param_groups
    ]


def refuse_hidden_state(optimizer: torch.optim.Optimizer, before: Settings) -> None:
    """Refuse an optimizer whose state cannot be undone and saved. Synchronizes the device.

    Args:
        optimizer: The optimizer, after its first step.
        before: `settings_of` the optimizer before that step.

    Raises:
        UserError: If the state cannot be undone or saved; the message gives the reason.
    """
    reason = next(_reasons(optimizer, before), None)
    if reason:
        raise UserError(
            f"{type(optimizer).__name__} cannot be used: it {reason}. Steps with a non-finite loss "
            "or gradient must be undone without synchronizing the device, and runs must resume "
            "exactly."
        )


def _reasons(optimizer: torch.optim.Optimizer, before: Settings) -> Iterator[str]:
    for old, new in zip(before, settings_of(optimizer), strict=True):
        for key in old.keys() | new.keys():
            if not _same(old.get(key), new.get(key)):
                yield f"changes the group option {key!r} during a step; store it in state[p]"
    trained = set(trained_parameters(optimizer))
    for owner, state in optimizer.state.items():
        if owner not in trained:
            yield f"has state for {owner!r}, which is not one of its parameters"
            continue
        for key, value in state.items():
            if not isinstance(value, Tensor):
                kind = type(value).__name__
                yield f"stores {key!r} of a parameter as {kind}; store a tensor"
            elif value.device != owner.device:
                yield (
                    f"stores {key!r} on {value.device}, but the parameter is on {owner.device}; "
                    "store it there (torch's optimizers do so with capturable=True)"
                )
            elif not str(key).isidentifier():
                yield f"names a state {key!r}; use letters, digits and underscores"


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return torch.equal(old, new)
    return type(old) is type(new) and old == new


@torch.no_grad()
def create_state(optimizer: torch.optim.Optimizer) -> None:
    """Make an optimizer create its state by a step with zero gradients.

    Gradients are cleared; parameters do not change.
    """
    parameters = trained_parameters(optimizer)
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for parameter, values in zip(parameters, before, strict=True):
        parameter.copy_(values)
