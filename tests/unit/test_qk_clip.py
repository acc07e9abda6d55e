"""The largest attention logits against plain loops, and QK-Clip against its rule written out."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from components.attention_logits import LARGEST_LOGIT, MOST_QUERIES, largest_logits
from components.context import LARGEST
from configurator import load
from errors import ConfigError
from model_builder import GPT, TrainingOutput
from recipe.objectives import make_objective
from recipe.qk_clip import clip_attention_logits, measures_logits, measuring_flops
from tests.tiny import ROPE, tiny_config, tiny_model, tokens
from training.activation_checkpointing import checkpoint_block
from training.step_means import StepMeans
from training_config import TrainingConfig

T = 11
MLA = {**ROPE, "mixer": "mla", "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "bias": False}
SCALED: dict[str, dict[str, Any]] = {
    "one key head per head": {},
    "without biases, rope": {**ROPE, "bias": False},
    "grouped queries": {**ROPE, "n_kv_head": 2},
    "one key head": {"n_kv_head": 1},
    "window": {**ROPE, "sliding_window": 3},
    "scale": {"attention_scale": 0.7},
    "bias and softcap": {"position_encoding": "alibi", "attention_softcap": 3.0},
    "query scaling": {"query_scaling": "ssmax", "n_kv_head": 2},
    "canon": {"canon": "abcd", **ROPE},
    "differential": {"differential_attention": True},
    "sinks, forget gate": {"attention_sinks": True, "forget_gate": True},
    "beside mamba2": {
        **{"mixer": "attention_mamba2", "mamba_head_dim": 8, "attention_in_scale": 0.7},
        "n_kv_head": 2,
    },
    "mla": MLA,
    "mla with a latent of the queries": {**MLA, "q_lora_rank": 8, "v_head_dim": 5},
}
every_layer = pytest.mark.parametrize("keys", SCALED.values(), ids=SCALED)


def model_of(**keys: Any) -> GPT:
    """A model of one layer in double, whose logits exceed 1."""
    model = tiny_model(n_layer=1, **keys).double()
    with torch.no_grad():
        for parameter in model.blocks[0].mixer.parameters():
            parameter.mul_(3.0)
    return model


def run(model: GPT, idx: Tensor | None = None, **keys: Any) -> TrainingOutput:
    idx = tokens(T) if idx is None else idx
    return model(idx, idx.roll(-1, 1), objective=make_objective(TrainingConfig()), **keys)


def largest(model: GPT, idx: Tensor | None = None, layer: int = 0) -> Tensor:
    """The largest logit of each head, as measured."""
    return run(model, idx, measures=True).metrics[layer]["mixer"][LARGEST_LOGIT]


def by_loops(q: Tensor, k: Tensor, scale: float, window: int | None) -> Tensor:
    """The largest logit of each head."""
    (B, H, T, _), found = q.shape, torch.full((q.shape[1],), -torch.inf, dtype=q.dtype)
    for b, h, i in itertools.product(range(B), range(H), range(T)):
        for j in range(0 if window is None else max(0, i - window + 1), i + 1):
            logit = q[b, h, i] @ k[b, h * k.shape[1] // H, j] * scale
            found[h] = torch.maximum(found[h], logit)
    return found


# The measurement


@torch.no_grad()
@every_layer
def test_the_largest_logits_are_those_of_plain_loops(keys, monkeypatch):
    model = model_of(**keys)
    mixer, seen = model.blocks[0].mixer, []
    mixer = getattr(mixer, "attention", mixer)
    backend = mixer.backend

    def spy(q: Tensor, k: Tensor, *others: Any) -> Tensor:
        seen.append((q, k))
        return backend(q, k, *others)

    spy.needs = backend.needs
    monkeypatch.setattr(mixer, "backend", spy)
    found = largest(model)
    (q, k), scale = seen[0], model.config.attention_scale
    assert_close(found, by_loops(q, k, scale, keys.get("sliding_window")))
    assert_close(run(model, measures=True).loss, run(model).loss, rtol=0, atol=0)


@pytest.mark.parametrize("window", [None, 5, 300])
def test_long_sequences_are_measured_in_chunks(window):
    """Of the first query of a chunk, the first key that it attends to, and not the one before."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 4, 600, 3), torch.randn(2, 2, 600, 3)
    first = max(MOST_QUERIES - (window or 600) + 1, 0)
    q[0, :, MOST_QUERIES] = k[0, 0, first] = 9.0
    k[0, 1, max(first - 1, 0)] = 9.0
    scores = q @ k.repeat_interleave(2, dim=1).mT
    i, j = torch.arange(600)[:, None], torch.arange(600)
    hidden = (j > i) | (j <= i - (window or 600))
    expected = 0.5 * scores.masked_fill(hidden, -torch.inf).amax((0, 2, 3))
    assert_close(largest_logits(q, k, 0.5, window), expected)


