"""How positions exchange information: `mixer`. A part is made with the config of its layer."""

from __future__ import annotations

from typing import ClassVar

from components.registry import Registry
from components.sublayer import Sublayer


class Mixer(Sublayer):
    """A causal map over positions: attention, a recurrence, a convolution."""

    stream_name = "attention"  # as when there was no other
    unbounded: ClassVar[bool] = False


MIXERS = Registry("mixer", "Mixer", variable="MIXERS", base=Mixer, called_with="x, context")
