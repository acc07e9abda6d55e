"""The base class of linear attention and its successors: one layer around different recurrences."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.causal_conv import CausalConv
from components.context import Context
from components.layer_config import LayerConfig
from components.mixers import MIXERS
from components.norms import NormOptions, RMSNorm
from components.part import GradientFlow, Part
from components.recurrent_mixer import RecurrentMixer, precise
from errors import Problem
from options import Role, Section

_linear = Section("Linear attention", Role.ARCHITECTURE)


def _keys_width(config: LayerConfig) -> int:
    """The default width of all keys together."""
    return max(int(MIXERS[config.mixer].default_key_share * config.n_embd), 1)


def _heads(config: LayerConfig) -> int:
    """The largest divisor of the width of the keys that is at most one head per default width."""
    most = max(config.n_embd // MIXERS[config.mixer].default_width, 1)
    return next(heads for heads in range(most, 0, -1) if _keys_width(config) % heads == 0)


def _key_dim(config: LayerConfig) -> int:
    return max(_keys_width(config) // config.linear_n_head, 1)


def _value_dim(config: LayerConfig) -> int:
    return config.linear_key_dim * MIXERS[config.mixer].default_value_ratio


class LinearMixer(RecurrentMixer):
    """Queries, keys, values and an output gate around a linear recurrence.

    A subclass defines the recurrence by `gates`, what happens to queries and keys by `features`,
    and the output gate. Several value heads may share a query and key head.
    """

    default_width: ClassVar[int] = 64
    """Default n_embd per query and key head."""
    default_key_share: ClassVar[float] = 1.0
    """Default width of all keys divided by n_embd."""
    default_value_ratio: ClassVar[int] = 1
    """Default dimension of a value divided by that of a key."""
    default_kernel: ClassVar[int] = 0
    has_gate: ClassVar[bool] = False
    """Whether the gate z of the outputs is projected along with queries, keys and values."""
    has_norm: ClassVar[bool] = True
    """Whether the output of each head is normalized."""

    class Options(NormOptions):
        linear_n_head: int | None = _linear.option(
            None,
            "number of query and key heads; none: n_embd / the default width per head, or the next "
            "lower divisor of n_embd",
            at_least=1,
            per_layer=True,
            derive=_heads,
            tag="{}LinearHeads",
        )
        linear_n_value_head: int | None = _linear.option(
            None,
            "number of value heads; none: linear_n_head",
            at_least=1,
            per_layer=True,
            derive=lambda config: config.linear_n_head,
            tag="{}LinearValueHeads",
        )
        linear_key_dim: int | None = _linear.option(
            None,
            "dimension of a query and key head; none: n_embd/linear_n_head, half of it in gla",
            at_least=1,
            per_layer=True,
            derive=_key_dim,
            tag="LinearKey{}",
        )
        linear_value_dim: int | None = _linear.option(
            None,
            "dimension of a value head; none: linear_key_dim, twice that in gla and retnet",
            at_least=1,
            per_layer=True,
            derive=_value_dim,
            tag="LinearValue{}",
        )
        linear_kernel: int | None = _linear.option(
            None,
            "kernel size of the convolution of queries, keys and values, followed by SiLU; 0: no "
            "convolution; none: 4 for delta rules, 0 for others",
            at_least=0,
            per_layer=True,
            derive=lambda config: MIXERS[config.mixer].default_kernel,
            tag="LinearConv{}",
        )
        linear_chunk: int = _linear.option(
            64,
            "chunk size in tokens; does not change the result",
            at_least=1,
            role=Role.EXECUTION,
            tag=None,
        )

    def __init__(self, config: LayerConfig):
        super().__init__()
        heads, value_heads = config.linear_n_head, config.linear_n_value_head
        self.key_dim, self.value_dim = config.linear_key_dim, config.linear_value_dim
        self.of_key_head = (heads, value_heads // heads)
        self.memory_shape = (*self.of_key_head, self.key_dim, self.value_dim)
        self.chunk = config.linear_chunk
        keys, values = heads * self.key_dim, value_heads * self.value_dim
        # A single matmul computes queries, keys, values and the output gate z, in this order.
        self.widths = (keys, keys, values)
        self.gate_width = values if self.has_gate else 0
        self.qkvz = nn.Linear(config.n_embd, sum(self.widths) + self.gate_width, bias=config.bias)
        kernel = config.linear_kernel
        self.conv = CausalConv(sum(self.widths), kernel, bias=False) if kernel else None
        if self.has_norm:
            self.norm = RMSNorm(self.value_dim, config)
        self.out = nn.Linear(values, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    @property
    def matrix_rows(self) -> Mapping[str, tuple[int, ...]]:
        return {"qkvz": (*self.widths, self.gate_width) if self.has_gate else self.widths}

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        if config.linear_n_value_head % config.linear_n_head:
            yield Problem(
                ("linear_n_value_head", "linear_n_head"),
                f"linear_n_value_head={config.linear_n_value_head} is not a multiple of "
                f"linear_n_head={config.linear_n_head}; each query and key head must serve the "
                "same number of value heads.",
            )

    @classmethod
    def rounding(cls, config: LayerConfig, derived: Collection[str]) -> Iterator[Problem]:
        keys, heads = _keys_width(config), config.linear_n_head
        if "linear_key_dim" in derived and keys % heads:
            share = "" if keys == config.n_embd else f" (n_embd={config.n_embd})"
            width = f"n_embd={keys}" if not share else f"the width {keys} of all keys{share}"
            yield Problem(
                ("linear_n_head", "n_embd"),
                f"{width} is not a multiple of linear_n_head={heads}; change one, or set "
                "linear_key_dim.",
            )

    # What a subclass defines. Tensors of heads are (B, key heads, value heads of each, T, D).

    def features(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Map queries and keys; by default, divide their products by sqrt(Dk)."""
        return q * self.key_dim**-0.5, k

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """g and beta of the recurrence from the inputs x (B, T, C), in the dtype of the memory; by
        default no decay and no delta rule."""
        return x.new_zeros(x.shape[1], 1, dtype=precise(x.dtype)), None

    def output_gate(self, x: Tensor, z: Tensor) -> Tensor | None:
        """The factor (B, T, value heads x Dv) of the outputs, from the inputs or z, or None."""
        return F.silu(z) if self.has_gate else None

    # The layer

    def forward(self, x: Tensor, context: Context) -> Tensor:
        qkv, z = self.qkvz(x).split((sum(self.widths), self.gate_width), dim=-1)
        if self.conv is not None:
            qkv = F.silu(self.convolved(qkv, context))
        g, beta = self.gates(x)
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = self._heads(qkv.to(g.dtype))
            q, k = self.features(q, k, context)
            y = self.recur(q, k, v, g, beta, context)
        y = y.movedim(-2, 1)  # (B, T, heads, Dv)
        y = (self.norm(y) if self.has_norm else y).flatten(2)
        gate = self.output_gate(x, z)
        y = y if gate is None else y * gate
        return self.dropout(self.out(y.to(x.dtype)))

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = qkv.split(self.widths, dim=-1)
        of_keys = (self.of_key_head[0], 1, self.key_dim)
        q, k = (each.unflatten(-1, of_keys).movedim(1, -2) for each in (q, k))
        return q, k, self.by_head(v)

    def own_backward_flops(self, own: int, flow: GradientFlow) -> int:
        """If only decays or learning rates have a gradient, S and what the delta rule adds to it
        have one, too, but queries, keys and values do not."""
        if flow.into(self) or flow.out_of(self.qkvz):
            return 2 * own
        late = (*self.residual_projections, *self.output_gates)
        gates = (child for name, child in self.named_children() if name not in late)
        changed = any(
            isinstance(child, nn.Linear | LowRank) and flow.out_of(child) for child in gates
        )
        products = self.memory_products
        return own // products * (1 if products == 2 else products) * changed

    def by_head(self, x: Tensor) -> Tensor:
        """Reshape (B, T, value heads x D) to heads."""
        return x.unflatten(-1, (*self.of_key_head, -1)).movedim(1, -2)


class LowRank(Part):
    """Two linear layers with `rank` dimensions in between, where an activation may be applied."""

    def __init__(
        self,
        inputs: int,
        rank: int,
        outputs: int,
        *,
        bias: bool,
        activation: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.first = nn.Linear(inputs, rank, bias=False)
        self.second = nn.Linear(rank, outputs, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.second(hidden if self.activation is None else self.activation(hidden))
