"""The coordinate check of muP (Yang et al. 2022, appendix D.1): how much activations change in the
first steps must not depend on the width; and, with CompleteP, not on the depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from model_builder import GPT
from model_config import ModelArchitectureConfig
from recipe.optimizers import UpdateRule, make_optimizer
from tests.tiny import ROPE
from training.optim import set_learning_rate
from training_config import TrainingConfig

SIZES = {"n_layer": 2, "n_head": 4, "block_size": 16, "vocab_size": 61, "weight_tying": False}
MUP = {"parametrization": "mup", "mup_base_width": 32}
COMPLETEP = {**MUP, "parametrization": "completep"}
SCALED = {"mup": MUP, "completep": COMPLETEP}
LEARNING_RATE = 0.01
LARGEST_RATIO = 2.5
"""By which changes at two sizes may differ; those of `standard` grow with the width."""

Sizes = dict[str, float]
"""The root mean square of each activation or change, by the name of the activation."""


def activations(model: GPT, x: Tensor) -> dict[str, Tensor]:
    """The outputs of all sublayers, the residual stream at the end, and the logits."""
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: seen.update({name: output})

    for place in (0, -1):
        block = model.blocks[place]
        hooks = [
            block.mixer.register_forward_hook(note(f"mixer {place}")),
            block.ffn.register_forward_hook(note(f"ffn {place}")),
        ]
        if place:
            hooks.append(block.register_forward_hook(lambda m, i, o: seen.update(stream=o[0])))
        with torch.no_grad():
            seen["logits"] = model(x)
        for hook in hooks:
            hook.remove()
    return seen


def trained(
    keys: dict[str, Any],
    steps: int = 3,
    optimizer: str = "adamw",
    prepare: Callable[[UpdateRule], None] | None = None,
) -> tuple[Sizes, Sizes]:
    """Activations of a new model, and how much a few steps change them."""
    torch.manual_seed(0)
    model = GPT(ModelArchitectureConfig(**{**SIZES, **keys}))
    data = torch.randint(61, (8, 17), generator=torch.Generator().manual_seed(1))
    x, y = data[:, :-1], data[:, 1:]
    first = activations(model, x)
    training = TrainingConfig(max_iters=steps, warmup_iters=0, optimizer=optimizer)
    rule = make_optimizer(model, training)
    if prepare is not None:
        prepare(rule)
    set_learning_rate(rule, LEARNING_RATE / (3 if optimizer == "lion" else 1))
    for _ in range(steps):
        model(x, y)[1].backward()
        rule.step()
        rule.zero_grad()
    last = activations(model, x)
    return {k: rms(v) for k, v in first.items()}, {k: rms(last[k] - first[k]) for k in first}


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def growth(small: Sizes, large: Sizes) -> dict[str, float]:
    return {name: large[name] / small[name] for name in small}


def widened(keys: dict[str, Any], to: int = 256, **how: Any) -> tuple[Sizes, Sizes]:
    """By what factors a model 32 wide and one as wide as `to` differ: at first, and in how much a
    few steps change them."""
    small, large = (trained({**keys, "n_embd": width}, **how) for width in (32, to))
    return growth(small[0], large[0]), growth(small[1], large[1])


def assert_flat(first: Sizes, changes: Sizes) -> None:
    """At first activations may shrink with the width, as the logits do."""
    assert max(first.values()) < 1.5, first
    assert min(changes.values()) > 1 / LARGEST_RATIO, changes
    assert max(changes.values()) < LARGEST_RATIO, changes


@pytest.mark.parametrize("keys", SCALED.values(), ids=SCALED)
def test_at_eight_times_the_width_activations_change_as_much(keys):
    assert_flat(*widened(keys))


def test_without_a_parametrization_they_change_several_times_as_much():
    first, changes = widened({})
    assert min(changes.values()) > 4
    assert max(changes.values()) > 8 * LARGEST_RATIO
    assert max(first.values()) > LARGEST_RATIO


def without_rates(optimizer: UpdateRule) -> None:
    for group in optimizer.param_groups:
        group.pop("rate_scale", None)


@pytest.mark.parametrize(
    ("keys", "prepare", "too_large"),
    [
        ({"logit_scale": 1.0}, None, "logits"),
        ({}, without_rates, "ffn 0"),
    ],
    ids=["scale of the logits", "learning rates"],
)
def test_it_fails_without_one_of_the_rules(keys, prepare, too_large):
    _, changes = widened({**MUP, **keys}, prepare=prepare)
    assert changes[too_large] > LARGEST_RATIO


DEPTHS = (2, 16)


def deepened(keys: dict[str, Any]) -> Sizes:
    small, large = (trained({**keys, "n_embd": 32, "n_layer": depth}) for depth in DEPTHS)
    return growth(small[1], large[1])


def test_at_eight_times_the_depth_completep_changes_the_stream_no_more():
    assert deepened(COMPLETEP)["stream"] < 1.5 < deepened(MUP)["stream"]


MODELS = {
    "gpt2": {},
    "llama": {
        **ROPE,
        "normalization": "rmsnorm",
        "ffn_type": "swiglu",
        "n_kv_head": 2,
        "weight_tying": True,
        "bias": False,
    },
    "parallel, gate": {"norm_position": "parallel", "attention_gate": "channel"},
    "glu, qk_norm, value_embedding": {
        "ffn_type": "glu",
        "qk_norm": True,
        "value_embedding": "mixed",
    },
    "mla": {"mixer": "mla", **ROPE},
}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
@pytest.mark.parametrize("scaled", SCALED.values(), ids=SCALED)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_model_at_widths_up_to_sixteen_times(model, scaled, optimizer):
    for width in (64, 128, 256, 512):
        assert_flat(*widened({**scaled, **model}, width, steps=5, optimizer=optimizer))
