"""Bad steps under every optimizer: undone on the device, whatever the optimizer keeps."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from errors import UserError
from recipe.optimizers import OPTIMIZERS, UpdateRule, make_optimizer
from tests.unit.test_step_guard import ONES, Squares, assert_same, make_run, step
from training import step_guard
from training.optimizer_state import takes_found_inf
from training.step_guard import StepGuard
from training_config import TrainingConfig

FOREIGN: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    name: getattr(torch.optim, name)
    for name in (
        *("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam"),
        *("RAdam", "RMSprop", "Rprop", "SGD"),
    )
}
"""Optimizers of torch's that do not take found_inf, as they come."""


def run_with(optimizer: str) -> Any:
    """A run with an optimizer that a config chooses, or one of FOREIGN."""
    if optimizer in OPTIMIZERS:
        return make_run(optimizer=optimizer)
    run = make_run()
    run.optimizer = FOREIGN[optimizer](run.model.parameters())
    run.guard = StepGuard(run.optimizer, 10)
    return run


def state_of(run: Any) -> list[Any]:
    """Weights, and what the optimizer keeps, in the order of the parameters."""
    weights = list(run.model.parameters())
    return copy.deepcopy([[p.detach(), run.optimizer.state.get(p, {})] for p in weights])


@pytest.mark.parametrize("name", [*OPTIMIZERS.names, *FOREIGN])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_steps_leave_no_trace(name, bad):
    torch.manual_seed(1)
    batches = torch.randn(3, 2, 4)
    clean, disturbed = run_with(name), run_with(name)
    for x in batches:
        step(disturbed, x, scale=bad)
        step(disturbed, x)
        step(disturbed, -x, scale=bad)
        step(clean, x)
    assert_same(state_of(disturbed), state_of(clean))
    assert disturbed.guard.read().bad_steps == 6


def test_adamw_is_undone_as_well_where_its_kernel_does_not_skip(monkeypatch):
    monkeypatch.setattr(step_guard, "takes_found_inf", lambda optimizer, device: False)
    run = make_run()
    assert not hasattr(run.optimizer, "found_inf")
    step(run, ONES)
    before = state_of(run)
    step(run, ONES, scale=math.nan)
    assert_same(state_of(run), before)


def test_who_takes_found_inf():
    def taken(optimizer: torch.optim.Optimizer, device: str = "cpu") -> bool:
        return takes_found_inf(optimizer, torch.device(device))

    model = Squares()
    for name in OPTIMIZERS.names:
        optimizer = make_optimizer(model, TrainingConfig(optimizer=name))
        assert taken(optimizer)
        assert not taken(optimizer, "mps")
    assert not any(taken(make(model.parameters())) for make in FOREIGN.values())


