"""Looped layers: equal to a deeper model, written out, whose layers have copies of their weights.

The reference is that second derivation: no published model loops layers without changing them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from errors import ConfigError
from interop.families import FAMILIES
from model_builder import GPT
from model_config import ModelArchitectureConfig
from recipe.adapters import adapt
from recipe.objectives import make_objective
from tests.measured import assert_close
from tests.tiny import tiny_config, tiny_model, tokens
from training.smoke import _few_layers
from training_config import TrainingConfig

MIDDLE = {"n_layer": 4, "loop_count": 3, "loop_prelude": 1, "loop_coda": 1}
ORDER = [0, 1, 2, 1, 2, 1, 2, 3]

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rope, window": {"position_encoding": "rope", "sliding_window": 5, "n_kv_head": 2},
    "recurrent": {"mixer": "gated_deltanet", "linear_n_head": 4, "linear_chunk": 5},
    "convolutions": {"canon": "ac", "token_shift": "both"},
    "post": {"norm_position": "post"},
    "hyper-connections": {"residual": "mhc"},
    "experts": {"ffn_type": "moe"},
    "values of the first layer": {"value_residual": "learned"},
}
"""Parts that may not depend on the index of their layer, other than in initial weights."""

EVERY_KIND = pytest.mark.parametrize("keys", KINDS.values(), ids=KINDS)


def unrolled(model: GPT) -> GPT:
    """The model without loops, with a layer for each application."""
    keys = model.config.to_dict() | {"loop_count": 1, "loop_prelude": 0, "loop_coda": 0}
    config = ModelArchitectureConfig.from_dict(keys | {"n_layer": len(ORDER)})
    other = GPT(config).to(next(model.parameters()).dtype).eval()
    others = {k: v for k, v in model.state_dict().items() if not k.startswith("blocks.")}
    for place, layer in enumerate(ORDER):
        own = model.blocks[layer].state_dict()
        others |= {f"blocks.{place}.{name}": tensor for name, tensor in own.items()}
    other.load_state_dict(others)
    return other


def looped(**keys: Any) -> GPT:
    return tiny_model(**MIDDLE, **keys).double()


@EVERY_KIND
@torch.no_grad()
def test_logits_and_decoding_are_those_of_the_layers_written_out(keys):
    model, idx = looped(**keys), tokens(11)
    expected = unrolled(model)(idx)
    assert_close(model(idx), expected, 1e-12)
    state = model.new_state(2)
    parts = [model(piece, state=state) for piece in idx.split([4, 1, 1, 5], dim=1)]
    assert_close(torch.cat(parts, dim=1), expected, 1e-12)
    assert len(state.layers) == len(ORDER)


@EVERY_KIND
def test_gradients_are_summed_over_the_applications(keys):
    model, idx = looped(**keys), tokens(11)
    other = unrolled(model)
    for each in (model, other):
        each(idx, idx)[1].backward()
    for layer, block in enumerate(model.blocks):
        places = [place for place, one in enumerate(ORDER) if one == layer]
        for name, parameter in block.named_parameters():
            copies = [other.blocks[place].get_parameter(name).grad for place in places]
            assert_close(parameter.grad, sum(copies), 1e-10)


@EVERY_KIND
def test_cost_is_that_of_the_layers_written_out_but_parameters_count_once(keys):
    model = looped(**keys)
    other = unrolled(model)
    for causal in (False, True):
        assert model.flops_per_token(16, causal) == other.flops_per_token(16, causal)
    assert model.decoding_state_bytes(16) == other.decoding_state_bytes(16)
    assert model.attention_ffn_ratio(16) == other.attention_ffn_ratio(16)
    assert model.num_parameters() == GPT(tiny_config(n_layer=4, **keys)).num_parameters()


@pytest.mark.parametrize("pattern", ["blocks.0.*", "blocks.1.*", "blocks.2.*", "blocks.3.*", "out"])
@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_cost_of_adapters_equals_the_counter(adapter, pattern):
    """Nothing before the first adapter has a gradient: in the first application, not in others."""
    training = TrainingConfig(init_from="model", adapter=adapter, adapter_pattern=pattern)
    model, idx = tiny_model(**MIDDLE), tokens(12)
    adapt(model, training)
    model.train()
    with FlopCounterMode(display=False) as counter:
        model(idx, idx, objective=make_objective(training)).loss.backward()
    per_pass = model.cost_report(12).get("adapter_flops_per_pass", 0)
    assert counter.get_total_flops() == model.flops_per_token(12) * idx.numel() + per_pass


def test_metrics_and_losses_of_experts_cover_all_applications():
    keys = {"ffn_type": "moe", "router_bias_rate": 0.01}
    model, idx = looped(**keys), tokens(11)
    other = unrolled(model)
    objective = make_objective(TrainingConfig())
    output, expected = (each.train()(idx, idx, objective=objective) for each in (model, other))
    assert output.terms.keys() == expected.terms.keys()
    for name, term in expected.terms.items():
        assert_close(output.terms[name], term, 1e-10)
    assert len(output.metrics) == 4
    for layer, own in enumerate(output.metrics):
        places = [place for place, one in enumerate(ORDER) if one == layer]
        for name, value in own["ffn"].items():
            each = torch.stack([expected.metrics[place]["ffn"][name] for place in places])
            assert_close(value, each.double().mean(dim=0), 1e-10)
    model.after_step(output.metrics)
    assert all(block.ffn.router.expert_bias.any() for block in model.blocks)


def test_the_largest_logits_are_those_of_all_applications():
    model, idx = looped(), tokens(11)
    objective = make_objective(TrainingConfig())
    own, expected = (
        each(idx, idx, objective=objective, measures=True).metrics
        for each in (model, unrolled(model))
    )
    largest = [layer["mixer"]["largest_attention_logit"] for layer in own]
    each = [layer["mixer"]["largest_attention_logit"] for layer in expected]
    for layer, found in enumerate(largest):
        of_layer = torch.stack([each[place] for place, one in enumerate(ORDER) if one == layer])
        assert_close(found, of_layer.amax(dim=0), 1e-10)


def test_residual_projections_start_by_the_effective_depth():
    keys = {"n_embd": 144, "vocab_size": 97}
    deep = GPT(tiny_config(**MIDDLE, **keys))
    flat = GPT(tiny_config(n_layer=4, **keys))
    assert deep.config.effective_depth == 8
    for name in ("mixer.out.weight", "ffn.down.weight"):
        for one, other in zip(deep.blocks, flat.blocks, strict=True):
            assert_close(one.get_parameter(name), other.get_parameter(name) * (4 / 8) ** 0.5, 1e-6)


def test_smaller_models_keep_a_looped_layer():
    config = tiny_config(**{**MIDDLE, "n_layer": 12, "loop_prelude": 4, "loop_coda": 3})
    assert [few.n_layer for few in _few_layers(config)] == [8, 8]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"loop_prelude": 1}, "loop_prelude=1 has no effect with loop_count=1"),
        ({"loop_coda": 2}, "loop_coda=2 has no effect with loop_count=1"),
        (
            {"loop_count": 2, "loop_prelude": 1, "loop_coda": 1},
            "loop_prelude=1 and loop_coda=1 leave none of n_layer=2 layers for loop_count=2",
        ),
        ({"loop_count": 2, "residual": "unet"}, "loop_count=2 is not defined for residual='unet'"),
        (
            {"loop_count": 2, "residual": "attention"},
            "loop_count=2 is not defined for residual='attention'",
        ),
        (
            {"loop_count": 2, "parametrization": "completep"},
            "loop_count=2 is not defined for parametrization='completep'",
        ),
        (
            {"loop_count": 2, "layer_norm_scaling": True},
            "loop_count=2 is not defined for layer_norm_scaling=True",
        ),
    ],
)
def test_what_cannot_be_looped_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(**keys)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_other_projects_have_no_field_for_loops(family):
    config = ModelArchitectureConfig.from_preset(family, **MIDDLE)
    problems = FAMILIES[family].misfits(config)
    assert {"loop_count", "loop_prelude", "loop_coda"} <= {k for p in problems for k in p.keys}
    assert any("loop_count=3" in problem.message for problem in problems)


def test_the_name_tells_the_loops():
    assert tiny_config(**MIDDLE).architecture_name.endswith("Loop3-Prelude1-Coda1")
