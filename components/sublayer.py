"""The base class of sublayers, which blocks add to the residual stream: mixers and FFNs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from components.context import Context, State
from components.part import Part
from components.tensor_split import TensorSplit


class Sublayer(Part):
    """A causal part that maps (B, T, C) to (B, T, C): output t depends on positions up to t.

    Sublayers that use earlier positions store what they need of them in their decoding state.
    """

    canon_position: ClassVar[str | None] = None
    """The position of the Canon layer that the class can contain; see `components.canon`."""
    unbounded: ClassVar[bool] = True
    """Whether it can decode beyond block_size with a state of constant size."""

    takes: tuple[str, ...] = ()
    """Names of the tensors of earlier layers that it reads with `context.take`."""
    gives: tuple[str, ...] = ()
    """Names of the tensors that it gives to later layers with `context.give`."""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map x (B, T, C) to (B, T, C); other inputs and outputs are in the context."""
        raise NotImplementedError

    def connect(self, given: Collection[str]) -> None:
        """Receive the names that earlier layers give; called once, when the model is created."""

    def new_state(
        self, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> State:
        """Create the decoding state before the first token: tensors with fixed shapes.

        Args:
            batch: Number of sequences.
            capacity: Maximum number of tokens per sequence.
            device: The device of the model.
            dtype: The compute dtype of the model; a state may need more precision.
        """
        return {}

    def split(self, over: TensorSplit) -> bool:
        """Keep this worker's share of the weights, for tensor parallelism.

        Called once, after the weights are initialized. The part must then compute only its share of
        heads or hidden units, whose outputs are summed by `over.rows`.

        Returns:
            Whether the part was split; if not, it is unchanged and replicated on each worker.

        Raises:
            ConfigError: If a number of heads or units is not divisible (`over.share_of`).
        """
        return False

    def state_bytes(self, capacity: int, dtype: torch.dtype) -> int:
        """Bytes of the decoding state of one sequence of `capacity` tokens."""
        state = self.new_state(1, capacity, device=torch.device("meta"), dtype=dtype)
        return sum(tensor.nbytes for tensor in state.values())

    def after_step(self, metrics: Mapping[str, Tensor], good: Tensor) -> None:
        """Update persistent buffers after an optimizer step, such as load-balancing biases.

        Args:
            metrics: The part's metrics from `context.add_metric`, averaged over the step.
            good: 1, or 0 if the step was skipped and nothing may change; a tensor on the device.
        """
