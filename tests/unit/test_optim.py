"""The optimizer's groups, the schedules, and the clipping of gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from recipe.optimizers import make_optimizer, parameter_groups
from recipe.schedules import LR_SCHEDULES, learning_rate_at
from training.optim import clip_gradients, set_learning_rate, trained_parameters
from training_config import TrainingConfig


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight


def settings(**values) -> TrainingConfig:
    defaults = {
        "learning_rate": 1.0,
        "min_lr": 0.1,
        "warmup_iters": 10,
        "lr_decay_iters": 110,
        "max_iters": 200,
    }
    return TrainingConfig(**(defaults | values))


# --- groups


def test_matrices_decay_and_vectors_do_not_and_a_tied_weight_counts_once():
    model = Tied()
    decay, no_decay = parameter_groups(model, 0.3)
    assert decay["weight_decay"] == 0.3
    assert no_decay["weight_decay"] == 0.0
    assert [id(p) for p in decay["params"]] == [id(model.embedding.weight)]
    assert {id(p) for p in no_decay["params"]} == {id(model.norm.weight), id(model.norm.bias)}


def test_frozen_parameters_are_in_no_group_and_no_group_is_empty():
    model = nn.Linear(3, 3)
    model.bias.requires_grad_(False)
    groups = parameter_groups(model, 0.1)
    assert len(groups) == 1
    assert groups[0]["params"] == [model.weight]


def test_nothing_to_train_is_an_error():
    model = nn.Linear(3, 3).requires_grad_(False)
    with pytest.raises(ValueError, match="Linear has no parameters that require gradients"):
        parameter_groups(model, 0.1)


def test_two_parameters_in_the_same_memory_are_an_error():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = nn.Parameter(model[0].weight.data)
    with pytest.raises(ValueError, match=r"0\.weight and 1\.weight are two parameters that share"):
        parameter_groups(model, 0.1)


def test_empty_parameters_do_not_count_as_shared_memory():
    model = nn.Linear(2, 2)
    model.a = nn.Parameter(torch.empty(0))
    model.b = nn.Parameter(torch.empty(0))
    assert sum(len(group["params"]) for group in parameter_groups(model, 0.1)) == 4


def test_the_optimizer_takes_its_settings_from_the_config():
    config = settings(beta1=0.8, beta2=0.9, adam_eps=1e-6, weight_decay=0.2, learning_rate=0.5)
    optimizer = make_optimizer(Tied(), config)
    group = optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["lr"]) == ((0.8, 0.9), 1e-6, 0.5)
    assert group["weight_decay"] == 0.2
    assert group["fused"] is True


# --- schedules


@pytest.mark.parametrize("schedule", LR_SCHEDULES.names)
def test_warm_up_is_linear_from_above_zero(schedule):
    config = settings(lr_schedule=schedule, **_unused_by(schedule))
    rates = [learning_rate_at(step, config) for step in range(11)]
    assert rates == pytest.approx([(step + 1) / 11 for step in range(11)])


def _unused_by(schedule: str) -> dict:
    return {"min_lr": None, "lr_decay_iters": None} if schedule == "constant" else {}


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("cosine", 10, 1.0),
        ("cosine", 60, 0.55),
        ("cosine", 35, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))),
        ("linear", 10, 1.0),
        ("linear", 35, 0.775),
        ("linear", 60, 0.55),
        ("wsd", 10, 1.0),
        ("wsd", 88, 1.0),
        ("wsd", 99, 0.55),
        ("constant", 10, 1.0),
        ("constant", 1000, 1.0),
    ],
)
def test_schedule_values(schedule, step, expected):
    config = settings(lr_schedule=schedule, **_unused_by(schedule))
    assert learning_rate_at(step, config) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("step", [110, 111, 10_000])
def test_after_the_decay_the_rate_stays_at_the_minimum(schedule, step):
    assert learning_rate_at(step, settings(lr_schedule=schedule)) == pytest.approx(0.1)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_a_warm_up_as_long_as_the_schedule_divides_by_nothing(schedule):
    config = settings(lr_schedule=schedule, warmup_iters=110)
    assert learning_rate_at(109, config) == pytest.approx(110 / 111)
    assert learning_rate_at(110, config) == pytest.approx(0.1)


def test_wsd_share_of_decay_never_cuts_into_the_warm_up():
    config = settings(lr_schedule="wsd", wsd_decay_fraction=1.0)
    assert learning_rate_at(10, config) == pytest.approx(1.0)
    assert learning_rate_at(60, config) == pytest.approx(0.55)


def test_every_schedule_falls_without_a_jump():
    for schedule in ("cosine", "linear", "wsd"):
        config = settings(lr_schedule=schedule)
        rates = [learning_rate_at(step, config) for step in range(10, 120)]
        drops = [a - b for a, b in zip(rates, rates[1:], strict=False)]
        assert min(drops) >= 0
        assert max(drops) < 0.05


# --- what a step does with the optimizer


def test_the_learning_rate_is_scaled_by_each_group():
    optimizer = make_optimizer(Tied(), settings())
    assert len(optimizer.param_groups) == 2
    optimizer.param_groups[1]["rate_scale"] = 2.0
    for _ in range(2):
        set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.5]


@pytest.mark.parametrize(("longest", "after"), [(0.5, 0.5), (0.0, 5.0), (9.0, 5.0)])
def test_gradients_are_clipped_to_a_norm(longest, after):
    optimizer = make_optimizer(nn.Linear(2, 2), settings())
    for parameter, value in zip(trained_parameters(optimizer), (3.0, 4.0), strict=True):
        parameter.grad = torch.zeros_like(parameter)
        parameter.grad.flatten()[0] = value
    clip_gradients(optimizer, torch.tensor(5.0), longest)
    norm = torch.cat([p.grad.flatten() for p in trained_parameters(optimizer)]).norm()
    assert norm.item() == pytest.approx(after, rel=1e-5)
