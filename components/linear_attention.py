"""Mixers that add each value to their memory: linear attention, RetNet and GLA."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from components.context import Context
from components.layer_config import LayerConfig
from components.linear_mixer import LinearMixer, LowRank
from components.mixers import MIXERS
from components.norms import idle_epsilon
from components.positions import RotaryPosition
from components.recurrent_mixer import precise
from errors import Problem
from options import Role, Section

_linear = Section("Linear attention", Role.ARCHITECTURE)
_retnet = Section("RetNet", Role.ARCHITECTURE)
_gla = Section("GLA", Role.ARCHITECTURE)


def _elu_plus_one(x: Tensor) -> Tensor:
    """elu(x) + 1; F.elu of the strided heads fails in compiled backward passes (torch 2.13)."""
    return F.relu(x) + x.clamp(max=0).exp()


_FEATURE_MAPS = {"elu": _elu_plus_one, "relu": F.relu}


@MIXERS.register(
    "linear_attention", label="LinAttn", paper="Katharopoulos et al. 2020, arXiv 2006.16236"
)
class LinearAttention(LinearMixer):
    """Attention with weights f(q) . f(k) instead of a softmax, computed with a matrix as its state.

    o_t = S_t^T f(q_t) / (z_t . f(q_t)), where S_t = S_{t-1} + f(k_t) v_t^T and
    z_t = z_{t-1} + f(k_t). f(x) is elu(x) + 1 in the paper. There is no norm and no output gate.
    """

    has_norm = False

    class Options:
        linear_feature_map: str = _linear.option(
            "elu",
            "map f of queries and keys: elu(x) + 1 or relu(x)",
            choices=tuple(_FEATURE_MAPS),
            per_layer=True,
            tag={"elu": "LinearMapELU", "relu": "LinearMapReLU"},
        )

    @classmethod
    def idle(cls, config: LayerConfig) -> Iterator[Problem]:
        yield from idle_epsilon(config, "mixer='linear_attention'")

    def __init__(self, config: LayerConfig):
        super().__init__(config)
        self.feature_map = _FEATURE_MAPS[config.linear_feature_map]
        *heads, key_dim, value_dim = self.memory_shape
        self.memory_shape = (*heads, key_dim, value_dim + 1)  # z is the last column

    def features(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        return self.feature_map(q), self.feature_map(k)

    def recur(
        self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor | None, context: Context
    ) -> Tensor:
        v = F.pad(v, (0, 1), value=1.0)
        y = super().recur(q, k, v, g, beta, context)
        return y[..., :-1] / (y[..., -1:] + 1e-6)


@MIXERS.register("retnet", label="RetNet", paper="Sun et al. 2023, arXiv 2307.08621")
class RetNet(LinearMixer):
    """Retention: linear attention with rotated queries and keys and a fixed decay per head.

    S_t = gamma S_{t-1} + k_t v_t^T, o_t = S_t^T q_t, where gamma = 1 - 2^(-5 - h) in head h, and q
    and k are rotated by position as in RoPE. The output of each head is normalized by an RMSNorm
    (the GroupNorm of the paper, without centering, as in its code) and multiplied by SiLU(z).
    """

    default_width, default_value_ratio = 256, 2
    has_gate = True

    class Options:
        retnet_theta: float = _retnet.option(
            10000.0,
            "RetNet: base of the rotation frequencies",
            above=1,
            per_layer=True,
            tag="RetNetTheta{}",
        )

    def __init__(self, config: LayerConfig):
        super().__init__(config)
        self.theta = config.retnet_theta

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        yield from super().problems(config)
        if config.linear_key_dim % 2:
            yield Problem(
                ("linear_key_dim", "linear_n_head", "n_embd"),
                f"linear_key_dim={config.linear_key_dim} is odd, but mixer='retnet' rotates pairs "
                "of dimensions; use an even linear_key_dim.",
            )

    def features(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        positions = context.start + torch.arange(q.shape[-2], device=q.device)
        exponents = torch.arange(0, self.key_dim, 2, device=q.device, dtype=q.dtype) / self.key_dim
        angles = positions.to(q.dtype)[:, None] * self.theta**-exponents
        q, k = (RotaryPosition.turned(x, angles.cos(), angles.sin()) for x in (q, k))
        return super().features(q, k, context)

    def gates(self, x: Tensor) -> tuple[Tensor, None]:
        heads, shared = self.of_key_head
        index = torch.arange(heads * shared, device=x.device, dtype=precise(x.dtype))
        g = torch.log1p(-torch.exp2(-5 - index)).view(heads, shared, 1, 1)
        return g.expand(-1, -1, x.shape[1], -1), None


@MIXERS.register("gla", label="GLA", paper="Yang et al. 2023, arXiv 2312.06635")
class GatedLinearAttention(LinearMixer):
    """Linear attention with a decay for each key dimension, and a gated output.

    S_t = Diag(alpha_t) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t, where alpha = sigmoid(a)^(1/16) and a
    is a projection through gla_rank dimensions. The output of each head is normalized by an RMSNorm
    and multiplied by SiLU(z).
    """

    default_width, default_key_share, default_value_ratio = 256, 0.5, 2
    has_gate = True

    class Options:
        gla_rank: int = _gla.option(
            16,
            "dimensions that the decays are projected through",
            at_least=1,
            per_layer=True,
            tag="GLARank{}",
        )
        gla_temperature: float = _gla.option(
            16.0,
            "the decays are sigmoids to the power of 1/gla_temperature",
            above=0,
            per_layer=True,
            tag="GLATemp{}",
        )

    def __init__(self, config: LayerConfig):
        super().__init__(config)
        decays = config.linear_n_value_head * self.key_dim
        self.decay = LowRank(config.n_embd, config.gla_rank, decays, bias=True)
        self.temperature = config.gla_temperature

    def gates(self, x: Tensor) -> tuple[Tensor, None]:
        a = self.decay(x).to(precise(x.dtype))
        return self.by_head(F.logsigmoid(a) / self.temperature), None
