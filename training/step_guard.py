"""Detect steps with a non-finite loss or gradient on the device, skip them, and count them.

Only reading the results of a step, for log lines, waits for the device.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from errors import UserError
from recipe.snapshot import Snapshot
from training.gradients import Gradients
from training.optim import trained_parameters
from training.optimizer_state import refuse_hidden_state, settings_of, takes_found_inf


class Diverged(UserError):
    """The loss or gradient was not finite for too many steps in a row."""

    run_status = "diverged"
    """The status of the run in its log."""


@dataclasses.dataclass(frozen=True)
class StepReport:
    """The results of the last step, on the host.

    Attributes:
        loss: Mean loss of the step, in nats per token.
        gradients: `norm`, before clipping; `mean` and `std` if requested for the step.
        bad_steps: Steps skipped since the start of the run because of a non-finite loss or
            gradient.
        longest_bad_run: Most bad steps in a row since the run started or was resumed.
    """

    loss: float
    gradients: dict[str, float]
    bad_steps: int
    longest_bad_run: int


class LaggingScalar:
    """A device scalar that the host can read without waiting for the device.

    On CUDA, a copy to pinned memory is queued behind the work that computes the value, and the host
    reads it once it has arrived, a few steps late. On other devices reading is cheap and immediate.
    """

    def __init__(self, device: torch.device):
        self._seen = 0.0
        self._arrival = torch.cuda.Event() if device.type == "cuda" else None
        self._under_way = False
        if self._arrival:
            self._landing = torch.zeros((), pin_memory=True)

    def look(self, value: Tensor) -> float:
        """Pass the current value; returns the latest value that has reached the host."""
        if self._arrival is None:
            self._seen = float(value)
            return self._seen
        if self._under_way and self._arrival.query():
            self._seen, self._under_way = float(self._landing), False
        if not self._under_way:
            self._landing.copy_(value, non_blocking=True)
            self._arrival.record()
            self._under_way = True
        return self._seen


class StepGuard:
    """Detects steps with a non-finite loss or gradient norm and makes them change nothing.

    Weights and optimizer state then do not change. An optimizer that supports `found_inf`, as
    torch's fused ones do, skips such a step on the device. With any other, hooks around
    `optimizer.step()` undo the step on the device. In float16, an overflow due to the loss scale
    also counts as a bad step; a few of them at the start are normal.

        loss.backward()
        norm = guard.check(loss)
        clip_gradients(optimizer, norm, longest=1.0)
        if guard.allows_update():
            optimizer.step()
        if log_step or guard.stuck():
            report = guard.read()
            guard.stop_if_stuck(report)

    Args:
        optimizer: The optimizer from `make_optimizer`.
        max_bad_steps: Number of bad steps in a row that stops the run.
        gradients: The gradients of the whole model. Defaults to those of the optimizer's
            parameters.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        max_bad_steps: int,
        gradients: Gradients | None = None,
    ):
        self._optimizer = optimizer
        self._parameters = trained_parameters(optimizer)
        self._whole = gradients or Gradients(self._parameters)
        self._max_bad_steps = max_bad_steps
        device = self._parameters[0].device
        # Counts are float32 like the rest, to be read in one transfer. They are exact up to 2**24.
        self._loss, self._bad, self._bad_steps, self._bad_in_a_row, self._longest_bad_run = (
            torch.zeros((), device=device) for _ in range(5)
        )
        self._gradients = {"norm": torch.zeros((), device=device)}
        self._longest_on_host = LaggingScalar(device)
        self._updated: set[nn.Parameter] = set()
        self._settings = settings_of(optimizer)
        self._before: Snapshot | None = None
        self._watches = self._creates_state = False
        if takes_found_inf(optimizer, device):
            optimizer.grad_scale = None
            optimizer.found_inf = self._bad
        else:
            optimizer.register_step_pre_hook(lambda *_: self._keep())
        optimizer.register_step_post_hook(lambda *_: self._take_back())

    @torch.no_grad()
    def check(self, loss: Tensor, *, statistics: bool = False) -> Tensor:
        """Check the loss and gradients of a step; returns the gradient norm, a scalar tensor.

        Args:
            loss: Mean loss of the step, a scalar tensor on the device.
            statistics: Whether to also compute the mean and standard deviation of the gradients,
                for `read`.
        """
        self._loss = loss.detach()
        self._gradients = self._whole.statistics() if statistics else {"norm": self._whole.norm()}
        norm = self._gradients["norm"]
        finite = torch.isfinite(self._loss) & torch.isfinite(norm)
        self._bad.copy_(~finite)  # in place: the optimizer holds this tensor
        self._bad_steps += self._bad
        self._bad_in_a_row = (self._bad_in_a_row + 1) * self._bad
        self._longest_bad_run = torch.maximum(self._longest_bad_run, self._bad_in_a_row)
        return norm

    @property
    def good(self) -> Tensor:
        """1 if the last step was good, 0 if it must change nothing; a tensor on the device."""
        return 1 - self._bad

    def allows_update(self) -> bool:
        """Whether to call `optimizer.step()`.

        Always True if the optimizer has updated all parameters with a gradient before. Otherwise
        the step creates state, which cannot be undone: this method then waits for the device and
        returns False for a bad step.
        """
        new = [p for p in self._with_gradient() if p not in self._updated]
        if new and self._bad.item():
            return False
        self._updated.update(new)
        self._watches, self._creates_state = True, bool(new)
        return True

    def _with_gradient(self) -> list[nn.Parameter]:
        return [p for p in self._parameters if p.grad is not None]

    def _keep(self) -> None:
        """Before a step: save what it may change, unless it is known to be good."""
        if self._watches and not self._creates_state:
            self._before = Snapshot(self._optimizer, self._with_gradient())

    def _take_back(self) -> None:
        """After a step: undo it if it was bad; check the state that it created."""
        if self._before is not None:
            self._before.restore_if(self._bad)
        if self._creates_state:
            refuse_hidden_state(self._optimizer, self._settings)
        self._before, self._watches, self._creates_state = None, False, False

    def read(self) -> StepReport:
        """The results of the last step. Waits for the device, so call it only at log steps."""
        device_numbers = (
            self._loss,
            self._bad_steps,
            self._longest_bad_run,
            *self._gradients.values(),
        )
        loss, *rest = torch.stack([number.float() for number in device_numbers]).tolist()
        counts, gradients = rest[:2], rest[2:]
        return StepReport(
            loss,
            dict(zip(self._gradients, gradients, strict=True)),
            *(int(count) for count in counts),
        )

    def stuck(self) -> bool:
        """Whether `max_bad_steps` in a row were bad since the run started or was resumed, as far as
        the host knows without waiting for the device."""
        return self._longest_on_host.look(self._longest_bad_run) >= self._max_bad_steps

    def stop_if_stuck(self, report: StepReport) -> None:
        """Raise Diverged if `max_bad_steps` in a row were bad since the run started or resumed."""
        if report.longest_bad_run >= self._max_bad_steps:
            raise Diverged(
                f"{report.longest_bad_run} steps in a row had a non-finite loss or gradient and "
                f"were skipped (max_bad_steps={self._max_bad_steps}): the run has diverged. Resume "
                "from an earlier checkpoint with a lower learning_rate, more warmup_iters, or a "
                "dtype with more range (bfloat16, float32)."
            )

    def state_dict(self) -> dict[str, Any]:
        """The counters as plain numbers, for a checkpoint."""
        return {"bad_steps": int(self._bad_steps), "bad_in_a_row": int(self._bad_in_a_row)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters from `state_dict`."""
        self._bad_steps.fill_(state["bad_steps"])
        self._bad_in_a_row.fill_(state["bad_in_a_row"])
        self._longest_bad_run.zero_()  # earlier bad steps must not stop the run again
