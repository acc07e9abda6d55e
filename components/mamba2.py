"""The Mamba-2 mixer: a selective state-space model with a scalar decay per head."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.causal_conv import CausalConv
from components.context import Context
from components.decay_rates import draw_log_rates, draw_step_biases
from components.layer_config import LayerConfig
from components.mixers import MIXERS
from components.norms import NormOptions, RMSNorm, idle_epsilon
from components.recurrent_mixer import RecurrentMixer, precise
from errors import Problem
from options import Role, Section

_mamba = Section("Mamba-2", Role.ARCHITECTURE)


def _default_heads(config: LayerConfig) -> int:
    return max(1, round(2 * config.n_embd / config.mamba_head_dim))


def _heads(config: LayerConfig) -> int:
    """The number of heads derived from `mamba_expand`."""
    if config.mamba_expand is None:
        return _default_heads(config)
    return max(1, round(config.mamba_expand * config.n_embd / config.mamba_head_dim))


@MIXERS.register("mamba2", label="Mamba2", paper="Dao and Gu 2024, arXiv 2405.21060")
class Mamba2(RecurrentMixer):
    """A state-space model: S_t = exp(dt A) S_{t-1} + B_t (dt x_t)^T, y_t = S_t^T C_t + D x_t.

    A causal convolution and SiLU are applied to x, B and C. B_t and C_t (N) are shared by the heads
    of a group; each head has x_t (P), the step size dt = softplus(dt + dt_bias), limited to
    [mamba_dt_min, mamba_dt_max], and learned scalars A = -exp(A_log) and D. The output is
    out(norm(y SiLU(z))), where the norm is an RMSNorm over the heads of a group; x, B, C, dt and z
    are projections of the input. Training computes it in chunks, as state-space duality (SSD) does.
    """

    class Options(NormOptions):
        mamba_expand: float | None = _mamba.option(
            None,
            "width of all heads together as a multiple of n_embd; none: 2",
            above=0,
            per_layer=True,
            tag=None,
            saved=lambda config: None,
        )
        mamba_n_head: int | None = _mamba.option(
            None,
            "number of heads; none: mamba_expand x n_embd / mamba_head_dim",
            at_least=1,
            per_layer=True,
            derive=_heads,
            plain=_default_heads,
            tag="{}MambaHeads",
        )
        mamba_head_dim: int = _mamba.option(
            64, "dimension of a head", at_least=1, per_layer=True, tag="MambaHead{}"
        )
        mamba_state_dim: int = _mamba.option(
            128, "dimension N of B and C", at_least=1, per_layer=True, tag="MambaState{}"
        )
        mamba_n_group: int = _mamba.option(
            1, "number of groups of heads that share B and C", at_least=1, per_layer=True
        )
        mamba_kernel: int = _mamba.option(
            4, "kernel size of the convolution", at_least=1, per_layer=True, tag="MambaConv{}"
        )
        mamba_conv_bias: bool = _mamba.option(
            True,
            "bias in the convolution",
            per_layer=True,
            tag=("NoMambaConvBias", "MambaConvBias"),
        )
        mamba_norm: str = _mamba.option(
            "after_gate",
            "RMSNorm of the output: after or before it is multiplied by the gate, or none",
            choices=("after_gate", "before_gate", "none"),
            per_layer=True,
        )
        mamba_dt_min: float = _mamba.option(
            0.0, "lower limit of the step size", at_least=0, per_layer=True
        )
        mamba_dt_max: float | None = _mamba.option(
            None, "upper limit of the step size; none: no limit", above=0, per_layer=True
        )
        mamba_chunk: int = _mamba.option(
            64,
            "chunk size in tokens; does not change the result",
            at_least=1,
            role=Role.EXECUTION,
            tag=None,
        )

    def __init__(self, config: LayerConfig, scales: Sequence[float] = (1, 1, 1, 1, 1)):
        """
        Args:
            config: The config of the layer.
            scales: Factors of the projections z, x, B, C and dt.
        """
        super().__init__()
        self.scales = None if all(scale == 1 for scale in scales) else tuple(scales)
        heads, groups = config.mamba_n_head, config.mamba_n_group
        self.head_dim, self.chunk = config.mamba_head_dim, config.mamba_chunk
        self.memory_shape = (groups, heads // groups, config.mamba_state_dim, self.head_dim)
        inner, shared = heads * self.head_dim, groups * config.mamba_state_dim
        self.widths = (inner, shared, shared)
        # A single matmul computes z, x, B, C and dt, in this order.
        self.zxbcdt = nn.Linear(config.n_embd, inner + sum(self.widths) + heads, bias=config.bias)
        self.conv = CausalConv(sum(self.widths), config.mamba_kernel, bias=config.mamba_conv_bias)
        self.A_log = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.dt_limits = (config.mamba_dt_min, config.mamba_dt_max)
        self.norm_place = config.mamba_norm
        if self.norm_place != "none":
            self.norm = GroupRMSNorm(inner, groups, config)
        self.out = nn.Linear(inner, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    @property
    def matrix_rows(self) -> Mapping[str, tuple[int, ...]]:
        return {"zxbcdt": (self.widths[0], *self.widths, self.D.numel())}

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        heads, head_dim, expand = config.mamba_n_head, config.mamba_head_dim, config.mamba_expand
        if expand is not None and heads * head_dim != round(expand * config.n_embd):
            yield Problem(
                ("mamba_expand", "mamba_n_head", "mamba_head_dim", "n_embd"),
                f"mamba_expand={expand:g} x n_embd={config.n_embd} is not the width "
                f"{heads * head_dim} of mamba_n_head={heads} x mamba_head_dim={head_dim}; drop "
                "mamba_expand, or choose a head dimension that divides the width.",
            )
        if heads % config.mamba_n_group:
            yield Problem(
                ("mamba_n_group", "mamba_n_head"),
                f"mamba_n_head={heads} is not a multiple of mamba_n_group={config.mamba_n_group}; "
                "every group must have the same number of heads.",
            )
        highest = config.mamba_dt_max
        if highest is not None and config.mamba_dt_min >= highest:
            yield Problem(
                ("mamba_dt_min", "mamba_dt_max"),
                f"mamba_dt_min={config.mamba_dt_min:g} is not below mamba_dt_max={highest:g}; the "
                "step size would be constant.",
            )

    @classmethod
    def rounding(cls, config: LayerConfig, derived: Collection[str]) -> Iterator[Problem]:
        if config.mamba_expand is None and "mamba_n_head" in derived:
            width, head_dim = 2 * config.n_embd, config.mamba_head_dim
            if width % head_dim:
                yield Problem(
                    ("mamba_head_dim", "n_embd", "mixer"),
                    f"the width 2 x n_embd={width} is not a multiple of mamba_head_dim={head_dim}; "
                    "change one, or set mamba_n_head.",
                )

    @classmethod
    def idle(cls, config: LayerConfig) -> Iterator[Problem]:
        if config.mamba_norm == "none":
            yield from idle_epsilon(config, "mamba_norm='none'")

    def init_parameters(self, config: LayerConfig) -> None:
        """Initialize as in the paper's code: -A is uniform in (1, 16), softplus(dt_bias) is
        log-uniform in (0.001, 0.1), and D is 1."""
        super().init_parameters(config)
        draw_log_rates(self.A_log, 1, 16)
        draw_step_biases(self.dt_bias)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        dtype = x.dtype
        z, xbc, dt = self._projected(x)
        xbc = F.silu(self.convolved(xbc, context))
        with torch.autocast(x.device.type, enabled=False):
            y = self._state_space(*(each.to(precise(dtype)) for each in (xbc, dt)), context)
            y = self._gated(y, z)
        return self.dropout(self.out(y.to(dtype)))

    def _projected(self, x: Tensor) -> tuple[Tensor, ...]:
        """z (B, T, heads P), x, B and C together, and dt (B, T, heads)."""
        heads = self.D.numel()
        if self.scales is None:
            return self.zxbcdt(x).split((self.widths[0], sum(self.widths), heads), dim=-1)
        parts = self.zxbcdt(x).split((self.widths[0], *self.widths, heads), dim=-1)
        z, *xbc, dt = (scale * part for scale, part in zip(self.scales, parts, strict=True))
        return z, torch.cat(xbc, dim=-1), dt

    def _state_space(self, xbc: Tensor, dt: Tensor, context: Context) -> Tensor:
        """The outputs y (B, T, heads P) of all heads."""
        groups, heads, N, P = self.memory_shape  # heads of a group
        x, key, query = xbc.split(self.widths, dim=-1)
        x = x.unflatten(-1, (groups, heads, P)).movedim(1, -2)
        key, query = (each.unflatten(-1, (groups, 1, N)).movedim(1, -2) for each in (key, query))
        dt = F.softplus(dt + self.dt_bias).clamp(*self.dt_limits)
        of_head = (groups, heads, 1)
        g = (-self.A_log.exp() * dt).unflatten(-1, of_head).movedim(1, -2)
        dt = dt.unflatten(-1, of_head).movedim(1, -2)
        y = self.recur(query, key, dt * x, g, None, context)
        y = y + self.D.view(*of_head, 1) * x
        return y.movedim(-2, 1).flatten(2)

    def _gated(self, y: Tensor, z: Tensor) -> Tensor:
        gate = F.silu(z.to(y.dtype))
        if self.norm_place == "none":
            return y * gate
        return self.norm(y * gate) if self.norm_place == "after_gate" else self.norm(y) * gate


class GroupRMSNorm(RMSNorm):
    """RMSNorm of each of several groups of dimensions, with a learned scale."""

    def __init__(self, dim: int, groups: int, config: LayerConfig):
        super().__init__(dim, config)
        self.groups = groups

    def _normed(self, x: Tensor, scale: Tensor) -> Tensor:
        x = x.to(scale.dtype).unflatten(-1, (self.groups, -1))
        return F.rms_norm(x, x.shape[-1:], None, self.eps).flatten(-2) * scale
