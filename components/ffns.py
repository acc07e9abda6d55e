"""Feed-forward networks: `ffn_type`. A part takes the config and maps (B, T, C) to (B, T, C)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from components.activations import ACTIVATIONS
from components.part import Part
from components.registry import Registry
from errors import Problem

if TYPE_CHECKING:
    from model_config import ModelArchitectureConfig


class FeedForward(Part):
    """What the networks share: which activations they take and how wide they are by default."""

    activations: ClassVar[tuple[str, ...] | None] = None
    """Activations it takes; None: any."""
    default_activation: ClassVar[str] = "gelu"
    default_multiplier: ClassVar[float] = 4.0
    """Hidden width over n_embd."""
    plain_tying: ClassVar[bool] = True
    """Whether the model family that made it known ties the head; an architecture's name says
    only what departs from this."""

    residual_projections = ("down",)

    @classmethod
    def problems(cls, config: ModelArchitectureConfig) -> Iterator[Problem]:
        if cls.activations is not None and config.activation not in (None, *cls.activations):
            yield Problem(
                ("activation", "ffn_type"),
                f"activation={config.activation!r} does not go with ffn_type={config.ffn_type!r}, "
                f"whose gate is {' or '.join(cls.activations)}; drop activation, or use "
                "ffn_type='glu', which gates by any activation, or ffn_type='standard'.",
            )


FFNS = Registry(
    "ffn_type", "Feed-forward network", variable="FFNS", base=FeedForward, made_with="config"
)


@FFNS.register("standard", label="FFN", paper="Vaswani et al. 2017, arXiv 1706.03762")
class StandardFFN(FeedForward):
    """Widen, apply the activation, narrow: down(act(up(x)))."""

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()
        self.up = nn.Linear(config.n_embd, config.ffn_hidden, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]()
        self.down = nn.Linear(config.ffn_hidden, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(self.activation(self.up(x))))


@FFNS.register("glu", label="GLU", paper="Dauphin et al. 2016, arXiv 1612.08083")
class GLU(FeedForward):
    """Gated: down(act(gate(x)) * up(x)); a sigmoid gate unless `activation` says otherwise."""

    default_activation = "sigmoid"
    default_multiplier = 8 / 3  # three matrices cost what the standard two do at 4x
    plain_tying = False

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()
        # One matmul makes both halves: gate first, then up.
        self.gate_up = nn.Linear(config.n_embd, 2 * config.ffn_hidden, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]()
        self.down = nn.Linear(config.ffn_hidden, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.dropout(self.down(self.activation(gate) * up))


@FFNS.register("swiglu", label="SwiGLU", paper="Shazeer 2020, arXiv 2002.05202")
class SwiGLU(GLU):
    """GLU with a SiLU gate."""

    activations = ("silu",)
    default_activation = "silu"


@FFNS.register("geglu", label="GeGLU", paper="Shazeer 2020, arXiv 2002.05202")
class GeGLU(GLU):
    """GLU with a GELU gate, exact or by tanh."""

    activations = ("gelu", "gelu_tanh")
    default_activation = "gelu"


@FFNS.register("reglu", label="ReGLU", paper="Shazeer 2020, arXiv 2002.05202")
class ReGLU(GLU):
    """GLU with a ReLU gate."""

    activations = ("relu",)
    default_activation = "relu"
