"""What holds for every registered optimizer, objective and schedule, those added later included."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from components import head
from components.registry import Registry
from model_builder import GPT
from recipe.objectives import OBJECTIVES, make_objective
from recipe.optimizers import OPTIMIZERS, UpdateRule, make_optimizer, scale_problems
from recipe.schedules import LR_SCHEDULES, learning_rate_at
from tests.contract.test_compiled import checkpointed
from tests.measured import assert_close
from tests.other_values import another, least, others
from tests.parametrized import one_in
from tests.tiny import PATTERNS, VARIANTS, presets, tiny_config, tiny_model, tokens
from training.checkpoint import load_model_weights, load_optimizer, save_checkpoint
from training.optim import set_learning_rate
from training.sharded_tensors import gathered_weights
from training.step_guard import StepGuard
from training.updates import Updates
from training_config import TrainingConfig

MIXED: dict[str, Any] = {
    **PATTERNS["mixer=gated_deltanet+attention"],
    "ffn_type": "swiglu+moe",
    "n_experts": 4,
    "residual": "hyper_connections",
}
"""A recurrent mixer, attention, a mixture of experts and mixed streams in two layers."""

MODELS = {"gpt2": presets()["preset gpt2"], "llama": presets()["preset llama"], "mixed": MIXED}


def settings(**keys: Any) -> TrainingConfig:
    defaults = {"max_iters": 20, "learning_rate": 0.01, "warmup_iters": 2, "weight_decay": 0.1}
    return TrainingConfig.make(defaults, keys)


def every_option(registry: Registry) -> pytest.MarkDecorator:
    """For each option of each part: the part, the option, and another value."""
    return pytest.mark.parametrize(
        ("name", "key", "value"),
        [
            (name, key.name, another(key))
            for name in registry.names
            for key in registry.entry(name).keys.values()
        ],
    )


def test_the_mixed_model_has_everything():
    kinds = {type(module).__name__ for module in tiny_model(**MIXED).modules()}
    assert {"GatedDeltaNet", "Attention", "MoE", "HyperConnections"} <= kinds


# Optimizers

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS.names)


def optimizer_settings() -> dict[str, dict[str, Any]]:
    """Each optimizer with its defaults, with every option changed, and with 0 where allowed."""
    found: dict[str, dict[str, Any]] = {}
    for name in OPTIMIZERS.names:
        keys = OPTIMIZERS.entry(name).keys.values()
        found[name] = {"optimizer": name}
        found[f"{name}, changed"] = {"optimizer": name, **others(keys)}
        found[f"{name}, zeros"] = {"optimizer": name, **{key.name: least(key) for key in keys}}
    return found


OPTIMIZER_SETTINGS = optimizer_settings()
every_optimizer_setting = pytest.mark.parametrize("keys", one_in(2, OPTIMIZER_SETTINGS))


def made(model: GPT, config: TrainingConfig) -> UpdateRule:
    """An optimizer of the model, its learning rates set as the training loop sets them."""
    optimizer = make_optimizer(model, config)
    set_learning_rate(optimizer, config.learning_rate)
    return optimizer


def backward(call: Callable[..., Any], batch: int) -> Tensor:
    """The loss of a batch, its gradients taken."""
    idx = tokens(12, seed=batch)
    loss = call(idx, idx.roll(-1, 1), objective=make_objective(settings())).loss
    loss.backward()
    return loss.detach()


def train(call: Callable[..., Any], optimizer: UpdateRule, *batches: int) -> None:
    """One step per batch."""
    for batch in batches:
        optimizer.zero_grad()
        backward(call, batch)
        optimizer.step()


def values(model: GPT) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_same_state(
    model: GPT, optimizer: UpdateRule, other: GPT, other_optimizer: UpdateRule
) -> None:
    """That parameters, and what the optimizer keeps of them, are the same, bit for bit."""
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name
        kept, other_kept = optimizer.state.get(one, {}), other_optimizer.state.get(two, {})
        assert kept.keys() == other_kept.keys(), name
        assert all(torch.equal(kept[key], other_kept[key]) for key in kept), name


@every_optimizer
@pytest.mark.parametrize("share", [len(OPTIMIZERS.names), pytest.param(1, marks=pytest.mark.slow)])
def test_every_parameter_of_every_model_is_in_one_group(name, share):
    """Of every model; in every run of the tests, each optimizer has a share of the models."""
    training = settings(optimizer=name)
    for keys in [*VARIANTS.values()][OPTIMIZERS.names.index(name) % share :: share]:
        model = GPT(tiny_config(**keys))
        if list(scale_problems(model.config, training)):
            continue  # it is not defined for the parametrization
        groups = make_optimizer(model, training).param_groups
        grouped = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(grouped) == sorted(id(p) for p in model.parameters())
        vectors = [g for g in groups if any(p.ndim < 2 for p in g["params"])]
        assert all(group["weight_decay"] == 0 for group in vectors)
        assert sum(group["weight_decay"] == 0.1 for group in groups) >= 1


@every_optimizer
@pytest.mark.parametrize("keys", MODELS.values(), ids=MODELS)
def test_the_first_step_goes_down_the_gradient_of_every_parameter(name, keys):
    """All of it: each expert, each of the matrices that one weight stacks, each row.

    Weight decay is off, since it moves matrices whatever their gradient.
    """
    model = tiny_model(**keys).double()
    optimizer = made(model, settings(optimizer=name, weight_decay=0.0))
    backward(model, 1)
    before = values(model)
    optimizer.step()
    for (parameter_name, parameter), old in zip(model.named_parameters(), before, strict=True):
        gradient, step = parameter.grad, parameter.detach() - old
        matters = gradient.abs() > 1e-9
        assert matters.any(), parameter_name
        assert (step[matters] != 0).all(), parameter_name
        assert (step * gradient).sum() < 0, parameter_name


@every_option(OPTIMIZERS)
def test_every_option_of_an_optimizer_changes_its_steps(name, key, value):
    ends = []
    for changed in ({}, {key: value}):
        model = tiny_model(**MIXED)
        train(model, made(model, settings(optimizer=name, **changed)), 1, 2, 3)
        ends.append(values(model))
    assert all(tensor.isfinite().all() for end in ends for tensor in end)
    assert not all(map(torch.equal, *ends))


@every_optimizer_setting
def test_a_gradient_with_one_number_that_is_not_finite_changes_nothing(keys):
    """In the first step, which creates state, and later; the loss is finite."""
    model, reference = tiny_model(**MIXED), tiny_model(**MIXED)
    optimizer, other = (made(each, settings(**keys)) for each in (model, reference))
    guard = StepGuard(optimizer, max_bad_steps=10)
    for batch, poison in ((1, math.nan), (2, 0.0), (3, math.inf), (4, -math.inf), (5, 0.0)):
        optimizer.zero_grad()
        loss = backward(model, batch)
        model.blocks[1].ffn.experts.down.grad[-1, 0, 0] += poison
        guard.check(loss)
        if guard.allows_update():
            optimizer.step()
    train(reference, other, 2, 5)
    assert_same_state(model, optimizer, reference, other)
    assert guard.read().bad_steps == 3


@every_optimizer_setting
def test_a_checkpoint_has_all_that_an_optimizer_needs_to_go_on(keys, tmp_path):
    model = tiny_model(**MIXED)
    optimizer = made(model, settings(**keys))
    train(model, optimizer, 1, 2)
    path = saved(tmp_path, model, optimizer)
    train(model, optimizer, 3, 4)
    resumed = tiny_model(seed=99, **MIXED)
    resumed_optimizer = made(resumed, settings(**keys))
    load_model_weights(path, resumed)
    load_optimizer(path, Updates(resumed, resumed_optimizer))
    train(resumed, resumed_optimizer, 3, 4)
    assert_same_state(resumed, resumed_optimizer, model, optimizer)


def saved(folder: Path, model: GPT, optimizer: UpdateRule) -> Path:
    """A checkpoint of step 2."""
    return save_checkpoint(
        folder,
        step=2,
        weights=gathered_weights(model),
        kept=Updates(model, optimizer).gathered(),
        state={},
        val_loss=None,
        plugins={},
        keep=1,
    )


@pytest.mark.slow
@pytest.mark.parametrize("checkpoints", [False, True])
def test_optimizers_train_compiled_models(checkpoints):
    """Compiled once: the steps change the parameters of the compiled model in place."""
    torch._dynamo.reset()
    model = tiny_model(**MIXED).double()
    start, before = copy.deepcopy(model.state_dict()), values(model)
    compiled = torch.compile(
        checkpointed(model) if checkpoints else model, backend="aot_eager", fullgraph=True
    )
    for name in OPTIMIZERS.names:
        eager = tiny_model(**MIXED).double()
        model.load_state_dict(start)
        for call, trained in ((eager, eager), (compiled, model)):
            train(call, made(trained, settings(optimizer=name)), 1, 2)
        steps, expected = (
            torch.cat([(new - old).flatten() for new, old in zip(end, before, strict=True)])
            for end in (values(model), values(eager))
        )
        assert_close(steps, expected, 1e-6, f"the difference under {name}")


# Objectives

every_objective = pytest.mark.parametrize("name", OBJECTIVES.names)

Losses = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]


def loss_and_gradients(model: GPT, objective: Callable[..., Any]) -> Losses:
    """The loss, its terms and the gradients by parameter, with some targets left out."""
    model.zero_grad()
    output = model(*inputs_and_targets(), objective=objective)
    output.loss.backward()
    assert sum(output.terms.values()).item() == pytest.approx(output.loss.item(), rel=1e-5)
    assert not any(term.requires_grad for term in output.terms.values())
    return output.loss.detach(), output.terms, gradients_of(model)


def inputs_and_targets() -> tuple[Tensor, Tensor]:
    idx = tokens(12)
    targets = idx.roll(-1, 1)
    targets[:, -3:] = head.IGNORED
    return idx, targets


def gradients_of(model: GPT) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def changed_objective(name: str) -> Callable[..., Any]:
    """An objective with another value of every option."""
    keys = OBJECTIVES.entry(name).keys.values()
    return make_objective(settings(objective=name, **others(keys)))


def in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the LM head compute its loss five tokens at a time, the last chunk being smaller."""
    monkeypatch.setattr(head, "tokens_at_a_time", lambda *sizes: 5)


