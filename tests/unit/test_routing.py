"""Routing in a mixture of experts: auxiliary losses, load, and what cannot be combined."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import train
from components.context import Context
from components.moe import MoE
from components.routing import Router, balance_loss, router_z_loss
from data.validation import ValidationWindows
from errors import ConfigError
from model_builder import GPT
from tests.mixtures import DEEPSEEK, MOE, hidden, made
from tests.tiny import context, tiny_config, tokens
from training.workers import ALONE


class TestAuxiliaryLosses:
    def routed(self, **keys: Any) -> tuple[Router, Any, Tensor]:
        """A router, what it says of 18 tokens, and how many use each expert."""
        router = made(**keys).router
        routing = router(hidden().flatten(0, 1))
        return router, routing, routing.experts.flatten().bincount(minlength=8)

    @pytest.mark.parametrize("used", [1, 2, 3])
    def test_balance_loss_is_that_of_transformers(self, used):
        from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

        router, routing, counts = self.routed(**MOE, n_experts_per_token=used)
        found = balance_loss(routing, counts)
        expected = load_balancing_loss_func((routing.logits,), 8, used)
        assert_close(found, expected, rtol=1e-6, atol=0, check_dtype=False)
        (own,) = torch.autograd.grad(found, router.weight, retain_graph=True)
        assert_close(own, torch.autograd.grad(expected, router.weight)[0], rtol=1e-5, atol=1e-8)

    def test_balance_loss_of_sigmoids(self):
        """Of scores that are first made to sum to 1 (DeepSeek-V3, equations 17 to 20)."""
        _, routing, counts = self.routed(**DEEPSEEK)
        shares = [scores / scores.sum() for scores in routing.logits.sigmoid()]
        means = torch.stack(shares).mean(0)
        expected = sum(8 * n / 18 * mean for n, mean in zip(counts.tolist(), means, strict=True))
        assert_close(balance_loss(routing, counts), expected, rtol=1e-9, atol=0)

    def test_balance_loss_is_least_when_even(self):
        _, routing, _ = self.routed(**MOE)
        even = routing._replace(scores=torch.full_like(routing.scores, 1 / 8))
        assert balance_loss(even, torch.full((8,), 18 * 2 / 8)).item() == pytest.approx(2)

    def test_router_z_loss(self):
        _, routing, _ = self.routed(**DEEPSEEK)
        expected = sum(logits.exp().sum().log() ** 2 for logits in routing.logits) / 18
        assert_close(router_z_loss(routing), expected, rtol=1e-9, atol=0)

    def test_they_are_left_with_their_coefficients(self):
        coefs = {"balance_loss_coef": 0.3, "router_z_loss_coef": 0.2}
        ffn, left = made(**MOE, **coefs), context(hidden())
        ffn(hidden(), left)
        _, routing, counts = self.routed(**MOE)
        expected = {
            "balance_loss": 0.3 * balance_loss(routing, counts),
            "router_z_loss": 0.2 * router_z_loss(routing),
        }
        assert_close(left.outputs.losses, expected)

    def test_validation_leaves_them_out(self):
        model = GPT(tiny_config(**MOE, balance_loss_coef=3.0))
        split = tokens(33, batch=1)[0]
        x, y = split[:-1].view(2, 16), split[1:].view(2, 16)
        read = ValidationWindows(split.numpy(), np.ones(99), 16, 1)
        run = SimpleNamespace(
            model=model,
            validation=read,
            settings=SimpleNamespace(training=SimpleNamespace(batch_size=1)),
            workers=ALONE,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        losses = train.evaluation_losses(run, SimpleNamespace(requested=False))
        assert losses.mean() == pytest.approx(model(x, y)[1].item(), rel=1e-6)

    def test_off(self):
        ffn, left = made(**MOE, balance_loss_coef=0.0), context(hidden())
        ffn(hidden(), left)
        assert left.outputs.losses == {}


class TestLoad:
    def left(self, ffn: MoE) -> Context:
        left = context(hidden())
        ffn(hidden(), left)
        return left

    def test_is_each_experts_share(self):
        ffn = made(**MOE)
        experts = ffn.router(hidden().flatten(0, 1)).experts.flatten().tolist()
        shares = [experts.count(e) / 36 for e in range(8)]
        metrics = self.left(ffn).outputs.metrics["mixer"]
        assert metrics["load"].tolist() == pytest.approx(shares)
        assert (metrics["max_load"], metrics["min_load"]) == (max(shares), min(shares))
        assert len(set(shares)) > 2

    @pytest.mark.parametrize(("good", "step"), [(1.0, 0.001), (torch.tensor(0.0), 0.0)])
    def test_biases_move_towards_balance(self, good, step):
        ffn = made(**DEEPSEEK)
        before = ffn.router.expert_bias.clone()
        load = torch.tensor([0.5, 0.125, 0.0, 0.125, 0.0, 0.0, 0.25, 0.0])
        ffn.after_step({"load": load}, good)
        signs = torch.tensor([-1.0, 0, 1, 0, 1, 1, -1, 1])
        assert_close(ffn.router.expert_bias - before, step * signs.double(), rtol=0, atol=1e-9)

    def test_biases_balance(self):
        """Without a loss: in the end no expert gets more than 6 of 36 choices."""
        ffn = made(**{**DEEPSEEK, "router_bias_rate": 0.003})
        ffn.router.expert_bias.zero_()
        largest = []
        for _ in range(300):
            metrics = self.left(ffn).outputs.metrics["mixer"]
            largest.append(metrics["max_load"].item())
            ffn.after_step(metrics, 1.0)
        assert largest[0] > 0.2
        assert max(largest[-50:]) < 6.5 / 36

    def test_without_a_rate_there_is_nothing_to_update(self):
        ffn = made(**MOE)
        ffn.after_step({"load": torch.ones(8)}, 1.0)
        assert dict(ffn.named_buffers()) == {}

    def test_the_bias_is_saved_with_the_model(self):
        model = GPT(tiny_config(**DEEPSEEK))
        assert "blocks.1.ffn.router.expert_bias" in model.state_dict()


REFUSED = {
    "n_experts_per_token=9 is more than n_experts=8": {"n_experts_per_token": 9},
    "so the router cannot learn": {"n_experts_per_token": 1, "router_renormalize": True},
    "n_experts=8 is not a multiple of n_expert_groups=3": {"n_expert_groups": 3},
    "n_groups_per_token=5 is more than n_expert_groups=4": {
        "n_expert_groups": 4,
        "n_groups_per_token": 5,
    },
    "leaves 2 experts to choose from, fewer than n_experts_per_token=3": {
        "n_expert_groups": 4,
        "n_groups_per_token": 1,
        "n_experts_per_token": 3,
    },
    "n_expert_groups=4 has no effect": {"n_expert_groups": 4},
    "n_groups_per_token=1 has no effect": {"n_groups_per_token": 1},
    "shared_expert_gate=True has no effect": {"shared_expert_gate": True},
    "router_renormalize=True has no effect": {"n_experts_per_token": 8, "router_renormalize": True},
    "router_bias_rate=0.1 has no effect": {"n_experts_per_token": 8, "router_bias_rate": 0.1},
    "balance_loss_coef=0.1 has no effect": {"n_experts_per_token": 8, "balance_loss_coef": 0.1},
    "n_experts=1 must be at least 2": {"n_experts": 1},
}


@pytest.mark.parametrize(("message", "keys"), REFUSED.items(), ids=REFUSED)
def test_refused(message, keys):
    with pytest.raises(ConfigError, match=message):
        tiny_config(**MOE, **keys)