def refuse_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensor.item, bool, int and tolist are the ways in which a value leaves the device."""

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("host-device sync")

    for name in ("item", "__bool__", "__int__", "__float__", "tolist", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refuse)


class Plain(UpdateRule, torch.optim.SGD):
    """Gradient descent that does not take found_inf."""

    def __init__(self, model: nn.Module):
        super().__init__(model.parameters(), lr=0.1, momentum=0.9, foreach=False)


@pytest.mark.parametrize("name", [*OPTIMIZERS.names, "without found_inf"])
def test_after_the_first_step_nothing_is_read_back_to_the_host(monkeypatch, name):
    run = make_run(scaled=True, optimizer=name if name in OPTIMIZERS else "adamw")
    if name not in OPTIMIZERS:
        run.optimizer = Plain(run.model)
        run.guard = StepGuard(run.optimizer, 10)
    step(run, ONES)
    refuse_to_wait(monkeypatch)
    for scale in (1.0, math.nan, 1.0):
        step(run, ONES, scale=scale, statistics=True)


def test_a_bad_first_step_is_seen_on_the_host_and_not_done():
    run = make_run(optimizer="lion")
    step(run, ONES, scale=math.nan)
    assert len(run.optimizer.state) == 0
    assert run.guard.read().bad_steps == 1


@pytest.mark.parametrize("name", ["sgd", "lion", "Adagrad", "RMSprop"])
def test_a_parameter_whose_first_gradient_is_bad_gets_no_state(name):
    """As an expert may that no token chose before."""
    run = run_with(name)
    late = run.model.layers[2].bias.requires_grad_(False)
    step(run, ONES)
    late.requires_grad_(True)
    before = state_of(run)
    step(run, ONES, scale=math.nan)
    assert_same(state_of(run), before)
    step(run, ONES)
    assert not torch.equal(late, before[3][0])
    assert run.guard.read().bad_steps == 1


# --- What cannot be undone


class Counting(UpdateRule):
    """Keeps what `kept` says, with the number of the step."""

    kept: Callable[[Counting, nn.Parameter, int], None]

    def __init__(self, model: nn.Module):
        super().__init__(model.parameters(), {"lr": 0.1})
        self.steps = 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        self.steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad, alpha=group["lr"])
                self.kept(parameter, self.steps)


def counter(self: Counting, parameter: nn.Parameter, steps: int) -> None:
    self.state[parameter]["step"] = steps


def elsewhere(self: Counting, parameter: nn.Parameter, steps: int) -> None:
    self.state[parameter]["step"] = torch.zeros((), device="meta")


def dotted(self: Counting, parameter: nn.Parameter, steps: int) -> None:
    self.state[parameter]["a.b"] = torch.zeros(())


def grouped(self: Counting, parameter: nn.Parameter, steps: int) -> None:
    self.param_groups[0]["k"] = steps


def grouped_tensor(self: Counting, parameter: nn.Parameter, steps: int) -> None:
    self.param_groups[0]["scale"] += 1


def shared(self: Counting, parameter: nn.Parameter, steps: int) -> None:
    self.state["all"] = {"step": torch.zeros(())}


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (counter, "stores 'step' of a parameter as int; store a tensor"),
        (elsewhere, r"stores 'step' on meta, but the parameter is on cpu; .*capturable=True"),
        (dotted, r"names a state 'a\.b'; use letters"),
        (grouped, "changes the group option 'k' during a step; store it in state"),
        (grouped_tensor, "changes the group option 'scale'"),
        (shared, "has state for 'all', which is not one of its parameters"),
    ],
)
def test_an_optimizer_whose_state_cannot_be_taken_back_is_refused(monkeypatch, kept, reason):
    monkeypatch.setattr(Counting, "kept", kept, raising=False)
    run = make_run()
    run.optimizer = Counting(run.model)
    run.optimizer.param_groups[0]["scale"] = torch.ones(())
    run.guard = StepGuard(run.optimizer, 10)
    with pytest.raises(UserError, match=rf"Counting cannot be used: it {reason}.*resume exactly"):
        step(run, ONES)


def test_state_that_comes_later_is_refused(monkeypatch):
    def late(self: Counting, parameter: nn.Parameter, steps: int) -> None:
        self.state[parameter]["first"] = torch.zeros(())
        if steps == 2:
            self.state[parameter]["second"] = torch.zeros(())

    monkeypatch.setattr(Counting, "kept", late, raising=False)
    run = make_run()
    run.optimizer = Counting(run.model)
    run.guard = StepGuard(run.optimizer, 10)
    step(run, ONES)
    message = (
        r"had the state \['first'\] for a parameter before a step and \['first', 'second'\] after"
    )
    with pytest.raises(UserError, match=message):
        step(run, ONES)


def test_state_that_is_replaced_by_new_tensors_is_taken_back(monkeypatch):
    def replaced(self: Counting, parameter: nn.Parameter, steps: int) -> None:
        old: Tensor = self.state[parameter].get("sum", torch.zeros_like(parameter))
        self.state[parameter]["sum"] = old + parameter.grad

    monkeypatch.setattr(Counting, "kept", replaced, raising=False)
    run = make_run()
    run.optimizer = Counting(run.model)
    run.guard = StepGuard(run.optimizer, 10)
    step(run, ONES)
    before = state_of(run)
    step(run, ONES, scale=math.inf)
    assert_same(state_of(run), before)
