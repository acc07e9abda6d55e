"""Sequence mixers: `mixer`. A part is created from the config of its layer."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from components.registry import Registry
from components.sublayer import Sublayer


class Mixer(Sublayer):
    """A causal map over positions, such as attention, a recurrence or a convolution."""

    stream_name = "attention"  # keeps the initial weights of versions with no other mixer
    unbounded: ClassVar[bool] = False
    has_logits: ClassVar[bool] = False
    """Whether it has attention logits, reports the largest of each head if `context.measures`, and
    defines `logit_rows` and `measuring_flops`; see `components.attention_logits`."""

    def logit_rows(self, factors: Tensor) -> dict[nn.Parameter, Tensor]:
        """The factors of the rows of weights and biases that multiply the logits of each head by
        `factors` (H,)."""
        raise NotImplementedError

    def measuring_flops(self, seq_len: int) -> int:
        """FLOPs of measuring the largest logits of one sequence."""
        raise NotImplementedError


MIXERS = Registry("mixer", "Mixer", variable="MIXERS", base=Mixer, called_with="x, context")
