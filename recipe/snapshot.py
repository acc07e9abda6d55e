"""Undo an optimizer step without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from errors import UserError


class Snapshot:
    """A copy of parameters and their optimizer state, taken before a step."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]):
        self._optimizer = optimizer
        self._parameters = {p: p.detach().clone() for p in parameters}
        self._states = {
            p: {key: value.clone() for key, value in optimizer.state.get(p, {}).items()}
            for p in self._parameters
        }

    @torch.no_grad()
    def restore_if(self, bad: Tensor) -> None:
        """Restore the snapshot if `bad`, a scalar tensor on the device, is not 0.

        Raises:
            UserError: If the step created or removed state entries, which cannot be undone.
        """
        bad = bad.bool()
        for parameter, before in self._parameters.items():
            torch.where(bad, before, parameter, out=parameter)
            self._restore_state(self._optimizer.state.get(parameter, {}), parameter, bad)

    def _restore_state(self, now: dict[str, Tensor], parameter: nn.Parameter, bad: Tensor) -> None:
        before = self._states[parameter]
        if now.keys() != before.keys():
            raise UserError(
                f"{type(self._optimizer).__name__} had the state {sorted(before)} for a parameter "
                f"before a step and {sorted(now)} after it; create all state in the first step."
            )
        for key, value in now.items():
            torch.where(bad, before[key], value, out=value)
