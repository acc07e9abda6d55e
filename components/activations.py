"""Elementwise nonlinearities of the feed-forward network: `activation`. A part takes nothing."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from components.registry import Registry

ACTIVATIONS = Registry("activation", "Activation", variable="ACTIVATIONS", base=nn.Module)


@ACTIVATIONS.register("gelu", label="GELU", paper="Hendrycks and Gimpel 2016, arXiv 1606.08415")
class GELU(nn.GELU):
    """x times the normal distribution function of x, exactly (by erf)."""


@ACTIVATIONS.register(
    "gelu_tanh", label="GELUTanh", paper="Hendrycks and Gimpel 2016, arXiv 1606.08415"
)
class GELUTanh(nn.GELU):
    """GELU by the tanh approximation that OpenAI's GPT-2 and Google's Gemma use."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")


@ACTIVATIONS.register("silu", label="SiLU", paper="Elfwing et al. 2017, arXiv 1702.03118")
class SiLU(nn.SiLU):
    """x times the logistic function of x (also called swish)."""


@ACTIVATIONS.register("relu", label="ReLU", paper="Nair and Hinton 2010")
class ReLU(nn.ReLU):
    """x where it is positive, else 0."""


@ACTIVATIONS.register("relu2", label="ReLU2", paper="So et al. 2021 (Primer), arXiv 2109.08668")
class SquaredReLU(nn.Module):
    """The square of ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


@ACTIVATIONS.register("leaky_relu", label="LeakyReLU", paper="Maas et al. 2013")
class LeakyReLU(nn.LeakyReLU):
    """x where it is positive, else x/100."""


@ACTIVATIONS.register("sigmoid", label="Sigmoid", paper="Dauphin et al. 2016, arXiv 1612.08083")
class Sigmoid(nn.Sigmoid):
    """The logistic function: the gate of the original GLU."""
