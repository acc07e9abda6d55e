"""The time mixing of RWKV-7."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.causal_conv import preceded
from components.context import Context, State
from components.layer_config import LayerConfig
from components.linear_mixer import LowRank
from components.mixers import MIXERS
from components.norms import NormOptions
from components.part import GradientFlow, own_stream
from components.rank_one_recurrence import rank_one_recurrence
from components.recurrent_mixer import RecurrentMixer, precise
from errors import Problem
from options import Role, Section

_rwkv = Section("RWKV-7", Role.ARCHITECTURE)

VALUES = "values of RWKV-7"
"""The name under which the first layer gives its values to the others."""


def _rank(factor: float) -> Callable[[LayerConfig], int]:
    """The default rank: factor x sqrt(n_embd), rounded to a multiple of 32, at least 32."""
    return lambda config: max(32, round(factor * config.n_embd**0.5 / 32) * 32)


@MIXERS.register("rwkv7", label="RWKV7", paper="Peng et al. 2025, arXiv 2503.14456")
class RWKV7(RecurrentMixer):
    """The time mixing of RWKV-7: a delta rule that removes and adds with different keys and rates.

    S_t = (Diag(w_t) - (a_t * c_t) c_t^T) S_{t-1} + k'_t v'_t^T, o_t = S_t^T r_t, in each head.

    Each projection reads its own mixture x_t + mu (x_{t-1} - x_t) of a token and the previous one.
    r, k and v are linear; d, a, s and g are low-rank projections. The decay is
    w = exp(-sigmoid(d) / sqrt(e)), with tanh between the two projections of d, the learning rate
    a = sigmoid(a), and c is k times a learned vector, normalized to length 1 in each head.
    k' = k (1 + (a - 1) alpha) with learned alpha; v' = v + sigmoid(s) (v_1 - v), where v_1 are the
    values of the first layer with this mixer, which has no s. The output is W (g (norm(o) +
    (r . (rho k')) v')), where the norm is a LayerNorm of each head with an epsilon of
    norm_eps x rwkv_head_dim, and g has a sigmoid between its projections.

    The channel mixing of RWKV-7 is `ffn_type=standard` with `activation=relu2`,
    `token_shift=ffn` and `bias=False`, and differs only in its initial values. The decoding state
    is S and the last input.
    """

    residual_projections = ("output",)
    memory_products = 4  # two reads of S, two outer products
    output_gates = ("gate",)
    undecayed = ("mu", "bonus")

    class Options(NormOptions):
        rwkv_head_dim: int = _rwkv.option(
            64, "dimension of a head", at_least=2, per_layer=True, tag="RWKVHead{}"
        )
        rwkv_decay_rank: int | None = _rwkv.option(
            None,
            "rank of the projection to the decays; none: 2.5 x sqrt(n_embd), rounded to a multiple "
            "of 32",
            at_least=1,
            per_layer=True,
            derive=_rank(2.5),
            tag="RWKVDecayRank{}",
        )
        rwkv_rate_rank: int | None = _rwkv.option(
            None,
            "rank of the projection to the learning rates; none: 2.5 x sqrt(n_embd), rounded to a "
            "multiple of 32",
            at_least=1,
            per_layer=True,
            derive=_rank(2.5),
            tag="RWKVRateRank{}",
        )
        rwkv_value_rank: int | None = _rwkv.option(
            None,
            "rank of the projection to the shares of the first layer's values; none: 1.7 x "
            "sqrt(n_embd), rounded to a multiple of 32",
            at_least=1,
            per_layer=True,
            derive=_rank(1.7),
            tag="RWKVValueRank{}",
        )
        rwkv_gate_rank: int | None = _rwkv.option(
            None,
            "rank of the projection to the output gate; none: 5 x sqrt(n_embd), rounded to a "
            "multiple of 32",
            at_least=1,
            per_layer=True,
            derive=_rank(5.0),
            tag="RWKVGateRank{}",
        )
        rwkv_chunk: int = _rwkv.option(
            64,
            "chunk size in tokens; does not change the result",
            at_least=1,
            role=Role.EXECUTION,
            tag=None,
        )

    def __init__(self, config: LayerConfig):
        super().__init__()
        C, D = config.n_embd, config.rwkv_head_dim
        heads = C // D
        self.memory_shape, self.chunk, self.conv = (heads, D, D), config.rwkv_chunk, None
        self.gives = self.takes = (VALUES,)
        self.mu = nn.Parameter(torch.empty(6, C))  # of r, d, k, v, a and g
        self.r, self.k, self.v = (nn.Linear(C, C, bias=config.bias) for _ in range(3))
        self.decay = TokenVector(C, config.rwkv_decay_rank, torch.tanh, _initial_decays)
        self.rate = TokenVector(C, config.rwkv_rate_rank, None, _initial_rates)
        self.value_share = TokenVector(C, config.rwkv_value_rank, None, _initial_value_shares)
        self.gate = TokenVector(C, config.rwkv_gate_rank, torch.sigmoid, None)
        self.removal = nn.Parameter(torch.empty(C))
        self.boost = nn.Parameter(torch.empty(C))
        self.bonus = nn.Parameter(torch.empty(heads, D))
        self.norm = nn.GroupNorm(heads, C, eps=config.norm_eps * D)
        self.output = nn.Linear(C, C, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        if config.n_embd % config.rwkv_head_dim:
            yield Problem(
                ("rwkv_head_dim", "n_embd", "mixer"),
                f"n_embd={config.n_embd} is not a multiple of "
                f"rwkv_head_dim={config.rwkv_head_dim}; use a head dimension that divides it.",
            )

    @classmethod
    def idle_among(cls, config: LayerConfig, layers: Sequence[LayerConfig]) -> Iterator[Problem]:
        if all(layer.mixer != config.mixer or layer.index == config.index for layer in layers):
            yield Problem(
                ("rwkv_value_rank",),
                f"rwkv_value_rank={config.rwkv_value_rank} has no effect: no other layer has "
                f"mixer={config.mixer!r} to share values with; drop it.",
            )

    def connect(self, given: Collection[str]) -> None:
        if VALUES not in given:
            self.takes, self.value_share = (), None  # the first layer has nothing to mix in

    @torch.no_grad()
    def init_parameters(self, config: LayerConfig) -> None:
        """Initialize as in the paper's code: zero output, small keys, and decays and mixtures that
        depend on channel and depth."""
        super().init_parameters(config)
        C = config.n_embd
        for name, scale in (("r", 0.5), ("k", 0.05), ("v", 0.5)):
            with own_stream(name):
                nn.init.uniform_(getattr(self, name).weight, -scale / C**0.5, scale / C**0.5)
        nn.init.zeros_(self.output.weight)
        channels = torch.arange(C, device=self.mu.device) / C
        above = 1 - config.index / config.n_layer
        for mu, power in zip(self.mu, (0.2, 0.9, 0.7, 0.7, 0.9, 0.2), strict=True):
            mu.copy_(1 - channels ** (power * above))
        self.removal.copy_(0.71 - 0.1 * _ramp(config))
        self.boost.fill_(1.02)
        self.bonus.fill_(-0.04)
        self.norm.weight.fill_(((config.index + 1) / config.n_layer) ** 0.7)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        kept = None if context.state is None else context.state["previous"]
        change = preceded(x, 1, kept)[:, :-1] - x
        of_r, of_d, of_k, of_v, of_a, of_g = (x + change * mu for mu in self.mu.to(x.dtype))
        v = self._with_first_values(self.v(of_v), of_v, context)
        inputs = (self.r(of_r), self.decay(of_d), self.k(of_k), v, self.rate(of_a))
        with torch.autocast(x.device.type, enabled=False):
            y = self._read(*(each.to(precise(x.dtype)) for each in inputs), context)
        return self.dropout(self.output((y * self.gate(of_g)).to(x.dtype)))

    def _with_first_values(self, v: Tensor, x: Tensor, context: Context) -> Tensor:
        """Mix the values of the first layer into values (B, T, C)."""
        if self.value_share is None:
            context.give(VALUES, v)
            return v
        return v + self.value_share(x).sigmoid() * (context.take(VALUES) - v)

    def _read(
        self, r: Tensor, d: Tensor, k: Tensor, v: Tensor, a: Tensor, context: Context
    ) -> Tensor:
        """The normalized outputs of all heads, and the bonus of the token itself: (B, T, C)."""
        a, g = a.sigmoid(), -math.exp(-0.5) * d.sigmoid()
        removed = F.normalize(self._by_head(k * self.removal), dim=-1)
        k = k * (1 + (a - 1) * self.boost)
        r, k, v, g, a = (self._by_head(each) for each in (r, k, v, g, a))

        def recurrence(memory: Tensor) -> tuple[Tensor, Tensor]:
            return rank_one_recurrence(r, k, v, g, removed, a * removed, memory, self.chunk)

        y = self.remembered(recurrence, v, context).transpose(1, 2)
        y = self.norm(y.flatten(2).flatten(0, 1).to(self.norm.weight.dtype)).view(*y.shape[:2], -1)
        bonus = (r * k * self.bonus[:, None]).sum(-1, keepdim=True) * v
        return y + bonus.transpose(1, 2).flatten(2)

    def _by_head(self, x: Tensor) -> Tensor:
        """Reshape (B, T, C) to heads (B, H, T, D)."""
        return x.unflatten(-1, self.memory_shape[:2]).transpose(1, 2)

    def new_state(
        self, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> State:
        state = super().new_state(batch, capacity, device=device, dtype=dtype)
        width = self.mu.shape[1]
        return {**state, "previous": torch.zeros(batch, 1, width, device=device, dtype=dtype)}

    def own_backward_flops(self, own: int, flow: GradientFlow) -> int:
        """Each of the four products of the recurrence has a gradient for each of its factors that
        depends on an adapter."""
        made = (self.r, self.k, self.v, self.decay, self.rate)
        r, k, v, d, a = (flow.out_of(child) for child in made)
        v = v or (self.value_share is not None and flow.out_of(self.value_share))
        memory = k or v or d or a
        read, removed = r + memory, k + memory
        added = (k or a) + v
        erased = (k or a) + memory
        return own // 4 * (read + removed + added + erased)


class TokenVector(LowRank):
    """A vector for each token: a projection of rank `rank`, plus a learned bias."""

    def __init__(
        self,
        width: int,
        rank: int,
        activation: Callable[[Tensor], Tensor] | None,
        initial_bias: Callable[[LayerConfig], Tensor] | None,
    ):
        """
        Args:
            width: Dimensions of inputs and outputs.
            rank: Dimensions between the two projections.
            activation: Applied between them, or None.
            initial_bias: The initial bias (width,) in a layer; None: no bias.
        """
        super().__init__(width, rank, width, bias=initial_bias is not None, activation=activation)
        self.initial_bias = initial_bias

    @torch.no_grad()
    def init_parameters(self, config: LayerConfig) -> None:
        """Initially, the vector is the bias for every token; the second projection is
        orthogonal."""
        nn.init.zeros_(self.first.weight)
        with own_stream("second"):
            narrowing = self.second.in_features / self.second.out_features
            nn.init.orthogonal_(self.second.weight, gain=0.1 * max(1.0, narrowing**0.5))
        if self.initial_bias is not None:
            self.second.bias.copy_(self.initial_bias(config))


# Initial values by channel (C,)


def _ramp(config: LayerConfig) -> Tensor:
    """From -1/2 to 1/2 over the channels."""
    return torch.arange(config.n_embd) / max(config.n_embd - 1, 1) - 0.5


def _zigzag(config: LayerConfig) -> Tensor:
    """From -1 to 1 over the channels of each head, flat in the middle."""
    last = config.rwkv_head_dim - 1
    x = 2 * (torch.arange(config.n_embd) % config.rwkv_head_dim) / max(last, 1) - 1
    return x * x.abs()


def _initial_decays(config: LayerConfig) -> Tensor:
    depth = config.index / max(config.n_layer - 1, 1)
    curve = (_ramp(config) + 0.5) ** (1 + depth**0.3)
    return 6 * curve - 5.5 + 2.5 * _zigzag(config)


def _initial_rates(config: LayerConfig) -> Tensor:
    return 0.3 * _zigzag(config) + 0.4 * _ramp(config) - 0.19


def _initial_value_shares(config: LayerConfig) -> Tensor:
    return 0.73 - 0.4 * _ramp(config)
