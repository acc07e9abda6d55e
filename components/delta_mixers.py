"""Mixers that correct what their memory returns for a key: Gated DeltaNet."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.context import Context
from components.decay_rates import draw_log_rates, draw_step_biases
from components.layer_config import LayerConfig
from components.linear_mixer import LinearMixer
from components.mixers import MIXERS
from components.recurrent_mixer import precise


class DeltaMixer(LinearMixer):
    """The delta rule on convolved queries, keys and values; queries and keys have
    length 1."""

    delta_rule = True
    default_kernel = 4

    def features(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
        return super().features(q, k, context)


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
