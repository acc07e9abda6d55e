"""Optimizers: `optimizer`. Each is a `torch.optim.Optimizer` created from model and config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from components.parametrizations import PARAMETRIZATIONS
from components.registry import Registry
from errors import ConfigError, Problem, UserError, quoted
from options import Role, Section
from recipe.parameters import parameter_groups, trainable_parameters
from recipe.snapshot import Snapshot

_optimizer = Section("Optimizer", Role.RECIPE)


class UpdateRule(torch.optim.Optimizer):
    """Base class of optimizers, created from the model and the training config.

    A parameter group may have a `rate_scale`, a factor on the learning rate that defaults to 1. All
    state must be tensors in `state` of a parameter, on the parameter's device: otherwise steps
    cannot be skipped without waiting for the device, and runs cannot be resumed exactly.
    """

    class Options:
        weight_decay: float = _optimizer.option(
            0.1, "weight decay of matrices; vectors are not decayed", at_least=0
        )

    least_bytes: ClassVar[int] = 0
    """Lower bound on the bytes of optimizer state per parameter element."""

    elementwise: ClassVar[bool] = False
    """Whether each element of a parameter is updated independently, so that every worker can update
    a slice. Otherwise parameters are gathered for the update."""

    takes_scales: ClassVar[bool] = False
    """Whether the learning rates of a `parametrization` that depends on the width apply: a step
    does not depend on the scale of the gradient, and updates each element by at most about the
    learning rate, as in Adam."""

    def step_flops(self) -> int:
        """Matmul FLOPs of a step. Elementwise work is not counted."""
        return 0

    @classmethod
    def problems(cls, config: Any) -> Iterator[Problem]:
        """Yield problems with the training config, whose values are individually valid."""
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
    """An optimizer that updates one parameter at a time, by `update`.

    It supports `found_inf` like torch's fused optimizers: if that is 1, a step changes nothing. The
    first step of a parameter, which creates its state, must be good; `StepGuard` ensures that.
    """

    _step_supports_amp_scaling = True  # torch's name for supporting found_inf

    def update(
        self,
        parameter: nn.Parameter,
        gradient: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
    ) -> None:
        """Update a parameter and its state in place.

        Args:
            parameter: The parameter.
            gradient: Its gradient; must not be changed.
            state: Its state; empty in the first step, which must create all entries.
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
    """Create the optimizer chosen by a training config, for all parameters that require gradients.

    Raises:
        ConfigError: If the optimizer is not defined for the model's parametrization.
        UserError: If the optimizer omits a parameter, or includes one that does not require a
            gradient; see also `trainable_parameters`.
    """
    problems = list(scale_problems(getattr(model, "config", None), config))
    if problems:
        raise ConfigError(problems)
    optimizer = OPTIMIZERS[config.optimizer](model, config)
    trainable = {parameter: name for name, parameter in trainable_parameters(model)}
    updated = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    left_out = [name for parameter, name in trainable.items() if parameter not in updated]
    if left_out or len(updated) > len(trainable):
        which = f"omits {', '.join(left_out[:3])}" if left_out else "includes others"
        raise UserError(
            f"optimizer={quoted(config.optimizer)} updates {len(updated)} parameters, but the "
            f"model has {len(trainable)} that require gradients; it {which}."
        )
    return optimizer


def scale_problems(model: Any, training: Any) -> Iterator[Problem]:
    """Yield the problem if an optimizer is not defined for the parametrization of a model.

    Args:
        model: The model's config, or None.
        training: The training config.
    """
    name = getattr(model, "parametrization", "standard")
    if not PARAMETRIZATIONS[name].scales_with_width or OPTIMIZERS[training.optimizer].takes_scales:
        return
    able = [quoted(other) for other in OPTIMIZERS.names if OPTIMIZERS[other].takes_scales]
    yield Problem(
        ("parametrization", "optimizer"),
        f"parametrization={quoted(name)} is not defined for optimizer="
        f"{quoted(training.optimizer)}; use optimizer={' or '.join(able)}, or "
        "parametrization='standard'.",
    )


class Moments:
    """The options of optimizers with first and second moments."""

    beta1: float = _optimizer.option(0.9, "decay rate of the first moment", at_least=0, below=1)
    beta2: float = _optimizer.option(0.95, "decay rate of the second moment", at_least=0, below=1)
    adam_eps: float = _optimizer.option(1e-8, "epsilon added to the denominator", above=0)


def adamw_update(
    parameter: nn.Parameter, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
) -> None:
    """Update a parameter by AdamW, for optimizers that use it for some parameters.

    Args:
        group: Options "betas", "eps", "lr" and "weight_decay"; see `PerParameter.update` for the
            rest.
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
    takes_scales = True

    def __init__(self, model: nn.Module, config: Any):
        groups = parameter_groups(model, config.weight_decay)
        for group in groups:
            group["eps"] = config.adam_eps * group.pop("eps_scale", 1.0)
        super().__init__(
            groups,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
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
        if config.sgd_momentum:  # torch's kernel fails unless all parameters or none have a buffer
            for _, parameter in trainable_parameters(model):
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @classmethod
    def problems(cls, config: Any) -> Iterator[Problem]:
        if config.sgd_nesterov and not config.sgd_momentum:
            yield Problem(
                ("sgd_nesterov", "sgd_momentum"),
                "sgd_nesterov=True has no effect with sgd_momentum=0; raise sgd_momentum, or "
                "drop sgd_nesterov.",
            )