@pytest.mark.parametrize(
    "keys", [{"sliding_window": 5, "n_kv_head": 2}, MLA, {"mtp": "sequential", "mtp_depth": 2}]
)
def test_its_flops_are_counted(keys):
    model = tiny_model(**keys)
    training = TrainingConfig(qk_clip=1.0, batch_size=2, gradient_accumulation_steps=3)
    counts = []
    for measures in (True, False):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(model, tokens(24), measures=measures)
        counts.append(counter.get_total_flops())
    assert tokens(24).shape == (2, 24)
    expected = 3 * (counts[0] - counts[1])
    assert measuring_flops(model, training.completed(24)) == expected > 0
    assert measuring_flops(model, TrainingConfig().completed(24)) == 0


@pytest.mark.slow
def test_metrics_do_not_depend_on_compiling_and_checkpointing():
    torch._dynamo.reset()
    keys, idx = {**ROPE, "n_kv_head": 2}, tokens(T)
    expected = largest(tiny_model(**keys), idx, layer=1)
    compiled = tiny_model(**keys)
    compiled.compile(backend="eager", fullgraph=True)
    assert_close(largest(compiled, idx, layer=1), expected)
    for kind in ("block", "selective"):
        again = tiny_model(**keys)
        for block in again.blocks:
            checkpoint_block(block, kind)
        output = run(again, idx, measures=True)
        output.loss.backward()
        assert_close(output.metrics[1]["mixer"][LARGEST_LOGIT], expected)


def test_a_step_has_the_maximum_of_its_micro_batches():
    model, whole = tiny_model(), tokens(T, batch=4)
    means = StepMeans(2)
    for idx in whole.chunk(2):
        means.add(run(model, idx, measures=True))
    expected = largest(model, whole)
    assert_close(means.output.metrics[0]["mixer"][LARGEST_LOGIT], expected)
    assert LARGEST_LOGIT.startswith(LARGEST)
    logged = means.read()[1][f"mixer.{LARGEST_LOGIT}"]
    assert len(logged) == 2
    assert logged[0] == pytest.approx(expected.tolist())


def test_when_it_is_measured():
    asked = {"qk_clip": {"qk_clip": 5.0}, "log": {"log_attention_logits": True}, "neither": {}}
    found = {
        name: [measures_logits(TrainingConfig(**keys), logs=logs) for logs in (True, False)]
        for name, keys in asked.items()
    }
    assert found == {"qk_clip": [True, True], "log": [True, False], "neither": [False, False]}


# Clipping


@every_layer
def test_clipped_heads_have_the_threshold_as_their_largest_logit(keys):
    model = model_of(**keys)
    before = largest(model)
    threshold = before.sort().values[1:3].mean().item()  # between those of two heads
    assert threshold > 0
    clip_attention_logits(model, run(model, measures=True).metrics, threshold)
    assert_close(largest(model), before.clamp(max=threshold))


@torch.no_grad()
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_the_rule_of_attention(key_heads):
    """q and k by the root of gamma with one key head per head, else q by gamma."""
    model = model_of(n_kv_head=key_heads)
    found, threshold = largest(model), 0.8 * largest(model).max().item()
    expected = copy.deepcopy(model.state_dict())
    clip_attention_logits(model, run(model, measures=True).metrics, threshold)
    gamma = [min(1.0, threshold / value) for value in found.tolist()]
    assert min(gamma) < 1
    D, power = 8, 0.5 if key_heads == 4 else 1.0
    for name in ("weight", "bias"):
        rows = expected[f"blocks.0.mixer.qkv.{name}"]
        for head, factor in enumerate(gamma):
            rows[D * head : D * (head + 1)] *= factor**power
            if key_heads == 4:
                rows[32 + D * head : 32 + D * (head + 1)] *= factor**0.5
    assert_close(model.state_dict(), expected)


@torch.no_grad()
def test_the_rule_of_multi_head_latent_attention():
    model = model_of(**MLA, v_head_dim=5)
    found, threshold = largest(model), 0.8 * largest(model).max().item()
    expected = copy.deepcopy(model.state_dict())
    clip_attention_logits(model, run(model, measures=True).metrics, threshold)
    q, kv = (expected[f"blocks.0.mixer.{name}.weight"] for name in ("q", "kv"))
    for head, value in enumerate(found.tolist()):
        gamma = min(1.0, threshold / value)
        own_q, own_kv = q[10 * head : 10 * (head + 1)], kv[11 * head : 11 * (head + 1)]
        own_q[:6] *= gamma**0.5
        own_q[6:] *= gamma
        own_kv[:6] *= gamma**0.5
    assert_close(model.state_dict(), expected)


