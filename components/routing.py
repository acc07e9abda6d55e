"""Routing of tokens to experts: which experts a token uses, and with which weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.layer_config import LayerConfig
from errors import Problem
from options import Role, Section

_experts = Section("Mixture of experts", Role.ARCHITECTURE)

MOST_EXPERTS = 4096

TINY = 1e-20
"""Keeps weights finite if all scores are zero, as in DeepSeek-V3."""


class RoutingOptions:
    """The number of experts, and how tokens choose among them."""

    n_experts: int = _experts.option(
        8,
        "number of routed experts",
        at_least=2,
        at_most=MOST_EXPERTS,
        per_layer=True,
        tag="{}Experts",
    )
    n_experts_per_token: int = _experts.option(
        2, "number of routed experts per token", at_least=1, per_layer=True, tag="Top{}"
    )
    router_score: str = _experts.option(
        "softmax",
        "function that turns router logits into expert weights",
        choices=("softmax", "sigmoid"),
        per_layer=True,
        tag={"softmax": "SoftmaxRouter", "sigmoid": "SigmoidRouter"},
    )
    router_renormalize: bool | None = _experts.option(
        None,
        "normalize a token's expert weights to sum to 1; none: only if it uses several experts",
        per_layer=True,
        derive=lambda config: config.n_experts_per_token > 1,
        tag=("RawRouter", "RenormRouter"),
    )
    router_scale: float = _experts.option(
        1.0, "scale of the expert weights", above=0, per_layer=True, tag="RouterScale{}"
    )
    n_expert_groups: int = _experts.option(
        1,
        "number of expert groups; a token is routed within n_groups_per_token of them",
        at_least=1,
        per_layer=True,
        tag="{}ExpertGroups",
    )
    n_groups_per_token: int | None = _experts.option(
        None,
        "number of expert groups per token; none: all",
        at_least=1,
        per_layer=True,
        derive=lambda config: config.n_expert_groups,
        tag="Top{}Groups",
    )
    expert_group_score: str = _experts.option(
        "top2",
        "score of an expert group: the sum of its two highest expert scores, or the highest",
        choices=("top2", "max"),
        per_layer=True,
        tag={"top2": "Top2Groups", "max": "MaxGroups"},
    )
    router_logit_bias: bool = _experts.option(
        False,
        "a learned bias of the router logits",
        per_layer=True,
        tag=("NoLogitBias", "LogitBias"),
    )
    router_bias_rate: float = _experts.option(
        0.0,
        "update rate, such as 0.001, of load-balancing biases, which affect only the selection of "
        "experts; 0: no biases",
        at_least=0,
        per_layer=True,
        tag="RouterBias{}",
    )
    balance_loss_coef: float = _experts.option(
        0.01,
        "weight of the load-balancing loss; 0: none",
        at_least=0,
        per_layer=True,
        tag="Balance{}",
    )
    router_z_loss_coef: float = _experts.option(
        0.0,
        "weight of the router z-loss, the mean squared log-partition of its logits; 0: none",
        at_least=0,
        per_layer=True,
        tag="RouterZ{}",
    )


class Routing(NamedTuple):
    """The routing of N tokens to K of E experts each.

    Attributes:
        experts: The experts of each token (N, K), int64.
        weights: The weights of their outputs (N, K), at least float32.
        logits: The router's logits (N, E), at least float32.
        scores: The softmax or sigmoid of the logits (N, E).
    """

    experts: Tensor
    weights: Tensor
    logits: Tensor
    scores: Tensor


class Router(nn.Linear):
    """A linear layer that scores the experts; each token uses those with the highest scores.

    With groups, a token first selects the best groups, then the experts within them. The score of
    a group is the sum of its two highest scores (DeepSeek-V3, arXiv 2412.19437), or its highest
    score (DeepSeek-V2, arXiv 2405.04434). `expert_bias` is added to the scores for the selection,
    but not to the weights (Wang et al. 2024, arXiv 2408.15664). `router_logit_bias` adds a learned
    bias to the logits (gpt-oss, OpenAI 2025, arXiv 2508.10925). The router computes in at least
    float32.
    """

    def __init__(self, config: LayerConfig):
        super().__init__(config.n_embd, config.n_experts, bias=config.router_logit_bias)
        self.score, self.scale = config.router_score, config.router_scale
        self.renormalize = config.router_renormalize
        self.experts_per_token = config.n_experts_per_token
        self.groups, self.groups_per_token = config.n_expert_groups, config.n_groups_per_token
        self.best_of_group = 2 if config.expert_group_score == "top2" else 1
        self.bias_rate = config.router_bias_rate
        if self.bias_rate:
            self.register_buffer("expert_bias", torch.zeros(config.n_experts))

    def forward(self, x: Tensor) -> Routing:
        """Route tokens x (N, C)."""
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.to(wide)
            logits = F.linear(x.to(wide), self.weight.to(wide), bias)
        scores = logits.softmax(dim=-1) if self.score == "softmax" else logits.sigmoid()
        experts = self._choose(scores.detach())
        weights = scores.gather(-1, experts)
        if self.renormalize:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + TINY)
        return Routing(experts, self.scale * weights, logits, scores)

    def _choose(self, scores: Tensor) -> Tensor:
        """The experts (N, K) with the highest biased scores (N, E) within the best groups."""
        if self.bias_rate:
            scores = scores + self.expert_bias.to(scores.dtype)
        if self.groups_per_token < self.groups:
            grouped = scores.unflatten(-1, (self.groups, -1))
            counted = min(self.best_of_group, grouped.shape[-1])
            best = grouped.topk(counted, dim=-1).values.sum(dim=-1)
            groups = best.topk(self.groups_per_token, dim=-1).indices
            left_out = torch.ones_like(best, dtype=torch.bool).scatter(-1, groups, False)
            scores = grouped.masked_fill(left_out.unsqueeze(-1), float("-inf")).flatten(-2)
        return scores.topk(self.experts_per_token, dim=-1).indices

    def update_bias(self, load: Tensor, good: Tensor | float) -> None:
        """Raise the bias of experts whose load (E,) is below the mean, and lower that of others.

        `good` is 1, or 0 to change nothing.
        """
        if self.bias_rate:
            self.expert_bias += self.bias_rate * good * torch.sign(load.mean() - load)


def balance_loss(routing: Routing, counts: Tensor) -> Tensor:
    """The load-balancing loss E sum_i f_i P_i, which is K for an even load and higher otherwise.

    f_i is the fraction of tokens that use expert i, and P_i is the mean of its scores, divided by
    their sum over the experts. This is the loss of Switch Transformers (Fedus et al. 2021, arXiv
    2101.03961), generalized to K experts per token.

    Args:
        routing: The routing of N tokens.
        counts: Number of tokens that use each expert (E,).
    """
    shares = routing.scores / (routing.scores.sum(dim=-1, keepdim=True) + TINY)
    frequencies = counts.to(shares.dtype) / shares.shape[0]
    return shares.shape[-1] * (frequencies * shares.mean(dim=0)).sum()


def router_z_loss(routing: Routing) -> Tensor:
    """The router z-loss, the mean of logsumexp(logits)^2 (ST-MoE, Zoph et al. 2022, arXiv
    2202.08906)."""
    return routing.logits.logsumexp(dim=-1).square().mean()


def routing_problems(config: LayerConfig) -> Iterator[Problem]:
    """Yield problems with the numbers of experts and groups."""
    experts, used = config.n_experts, config.n_experts_per_token
    groups, used_groups = config.n_expert_groups, config.n_groups_per_token
    if used > experts:
        yield Problem(
            ("n_experts_per_token", "n_experts"),
            f"n_experts_per_token={used} is more than n_experts={experts}; lower it, or raise "
            "n_experts.",
        )
    if used == 1 and config.router_renormalize:
        yield Problem(
            ("router_renormalize", "n_experts_per_token"),
            "router_renormalize=True sets every weight to 1 with n_experts_per_token=1, so the "
            "router cannot learn; drop it, or raise n_experts_per_token.",
        )
    if experts % groups:
        yield Problem(
            ("n_expert_groups", "n_experts"),
            f"n_experts={experts} is not a multiple of n_expert_groups={groups}; every group must "
            "have the same number of experts.",
        )
    elif used_groups > groups:
        yield Problem(
            ("n_groups_per_token", "n_expert_groups"),
            f"n_groups_per_token={used_groups} is more than n_expert_groups={groups}; lower it, or "
            "raise n_expert_groups.",
        )
    elif used_groups * (experts // groups) < used <= experts:
        yield Problem(
            ("n_groups_per_token", "n_experts_per_token"),
            f"n_groups_per_token={used_groups} leaves {used_groups * (experts // groups)} experts "
            f"to choose from, fewer than n_experts_per_token={used}; raise it, or lower "
            "n_expert_groups.",
        )


def idle_routing(config: LayerConfig) -> Iterator[Problem]:
    """Yield problems for routing keys without effect; errors if they have none in any layer."""
    groups = config.n_expert_groups
    if config.n_groups_per_token == groups:
        for key in ("n_expert_groups", "n_groups_per_token", "expert_group_score"):
            yield Problem(
                (key,),
                f"{key}={getattr(config, key)} has no effect when tokens may use all groups; set "
                "n_groups_per_token below n_expert_groups, or drop it.",
            )
    if config.n_experts_per_token < config.n_experts:
        return
    no_effect = ["balance_loss_coef", "router_bias_rate"]
    if config.router_score == "softmax":
        no_effect.append("router_renormalize")
    for key in no_effect:
        yield Problem(
            (key, "n_experts_per_token"),
            f"{key}={getattr(config, key)} has no effect when every token uses all "
            f"n_experts={config.n_experts}; drop it, or lower n_experts_per_token.",
        )
