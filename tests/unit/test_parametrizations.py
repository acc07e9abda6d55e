"""muP and CompleteP against the tables of their papers, and the scales of Granite."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck

from components.parametrizations import PARAMETRIZATIONS
from configurator import load
from errors import ConfigError
from interop.families import FAMILIES
from interop.weights import copy_weights
from model_builder import GPT
from model_config import ModelArchitectureConfig
from recipe.optimizers import make_optimizer
from tests.measured import assert_close
from tests.tiny import ROPE, context, tiny_config, tiny_model, tokens
from training.optim import set_learning_rate
from training_config import TrainingConfig

WIDTH, DEPTH = 4, 3
"""The multipliers of the model below."""
LARGE = {"n_embd": 128, "n_layer": 6, "mup_base_width": 32}
SETTINGS = {"learning_rate": 0.01, "weight_decay": 0.1, "adam_eps": 1e-8, "max_iters": 9}


def large(parametrization: str, **keys: Any) -> GPT:
    """A model of 4 x the base width and 3 x the base depth."""
    torch.manual_seed(0)
    base = {"completep_base_depth": 2} if parametrization == "completep" else {}
    return GPT(tiny_config(parametrization=parametrization, **LARGE, **base, **keys))


def table(name: str, depth: float) -> tuple[float, float, float, float]:
    """Table 1 of CompleteP with alpha = 1, muP being the case of depth 1, for a parameter by its
    name: standard deviation, learning rate, weight decay and epsilon, with those of the base at
    1."""
    if name.startswith(("embedding", "positions", "head")):
        return 1.0, 1.0, 1.0, 1 / WIDTH
    if name.startswith("final_norm"):
        return math.nan, 1.0, 0.0, 1 / WIDTH
    if name.endswith("bias") or "norm" in name:
        return math.nan, 1.0, 0.0, 1 / (WIDTH * depth)
    return WIDTH**-0.5, 1 / WIDTH, float(WIDTH), 1 / (WIDTH * depth)


@pytest.mark.parametrize("parametrization", ["mup", "completep"])
def test_every_parameter_has_what_the_table_says(parametrization):
    model = large(parametrization, weight_tying=False)
    optimizer = make_optimizer(model, TrainingConfig(**SETTINGS))
    set_learning_rate(optimizer, 0.01)
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        std, rate, decay, eps = table(name, DEPTH if parametrization == "completep" else 1)
        if parametrization == "mup":
            eps = 1.0  # muP's own table has none
            std /= math.sqrt(12) if name.endswith(("out.weight", "down.weight")) else 1.0
        group = groups[parameter]
        assert group["lr"] == pytest.approx(0.01 * rate), name
        assert group["weight_decay"] == pytest.approx(0.1 * decay), name
        assert group["eps"] == pytest.approx(1e-8 * eps), name
        if not math.isnan(std):
            assert parameter.std().item() == pytest.approx(0.02 * std, rel=0.05), name


@pytest.mark.parametrize(("wide", "deep"), [(4, 1), (1, 4)])
def test_gradients_shrink_as_the_epsilon_of_completep(wide, deep):
    """Without weight tying; each in the root mean square over the layers."""

    def gradients(width: int, depth: int) -> dict[str, float]:
        torch.manual_seed(0)
        model = GPT(
            tiny_config(
                parametrization="completep",
                n_embd=64 * width,
                mup_base_width=64,
                n_layer=4 * depth,
                completep_base_depth=4,
                weight_tying=False,
                embedding_scale=50.0,
            )
        )
        idx = tokens(24, batch=8)
        model(idx, idx.roll(-1, 1))[1].backward()
        of_blocks = [b.ffn.up.weight.grad.square().mean() for b in model.blocks]
        return {
            "block": torch.stack(of_blocks).mean().sqrt().item(),
            "embedding": model.embedding.weight.grad.square().mean().sqrt().item(),
            "head": model.head.weight.grad.square().mean().sqrt().item(),
            "norm": model.final_norm.weight.grad.square().mean().sqrt().item(),
        }

    small, large = gradients(1, 1), gradients(wide, deep)
    shrunk = {name: small[name] / large[name] for name in small}
    assert shrunk["block"] == pytest.approx(wide * deep, rel=0.2)
    for name in ("embedding", "head", "norm"):
        assert shrunk[name] == pytest.approx(wide, rel=0.2), name


def test_the_scales_of_the_forward_pass():
    mup, completep = (large(name).config for name in ("mup", "completep"))
    assert (mup.logit_scale, mup.residual_scale, mup.attention_scale) == (1 / 4, 1.0, 1 / 32)
    assert (completep.logit_scale, completep.residual_scale) == (1 / 4, 1 / 3)
    rotated = {**ROPE, "mixer": "mla", "qk_nope_head_dim": 6, "qk_rope_head_dim": 4}
    assert tiny_config(parametrization="mup", **rotated).attention_scale == 1 / 10
    assert tiny_config(parametrization="mup", attention_scale=0.3).attention_scale == 0.3
    assert tiny_config(parametrization="mup").changed(n_embd=512).logit_scale == 0.5


def test_at_the_base_width_mup_trains_as_standard_but_for_the_scale_of_attention():
    losses = []
    for keys in ({}, {"parametrization": "mup", "mup_base_width": 32}):
        torch.manual_seed(0)
        model, idx = GPT(tiny_config(attention_scale=0.2, **keys)), tokens(20)
        optimizer = make_optimizer(model, TrainingConfig(**SETTINGS))
        for _ in range(3):
            loss = model(idx, idx.roll(-1, 1))[1]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


# The scales by themselves


def test_residual_scale_multiplies_what_is_added():
    model = tiny_model(residual_scale=0.3).double()
    plain = tiny_model().double()
    x = torch.randn(2, 5, 32, dtype=torch.float64, requires_grad=True)
    block, other = model.blocks[0], plain.blocks[0]
    middle = x + 0.3 * other.mixer(other.mixer_norm(x), context(x))
    expected = middle + 0.3 * other.ffn(other.ffn_norm(middle), context(x))

    def joined(x: torch.Tensor) -> torch.Tensor:
        return block.joined(x, context(x))

    assert_close(joined(x), expected, 1e-12)
    assert gradcheck(joined, x[:, :2].detach().requires_grad_())


def test_logit_scale_is_within_the_softcap():
    model = tiny_model(logit_scale=0.3, output_softcap=2.0, head_bias=True, weight_tying=False)
    plain = tiny_model(head_bias=True, weight_tying=False)
    idx = tokens(9)
    bias = plain.head.bias
    expected = 2 * torch.tanh((0.3 * (plain(idx) - bias) + bias) / 2)
    assert_close(model(idx), expected, 1e-5)


@torch.no_grad()
def test_granite_is_llama_with_four_scales():
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "vocab_size": 61}
    theirs = GraniteForCausalLM(
        GraniteConfig(
            **sizes,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
            embedding_multiplier=3.0,
            residual_multiplier=0.22,
            attention_multiplier=0.4,
            logits_scaling=1.7,
            tie_word_embeddings=False,
        )
    ).eval()
    config = ModelArchitectureConfig.from_preset(
        "llama",
        n_layer=2,
        n_head=4,
        n_kv_head=2,
        n_embd=32,
        ffn_hidden=40,
        vocab_size=61,
        block_size=24,
        norm_eps=1e-6,
        embedding_scale=3.0,
        residual_scale=0.22,
        attention_scale=0.4,
        logit_scale=1 / 1.7,
    )
    model = GPT(config).eval()
    copy_weights(model, FAMILIES["llama"], theirs.state_dict())
    idx = tokens(20)
    assert_close(model(idx), theirs(idx).logits, 1e-5)


# What is refused


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"mixer": "short_conv"}, ("parametrization", "mixer")),
        ({"ffn_type": "standard+moe"}, ("parametrization", "ffn_type")),
        ({"residual": "hyper_connections"}, ("parametrization", "residual")),
        ({"residual": "unet"}, ("parametrization", "residual")),
        ({"value_embedding": "gated"}, ("parametrization", "value_embedding")),
        ({"hidden_gain": True}, ("parametrization", "hidden_gain")),
        ({"sphere_weights": True, "bias": False}, ("parametrization", "sphere_weights")),
    ],
)
@pytest.mark.parametrize("parametrization", ["mup", "completep"])
def test_parts_without_rules_are_refused(parametrization, keys, named):
    with pytest.raises(ConfigError, match=f"'{parametrization}' is not defined for") as raised:
        tiny_config(parametrization=parametrization, **keys)
    assert [problem.keys for problem in raised.value.problems] == [named]


def test_completep_is_of_blocks_that_normalize_inputs():
    assert tiny_config(parametrization="mup", norm_position="post").logit_scale == 8
    with pytest.raises(ConfigError, match="not defined for norm_position='post'"):
        tiny_config(parametrization="completep", norm_position="post")


def test_optimizers_without_rules_are_refused():
    with pytest.raises(ConfigError, match="use optimizer='adamw' or 'lion'"):
        load(["--parametrization=mup", "--optimizer=muon"])
    model = tiny_model(parametrization="mup")
    with pytest.raises(ConfigError, match="'mup' is not defined for optimizer='sgd'"):
        make_optimizer(model, TrainingConfig(optimizer="sgd"))


def test_standard_parametrization_scales_nothing():
    assert not PARAMETRIZATIONS["standard"].scales_with_width
    groups = make_optimizer(tiny_model(), TrainingConfig(**SETTINGS)).param_groups
    assert all("rate_scale" not in group and group["eps"] == 1e-8 for group in groups)


@pytest.mark.parametrize("parametrization", ["standard", "completep"])
def test_zero_init_starts_residual_projections_at_0(parametrization):
    model = GPT(tiny_config(zero_init=True, parametrization=parametrization, ffn_type="swiglu"))
    for block in model.blocks:
        assert not block.mixer.out.weight.any()
        assert not block.ffn.down.weight.any()
        assert block.mixer.qkv.weight.any()
        assert block.ffn.gate_up.weight.any()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"residual": "ngpt", "normalization": "none"}, "zero_init=True makes 0; drop one"),
        (
            {"sphere_weights": True, "bias": False},
            "sphere_weights=True is not defined for zero_init",
        ),
    ],
)
def test_what_zero_init_cannot_be_combined_with(keys, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(zero_init=True, **keys)