@torch.no_grad()
def test_keys_of_several_layers_are_left_alone():
    """Queries take the whole factor, both in the layer of the keys and in the one that reads."""
    keys = {**ROPE, "n_layer": 3, "kv_sharing": "false*2+true", "bias": False}
    model = tiny_model(**keys).double()
    for block in model.blocks:
        block.mixer.qkv.weight.mul_(5.0)
    metrics, expected = run(model, measures=True).metrics, copy.deepcopy(model.state_dict())
    found = [layer["mixer"][LARGEST_LOGIT] for layer in metrics]
    threshold = 0.8 * min(layer.max().item() for layer in found)
    clip_attention_logits(model, metrics, threshold)
    for layer, largest_of in enumerate(found):
        weight = expected[f"blocks.{layer}.mixer.qkv.weight"]
        for head, value in enumerate(largest_of.tolist()):
            gamma = min(1.0, threshold / value)
            weight[8 * head : 8 * (head + 1)] *= gamma**0.5 if layer == 0 else gamma
            if layer == 0:
                weight[32 + 8 * head : 32 + 8 * (head + 1)] *= gamma**0.5
    assert_close(model.state_dict(), expected)


@pytest.mark.parametrize("case", ["skipped", "not finite", "below", "off"])
def test_what_changes_nothing(case):
    model = model_of()
    expected = copy.deepcopy(model.state_dict())
    metrics, threshold, good = run(model, measures=True).metrics, 1e-3, torch.ones(())
    if case == "skipped":
        good = torch.zeros(())
    elif case == "not finite":
        metrics[0]["mixer"][LARGEST_LOGIT] = torch.tensor([torch.nan, torch.inf] * 2)
    elif case == "below":
        threshold = 1e3
    else:
        threshold = 0.0
    clip_attention_logits(model, metrics, threshold, good)
    assert_close(model.state_dict(), expected, rtol=0, atol=0)


def test_layers_without_logits_are_left_alone():
    model = tiny_model(mixer="gated_deltanet+none+attention", n_layer=3, linear_n_head=4)
    expected = copy.deepcopy(model.blocks[:2].state_dict())
    output = run(model, measures=True)
    assert all(LARGEST_LOGIT not in layer.get("mixer", {}) for layer in output.metrics[:2])
    clip_attention_logits(model, output.metrics, 1e-3)
    assert_close(model.blocks[:2].state_dict(), expected, rtol=0, atol=0)
    assert_close(largest(model, layer=2), torch.full((4,), 1e-3))


# What is refused


@pytest.mark.parametrize(
    ("flags", "keys", "said"),
    [
        (["--qk_norm=True"], ("qk_clip", "qk_norm"), "qk_clip=9.0 cannot be combined with qk_norm"),
        (["--qk_sphere=True"], ("qk_clip", "qk_sphere"), "scales queries and keys to length 1"),
        (["--mixer=mamba2"], ("qk_clip", "mixer"), "no layer has attention logits (mixer=mamba2)"),
        (
            ["--position_encoding=cope"],
            ("qk_clip", "position_encoding"),
            "computes scores that are",
        ),
        (
            ["--position_encoding=rope+cope"],
            ("qk_clip", "position_encoding"),
            "cannot be combined with position_encoding='cope'",
        ),
        (["--tensor_parallel=2"], ("qk_clip", "tensor_parallel"), "use parallelism='fsdp'"),
    ],
)
def test_what_it_has_no_effect_on_is_refused(flags, keys, said):
    with pytest.raises(ConfigError) as raised:
        load(["--qk_clip=9", *flags])
    assert [problem.keys for problem in raised.value.problems] == [keys]
    assert said in str(raised.value)


def test_adapters_and_weights_on_the_sphere_are_refused():
    from recipe.qk_clip import logit_problems

    model = tiny_config()
    adapted = TrainingConfig(qk_clip=1.0, adapter="lora", init_from="model")
    (problem,) = logit_problems(model, adapted)
    assert problem.keys == ("qk_clip", "adapter")
    sphere = tiny_config(sphere_weights=True, bias=False)
    (problem,) = logit_problems(sphere, TrainingConfig(qk_clip=1.0))
    assert problem.keys == ("qk_clip", "sphere_weights")


def test_logits_can_be_logged_whatever_scales_them():
    load(["--log_attention_logits=True", "--qk_norm=True"])
    with pytest.raises(ConfigError, match="log_attention_logits=True has no effect: no layer"):
        load(["--log_attention_logits=True", "--mixer=short_conv"])
