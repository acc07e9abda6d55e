"""Feed-forward networks: `ffn_type`. A part is created from the config of its layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from components.activations import ACTIVATIONS
from components.canon import CanonOptions, canon_at
from components.context import Context, State
from components.layer_config import LayerConfig
from components.registry import Registry, is_users_own
from components.sphere import Gain
from components.sublayer import Sublayer
from components.tensor_split import TensorSplit
from errors import Problem
from options import option


def _default_width(config: LayerConfig) -> int:
    """The hidden width without any options."""
    return max(1, round(config.n_embd * FFNS[config.ffn_type].default_multiplier))


def _width(config: LayerConfig) -> int:
    """The hidden width derived from `ffn_multiplier` and `ffn_multiple_of`."""
    width = _default_width(config)
    if config.ffn_multiplier is not None:
        width = max(1, round(config.n_embd * config.ffn_multiplier))
    return -(-width // config.ffn_multiple_of) * config.ffn_multiple_of


def _unless_default(key: str, otherwise: Any) -> Callable[[LayerConfig], Any]:
    """The saved value of a key that determines the hidden width: `otherwise` if the width is the
    default, however it was given."""
    return lambda config: (
        otherwise if config.ffn_hidden == _default_width(config) else getattr(config, key)
    )


class FeedForward(Sublayer):
    """Base class of feed-forward networks, with the options for activation and width."""

    activations: ClassVar[tuple[str, ...] | None] = None
    """Allowed activations; None: any."""
    default_activation: ClassVar[str] = "gelu"
    default_multiplier: ClassVar[float] = 4.0
    """Default hidden width divided by n_embd."""

    class Options:
        activation: str | None = option(
            None,
            "activation function; none: the default of ffn_type",
            choices=ACTIVATIONS,
            per_layer=True,
            derive=lambda config: FFNS[config.ffn_type].default_activation,
            tag=None,
        )
        ffn_multiplier: float | None = option(
            None,
            "hidden width as a multiple of n_embd; none: 4, or 8/3 if gated",
            above=0,
            at_most=10_000,
            per_layer=True,
            tag=None,
            saved=_unless_default("ffn_multiplier", None),
        )
        ffn_multiple_of: int = option(
            1,
            "round the hidden width up to a multiple of this",
            at_least=1,
            per_layer=True,
            tag=None,
            saved=_unless_default("ffn_multiple_of", 1),
        )
        ffn_hidden: int | None = option(
            None,
            "hidden width (per expert in moe); none: ffn_multiplier x n_embd",
            at_least=1,
            per_layer=True,
            derive=_width,
            plain=_default_width,
            tag="F{}",
        )

    residual_projections = ("down",)

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        if cls.activations is not None and config.activation not in (None, *cls.activations):
            yield Problem(
                ("activation", "ffn_type"),
                f"activation={config.activation!r} cannot be combined with "
                f"ffn_type={config.ffn_type!r}, whose gate is {' or '.join(cls.activations)}; "
                "drop activation, or use ffn_type='glu', which gates with any activation, or "
                "ffn_type='standard'.",
            )
        if config.ffn_hidden % config.ffn_multiple_of:
            yield Problem(
                ("ffn_hidden", "ffn_multiple_of"),
                f"ffn_hidden={config.ffn_hidden} is not a multiple of "
                f"ffn_multiple_of={config.ffn_multiple_of}; drop one.",
            )
        elif config.ffn_multiplier is not None and config.ffn_hidden != _width(config):
            yield Problem(
                ("ffn_hidden", "ffn_multiplier"),
                f"ffn_hidden={config.ffn_hidden} conflicts with "
                f"ffn_multiplier={config.ffn_multiplier:g}, which gives {_width(config)}; drop "
                "one.",
            )


FFNS = Registry(
    "ffn_type",
    "Feed-forward network",
    variable="FFNS",
    base=FeedForward,
    called_with="x, context",
)


class GainOptions:
    """The option of dense networks to scale their hidden units."""

    hidden_gain: bool = option(
        False,
        "multiply hidden units, before the activation, by sqrt(n_embd) and a learned vector",
        per_layer=True,
        tag=("NoHiddenGain", "HiddenGain"),
    )


def _hidden_gain(config: LayerConfig, units: int) -> Gain | None:
    """The learned vector of `hidden_gain`, which starts at 1; nGPT's s_u and s_v."""
    return Gain(units, 1.0, 1.0) if config.get("hidden_gain") else None


def _scaled(hidden: Tensor, gain: Gain | None, width: int) -> Tensor:
    return hidden if gain is None else hidden * (width**0.5 * gain()).to(hidden.dtype)


