"""A short convolution over positions, one filter per channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.layer_config import LayerConfig
from components.part import Part


class CausalConv(Part):
    """Depthwise causal convolution: y_t = b + sum_j w_j x_{t-j}, j from 0 to kernel - 1.

    x is zero before the first token. The decoding state holds the last kernel - 1 inputs.
    """

    multiplies_weights = True

    def __init__(self, channels: int, kernel: int, *, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel))  # the last is w_0
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def init_parameters(self, config: LayerConfig) -> None:
        """Initialize weights uniformly within 1/sqrt(kernel) of zero, as torch does for
        convolutions, and the bias with 0."""
        bound = self.weight.shape[-1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """Map x (B, T, C) to (B, T, C); `kept` (B, kernel - 1, C) is updated to the last inputs."""
        channels, _, kernel = self.weight.shape
        x = preceded(x, kernel - 1, kept)
        y = F.conv1d(x.transpose(1, 2), self.weight, self.bias, groups=channels)
        return y.transpose(1, 2)

    def new_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The decoding state before the first token."""
        channels, _, kernel = self.weight.shape
        return torch.zeros(batch, kernel - 1, channels, device=device, dtype=dtype)

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
