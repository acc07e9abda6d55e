"""Activation functions of the feed-forward network: `activation`. A part is created from the config
of its layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.layer_config import LayerConfig
from components.registry import Registry
from options import option


class Activation(nn.Module):
    """An elementwise function."""

    def __init__(self, config: LayerConfig):
        super().__init__()


ACTIVATIONS = Registry("activation", "Activation", variable="ACTIVATIONS", base=Activation)


@ACTIVATIONS.register("gelu", label="GELU", paper="Hendrycks and Gimpel 2016, arXiv 1606.08415")
class GELU(Activation):
    """x times the standard normal CDF of x, computed exactly (with erf)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x)


@ACTIVATIONS.register(
    "gelu_tanh", label="GELUTanh", paper="Hendrycks and Gimpel 2016, arXiv 1606.08415"
)
class GELUTanh(Activation):
    """GELU with the tanh approximation used by OpenAI's GPT-2 and Google's Gemma."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


@ACTIVATIONS.register(
    "quick_gelu", label="QuickGELU", paper="Hendrycks and Gimpel 2016, arXiv 1606.08415"
)
class QuickGELU(Activation):
    """GELU approximated by the logistic function: x sigmoid(1.702 x), as in CLIP and gpt-oss."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


@ACTIVATIONS.register("silu", label="SiLU", paper="Elfwing et al. 2017, arXiv 1702.03118")
class SiLU(Activation):
    """x times the logistic function of x (also called swish)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


@ACTIVATIONS.register("relu", label="ReLU", paper="Nair and Hinton 2010")
class ReLU(Activation):
    """x if positive, else 0."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


@ACTIVATIONS.register("relu2", label="ReLU2", paper="So et al. 2021 (Primer), arXiv 2109.08668")
class SquaredReLU(Activation):
    """The square of ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


@ACTIVATIONS.register("leaky_relu", label="LeakyReLU", paper="Maas et al. 2013")
class LeakyReLU(Activation):
    """x if positive, else x times a small slope."""

    class Options:
        leaky_relu_slope: float = option(
            0.01,
            "slope of leaky_relu for negative inputs",
            above=0,
            below=1,
            per_layer=True,
            tag="Slope{}",
        )

    def __init__(self, config: LayerConfig):
        super().__init__(config)
        self.slope = config.leaky_relu_slope

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.slope)


@ACTIVATIONS.register("sigmoid", label="Sigmoid", paper="Dauphin et al. 2016, arXiv 1612.08083")
class Sigmoid(Activation):
    """The logistic function: the gate of the original GLU."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


@ACTIVATIONS.register("xielu", label="xIELU", paper="Huang and Schlag 2024, arXiv 2411.13010")
class XIELU(Activation):
    """a x^2 + x/2 if x is positive, else b (e^x - 1 - x) + x/2, as in Apertus.

    a = softplus(alpha_p) > 0 and b = 1/2 + softplus(alpha_n) > 1/2 are learned, one of each per
    network; both are initialized to 0.8.
    """

    BETA = 0.5

    def __init__(self, config: LayerConfig):
        super().__init__(config)
        self.alpha_p = nn.Parameter(torch.tensor([0.8]).expm1().log())
        self.alpha_n = nn.Parameter(torch.tensor([0.8 - self.BETA]).expm1().log())

    def forward(self, x: Tensor) -> Tensor:
        a = F.softplus(self.alpha_p).to(x.dtype)
        b = (self.BETA + F.softplus(self.alpha_n)).to(x.dtype)
        negative = x.clamp(max=0)  # keeps the branch that is not taken finite
        curve = torch.where(x > 0, a * x * x, b * (negative.expm1() - x))
        return curve + self.BETA * x
