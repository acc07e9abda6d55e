"""The gated short-convolution mixer of LFM2."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from components.causal_conv import CausalConv
from components.context import Context, State
from components.layer_config import LayerConfig
from components.mixers import MIXERS, Mixer
from options import Role, Section

_conv = Section("Short convolution", Role.ARCHITECTURE)


@MIXERS.register("short_conv", label="ShortConv", paper="Liquid AI 2025 (LFM2), arXiv 2511.23404")
class ShortConv(Mixer):
    """A short causal convolution between two gates: out(c * conv(b * x))."""

    class Options:
        short_conv_kernel: int = _conv.option(
            3,
            "kernel size of the convolution",
            at_least=1,
            per_layer=True,
            tag="Conv{}",
        )

    unbounded = True
    residual_projections = ("out",)

    def __init__(self, config: LayerConfig):
        super().__init__()
        C = config.n_embd
        self.gates_in = nn.Linear(C, 3 * C, bias=config.bias)  # b, c and x
        self.conv = CausalConv(C, config.short_conv_kernel, bias=config.bias)
        self.out = nn.Linear(C, C, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    @property
    def matrix_rows(self) -> Mapping[str, tuple[int, ...]]:
        return {"gates_in": 3 * (self.out.in_features,)}

    def forward(self, x: Tensor, context: Context) -> Tensor:
        b, c, x = self.gates_in(x).chunk(3, dim=-1)
        kept = None if context.state is None else context.state["inputs"]
        return self.dropout(self.out(c * self.conv(b * x, kept)))

    def new_state(
        self, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> State:
        return {"inputs": self.conv.new_state(batch, device=device, dtype=dtype)}
