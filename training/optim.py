"""The optimizer, the learning rate of each step, and the update that skips what is not finite."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from errors import UserError
from training.config import TrainingConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups: weight decay for matrices (two dimensions or more), none for vectors.

    Every parameter that requires a gradient is in one group, once; a tied weight counts once.

    Raises:
        UserError: where nothing is trainable, or two parameters share memory without being the
            same parameter (both would be updated).
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise UserError(
            f"{type(model).__name__} has 0 parameters that require a gradient; "
            "there is nothing to train."
        )
    _refuse_shared_memory(named)
    parameters = [p for _, p in named]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _refuse_shared_memory(named: Iterable[tuple[str, nn.Parameter]]) -> None:
    owners: dict[tuple[torch.device, int], str] = {}
    for name, parameter in named:
        if parameter.numel() == 0:
            continue
        owner = owners.setdefault((parameter.device, parameter.data_ptr()), name)
        if owner != name:
            raise UserError(
                f"{owner} and {name} are two parameters in the same memory, and would be updated "
                "twice; tie them by assigning the same nn.Parameter to both."
            )


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), fused into one kernel per group."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.adam_eps,
        fused=True,
    )


def _cosine(position: float, config: TrainingConfig) -> float:
    """Half a cosine (SGDR without restarts, arXiv:1608.03983)."""
    progress = _progress(position, config.warmup_iters, config.lr_decay_iters)
    return _above_min_lr(0.5 * (1.0 + math.cos(math.pi * progress)), config)


def _linear(position: float, config: TrainingConfig) -> float:
    return _above_min_lr(
        1.0 - _progress(position, config.warmup_iters, config.lr_decay_iters), config
    )


def _wsd(position: float, config: TrainingConfig) -> float:
    """Warm-up, stable, decay (MiniCPM, arXiv:2404.06395), here with a linear decay."""
    decay_starts = config.lr_decay_iters * (1.0 - config.wsd_decay_fraction)
    decay_starts = max(decay_starts, config.warmup_iters)
    return _above_min_lr(1.0 - _progress(position, decay_starts, config.lr_decay_iters), config)


def _constant(position: float, config: TrainingConfig) -> float:
    return config.learning_rate


_SCHEDULES: dict[str, Callable[[float, TrainingConfig], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "wsd": _wsd,
    "constant": _constant,
}


def _progress(position: float, begin: float, end: float) -> float:
    """How far `position` is from `begin` to `end`, in [0, 1]."""
    if position >= end:
        return 1.0
    return max(position - begin, 0.0) / (end - begin)


def _above_min_lr(share: float, config: TrainingConfig) -> float:
    return config.min_lr + share * (config.learning_rate - config.min_lr)


def learning_rate_at(position: float, config: TrainingConfig) -> float:
    """The learning rate at a position on the schedule: a step, counted from 0, or between two.

    Linear warm-up over `warmup_iters` steps, above zero from the first; then `lr_schedule`, which
    is at `min_lr` from `lr_decay_iters` on. Needs a config whose derived values are filled in.
    """
    if position < config.warmup_iters:
        return config.learning_rate * (position + 1) / (config.warmup_iters + 1)
    return _SCHEDULES[config.lr_schedule](position, config)


def gradient_statistics(parameters: Iterable[nn.Parameter]) -> dict[str, Tensor]:
    """Norm, mean and standard deviation over all gradient entries, as tensors on the device.

    Raises:
        UserError: where no parameter has a gradient.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        raise ValueError("0 parameters have a gradient; call backward() first.")
    count = sum(gradient.numel() for gradient in gradients)
    norm = get_total_norm(gradients)
    mean = torch.stack([gradient.sum() for gradient in gradients]).sum() / count
    # The variance is the mean square less the squared mean; rounding may take it below zero.
    variance = (norm / math.sqrt(count)).square() - mean.square()
    return {"norm": norm, "mean": mean, "std": variance.clamp(min=0.0).sqrt()}


class Diverged(UserError):
    """The loss or gradient was not finite for too many steps in a row; the message says more."""

    run_status = "diverged"
    """What it makes of the run in its log."""


@dataclasses.dataclass(frozen=True)
class StepReport:
    """The numbers of the last step, on the host.

    Attributes:
        loss: Mean loss of the step, nats per token.
        gradients: `norm`, before clipping; `mean` and `std` where the step was asked for them.
        bad_steps: Steps skipped since the run began, its loss or gradient not being finite.
        longest_bad_run: The most in a row since the run began or was taken up.
        loss_scale: What the loss is multiplied by in float16; 1 elsewhere.
    """

    loss: float
    gradients: dict[str, float]
    bad_steps: int
    longest_bad_run: int
    loss_scale: float


