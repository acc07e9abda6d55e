"""What mixers with a linear recurrence share: their memory, their decoding state and their cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from components.causal_conv import CausalConv
from components.context import Context, State
from components.linear_recurrence import linear_recurrence
from components.mixers import Mixer


class RecurrentMixer(Mixer):
    """A mixer whose memory is the matrix S of `linear_recurrence`, in each head.

    The memory is stored in at least float32, regardless of the compute dtype. The decoding state
    also has the last inputs of the convolution, if there is one.

    Attributes:
        conv: A convolution before the recurrence, or None.
        memory_shape: The shape of S for one sequence: heads, in one or more dimensions, Dk, Dv.
        chunk: Chunk size of the recurrence in tokens.
    """

    unbounded = True
    residual_projections = ("out",)

    memory_products: ClassVar[int] = 2
    """Products with S and outer products added to it, per token."""

    conv: CausalConv | None
    memory_shape: tuple[int, ...]
    chunk: int

    def convolved(self, x: Tensor, context: Context) -> Tensor:
        """Apply the convolution to x (B, T, channels)."""
        kept = None if context.state is None else context.state["inputs"]
        return self.conv(x, kept)

    def recur(
        self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor | None, context: Context
    ) -> Tensor:
        """The outputs of the recurrence, from the memory of the context, which is updated.

        The arguments are those of `linear_recurrence`, in the dtype of the memory, with the heads
        of `memory_shape`.
        """

        def recurrence(memory: Tensor) -> tuple[Tensor, Tensor]:
            return linear_recurrence(q, k, v, g, beta, memory, self.chunk)

        return self.remembered(recurrence, v, context)

    def remembered(
        self, recurrence: Callable[[Tensor], tuple[Tensor, Tensor]], v: Tensor, context: Context
    ) -> Tensor:
        """The outputs of a recurrence, from the memory of the context, which is updated.

        Args:
            recurrence: Maps the memory before the first token to the outputs and to the memory
                after the last one.
            v: The values, for the batch, the device and the dtype of the memory.
            context: The context of the part.
        """
        state = context.state
        memory = self._zeros(v) if state is None else state["memory"].to(v.dtype)
        y, last = recurrence(memory)
        if state is not None:
            state["memory"].copy_(last)
        return y

    def _zeros(self, like: Tensor) -> Tensor:
        """The memory before the first token, for the batch and the device of a tensor."""
        shape = (like.shape[0], *self.memory_shape)
        return torch.zeros(shape, device=like.device, dtype=precise(like.dtype))

    def new_state(
        self, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> State:
        state = {"memory": self._zeros(torch.empty(batch, 0, device=device, dtype=dtype))}
        if self.conv is not None:
            state["inputs"] = self.conv.new_state(batch, device=device, dtype=dtype)
        return state

    def forward_flops(self, seq_len: int, causal: bool = False) -> int:
        """FLOPs of the projections, the convolution and the recurrence, regardless of its chunks.

        Each token reads S and adds an outer product to it, which are 2 Dk Dv each; the delta rule
        reads S twice.
        """
        rule = 2 * self.memory_products * math.prod(self.memory_shape)
        return super().forward_flops(seq_len, causal) + rule * seq_len


def precise(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the memory for a compute dtype: at least float32."""
    return torch.promote_types(dtype, torch.float32)
