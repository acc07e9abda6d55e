"""What a block joins to the residual stream: a mixer of positions, or a feed-forward network."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from components.context import Context, State
from components.part import Part
from components.tensor_split import TensorSplit


class Sublayer(Part):
    """A part that maps (B, T, C) to (B, T, C), position t from the positions up to t.

    A sublayer that looks at earlier positions keeps what it needs of them in its decoding state.
    """

    unbounded: ClassVar[bool] = True
    """Whether it can go on decoding beyond block_size, its state staying as large as it was."""

    takes: tuple[str, ...] = ()
    """Names of the tensors of earlier layers that it reads by `context.take`."""
    gives: tuple[str, ...] = ()
    """Names of the tensors that it hands to later layers by `context.give`."""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """The output (B, T, C) of x (B, T, C); what else flows is in the context."""
        raise NotImplementedError

    def connect(self, given: Collection[str]) -> None:
        """Prepare for the names that earlier layers give; called once, when the model is made."""

    def new_state(
        self, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> State:
        """The decoding state before the first token: tensors of fixed shapes, allocated whole.

        Args:
            batch: Sequences that are decoded at a time.
            capacity: Tokens of the longest sequence.
            device: Where the model is.
            dtype: What the model computes in; a state may need more precision.
        """
        return {}

    def split(self, over: TensorSplit) -> bool:
        """Keep this worker's share of the weights, for tensor parallelism.

        Called once, when the part has its initial weights; what it computes then must be a share
        of heads or hidden units whose outputs `over.rows` adds up.

        Returns:
            Whether it can be split; if not, nothing has changed, and it stays whole on each worker.

        Raises:
            ConfigError: a number of heads or units does not divide (`over.share_of`).
        """
        return False

    def state_bytes(self, capacity: int, dtype: torch.dtype) -> int:
        """Bytes of the decoding state of one sequence of `capacity` tokens."""
        state = self.new_state(1, capacity, device=torch.device("meta"), dtype=dtype)
        return sum(tensor.nbytes for tensor in state.values())

    def after_step(self, metrics: Mapping[str, Tensor], good: Tensor) -> None:
        """Update persistent buffers after an optimizer step, as balancing by a bias does.

        Args:
            metrics: What the part reported by `context.add_metric`, averaged over the step.
            good: 1 on the device, or 0 if the step was skipped: nothing may change then.
        """
