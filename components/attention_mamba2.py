"""Attention and Mamba-2 side by side in one layer, as in Falcon-H1."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from components.attention import Attention
from components.context import Context, State
from components.layer_config import LayerConfig
from components.mamba2 import Mamba2
from components.mixers import MIXERS, Mixer
from errors import Problem
from options import Role, Section, options_of

_parallel = Section("Attention and Mamba-2", Role.ARCHITECTURE)


def _scale(help_text: str, tag: str) -> float:
    return _parallel.option(1.0, help_text, above=0, per_layer=True, tag=tag)


@MIXERS.register(
    "attention_mamba2",
    label="AttnMamba2",
    paper="Zuo et al. 2025 (Falcon-H1), arXiv 2507.22448",
)
class AttentionMamba2(Mixer):
    """The sum of attention and Mamba-2, which read the same input.

    With the scales a of `attention_in_scale`, ..., the output is a_out attention(a_in x) +
    m_out mamba(m_in x). Inside Mamba-2, the projections z, x, B, C and dt have a scale each. In
    Falcon-H1, these scales are muP's; its scale of the keys is a factor of `attention_scale` here.
    Both halves have the options of the mixers `attention` and `mamba2`.
    """

    canon_position = "b"
    has_logits = True

    class Options(options_of(Attention), options_of(Mamba2)):
        attention_in_scale: float = _scale("scale of the input of attention", "AttnIn{}")
        attention_out_scale: float = _scale("scale of the output of attention", "AttnOut{}")
        mamba_in_scale: float = _scale("scale of the input of Mamba-2", "MambaIn{}")
        mamba_out_scale: float = _scale("scale of the output of Mamba-2", "MambaOut{}")
        mamba_z_scale: float = _scale("scale of the projected output gate z", "MambaZ{}")
        mamba_x_scale: float = _scale("scale of the projected x", "MambaX{}")
        mamba_b_scale: float = _scale("scale of the projected B", "MambaB{}")
        mamba_c_scale: float = _scale("scale of the projected C", "MambaC{}")
        mamba_dt_scale: float = _scale("scale of the projected step size", "MambaDt{}")

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.attention = Attention(config)
        sections = ("z", "x", "b", "c", "dt")
        self.mamba = Mamba2(config, [getattr(config, f"mamba_{one}_scale") for one in sections])
        self.attention_scales = (config.attention_in_scale, config.attention_out_scale)
        self.mamba_scales = (config.mamba_in_scale, config.mamba_out_scale)

    @property
    def takes(self) -> tuple[str, ...]:
        """Names of the tensors of earlier layers that attention reads."""
        return self.attention.takes

    @property
    def gives(self) -> tuple[str, ...]:
        """Names of the tensors that attention gives to later layers."""
        return self.attention.gives

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        yield from Attention.problems(config)
        yield from Mamba2.problems(config)

    @classmethod
    def problems_among(
        cls, config: LayerConfig, layers: Sequence[LayerConfig]
    ) -> Iterator[Problem]:
        yield from Attention.problems_among(config, layers)

    @classmethod
    def rounding(cls, config: LayerConfig, derived: Collection[str]) -> Iterator[Problem]:
        yield from Mamba2.rounding(config, derived)

    @classmethod
    def idle(cls, config: LayerConfig) -> Iterator[Problem]:
        attention, mamba = list(Attention.idle(config)), list(Mamba2.idle(config))
        shared = {problem.keys[0] for problem in mamba}
        for problem in attention:
            if problem.keys[0] != "norm_eps" or "norm_eps" in shared:
                yield problem
        yield from (problem for problem in mamba if problem.keys[0] != "norm_eps")

    @classmethod
    def idle_among(cls, config: LayerConfig, layers: Sequence[LayerConfig]) -> Iterator[Problem]:
        yield from Attention.idle_among(config, layers)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        attended = _between(self.attention_scales, self.attention, x, context)
        return attended + _between(self.mamba_scales, self.mamba, x, context)

    def connect(self, given: Collection[str]) -> None:
        self.attention.connect(given)

    def logit_rows(self, factors: Tensor) -> dict[nn.Parameter, Tensor]:
        return self.attention.logit_rows(factors)

    def measuring_flops(self, seq_len: int) -> int:
        return self.attention.measuring_flops(seq_len)

    def new_state(
        self, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> State:
        both = (self.attention, self.mamba)
        states = [half.new_state(batch, capacity, device=device, dtype=dtype) for half in both]
        assert not states[0].keys() & states[1].keys()
        return states[0] | states[1]


def _between(scales: tuple[float, float], half: Mixer, x: Tensor, context: Context) -> Tensor:
    """The output of one half, with scales of its input and output."""
    before, after = scales
    y = half(x if before == 1 else before * x, context)
    return y if after == 1 else after * y
