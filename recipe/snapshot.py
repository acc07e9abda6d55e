"""Taking back an optimizer step that turns out to be bad, without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from errors import UserError


class Snapshot:
    """Parameters, and what an optimizer keeps of them, as they are before a step."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]):
        self._optimizer = optimizer
        self._parameters = {p: p.detach().clone() for p in parameters}
        self._states = {
            p: {key: value.clone() for key, value in optimizer.state.get(p, {}).items()}
            for p in self._parameters
        }

    @torch.no_grad()
    def restore_if(self, bad: Tensor) -> None:
        """Go back to it if `bad`, a scalar on the device, is not 0.

        Raises:
            UserError: if the step made or dropped entries of the state, which cannot be taken back.
        """
        bad = bad.bool()
        for parameter, before in self._parameters.items():
            torch.where(bad, before, parameter, out=parameter)
            self._restore_state(self._optimizer.state.get(parameter, {}), parameter, bad)

    def _restore_state(self, now: dict[str, Tensor], parameter: nn.Parameter, bad: Tensor) -> None:
        before = self._states[parameter]
        if now.keys() != before.keys():
            raise UserError(
                f"{type(self._optimizer).__name__} kept {sorted(before)} of a parameter before a "
                f"step and {sorted(now)} after it; create all of its state in the first step."
            )
        for key, value in now.items():
            torch.where(bad, before[key], value, out=value)