@every_option(OBJECTIVES)
def test_every_option_of_an_objective_changes_the_loss_and_the_gradients(name, key, value):
    model = tiny_model()
    plain, changed = (
        loss_and_gradients(model, make_objective(settings(objective=name, **keys)))
        for keys in ({}, {key: value})
    )
    assert not torch.equal(plain[0], changed[0])
    assert not torch.equal(plain[2]["embedding.weight"], changed[2]["embedding.weight"])


@every_objective
def test_an_objective_is_the_same_in_chunks(name, monkeypatch):
    model = tiny_model(output_softcap=3.0).double()
    whole = loss_and_gradients(model, changed_objective(name))
    in_chunks(monkeypatch)
    chunked = loss_and_gradients(model, changed_objective(name))
    torch.testing.assert_close(chunked, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@every_objective
def test_an_objective_compiles_whole(name):
    torch._dynamo.reset()
    eager = loss_and_gradients(tiny_model(), changed_objective(name))
    compiled = tiny_model()
    compiled.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(loss_and_gradients(compiled, changed_objective(name)), eager)


@pytest.mark.parametrize("chunked", [False, True])
@every_objective
def test_an_objective_whose_coefficients_are_0_is_plain_cross_entropy_bit_for_bit(
    name, chunked, monkeypatch
):
    if chunked:
        in_chunks(monkeypatch)
    off = {key: 0.0 for key in OBJECTIVES.entry(name).keys if key.endswith("_coef")}
    model = tiny_model()
    found = loss_and_gradients(model, make_objective(settings(objective=name, **off)))
    plain = loss_and_gradients(model, make_objective(settings()))
    torch.testing.assert_close(found, plain, rtol=0, atol=0)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("z_coef", [0.0, 0.25])
def test_cross_entropy_and_z_loss_are_what_their_formulas_give(z_coef, chunked, monkeypatch):
    """From all logits at once, without the tokens that have no target."""
    if chunked:
        in_chunks(monkeypatch)
    model = tiny_model(output_softcap=3.0).double()
    idx, targets = inputs_and_targets()
    counted = targets != head.IGNORED
    logits = model(idx)[counted]
    terms = {"cross_entropy": F.cross_entropy(logits, targets[counted])}
    if z_coef:
        terms["z_loss"] = z_coef * logits.exp().sum(dim=-1).log().square().mean()
    loss = sum(terms.values())
    loss.backward()
    expected = loss.detach(), {key: t.detach() for key, t in terms.items()}, gradients_of(model)
    found = loss_and_gradients(model, make_objective(settings(z_loss_coef=z_coef)))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


# Schedules


@every_option(LR_SCHEDULES)
def test_every_option_of_a_schedule_changes_the_rate(name, key, value):
    def rates(**keys: Any) -> list[float]:
        config = settings(lr_schedule=name, **keys)
        return [learning_rate_at(step, config) for step in range(20)]

    assert rates() != rates(**{key: value})


@pytest.mark.parametrize("name", LR_SCHEDULES.names)
def test_a_schedule_is_positive_and_reaches_the_learning_rate_but_no_more(name):
    """Between steps, where max_minutes puts a run, and past the end as well."""
    config = settings(lr_schedule=name)
    rates = [learning_rate_at(half / 2, config) for half in range(50)]
    assert min(rates) > 0
    assert max(rates) == pytest.approx(0.01)
