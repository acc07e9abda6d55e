"""Optimizers: `optimizer`. Each is one of torch's, made with the model and the training config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from components.registry import Registry
from errors import Problem, UserError, quoted
from options import Role, Section
from recipe.parameters import parameter_groups, trainable_parameters
from recipe.snapshot import Snapshot

_optimizer = Section("Optimizer", Role.RECIPE)


class UpdateRule(torch.optim.Optimizer):
    """An optimizer that a config can choose. It is made with the model and the training config.

    A group of parameters may have a `rate_scale`: a factor on the learning rate of the step, 1 if
    it has none. What an optimizer keeps from step to step is tensors, in `state` of a parameter and
    on its device: only then can a step be skipped without waiting for the device, and a run be
    resumed exactly.
    """

    class Options:
        weight_decay: float = _optimizer.option(
            0.1, "weight decay of matrices; vectors are not decayed", at_least=0
        )

    least_bytes: ClassVar[int] = 0
    """Bytes kept of each number of a parameter, at least: a bound on memory before any is used."""

    elementwise: ClassVar[bool] = False
    """Whether it updates each number of a parameter by itself, so that workers can each update a
    slice; else a parameter is gathered where it is updated."""

    def step_flops(self) -> int:
        """Matmul FLOPs of a step. Elementwise work is not counted."""
        return 0

    @classmethod
    def problems(cls, config: Any) -> Iterator[Problem]:
        """What of a training config, the values sound one by one, it cannot work with."""
        return iter(())


OPTIMIZERS = Registry(
    "optimizer",
    "Optimizer",
    variable="OPTIMIZERS",
    base=UpdateRule,
    made_with="model, config",
    role=Role.RECIPE,
)


class PerParameter(UpdateRule):
    """An optimizer that updates one parameter after the other, as `update` says.

    It takes `found_inf` as torch's fused optimizers do: if that is 1, a step changes nothing. A
    parameter's first step, which creates its state, must be good; `StepGuard` sees to that.
    """

    _step_supports_amp_scaling = True  # torch's word for taking found_inf

    def update(
        self,
        parameter: nn.Parameter,
        gradient: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
    ) -> None:
        """Change a parameter and its state, in place.

        Args:
            parameter: The parameter.
            gradient: Its gradient, not to be changed.
            state: What is kept of it; empty in its first step, which creates all that is kept.
            group: The options of its group: "lr", "weight_decay" and others.
        """
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        bad = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                creates = not state
                before = None if bad is None else Snapshot(self, [parameter])
                self.update(parameter, parameter.grad, state, group)
                if before is not None and not (creates and state):
                    before.restore_if(bad)


def make_optimizer(model: nn.Module, config: Any) -> UpdateRule:
    """The optimizer that a training config chooses, of every parameter that requires a gradient.

    Raises:
        UserError: if it leaves out a parameter, or has one that requires none. See
            `trainable_parameters` for others.
    """
    optimizer = OPTIMIZERS[config.optimizer](model, config)
    trainable = {parameter: name for name, parameter in trainable_parameters(model)}
    updated = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    left_out = [name for parameter, name in trainable.items() if parameter not in updated]
    if left_out or len(updated) > len(trainable):
        which = f"leaves out {', '.join(left_out[:3])}" if left_out else "includes others"
        raise UserError(
            f"optimizer={quoted(config.optimizer)} updates {len(updated)} parameters, but the "
            f"model has {len(trainable)} that require a gradient; it {which}."
        )
    return optimizer


class Moments:
    """The options of optimizers that average the gradient and its square."""

    beta1: float = _optimizer.option(0.9, "decay rate of the first moment", at_least=0, below=1)
    beta2: float = _optimizer.option(0.95, "decay rate of the second moment", at_least=0, below=1)
    adam_eps: float = _optimizer.option(1e-8, "epsilon added to the denominator", above=0)


def adamw_update(
    parameter: nn.Parameter, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
) -> None:
    """An update of AdamW, for optimizers that treat some parameters so; see `PerParameter.update`.

    Args:
        group: Its "betas", "eps", "lr" and "weight_decay".
    """
    if not state:
        state["step"] = torch.zeros((), device=parameter.device)
        state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(parameter) for _ in range(2))
    step, mean, square = state["step"], state["exp_avg"], state["exp_avg_sq"]
    beta1, beta2 = group["betas"]
    step += 1
    mean.lerp_(gradient, 1 - beta1)
    square.lerp_(gradient.square(), 1 - beta2)
    denominator = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
    parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.add_(mean / (1 - beta1**step) / denominator, alpha=-group["lr"])


@OPTIMIZERS.register("adamw", label="AdamW", paper="Loshchilov and Hutter 2019, arXiv 1711.05101")
class AdamW(UpdateRule, torch.optim.AdamW):
    """Adam with decoupled weight decay, fused into one kernel per group."""

    Options = Moments
    least_bytes = 8
    elementwise = True

    def __init__(self, model: nn.Module, config: Any):
        super().__init__(
            parameter_groups(model, config.weight_decay),
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.adam_eps,
            fused=True,
        )


@OPTIMIZERS.register("sgd", label="SGD", paper="Sutskever et al. 2013, PMLR 28(3)")
class SGD(UpdateRule, torch.optim.SGD):
    """Gradient descent with momentum; weight decay is added to the gradient."""

    class Options:
        sgd_momentum: float = _optimizer.option(0.9, "momentum factor", at_least=0, below=1)
        sgd_nesterov: bool = _optimizer.option(False, "use Nesterov momentum")

    elementwise = True

    def __init__(self, model: nn.Module, config: Any):
        super().__init__(
            parameter_groups(model, config.weight_decay),
            lr=config.learning_rate,
            momentum=config.sgd_momentum,
            nesterov=config.sgd_nesterov,
            fused=True,
        )
        if config.sgd_momentum:  # torch's kernel creates it for all parameters at once, or fails
            for _, parameter in trainable_parameters(model):
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @classmethod
    def problems(cls, config: Any) -> Iterator[Problem]:
        if config.sgd_nesterov and not config.sgd_momentum:
            yield Problem(
                ("sgd_nesterov", "sgd_momentum"),
                "sgd_nesterov=True has no effect with sgd_momentum=0; raise it, or drop "
                "sgd_nesterov.",
            )
