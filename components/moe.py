"""Mixture of experts as a feed-forward network: each token uses a few of many networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from components.activations import ACTIVATIONS
from components.context import Context
from components.ffns import FFNS, GLU, FeedForward, GatedOptions, Gating
from components.grouped_linear import grouped_linear
from components.layer_config import LayerConfig
from components.parametrizations import parametrization_of
from components.part import Part, own_stream
from components.routing import (
    Router,
    Routing,
    RoutingOptions,
    balance_loss,
    idle_routing,
    router_z_loss,
    routing_problems,
)
from errors import Problem
from options import Role, Section

_experts = Section("Mixture of experts", Role.ARCHITECTURE)


@FFNS.register("moe", label="MoE", paper="Shazeer et al. 2017, arXiv 1701.06538")
class MoE(FeedForward):
    """A router selects the top-k experts, gated FFNs, for each token and sums their outputs.

    No token is dropped, regardless of the load of the experts. `ffn_hidden` is the width of one
    expert; the defaults are Mixtral's (Jiang et al. 2024, arXiv 2401.04088). Shared experts
    (DeepSeekMoE, Dai et al. 2024, arXiv 2401.06066) are used by all tokens. They are computed as
    one network of their total width; `shared_expert_gate` multiplies its output by a sigmoid per
    token (Qwen1.5-MoE).

    Metrics: the load, which is each expert's fraction of the work, with its maximum and minimum.
    """

    default_activation = "silu"
    default_multiplier = 8 / 3

    class Options(GatedOptions, RoutingOptions):
        n_shared_experts: int = _experts.option(
            0,
            "number of shared experts, used by every token",
            at_least=0,
            per_layer=True,
            tag="{}Shared",
        )
        shared_expert_gate: bool = _experts.option(
            False,
            "multiply the output of the shared experts by a sigmoid per token",
            per_layer=True,
            tag=("UngatedShared", "GatedShared"),
        )

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.router = Router(config)
        self.experts = Experts(config)
        self.dropout = nn.Dropout(config.dropout)
        shared = config.n_shared_experts
        self.shared = GLU(config, shared * config.ffn_hidden) if shared else None
        gated = shared and config.shared_expert_gate
        self.shared_gate = nn.Linear(config.n_embd, 1, bias=False) if gated else None
        self.balance_loss_coef = config.balance_loss_coef
        self.router_z_loss_coef = config.router_z_loss_coef

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        yield from super().problems(config)
        yield from routing_problems(config)

    @classmethod
    def idle(cls, config: LayerConfig) -> Iterator[Problem]:
        yield from idle_routing(config)
        if config.shared_expert_gate and not config.n_shared_experts:
            yield Problem(
                ("shared_expert_gate", "n_shared_experts"),
                "shared_expert_gate=True has no effect with n_shared_experts=0; raise "
                "n_shared_experts, or drop shared_expert_gate.",
            )

    def forward(self, x: Tensor, context: Context) -> Tensor:
        tokens = x.flatten(0, -2)
        routing = self.router(tokens)
        y, counts = self._routed(tokens, routing)
        self._report(routing, counts, context)
        return self._with_shared(x, self.dropout(y.view_as(x)), context)

    def _routed(self, tokens: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
        """The routed experts' output for tokens (N, C), and the tokens per expert (E,)."""
        used = routing.experts.shape[1]
        experts, order = routing.experts.flatten().sort(stable=True)
        every = torch.arange(self.experts.count, device=experts.device)
        ends = torch.searchsorted(experts, every, right=True, out_int32=True)
        y = self.experts(tokens.index_select(0, order // used), experts, ends)
        y = y.index_select(0, order.argsort()).unflatten(0, (-1, used))  # back to (N, K, C)
        y = (y * routing.weights.unsqueeze(-1).to(y.dtype)).sum(dim=1)
        return y, torch.diff(ends, prepend=ends.new_zeros(1))

    def _with_shared(self, x: Tensor, y: Tensor, context: Context) -> Tensor:
        """Add the shared experts' output for x to that of the routed ones, y; all (B, T, C)."""
        if self.shared is None:
            return y
        shared = self.shared(x, context)
        if self.shared_gate is not None:
            shared = shared * self.shared_gate(x).sigmoid()
        return y + shared

    def _report(self, routing: Routing, counts: Tensor, context: Context) -> None:
        """Add the auxiliary losses and the load metrics to the context."""
        if self.balance_loss_coef:
            context.add_loss("balance_loss", self.balance_loss_coef * balance_loss(routing, counts))
        if self.router_z_loss_coef:
            context.add_loss("router_z_loss", self.router_z_loss_coef * router_z_loss(routing))
        load = counts.to(routing.scores.dtype) / routing.experts.numel()
        context.add_metric("load", load)
        context.add_metric("max_load", load.max())
        context.add_metric("min_load", load.min())

    def after_step(self, metrics: Mapping[str, Tensor], good: Tensor | float) -> None:
        self.router.update_bias(metrics["load"], good)


class Experts(Part):
    """Gated networks down(act(gate(x)) * up(x)), stacked in one tensor per matrix.

    Biases are stored as one-dimensional tensors, as optimizers expect for non-matrices.
    """

    multiplies_weights = True

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.count, self.used = config.n_experts, config.n_experts_per_token
        C, F = config.n_embd, config.ffn_hidden
        self.gate_up = nn.Parameter(torch.zeros(self.count, 2 * F, C))  # gate first, then up
        self.activation = ACTIVATIONS[config.activation](config)
        self.gating = Gating(config)
        self.down = nn.Parameter(torch.zeros(self.count, C, F))
        biases = (torch.zeros(self.count * width) for width in (2 * F, C))
        self.gate_up_bias, self.down_bias = (
            nn.Parameter(bias) if config.bias else None for bias in biases
        )

    @property
    def matrix_rows(self) -> Mapping[str, tuple[int, ...]]:
        C, F = self.down.shape[1:]
        return {"gate_up": (F, F), "down": (C,)}

    def init_parameters(self, config: LayerConfig) -> None:
        """Initialize like Linear layers; expert i does not depend on the number of experts."""
        if self.gate_up.is_meta:
            return  # nothing to draw, for thousands of experts in large models
        residual = parametrization_of(config).residual_projection_scale
        for name, scale in (("gate_up", 1.0), ("down", residual)):
            with own_stream(name):
                for matrix in getattr(self, name):
                    nn.init.normal_(matrix, std=config.init_std * scale)

    def forward(self, x: Tensor, experts: Tensor, ends: Tensor) -> Tensor:
        """Apply its expert to each row.

        Args:
            x: Rows (N, C), sorted by expert.
            experts: The expert of each row (N,), int64.
            ends: One past the last row of each expert (E,), int32.
        """
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        hidden = _affine(x, self.gate_up, self.gate_up_bias, experts, ends)
        gate, up = hidden.chunk(2, dim=-1)
        made = self.gating(self.activation, gate, up)
        return _affine(made, self.down, self.down_bias, experts, ends)

    def forward_flops(self, seq_len: int, causal: bool = False) -> int:
        """FLOPs per sequence: 2 x the weights of the experts that a token uses, for any routing."""
        weights = self.gate_up.numel() + self.down.numel()
        return 2 * (weights * self.used // self.count) * seq_len

    def unused_parameters(self) -> int:
        total = sum(parameter.numel() for parameter in self.parameters())
        return total // self.count * (self.count - self.used)


def _affine(
    x: Tensor, weight: Tensor, bias: Tensor | None, experts: Tensor, ends: Tensor
) -> Tensor:
    """Apply the linear layer, with bias, of each row's expert."""
    y = grouped_linear(x, weight.to(x.dtype), ends)
    if bias is None:
        return y
    return y + bias.to(x.dtype).view(len(weight), -1).index_select(0, experts)
