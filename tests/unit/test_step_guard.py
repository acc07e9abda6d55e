"""The training step of train.py: one update of AdamW, and steps that are not finite skipped."""

from __future__ import annotations

import copy
import inspect
import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import train
from model_builder import TrainingOutput
from recipe.optimizers import make_optimizer, parameter_groups
from training.gradients import Gradients
from training.parallel import Replicated
from training.step_guard import Diverged, LaggingScalar, StepGuard
from training.updates import Updates
from training.workers import ALONE
from training_config import TrainingConfig


class Squares(nn.Module):
    """A small model, whose loss is the mean square of its output times the target."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3))

    def forward(
        self, x: Tensor, scale: Tensor, objective: None = None, measures: bool = False
    ) -> TrainingOutput:
        return TrainingOutput(self.layers(x).square().mean() * scale, {}, [])

    def after_step(self, metrics: list, good: Tensor) -> None:
        self.last_was_good = good


def make_run(*, scaled: bool = False, **values) -> SimpleNamespace:
    """What `train_step` uses of a run; `scaled` scales the loss, as float16 needs."""
    config = TrainingConfig(**values)
    model = Squares()
    optimizer = make_optimizer(model, config)
    return SimpleNamespace(
        settings=SimpleNamespace(training=config),
        workers=ALONE,
        placement=Replicated(ALONE, torch.device("cpu")),
        updates=Updates(model, optimizer),
        device=torch.device("cpu"),
        dtype=torch.float32,
        model=model,
        network=model,
        objective=None,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler("cpu", enabled=scaled),
        guard=StepGuard(optimizer, config.max_bad_steps),
    )


def step(run, x, *, learning_rate=0.01, scale=1.0, statistics=False, micro_batches=1) -> None:
    """A step of train.py, whose loss is multiplied by `scale`."""
    inputs = torch.stack(x.chunk(micro_batches))
    targets = torch.full((micro_batches,), scale)
    train.train_step(run, inputs, targets, learning_rate, statistics=statistics)


def snapshot(run):
    return copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()["state"]))


def assert_same(left, right) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=0)


ONES = torch.ones(2, 4)


# --- statistics


def test_gradient_statistics_equal_those_of_the_concatenated_gradient():
    model = Squares()
    model(torch.randn(5, 4), 1).loss.backward()
    model.layers[0].bias.grad = None
    found = Gradients(model.parameters()).statistics()
    entries = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(found["norm"], entries.norm())
    torch.testing.assert_close(found["mean"], entries.mean())
    torch.testing.assert_close(found["std"], entries.std(correction=0))


def test_equal_gradients_have_no_deviation():
    weight = nn.Parameter(torch.zeros(7))
    weight.grad = torch.full((7,), 0.1)
    assert Gradients([weight]).statistics()["std"].item() == pytest.approx(0.0, abs=1e-4)


def test_statistics_without_a_gradient_are_an_error():
    with pytest.raises(ValueError, match="No parameter has a gradient"):
        Gradients(Squares().parameters()).statistics()


# --- the step


def test_a_step_can_be_read_in_train_py():
    """Forward, backward, clipping, update and clearing are there to see, in their order."""
    source = inspect.getsource(train.train_step)
    parts = ["run.model(", ".backward()", "clip_gradients(", "optimizer.step()", "zero_grad("]
    assert all(source.count(part) == 1 for part in parts)
    assert sorted(parts, key=source.index) == parts
    assert len(inspect.getsource(train).splitlines()) < 350


def test_a_step_is_what_clipping_and_adamw_do():
    run = make_run(grad_clip=0.05)
    reference = copy.deepcopy(run.model)
    plain = torch.optim.AdamW(parameter_groups(reference, 0.1), betas=(0.9, 0.95), foreach=False)
    torch.manual_seed(1)
    for number in range(3):
        x = torch.randn(6, 4)
        step(run, x, learning_rate=0.01 * (number + 1))
        for group in plain.param_groups:
            group["lr"] = 0.01 * (number + 1)
        reference(x, 1).loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.05)
        plain.step()
        plain.zero_grad()
        assert run.guard.read().gradients == {"norm": pytest.approx(norm.item())}
        assert norm > 0.05
    torch.testing.assert_close(run.model.state_dict(), reference.state_dict())
    assert all(p.grad is None for p in run.model.parameters())


def test_without_clipping_the_norm_is_only_measured():
    torch.manual_seed(1)
    x = torch.randn(6, 4)
    weights = []
    for clip in (0.0, 1e9):
        run = make_run(grad_clip=clip)
        step(run, x)
        weights.append(run.model.state_dict())
        assert run.guard.read().gradients["norm"] > 0
    assert_same(*weights)


def test_micro_batches_add_up_to_the_whole_batch():
    torch.manual_seed(1)
    x = torch.randn(8, 4)
    whole, split = make_run(), make_run()
    step(whole, x)
    step(split, x, micro_batches=4)
    torch.testing.assert_close(whole.model.state_dict(), split.model.state_dict())
    assert split.guard.read().loss == pytest.approx(whole.guard.read().loss)


@pytest.mark.parametrize("bad_value", [math.nan, math.inf])
@pytest.mark.parametrize("first", [True, False])
def test_a_non_finite_step_changes_neither_weights_nor_moments_nor_count(bad_value, first):
    run = make_run()
    if not first:
        step(run, ONES)
    before = snapshot(run)
    step(run, ONES, scale=bad_value)
    assert_same(snapshot(run), before)
    assert run.guard.read().bad_steps == 1
    assert all(p.grad is None for p in run.model.parameters())
    step(run, ONES)
    assert not torch.equal(run.model.layers[0].weight, before[0]["layers.0.weight"])


def test_a_non_finite_gradient_under_a_finite_loss_is_bad_and_the_other_way_round():
    run = make_run()
    parameter = run.model.layers[2].bias
    for gradient, loss in ((math.inf, 1.0), (1.0, math.nan), (1.0, 1.0)):
        parameter.grad = torch.full_like(parameter, gradient)
        run.guard.check(torch.tensor(loss))
        is_bad = bool(run.optimizer.found_inf)
        assert is_bad == (not math.isfinite(gradient + loss))
    report = run.guard.read()
    assert (report.bad_steps, report.longest_bad_run) == (2, 2)


def test_counts_of_bad_steps():
    run = make_run(max_bad_steps=4)
    for scale in (math.nan, 1, math.nan, math.nan, math.nan, 1, math.nan):
        step(run, ONES, scale=scale)
    report = run.guard.read()
    assert (report.bad_steps, report.longest_bad_run) == (5, 3)
    assert math.isnan(report.loss)
    run.guard.stop_if_stuck(report)
    assert not run.guard.stuck()


def test_too_many_bad_steps_in_a_row_stop_the_run_even_if_it_recovered_before_the_log():
    run = make_run(max_bad_steps=2)
    for scale in (math.nan, math.nan, 1):
        step(run, ONES, scale=scale)
    assert run.guard.stuck()
    report = run.guard.read()
    with pytest.raises(Diverged, match=r"2 steps in a row .*max_bad_steps=2.*learning_rate"):
        run.guard.stop_if_stuck(report)


def test_the_report_has_loss_and_statistics():
    run = make_run()
    loss = run.model(ONES, 1).loss
    loss.backward()
    expected = Gradients(run.model.parameters()).statistics()
    run.optimizer.zero_grad()
    step(run, ONES, statistics=True)
    report = run.guard.read()
    assert report.loss == loss.item()
    assert report.gradients == {key: value.item() for key, value in expected.items()}


# --- float16


def test_float16_gradients_are_unscaled_and_an_overflow_lowers_the_scale_and_is_counted():
    run, reference = make_run(scaled=True, grad_clip=0.0), make_run(grad_clip=0.0)
    step(run, ONES)
    step(reference, ONES)
    torch.testing.assert_close(run.model.state_dict(), reference.model.state_dict())
    assert run.scaler.get_scale() == 65536.0

    before = snapshot(run)
    step(run, ONES, scale=1e36)  # finite; its scaled gradient is not
    assert_same(snapshot(run), before)
    report = run.guard.read()
    assert math.isfinite(report.loss)
    assert (report.bad_steps, run.scaler.get_scale()) == (1, 32768.0)


# --- state


def test_counters_survive_json():
    run = make_run()
    for scale in (math.nan, math.nan, 1, math.nan):
        step(run, ONES, scale=scale)
    state = json.loads(json.dumps(run.guard.state_dict(), allow_nan=False))
    resumed = make_run()
    resumed.guard.load_state_dict(state)
    step(resumed, ONES, scale=math.nan)
    report = resumed.guard.read()
    assert (report.bad_steps, report.longest_bad_run) == (4, 2)


def test_a_bad_spell_before_a_resumption_does_not_stop_the_run_again():
    run = make_run(max_bad_steps=2)
    for scale in (math.nan, math.nan, 1):
        step(run, ONES, scale=scale)
    resumed = make_run(max_bad_steps=2)
    resumed.guard.load_state_dict(run.guard.state_dict())
    step(resumed, ONES)
    resumed.guard.stop_if_stuck(resumed.guard.read())
    assert resumed.guard.read().bad_steps == 2


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
