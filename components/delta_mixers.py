"""Mixers that correct what their memory returns for a key: DeltaNet, Gated DeltaNet and KDA."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.context import Context
from components.decay_rates import draw_log_rates, draw_step_biases
from components.layer_config import LayerConfig
from components.linear_mixer import LinearMixer, LowRank
from components.mixers import MIXERS
from components.recurrent_mixer import precise
from options import Role, Section

_kda = Section("Kimi Delta Attention", Role.ARCHITECTURE)


class DeltaMixer(LinearMixer):
    """The delta rule on convolved queries, keys and values; queries and keys have
    length 1."""

    memory_products = 3
    default_kernel = 4

    def features(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
        return super().features(q, k, context)


@MIXERS.register("deltanet", label="DeltaNet", paper="Yang et al. 2024, arXiv 2406.06484")
class DeltaNet(DeltaMixer):
    """The delta rule without decay: S_t = (I - beta k k^T) S_{t-1} + beta k v^T, o_t = S_t^T q_t.

    A causal convolution and SiLU are applied to q, k and v; then q and k are normalized to length
    1. beta = sigmoid(b) has one value per value head and token. The output of each head is
    normalized by an RMSNorm.
    """

    default_width = 128

    def __init__(self, config: LayerConfig):
        super().__init__(config)
        self.beta = nn.Linear(config.n_embd, config.linear_n_value_head, bias=False)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        beta = self.beta(x).to(precise(x.dtype)).sigmoid()
        return super().gates(x)[0], self.by_head(beta)


@MIXERS.register("gated_deltanet", label="GDN", paper="Yang et al. 2024, arXiv 2412.06464")
class GatedDeltaNet(DeltaMixer):
    """The gated delta rule on convolved queries, keys and values, with a gated output.

    S_t = alpha (I - beta k k^T) S_{t-1} + beta k v^T, o_t = S_t^T q_t.

    The layer follows Qwen3-Next. A causal convolution and SiLU are applied to q, k and v; then q
    and k are normalized to length 1. beta = sigmoid(b) and alpha = exp(-exp(A_log)
    softplus(a + dt_bias)) are computed from projections a and b, with one value per value head and
    token. The output of each head is normalized by an RMSNorm and multiplied by SiLU(z).
    """

    has_gate = True

    def __init__(self, config: LayerConfig):
        super().__init__(config)
        value_heads = config.linear_n_value_head
        self.beta_decay = nn.Linear(config.n_embd, 2 * value_heads, bias=False)  # b and a
        self.A_log = nn.Parameter(torch.empty(value_heads))
        self.dt_bias = nn.Parameter(torch.empty(value_heads))

    @property
    def matrix_rows(self) -> Mapping[str, tuple[int, ...]]:
        return {**super().matrix_rows, "beta_decay": 2 * (self.A_log.numel(),)}

    def init_parameters(self, config: LayerConfig) -> None:
        """Initialize as in the paper's code: exp(A_log) is uniform in (0, 16), and
        softplus(dt_bias) is log-uniform in (0.001, 0.1)."""
        super().init_parameters(config)
        draw_log_rates(self.A_log, 0, 16)
        draw_step_biases(self.dt_bias)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        b, a = self.beta_decay(x).to(precise(x.dtype)).chunk(2, dim=-1)
        g = -self.A_log.exp() * F.softplus(a + self.dt_bias)
        return self.by_head(g), self.by_head(b.sigmoid())


@MIXERS.register("kda", label="KDA", paper="Kimi Team 2025 (Kimi Linear), arXiv 2510.26692")
class KimiDeltaAttention(DeltaMixer):
    """The delta rule with a decay for each key dimension, and a gated output.

    S_t = (I - beta k k^T) Diag(alpha) S_{t-1} + beta k v^T, o_t = S_t^T q_t.

    A causal convolution and SiLU are applied to q, k and v; then q and k are normalized to length
    1. alpha = exp(-exp(A_log) softplus(f + dt_bias)) has a value per key dimension of each value
    head, where f is a projection through kda_rank dimensions and A_log has a value per head;
    beta = sigmoid(b). The output of each head is normalized by an RMSNorm and multiplied by
    sigmoid(z), where z is also a projection through kda_rank dimensions.
    """

    default_width = 128
    output_gates = ("gate",)

    class Options:
        kda_rank: int | None = _kda.option(
            None,
            "dimensions that the decays and the output gate are projected through; none: "
            "linear_value_dim",
            at_least=1,
            per_layer=True,
            derive=lambda config: config.linear_value_dim,
            tag="KDARank{}",
        )

    def __init__(self, config: LayerConfig):
        super().__init__(config)
        C, value_heads, rank = config.n_embd, config.linear_n_value_head, config.kda_rank
        self.beta = nn.Linear(C, value_heads, bias=False)
        self.decay = LowRank(C, rank, value_heads * self.key_dim, bias=False)
        self.gate = LowRank(C, rank, value_heads * self.value_dim, bias=False)
        self.A_log = nn.Parameter(torch.empty(value_heads))
        self.dt_bias = nn.Parameter(torch.empty(value_heads * self.key_dim))

    def init_parameters(self, config: LayerConfig) -> None:
        """Initialize as in Kimi Linear: exp(A_log) is uniform in (1, 16), and softplus(dt_bias) is
        log-uniform in (0.001, 0.1)."""
        super().init_parameters(config)
        draw_log_rates(self.A_log, 1, 16)
        draw_step_biases(self.dt_bias)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dtype = precise(x.dtype)
        rates = self.A_log.exp().repeat_interleave(self.key_dim)
        g = -rates * F.softplus(self.decay(x).to(dtype) + self.dt_bias)
        return self.by_head(g), self.by_head(self.beta(x).to(dtype).sigmoid())

    def output_gate(self, x: Tensor, z: Tensor) -> Tensor:
        return self.gate(x).sigmoid()