@FFNS.register("standard", label="FFN", paper="Vaswani et al. 2017, arXiv 1706.03762")
class StandardFFN(FeedForward):
    """Two linear layers with an activation in between: down(act(up(x)))."""

    canon_position = "d"
    scales_with_width = takes_sphere = True

    class Options(CanonOptions, GainOptions):
        pass

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.up = nn.Linear(config.n_embd, config.ffn_hidden, bias=config.bias)
        self.canon = canon_at("d", config.ffn_hidden, config)
        self.gain = _hidden_gain(config, config.ffn_hidden)
        self.activation = ACTIVATIONS[config.activation](config)
        self.down = nn.Linear(config.ffn_hidden, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        hidden = self.up(x)
        if self.canon is not None:
            hidden = self.canon(hidden, context)
        hidden = _scaled(hidden, self.gain, x.shape[-1])
        return self.dropout(self.down(self.activation(hidden)))

    def new_state(
        self, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> State:
        return _canon_state(self, batch, capacity, device, dtype)

    def split(self, over: TensorSplit) -> bool:
        return _split(self, self.up, 1, over)


class GatedOptions:
    """Options of gated FFNs, including experts."""

    glu_limit: float | None = option(
        None,
        "gated FFNs: c that clamps the gate to at most c, and the other factor to [-c, c]; "
        "none: no clamp",
        above=0,
        per_layer=True,
        tag="GLUMax{}",
    )
    glu_shift: float = option(
        0.0,
        "gated FFNs: constant added to the factor that is not the gate",
        per_layer=True,
        tag="GLUShift{}",
    )


class GateScaleOptions:
    """The scales of a gated network."""

    glu_gate_scale: float = option(
        1.0,
        "gated FFNs: scale of the gate before its activation",
        above=0,
        per_layer=True,
        tag="GLUGate{}",
    )
    glu_out_scale: float = option(
        1.0,
        "gated FFNs: scale of the output",
        above=0,
        per_layer=True,
        tag="GLUOut{}",
    )


class Gating:
    """act(gate) * up, with the clamp and shift of gpt-oss (OpenAI 2025, arXiv 2508.10925):
    act(min(gate, limit)) * (clamp(up, -limit, limit) + shift)."""

    def __init__(self, config: LayerConfig):
        self._limit, self._shift = config.glu_limit, config.glu_shift

    def __call__(self, activation: nn.Module, gate: Tensor, up: Tensor) -> Tensor:
        if self._limit is not None:
            gate, up = gate.clamp(max=self._limit), up.clamp(-self._limit, self._limit)
        return activation(gate) * (up + self._shift if self._shift else up)


@FFNS.register("glu", label="GLU", paper="Dauphin et al. 2016, arXiv 1612.08083")
class GLU(FeedForward):
    """Gated linear unit: down(act(gate(x)) * up(x)); a sigmoid gate unless `activation` is set.

    With `glu_gate_scale` g and `glu_out_scale` s, it is s down(act(g gate(x)) * up(x)), as in
    Falcon-H1.
    """

    default_activation = "sigmoid"
    default_multiplier = 8 / 3  # three matrices cost as much as the standard two at 4x
    canon_position = "d"
    scales_with_width = takes_sphere = True

    class Options(GatedOptions, CanonOptions, GainOptions, GateScaleOptions):
        pass

    def __init__(self, config: LayerConfig, width: int | None = None):
        super().__init__()
        width = width or config.ffn_hidden
        # A single matmul computes gate and up, in this order.
        self.gate_up = nn.Linear(config.n_embd, 2 * width, bias=config.bias)
        self.canon = canon_at("d", 2 * width, config)
        self.gain = _hidden_gain(config, 2 * width)
        self.activation = ACTIVATIONS[config.activation](config)
        self.gating = Gating(config)
        # Shared experts of a mixture have no scales.
        self.gate_scale = config.get("glu_gate_scale", 1.0)
        self.out_scale = config.get("glu_out_scale", 1.0)
        self.down = nn.Linear(width, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    @property
    def matrix_rows(self) -> Mapping[str, tuple[int, ...]]:
        return {"gate_up": 2 * (self.down.in_features,)}

    def forward(self, x: Tensor, context: Context) -> Tensor:
        hidden = self.gate_up(x)
        if self.canon is not None:
            hidden = self.canon(hidden, context)
        gate, up = _scaled(hidden, self.gain, x.shape[-1]).chunk(2, dim=-1)
        if self.gate_scale != 1:
            gate = gate * self.gate_scale
        y = self.down(self.gating(self.activation, gate, up))
        return self.dropout(y if self.out_scale == 1 else y * self.out_scale)

    def new_state(
        self, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> State:
        return _canon_state(self, batch, capacity, device, dtype)

    def split(self, over: TensorSplit) -> bool:
        return _split(self, self.gate_up, 2, over)


def _canon_state(
    network: StandardFFN | GLU, batch: int, capacity: int, device: torch.device, dtype: torch.dtype
) -> State:
    """The decoding state of a network: that of its Canon layer, if any."""
    if network.canon is None:
        return {}
    return network.canon.new_state(batch, capacity, device=device, dtype=dtype)


def _split(network: StandardFFN | GLU, widen: nn.Linear, sections: int, over: TensorSplit) -> bool:
    """Split a network by its hidden units; see `Sublayer.split`."""
    activation = network.activation
    if list(activation.parameters()) or is_users_own(type(activation)):
        return False  # the activation may depend on all units
    width = network.down.in_features
    over.share_of("ffn_hidden", width)
    over.columns(widen, sections * (width,))
    if network.canon is not None:
        network.canon.divide(over, sections * (width,))
    over.rows(network.down)
    if network.gain is not None:
        over.rows_of(network.gain, "stored", sections * (width,))
    return True


@FFNS.register("swiglu", label="SwiGLU", paper="Shazeer 2020, arXiv 2002.05202")
class SwiGLU(GLU):
    """GLU with a SiLU gate."""

    activations = ("silu",)
    default_activation = "silu"


@FFNS.register("geglu", label="GeGLU", paper="Shazeer 2020, arXiv 2002.05202")
class GeGLU(GLU):
    """GLU with a GELU gate, exact or with the tanh approximation."""

    activations = ("gelu", "gelu_tanh")
    default_activation = "gelu"


@FFNS.register("reglu", label="ReGLU", paper="Shazeer 2020, arXiv 2002.05202")
class ReGLU(GLU):
    """GLU with a ReLU gate."""

    activations = ("relu",)
    default_activation = "relu"
