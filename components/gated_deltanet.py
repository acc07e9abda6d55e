"""The Gated DeltaNet mixer: linear attention with a decaying, error-correcting memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.causal_conv import CausalConv
from components.context import Context, State
from components.layer_config import LayerConfig
from components.linear_recurrence import linear_recurrence
from components.mixers import MIXERS, Mixer
from components.norms import NormOptions, RMSNorm
from errors import Problem
from options import Role, Section

_gdn = Section("Gated DeltaNet", Role.ARCHITECTURE)


@MIXERS.register("gated_deltanet", label="GDN", paper="Yang et al. 2024, arXiv 2412.06464")
class GatedDeltaNet(Mixer):
    """The gated delta rule on convolved queries, keys and values, with a gated output.

    The layer follows Qwen3-Next. A causal convolution and SiLU are applied to q, k and v; then q
    and k are normalized to length 1. beta = sigmoid(b) and g = -exp(A_log) softplus(a + dt_bias)
    are computed from projections a and b, with one value per value head and token. The output of
    each head is normalized by an RMSNorm and multiplied by SiLU(z). Several value heads may share a
    query and key head.

    The memory is stored in at least float32, regardless of the compute dtype.
    """

    class Options(NormOptions):
        gdn_n_head: int | None = _gdn.option(
            None,
            "number of query and key heads; none: n_embd/64",
            at_least=1,
            per_layer=True,
            derive=lambda config: max(config.n_embd // 64, 1),
            tag="{}GDNHeads",
        )
        gdn_n_value_head: int | None = _gdn.option(
            None,
            "number of value heads; none: gdn_n_head",
            at_least=1,
            per_layer=True,
            derive=lambda config: config.gdn_n_head,
            tag="{}GDNValueHeads",
        )
        gdn_key_dim: int | None = _gdn.option(
            None,
            "dimension of a query and key head; none: n_embd/gdn_n_head",
            at_least=1,
            per_layer=True,
            derive=lambda config: max(config.n_embd // config.gdn_n_head, 1),
            tag="GDNKey{}",
        )
        gdn_value_dim: int | None = _gdn.option(
            None,
            "dimension of a value head; none: gdn_key_dim",
            at_least=1,
            per_layer=True,
            derive=lambda config: config.gdn_key_dim,
            tag="GDNValue{}",
        )
        gdn_kernel: int = _gdn.option(
            4, "kernel size of the convolution", at_least=1, per_layer=True, tag="GDNConv{}"
        )
        gdn_chunk: int = _gdn.option(
            64,
            "chunk size in tokens; does not change the result",
            at_least=1,
            role=Role.EXECUTION,
            tag=None,
        )

    unbounded = True
    residual_projections = ("out",)

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.heads, self.value_heads = config.gdn_n_head, config.gdn_n_value_head
        self.key_dim, self.value_dim = config.gdn_key_dim, config.gdn_value_dim
        self.chunk = config.gdn_chunk
        keys, values = self.heads * self.key_dim, self.value_heads * self.value_dim
        self.widths = (keys, keys, values)
        # A single matmul computes queries, keys, values and the output gate z, in this order.
        self.qkvz = nn.Linear(config.n_embd, sum(self.widths) + values, bias=config.bias)
        self.beta_decay = nn.Linear(config.n_embd, 2 * self.value_heads, bias=False)  # b and a
        self.conv = CausalConv(sum(self.widths), config.gdn_kernel, bias=False)
        self.A_log = nn.Parameter(torch.empty(self.value_heads))
        self.dt_bias = nn.Parameter(torch.empty(self.value_heads))
        self.norm = RMSNorm(self.value_dim, config)
        self.out = nn.Linear(values, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    @property
    def matrix_rows(self) -> Mapping[str, tuple[int, ...]]:
        z = self.widths[2]
        return {"qkvz": (*self.widths, z), "beta_decay": 2 * (self.value_heads,)}

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        if config.gdn_n_value_head % config.gdn_n_head:
            yield Problem(
                ("gdn_n_value_head", "gdn_n_head"),
                f"gdn_n_value_head={config.gdn_n_value_head} is not a multiple of "
                f"gdn_n_head={config.gdn_n_head}; each query and key head must serve the same "
                "number of value heads.",
            )

    def init_parameters(self, config: LayerConfig) -> None:
        """Initialize as in the paper's code: A is uniform in (0, 16), and softplus(dt_bias) is
        log-uniform in (0.001, 0.1)."""
        super().init_parameters(config)
        with torch.no_grad():
            self.A_log.uniform_(0, 16).clamp_(min=1e-4).log_()
            dt = torch.empty_like(self.dt_bias).uniform_(math.log(0.001), math.log(0.1)).exp()
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        state = context.state
        qkv, z = self.qkvz(x).split((sum(self.widths), self.widths[2]), dim=-1)
        qkv = F.silu(self.conv(qkv, None if state is None else state["inputs"]))
        b, a = self.beta_decay(x).chunk(2, dim=-1)
        with torch.autocast(x.device.type, enabled=False):
            memory = self._memory(x) if state is None else state["memory"]
            memory = memory.to(_memory_dtype(x.dtype))
            y, last = self._delta_rule(*self._heads(qkv.to(memory.dtype)), b, a, memory)
            if state is not None:
                state["memory"].copy_(last)
        y = self.norm(y.transpose(1, 2)) * F.silu(z.unflatten(-1, (-1, self.value_dim)))
        return self.dropout(self.out(y.to(x.dtype).flatten(2)))

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalized queries and keys, and values, for each value head: (B, H, T, D)."""
        q, k, v = qkv.split(self.widths, dim=-1)
        q, k = (x.unflatten(-1, (-1, self.key_dim)).transpose(1, 2) for x in (q, k))
        v = v.unflatten(-1, (-1, self.value_dim)).transpose(1, 2)
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
        shared = self.value_heads // self.heads
        q, k = (x.repeat_interleave(shared, dim=1) for x in (q * self.key_dim**-0.5, k))
        return q, k, v

    def _delta_rule(
        self, q: Tensor, k: Tensor, v: Tensor, b: Tensor, a: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The outputs (B, H, T, Dv) and the final memory."""
        b, a = (x.transpose(1, 2).to(memory.dtype) for x in (b, a))
        g = -self.A_log.exp()[:, None] * F.softplus(a + self.dt_bias[:, None])
        return linear_recurrence(q, k, v, g[..., None], b.sigmoid()[..., None], memory, self.chunk)

    def _memory(self, x: Tensor) -> Tensor:
        """The memory before the first token: zeros."""
        shape = (x.shape[0], self.value_heads, self.key_dim, self.value_dim)
        return torch.zeros(shape, device=x.device, dtype=_memory_dtype(x.dtype))

    def new_state(
        self, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> State:
        inputs = self.conv.new_state(batch, device=device, dtype=dtype)
        return {"inputs": inputs, "memory": self._memory(inputs)}

    def forward_flops(self, seq_len: int, causal: bool = False) -> int:
        """FLOPs of the projections, the convolution, and 6 Dk Dv for each value head and token: S
        is read twice and written once, regardless of the implementation."""
        rule = 6 * self.value_heads * self.key_dim * self.value_dim
        return super().forward_flops(seq_len, causal) + rule * seq_len


def _memory_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