class LaggingScalar:
    """A scalar on a device as the host last saw it: looking at it never waits for the device.

    On CUDA a copy to pinned memory is queued behind the work that makes the value, and the host
    takes it once it has arrived, a few steps late. Elsewhere reading is cheap, and nothing lags.
    """

    def __init__(self, device: torch.device):
        self._seen = 0.0
        self._arrival = torch.cuda.Event() if device.type == "cuda" else None
        self._under_way = False
        if self._arrival:
            self._landing = torch.zeros((), pin_memory=True)

    def look(self, value: Tensor) -> float:
        """The latest of the values passed so far that has reached the host."""
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


class Stepper:
    """Turns gradients into an update, without a host-device sync, and skips bad steps.

    A step is bad where the loss or the gradient norm is not finite: then weights, moments and
    AdamW's step count stay as they are. In float16 an overflow under the loss scale is counted
    the same; a few of them at the start are normal.

        for x, y in micro_batches:
            loss = model(x, y)[1] / len(micro_batches)
            stepper.backward(loss)
            total += loss.detach()
        stepper.step(total, learning_rate)
        if log_step or stepper.stuck():
            report = stepper.read()
            stepper.stop_if_stuck(report)
    """

    def __init__(
        self, optimizer: torch.optim.AdamW, config: TrainingConfig, dtype: torch.dtype
    ) -> None:
        """`optimizer` is from `make_optimizer`; `dtype` is the compute type of the matmuls."""
        self._optimizer = optimizer
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._grad_clip = config.grad_clip
        self._max_bad_steps = config.max_bad_steps
        device = self._parameters[0].device
        self._scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
        # Counts are float32 like the rest, to be read in one transfer; exact up to 2**24.
        self._loss, self._bad, self._bad_steps, self._bad_in_a_row, self._longest_bad_run = (
            torch.zeros((), device=device) for _ in range(5)
        )
        self._gradients = {"norm": torch.zeros((), device=device)}
        self._longest_on_host = LaggingScalar(device)
        # The fused kernel skips a step by itself where found_inf is 1; Apple's does not look at it.
        self._skips_on_device = device.type != "mps"
        if self._skips_on_device:
            optimizer.grad_scale = None
            optimizer.found_inf = self._bad

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one micro-batch's share of the loss."""
        self._scaler.scale(loss).backward()

    @torch.no_grad()
    def step(self, loss: Tensor, learning_rate: float, *, statistics: bool = False) -> None:
        """Clip and apply the gathered gradients, unless the step is bad; clear them in any case.

        Args:
            loss: Mean loss of the step, a scalar on the device.
            learning_rate: That of this step.
            statistics: Also take the mean and deviation of the gradient, for `read`.
        """
        self._scaler.unscale_(self._optimizer)
        self._measure(loss, statistics)
        if self._grad_clip > 0:
            clip_grads_with_norm_(self._parameters, self._grad_clip, self._gradients["norm"])
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        if self._skips_on_device or not self._bad.item():
            self._optimizer.step()
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)

    def _measure(self, loss: Tensor, statistics: bool) -> None:
        self._loss = loss.detach()
        if statistics:
            self._gradients = gradient_statistics(self._parameters)
        else:
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            self._gradients = {"norm": get_total_norm(gradients)}
        finite = torch.isfinite(self._loss) & torch.isfinite(self._gradients["norm"])
        self._bad.copy_(~finite)  # in place: the optimizer holds this tensor
        self._bad_steps += self._bad
        self._bad_in_a_row = (self._bad_in_a_row + 1) * self._bad
        self._longest_bad_run = torch.maximum(self._longest_bad_run, self._bad_in_a_row)

    def read(self) -> StepReport:
        """The numbers of the last step; waits for the device, so only call it at log steps."""
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
            loss_scale=self._scaler.get_scale(),
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
                "from a checkpoint before that with a lower learning_rate, a longer warmup_iters, "
                "or a dtype of more range (bfloat16, float32)."
            )

    def state_dict(self) -> dict[str, Any]:
        """The counters and the loss scale as plain numbers, for a checkpoint."""
        return {
            "bad_steps": int(self._bad_steps),
            "bad_in_a_row": int(self._bad_in_a_row),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the counters of `state_dict`, and its loss scale where both runs are float16."""
        self._bad_steps.fill_(state["bad_steps"])
        self._bad_in_a_row.fill_(state["bad_in_a_row"])
        self._longest_bad_run.zero_()  # a bad spell that is over must not stop the run again
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
