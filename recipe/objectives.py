"""Training objectives: `objective`. Validation always uses plain cross-entropy.

An objective is created from the training config. It runs inside the model's forward pass, and the
auxiliary losses of the model's parts are added to its result.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from components.head import LMHead
from components.registry import Registry
from options import Role, option

Terms = dict[str, Tensor]


class Objective:
    """A loss computed from the model's last hidden states."""

    trains: ClassVar[bool] = True
    """Whether the loss is minimized, so that the model adds the loss of multi-token prediction."""

    class Options:
        z_loss_coef: float = option(
            0.0,
            "weight of the z-loss, the mean squared log-partition of the logits; 0: none",
            at_least=0,
        )

    def __init__(self, config: Any):
        self.z_loss_coef = config.z_loss_coef

    def __call__(self, x: Tensor, head: LMHead, targets: Tensor) -> tuple[Tensor, Terms]:
        """Compute the loss.

        Args:
            x: Input of the LM head (B, T, C).
            head: The LM head: `head(x)` gives the logits (B, T, V), `head.loss` their cross-entropy
                without storing all of them.
            targets: The next tokens (B, T); -1 is ignored.

        Returns:
            The loss, a scalar, and the terms that add up to it, detached, by name.
        """
        raise NotImplementedError


OBJECTIVES = Registry(
    "objective", "Objective", variable="OBJECTIVES", base=Objective, role=Role.RECIPE
)


@OBJECTIVES.register("cross_entropy", label="CE")
class CrossEntropy(Objective):
    """Mean cross-entropy in nats per token."""

    def __call__(self, x: Tensor, head: LMHead, targets: Tensor) -> tuple[Tensor, Terms]:
        total, z = head.loss(x, targets, self.z_loss_coef)
        if not self.z_loss_coef:
            return total, {"cross_entropy": total.detach()}
        z = self.z_loss_coef * z
        return total, {"cross_entropy": total.detach() - z, "z_loss": z}


def make_objective(config: Any) -> Objective:
    """Create the objective chosen by a training config."""
    return OBJECTIVES[config.objective](config)


def validation_loss(x: Tensor, head: LMHead, targets: Tensor) -> tuple[Tensor, Terms]:
    """Plain cross-entropy, used for validation with any objective.

    The term "cross_entropy" is the loss of each window, (B,). No gradients are computed.
    """
    losses = head.window_losses(x, targets)
    return losses.mean(), {"cross_entropy": losses}
