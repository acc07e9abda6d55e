"""A short convolution over positions, one filter per channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.layer_config import LayerConfig
from components.part import Part


class CausalConv(Part):
    """Depthwise causal convolution: y_t = b + sum_j w_j x_{t - j dilation}, j from 0 to kernel - 1.

    x is zero before the first token. The decoding state holds the last (kernel - 1) dilation
    inputs.
    """

    multiplies_weights = True

    def __init__(
        self,
        channels: int,
        kernel: int,
        *,
        bias: bool,
        dilation: int = 1,
        starts_at_zero: bool = False,
    ):
        super().__init__()
        self.dilation, self.starts_at_zero = dilation, starts_at_zero
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel))  # the last is w_0
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def init_parameters(self, config: LayerConfig) -> None:
        """Initialize weights uniformly within 1/sqrt(kernel) of zero, as torch does for
        convolutions, or with 0 if `starts_at_zero`; and the bias with 0."""
        bound = 0.0 if self.starts_at_zero else self.weight.shape[-1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def reach(self) -> int:
        """Distance in tokens from an output to the earliest input that it depends on."""
        return (self.weight.shape[-1] - 1) * self.dilation

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """Map x (B, T, C) to (B, T, C); `kept` is the decoding state, updated to the last
        inputs."""
        x = preceded(x, self.reach, kept)
        y = F.conv1d(
            x.transpose(1, 2),
            self.weight,
            self.bias,
            dilation=self.dilation,
            groups=self.weight.shape[0],
        )
        return y.transpose(1, 2)

    def new_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The decoding state before the first token."""
        return torch.zeros(batch, self.reach, self.weight.shape[0], device=device, dtype=dtype)

    def forward_flops(self, seq_len: int, causal: bool = False) -> int:
        """FLOPs of the convolution: 2 x kernel for each channel and token."""
        return 2 * self.weight.numel() * seq_len


def preceded(x: Tensor, count: int, kept: Tensor | None = None) -> Tensor:
    """Put the `count` inputs before x (B, T, C) in front of it: (B, count + T, C).

    They are those in `kept` (B, count, C), which is then updated to the last inputs; without
    `kept`, x is the start of the sequence, and they are zero.
    """
    if kept is None:
        return F.pad(x, (0, 0, count, 0))
    x = torch.cat((kept.to(x.dtype), x), dim=1)
    kept.copy_(x[:, x.shape[1] - count :])
    return x
