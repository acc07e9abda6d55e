"""Average the loss, its terms and the metrics of parts over the micro-batches of a step.

Metrics whose names start with `LARGEST` are combined by their maximum instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from components.context import LARGEST
from model_builder import TrainingOutput
from training.workers import Workers

Metrics = list[dict[str, dict[str, Tensor]]]
"""The metrics of each layer, by part and name."""


class StepMeans:
    """Means over the micro-batches of a step, as tensors on the device."""

    def __init__(self, micro_batches: int):
        self._micro_batches = micro_batches
        self._sums: TrainingOutput | None = None
        self._largest: Metrics = []

    def add(self, output: TrainingOutput) -> None:
        """Add a micro-batch."""
        share = tree_map(lambda tensor: tensor.detach() / self._micro_batches, output)
        largest = _largest_of(output)
        if self._sums is None:
            self._sums, self._largest = share, largest
        else:
            self._sums = tree_map(_add, self._sums, share)
            self._largest = tree_map(torch.maximum, self._largest, largest)

    def share(self, workers: Workers) -> None:
        """Combine the results of all workers, which must have added the same number of
        micro-batches."""
        assert self._sums is not None
        self._sums = workers.mean(self._sums)
        self._largest = workers.maximum(self._largest)

    @property
    def output(self) -> TrainingOutput:
        """The means and maxima; valid once all micro-batches are added."""
        assert self._sums is not None
        both = zip(self._sums.metrics, self._largest, strict=True)
        metrics = [
            {part: {**named, **largest[part]} for part, named in layer.items()}
            for layer, largest in both
        ]
        return self._sums._replace(metrics=metrics)

    def read(self) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """The loss terms by name, and the value of each `part.metric` in every layer, None for
        layers without it. Waits for the device."""
        terms = {name: term.item() for name, term in self.output.terms.items()}
        layers = [
            {
                f"{part}.{name}": value.tolist()
                for part, reported in layer.items()
                for name, value in reported.items()
            }
            for layer in self.output.metrics
        ]
        names = dict.fromkeys(name for layer in layers for name in layer)
        return terms, {name: [layer.get(name) for layer in layers] for name in names}


def _largest_of(output: TrainingOutput) -> Metrics:
    """The metrics that are combined by their maximum."""
    return [
        {
            part: {name: v.detach() for name, v in named.items() if name.startswith(LARGEST)}
            for part, named in layer.items()
        }
        for layer in output.metrics
    ]


def _add(one: Any, other: Any) -> Any:
    return one + other
