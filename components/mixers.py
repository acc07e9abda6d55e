"""Sequence mixers: `mixer`. A part is created from the config of its layer."""

from __future__ import annotations

from typing import ClassVar

from components.registry import Registry
from components.sublayer import Sublayer


class Mixer(Sublayer):
    """A causal map over positions, such as attention, a recurrence or a convolution."""

    stream_name = "attention"  # keeps the initial weights of versions with no other mixer
    unbounded: ClassVar[bool] = False


MIXERS = Registry("mixer", "Mixer", variable="MIXERS", base=Mixer, called_with="x, context")
