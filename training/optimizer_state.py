"""What an optimizer keeps from step to step, and whether a run can skip its steps and resume."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from errors import UserError
from training.optim import trained_parameters

Settings = list[dict[str, Any]]


def takes_found_inf(optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
    """Whether a step changes nothing where `optimizer.found_inf` is 1, as torch's fused ones do.

    torch's kernels for Apple's GPUs do not look at it.
    """
    return device.type != "mps" and getattr(optimizer, "_step_supports_amp_scaling", False)


def settings_of(optimizer: torch.optim.Optimizer) -> Settings:
    """The options of each group but its learning rate, which every step sets."""
    return [
        {
            key: value.clone() if isinstance(value, Tensor) else value
            for key, value in group.items()
            if key not in ("params", "lr")
        }
        for group in optimizer.param_groups
    ]


def refuse_hidden_state(optimizer: torch.optim.Optimizer, before: Settings) -> None:
    """Refuse an optimizer that keeps what cannot be taken back and saved; waits for the device.

    Args:
        optimizer: After its first step.
        before: Its `settings_of` before that.

    Raises:
        UserError: with the reason.
    """
    reason = next(_reasons(optimizer, before), None)
    if reason:
        raise UserError(
            f"{type(optimizer).__name__} cannot be used: it {reason}. A step whose loss or "
            "gradient is not finite must be undone without waiting for the device, and a run must "
            "resume exactly."
        )


def _reasons(optimizer: torch.optim.Optimizer, before: Settings) -> Iterator[str]:
    for old, new in zip(before, settings_of(optimizer), strict=True):
        for key in old.keys() | new.keys():
            if not _same(old.get(key), new.get(key)):
                yield f"changes the option {key!r} of its groups in a step; keep it in state[p]"
    trained = set(trained_parameters(optimizer))
    for owner, state in optimizer.state.items():
        if owner not in trained:
            yield f"has state of {owner!r}, which is none of its parameters"
            continue
        for key, value in state.items():
            if not isinstance(value, Tensor):
                kind = type(value).__name__
                yield f"keeps {key!r} of a parameter as {kind}; keep a tensor"
            elif value.device != owner.device:
                yield (
                    f"keeps {key!r} on {value.device}, but the parameter is on {owner.device}; "
                    "keep it there (torch's optimizers do with capturable=True)"
                )
            elif not str(key).isidentifier():
                yield f"calls a state {key!r}; use a name of letters, digits and underscores"


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return torch.equal(old, new)
    return type(old) is type(new) and old == new


@torch.no_grad()
def create_state(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer create what it keeps of each parameter, by a step of zero gradients.

    Gradients are cleared; parameters stay as they are.
    """
    parameters = trained_parameters(optimizer)
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for parameter, values in zip(parameters, before, strict=True):
        parameter.copy_(values)
