"""The optimizer's groups, the schedules, and the update that skips what is not finite."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import nn

from training.config import SCHEDULES, TrainingConfig
from training.optim import (
    _SCHEDULES,
    Diverged,
    LaggingScalar,
    Stepper,
    gradient_statistics,
    learning_rate_at,
    make_optimizer,
    parameter_groups,
)


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


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3))


def train_step(model, stepper, x, *, learning_rate=0.01, scale_loss=1.0, **kwargs) -> None:
    loss = model(x).square().mean() * scale_loss
    stepper.backward(loss)
    stepper.step(loss, learning_rate, **kwargs)


def make(dtype=torch.float32, **values):
    model = small_model()
    config = settings(**values)
    optimizer = make_optimizer(model, config)
    return model, optimizer, Stepper(optimizer, config, dtype)


def snapshot(model, optimizer):
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))


def assert_same(left, right) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=0)


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
    with pytest.raises(ValueError, match="Linear has 0 parameters that require a gradient"):
        parameter_groups(model, 0.1)


def test_two_parameters_in_the_same_memory_are_an_error():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = nn.Parameter(model[0].weight.data)
    with pytest.raises(ValueError, match=r"0\.weight and 1\.weight are two parameters in the same"):
        parameter_groups(model, 0.1)


def test_empty_parameters_do_not_count_as_shared_memory():
    model = nn.Linear(2, 2)
    model.a = nn.Parameter(torch.empty(0))
    model.b = nn.Parameter(torch.empty(0))
    assert sum(len(group["params"]) for group in parameter_groups(model, 0.1)) == 4


def test_the_optimizer_takes_its_settings_from_the_config():
    config = settings(beta1=0.8, beta2=0.9, adam_eps=1e-6, weight_decay=0.2, learning_rate=0.5)
    optimizer = make_optimizer(small_model(), config)
    group = optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["lr"]) == ((0.8, 0.9), 1e-6, 0.5)
    assert group["weight_decay"] == 0.2
    assert group["fused"] is True


# --- schedules


@pytest.mark.parametrize("schedule", SCHEDULES)
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


# --- statistics


def test_gradient_statistics_equal_those_of_the_concatenated_gradient():
    model = small_model()
    model(torch.randn(5, 4)).square().mean().backward()
    model[0].bias.grad = None
    found = gradient_statistics(model.parameters())
    entries = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(found["norm"], entries.norm())
    torch.testing.assert_close(found["mean"], entries.mean())
    torch.testing.assert_close(found["std"], entries.std(correction=0))


def test_equal_gradients_have_no_deviation():
    weight = nn.Parameter(torch.zeros(7))
    weight.grad = torch.full((7,), 0.1)
    assert gradient_statistics([weight])["std"].item() == pytest.approx(0.0, abs=1e-4)


def test_statistics_without_a_gradient_are_an_error():
    with pytest.raises(ValueError, match="0 parameters have a gradient"):
        gradient_statistics(small_model().parameters())


# --- the update


def test_a_step_is_what_clipping_and_adamw_do():
    model, _, stepper = make(grad_clip=0.05)
    reference = copy.deepcopy(model)
    plain = torch.optim.AdamW(parameter_groups(reference, 0.1), betas=(0.9, 0.95), foreach=False)
    torch.manual_seed(1)
    for step in range(3):
        x = torch.randn(6, 4)
        train_step(model, stepper, x, learning_rate=0.01 * (step + 1))
        for group in plain.param_groups:
            group["lr"] = 0.01 * (step + 1)
        reference(x).square().mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.05)
        plain.step()
        plain.zero_grad()
        assert stepper.read().gradients == {"norm": pytest.approx(norm.item())}
        assert norm > 0.05
    torch.testing.assert_close(model.state_dict(), reference.state_dict())
    assert all(p.grad is None for p in model.parameters())


def test_without_clipping_the_norm_is_only_measured():
    torch.manual_seed(1)
    x = torch.randn(6, 4)
    weights = []
    for clip in (0.0, 1e9):
        model, _, stepper = make(grad_clip=clip)
        train_step(model, stepper, x)
        weights.append(model.state_dict())
        assert stepper.read().gradients["norm"] > 0
    assert_same(*weights)


def test_micro_batches_add_up_to_the_whole_batch():
    torch.manual_seed(1)
    x = torch.randn(8, 4)
    whole, _, stepper = make()
    train_step(whole, stepper, x)
    split, _, stepper = make()
    for part in x.chunk(4):
        stepper.backward(split(part).square().mean() / 4)
    stepper.step(torch.tensor(1.0), 0.01)
    torch.testing.assert_close(whole.state_dict(), split.state_dict())


@pytest.mark.parametrize("bad_value", [math.nan, math.inf])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("skips_on_device", [True, False])
def test_a_non_finite_step_changes_neither_weights_nor_moments_nor_count(
    bad_value, first, skips_on_device
):
    model, optimizer, stepper = make()
    stepper._skips_on_device = skips_on_device
    x = torch.ones(2, 4)
    if not first:
        train_step(model, stepper, x)
    before = snapshot(model, optimizer)
    train_step(model, stepper, x, scale_loss=bad_value)
    weights, state = snapshot(model, optimizer)
    assert_same(weights, before[0])
    for key, moments in state.items():
        expected = before[1].get(key, {name: torch.zeros_like(t) for name, t in moments.items()})
        assert_same(moments, expected)
    assert stepper.read().bad_steps == 1
    train_step(model, stepper, x)
    assert not torch.equal(model[0].weight, before[0]["0.weight"])


def test_a_non_finite_gradient_under_a_finite_loss_is_bad_and_the_other_way_round():
    model, optimizer, stepper = make()
    before = copy.deepcopy(model.state_dict())
    model(torch.ones(2, 4)).sum().backward()
    model[2].bias.grad[1] = math.inf
    stepper.step(torch.tensor(1.0), 0.01)
    model(torch.ones(2, 4)).sum().backward()
    stepper.step(torch.tensor(math.nan), 0.01)
    assert_same(model.state_dict(), before)
    report = stepper.read()
    assert (report.bad_steps, report.longest_bad_run) == (2, 2)
    assert math.isnan(report.loss)


def test_counts_of_bad_steps():
    model, _, stepper = make(max_bad_steps=4)
    x = torch.ones(2, 4)
    for scale in (math.nan, 1, math.nan, math.nan, math.nan, 1, math.nan):
        train_step(model, stepper, x, scale_loss=scale)
    report = stepper.read()
    assert (report.bad_steps, report.longest_bad_run) == (5, 3)
    stepper.stop_if_stuck(report)


def test_too_many_bad_steps_in_a_row_stop_the_run_even_if_it_recovered_before_the_log():
    model, _, stepper = make(max_bad_steps=2)
    for scale in (math.nan, math.nan, 1):
        train_step(model, stepper, torch.ones(2, 4), scale_loss=scale)
    report = stepper.read()
    with pytest.raises(Diverged, match=r"2 steps in a row .*max_bad_steps=2.*learning_rate"):
        stepper.stop_if_stuck(report)


def test_the_report_has_loss_and_statistics():
    model, _, stepper = make()
    x = torch.ones(2, 4)
    loss = model(x).square().mean()
    stepper.backward(loss)
    expected = {key: value.item() for key, value in gradient_statistics(model.parameters()).items()}
    stepper.step(loss, 0.01, statistics=True)
    report = stepper.read()
    assert report.loss == loss.item()
    assert report.gradients == expected
    assert report.loss_scale == 1.0


def test_a_step_reads_nothing_back_to_the_host(monkeypatch):
    """Tensor.item, bool, int and tolist are the ways in which a value leaves the device."""
    model, _, stepper = make(torch.float16)

    def refuse(*_args, **_kwargs):
        raise AssertionError("host-device sync")

    for name in ("item", "__bool__", "__int__", "__float__", "tolist", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    for scale in (1.0, math.nan):
        train_step(model, stepper, torch.ones(2, 4), scale_loss=scale, statistics=True)


# --- float16


def test_float16_gradients_are_unscaled_and_an_overflow_lowers_the_scale_and_is_counted():
    model, optimizer, stepper = make(torch.float16, grad_clip=0.0)
    reference, _, plain = make(torch.float32, grad_clip=0.0)
    x = torch.ones(2, 4)
    train_step(model, stepper, x)
    train_step(reference, plain, x)
    torch.testing.assert_close(model.state_dict(), reference.state_dict())
    assert stepper.read().loss_scale == 65536.0

    before = snapshot(model, optimizer)
    train_step(model, stepper, x, scale_loss=1e36)  # finite; its scaled gradient is not
    assert_same(snapshot(model, optimizer), before)
    report = stepper.read()
    assert math.isfinite(report.loss)
    assert (report.bad_steps, report.loss_scale) == (1, 32768.0)


# --- schedules


def test_each_schedule_that_a_config_may_name_is_there():
    assert tuple(_SCHEDULES) == SCHEDULES


# --- state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_state_survives_json(dtype):
    model, _, stepper = make(dtype)
    for scale in (math.nan, math.nan, 1, math.nan):
        train_step(model, stepper, torch.ones(2, 4), scale_loss=scale)
    state = json.loads(json.dumps(stepper.state_dict(), allow_nan=False))
    model, _, resumed = make(dtype)
    resumed.load_state_dict(state)
    train_step(model, resumed, torch.ones(2, 4), scale_loss=math.nan)
    report = resumed.read()
    assert (report.bad_steps, report.longest_bad_run) == (4, 2)
    assert report.loss_scale == (65536.0 / 2**4 if dtype is torch.float16 else 1.0)


def test_a_bad_spell_before_a_resumption_does_not_stop_the_run_again():
    model, _, stepper = make(max_bad_steps=2)
    for scale in (math.nan, math.nan, 1):
        train_step(model, stepper, torch.ones(2, 4), scale_loss=scale)
    state = stepper.state_dict()
    model, _, resumed = make(max_bad_steps=2)
    resumed.load_state_dict(state)
    train_step(model, resumed, torch.ones(2, 4))
    resumed.stop_if_stuck(resumed.read())
    assert resumed.read().bad_steps == 2


@pytest.mark.parametrize(
    ("saved", "resumed"), [(torch.float16, torch.float32), (torch.float32, torch.float16)]
)
def test_a_run_may_resume_in_another_dtype(saved, resumed):
    _, _, first = make(saved)
    model, _, second = make(resumed)
    second.load_state_dict(first.state_dict())
    train_step(model, second, torch.ones(2, 4))
    assert second.read().bad_steps == 0


class Arrival:
    """Stands for a CUDA event: what was copied before it has arrived once a test says so."""

    arrived = False

    def query(self) -> bool:
        return self.arrived

    def record(self) -> None:
        self.arrived = False


def test_a_value_on_a_device_is_seen_when_it_arrives_and_not_waited_for():
    scalar, arrival = LaggingScalar(torch.device("cpu")), Arrival()
    assert scalar.look(torch.tensor(3.0)) == 3.0  # a CPU's at once
    scalar._arrival, scalar._landing = arrival, torch.zeros(())
    assert scalar.look(torch.tensor(5.0)) == 3.0
    assert scalar.look(torch.tensor(6.0)) == 3.0  # that of 5 is still under way
    arrival.arrived = True
    assert scalar.look(torch.tensor(7.0)) == 5.0
    arrival.arrived = True
    assert scalar.look(torch.tensor(8.0)) == 7.0
