"""What holds for every registered optimizer, objective and schedule, those added later included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from components import head
from components.registry import Registry
from model_builder import GPT
from options import Key
from recipe.objectives import OBJECTIVES, make_objective
from recipe.optimizers import OPTIMIZERS, make_optimizer
from recipe.schedules import LR_SCHEDULES, learning_rate_at
from tests.contract.test_compiled import checkpointed
from tests.tiny import PATTERNS, tiny_model, tokens
from training.optim import set_learning_rate
from training_config import TrainingConfig

MODEL: dict[str, Any] = {
    **PATTERNS["mixer=gated_deltanet+attention"],
    "ffn_type": "swiglu+moe",
    "n_experts": 4,
    "residual": "hyper_connections",
}
"""A recurrent mixer, attention, a mixture of experts and mixed streams in two layers."""


def settings(**keys: Any) -> TrainingConfig:
    defaults = {"max_iters": 20, "learning_rate": 0.01, "warmup_iters": 2, "weight_decay": 0.1}
    return TrainingConfig.make(defaults, keys)


def another(key: Key) -> Any:
    """A value of a key that is not the default."""
    default = key.default
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 1
    if isinstance(default, float):
        return default / 2 if default else 0.25
    if key.choices:
        return next(name for name in key.choices if name != default)
    return {"min_lr": 0.005, "lr_decay_iters": 10}[key.name]


def options(registry: Registry) -> list[tuple[str, str, Any]]:
    """Each option of each part: the part, the option, and another value."""
    return [
        (name, key.name, another(key))
        for name in registry.names
        for key in registry.entry(name).keys.values()
    ]


# Optimizers


def trained(config: TrainingConfig, *, steps: int = 3, compiles: bool = False) -> list[Tensor]:
    """The parameters of MODEL after some steps."""
    model = tiny_model(**MODEL)
    optimizer = make_optimizer(model, config)
    set_learning_rate(optimizer, config.learning_rate)
    call = model
    if compiles:
        torch._dynamo.reset()
        call = torch.compile(checkpointed(model), backend="aot_eager", fullgraph=True)
    objective = make_objective(config)
    for step in range(steps):
        idx = tokens(12, seed=step)
        optimizer.zero_grad()
        call(idx, idx.roll(-1, 1), objective=objective).loss.backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_a_step_moves_every_parameter(name):
    """But those of experts that no token has chosen."""
    before = [parameter.detach() for parameter in tiny_model(**MODEL).parameters()]
    after = trained(settings(optimizer=name))
    for old, new in zip(before, after, strict=True):
        assert torch.isfinite(new).all()
        assert not torch.equal(old, new)


@pytest.mark.parametrize(("name", "key", "value"), options(OPTIMIZERS))
def test_every_option_of_an_optimizer_changes_its_steps(name, key, value):
    plain = trained(settings(optimizer=name))
    changed = trained(settings(optimizer=name, **{key: value}))
    assert not all(map(torch.equal, plain, changed))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_optimizers_train_compiled_models_with_checkpointed_blocks(name):
    config = settings(optimizer=name, learning_rate=1e-4)
    eager, compiled = (trained(config, steps=1, compiles=compiles) for compiles in (False, True))
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_the_state_of_an_optimizer_is_all_that_it_needs_to_go_on(name):
    config, model = settings(optimizer=name), tiny_model(**MODEL)
    optimizer = make_optimizer(model, config)
    for step in range(3):
        if step == 2:
            state = optimizer.state_dict()
            optimizer = make_optimizer(model, config)
            optimizer.load_state_dict(state)
        idx = tokens(12, seed=step)
        optimizer.zero_grad()
        model(idx, idx.roll(-1, 1))[1].backward()
        optimizer.step()
    reference = tiny_model(**MODEL)
    whole = make_optimizer(reference, config)
    for step in range(3):
        idx = tokens(12, seed=step)
        whole.zero_grad()
        reference(idx, idx.roll(-1, 1))[1].backward()
        whole.step()
    assert all(map(torch.equal, model.parameters(), reference.parameters()))


# Objectives


def loss_and_gradients(model: GPT, config: TrainingConfig) -> tuple[Tensor, dict[str, Tensor]]:
    idx = tokens(12)
    targets = idx.roll(-1, 1)
    targets[:, -3:] = head.IGNORED
    model.zero_grad()
    output = model(idx, targets, objective=make_objective(config))
    output.loss.backward()
    assert sum(output.terms.values()).item() == pytest.approx(output.loss.item(), rel=1e-5)
    return output.loss.detach(), {
        name: parameter.grad.clone() for name, parameter in model.named_parameters()
    }


@pytest.mark.parametrize(("name", "key", "value"), options(OBJECTIVES))
def test_every_option_of_an_objective_changes_the_loss_and_the_gradients(name, key, value):
    model = tiny_model()
    plain = loss_and_gradients(model, settings(objective=name))
    changed = loss_and_gradients(model, settings(objective=name, **{key: value}))
    assert not torch.equal(plain[0], changed[0])
    assert not torch.equal(plain[1]["embedding.weight"], changed[1]["embedding.weight"])


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES.names)
def test_an_objective_is_the_same_in_chunks(name, tuned, monkeypatch):
    changes = {key.name: another(key) for key in OBJECTIVES.entry(name).keys.values()}
    config = settings(objective=name, **(changes if tuned else {}))
    model = tiny_model(output_softcap=3.0).double()
    whole = loss_and_gradients(model, config)
    monkeypatch.setattr(head, "tokens_at_a_time", lambda tokens, vocab_size: 5)
    torch.testing.assert_close(loss_and_gradients(model, config), whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES.names)
def test_an_objective_compiles_whole(name):
    torch._dynamo.reset()
    changes = {key.name: another(key) for key in OBJECTIVES.entry(name).keys.values()}
    config = settings(objective=name, **changes)
    eager = loss_and_gradients(tiny_model(), config)
    compiled = tiny_model()
    compiled.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(loss_and_gradients(compiled, config), eager)


@pytest.mark.parametrize("name", OBJECTIVES.names)
def test_an_objective_without_its_terms_is_cross_entropy(name):
    """By default no auxiliary term is on, and tokens without a target do not count."""
    model = tiny_model()
    loss, gradients = loss_and_gradients(model, settings(objective=name))
    idx = tokens(12)
    model.zero_grad()
    plain = F.cross_entropy(model(idx)[:, :-3].flatten(0, 1), idx.roll(-1, 1)[:, :-3].flatten())
    plain.backward()
    torch.testing.assert_close(loss, plain.detach())
    torch.testing.assert_close(gradients["embedding.weight"], model.embedding.weight.grad)


# Schedules


@pytest.mark.parametrize(("name", "key", "value"), options(LR_SCHEDULES))
def test_every_option_of_a_schedule_changes_the_rate(name, key, value):
    def rates(**keys: Any) -> list[float]:
        config = settings(lr_schedule=name, **keys)
        return [learning_rate_at(step, config) for step in range(20)]

    assert rates() != rates(**{key: value})


@pytest.mark.parametrize("name", LR_SCHEDULES.names)
def test_a_schedule_is_positive_and_never_above_the_learning_rate(name):
    config = settings(lr_schedule=name)
    rates = [learning_rate_at(step, config) for step in range(25)]
    assert min(rates) > 0
    assert max(rates) == pytest.approx(0.01)


def test_the_model_of_these_tests_has_everything():
    kinds = {type(module).__name__ for module in tiny_model(**MODEL).modules()}
    assert {"GatedDeltaNet", "Attention", "MoE", "HyperConnections"} <= kinds
