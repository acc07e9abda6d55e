"""Average the loss, its terms and the metrics of parts over the micro-batches of a step."""

from __future__ import annotations

from typing import Any

from torch.utils._pytree import tree_map

from model_builder import TrainingOutput
from training.workers import Workers


class StepMeans:
    """Means over the micro-batches of a step, as tensors on the device."""

    def __init__(self, micro_batches: int):
        self._micro_batches = micro_batches
        self._sums: TrainingOutput | None = None

    def add(self, output: TrainingOutput) -> None:
        """Add a micro-batch."""
        share = tree_map(lambda tensor: tensor.detach() / self._micro_batches, output)
        self._sums = share if self._sums is None else tree_map(_add, self._sums, share)

    def share(self, workers: Workers) -> None:
        """Average over all workers, which must have added the same number of micro-batches."""
        self._sums = workers.mean(self.output)

    @property
    def output(self) -> TrainingOutput:
        """The means; valid once all micro-batches are added."""
        assert self._sums is not None
        return self._sums

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


def _add(one: Any, other: Any) -> Any:
    return one + other
