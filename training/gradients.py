"""Norm, mean and standard deviation of a model's gradients, over all workers that hold some."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from training.workers import Workers


class Gradients:
    """Gradients that this worker holds completely.

    Args:
        parameters: The parameters that may have a gradient.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self._parameters = list(parameters)

    def norm(self) -> Tensor:
        """The norm of all gradients, a scalar tensor on the device.

        Raises:
            ValueError: If no parameter has a gradient.
        """
        return get_total_norm(self._tensors())

    def statistics(self) -> dict[str, Tensor]:
        """Norm, mean and standard deviation of all gradient entries, as tensors on the device.

        Raises:
            ValueError: If no parameter has a gradient.
        """
        norm, (total, count) = self.norm(), self._total_and_count()
        mean = total / count
        # The variance is the mean square minus the squared mean; rounding may make it negative.
        variance = (norm / math.sqrt(count)).square() - mean.square()
        return {"norm": norm, "mean": mean, "std": variance.clamp(min=0.0).sqrt()}

    def _total_and_count(self) -> tuple[Tensor, int]:
        gradients = self._tensors()
        return _total(gradients), sum(gradient.numel() for gradient in gradients)

    def _tensors(self) -> list[Tensor]:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if not gradients:
            raise ValueError("No parameter has a gradient; call backward() first.")
        return gradients


class SharedGradients(Gradients):
    """Gradients of which every worker holds a part.

    Args:
        copies: For each parameter of this worker, the number of workers that hold the same one.
        workers: All workers that hold a part.
    """

    def __init__(self, copies: Mapping[nn.Parameter, int], workers: Workers):
        super().__init__(copies)
        self._copies = copies
        self._workers = workers

    def norm(self) -> Tensor:
        return self._sum(lambda gradients: get_total_norm(gradients).square()).sqrt().float()

    def _total_and_count(self) -> tuple[Tensor, int]:
        count = self._sum(lambda gradients: sum(gradient.numel() for gradient in gradients))
        return self._sum(_total).float(), round(count.item())

    def _sum(self, value_of: Callable[[list[Tensor]], Tensor | int]) -> Tensor:
        """Sum a per-tensor value over the gradients of all workers, counting copies once."""
        by_copies: dict[int, list[Tensor]] = {}
        for parameter, copies in self._copies.items():
            if parameter.grad is not None:
                by_copies.setdefault(copies, []).append(parameter.grad)
        total = torch.zeros((), dtype=torch.float64, device=self._parameters[0].device)
        for copies, gradients in by_copies.items():
            total += value_of(gradients) / copies
        return self._workers.sum(total)


def _total(tensors: list[Tensor]) -> Tensor:
    return torch.stack([tensor.sum() for tensor in tensors]).sum()
