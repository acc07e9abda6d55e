"""What must hold for every part and preset, whatever it is: swept over the registries."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from components.attention_backends import ATTENTION_BACKENDS, attention_needs, window_of
from components.layer_config import LayerConfig
from components.norms import make_norm
from model_builder import GPT
from model_config import ModelArchitectureConfig
from recipe.optimizers import parameter_groups
from tests.measured import assert_close, relative_error
from tests.parametrized import one_in
from tests.tiny import (
    SIZES,
    VARIANTS,
    some_variants,
    tiny_config,
    tiny_model,
    tokens,
    training_loss,
)

T = 16


@some_variants(0)
def test_shapes_and_loss(keys):
    model, idx = tiny_model(**keys), tokens(T + 1)
    x, y = idx[:, :-1], idx[:, 1:].clone()
    y[0, :3] = -1
    logits = model(x)
    assert logits.shape == (2, T, model.config.vocab_size)
    again, loss = model(x, y)
    assert torch.equal(logits, again)
    log_p = F.log_softmax(logits.double(), dim=-1)
    kept = y >= 0
    expected = -log_p.gather(2, y.clamp(min=0)[..., None])[..., 0][kept].mean()
    assert_close(loss, expected, 1e-5)


@some_variants(1)
def test_causal_at_every_position(keys):
    model, idx = tiny_model(**keys), tokens(T)
    logits = model(idx)
    for t in range(1, T):
        changed = idx.clone()
        changed[:, t:] = (changed[:, t:] + 7) % SIZES["vocab_size"]
        other = model(changed)
        assert_close(other[:, :t], logits[:, :t], 1e-5, f"what position {t} leaks back")
        assert relative_error(other[:, t], logits[:, t]) > 1e-4, f"{t} does not see itself"


@some_variants(2)
def test_every_parameter_learns(keys):
    model = tiny_model(**keys).train()
    idx = torch.arange(SIZES["vocab_size"])[None, : SIZES["block_size"]].repeat(3, 1)
    training_loss(model, idx, idx.roll(1, 1)).backward()
    groups = parameter_groups(model, weight_decay=0.1)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.isfinite().all(), f"{name} has a gradient that is not finite"
        learns = parameter.grad.abs().sum() > 0
        # softmax cancels what all keys of a query share, and a window of 1 all queries
        assert learns or "norm" in name, f"{name} has a gradient of zero"


def of_attention(keys: dict) -> bool:
    """Whether every layer has attention whose FLOPs the counter counts completely. Those of PaTH
    are counted as in decoding instead (unit/test_path_attention.py)."""
    layers = tiny_config(**keys).layers
    return all(layer.get("position_encoding", "path") != "path" for layer in layers) and all(
        layer.mixer == "attention" for layer in layers
    )


ATTENTION = {name: keys for name, keys in VARIANTS.items() if of_attention(keys)}
every_attention = pytest.mark.parametrize("keys", one_in(2, ATTENTION))


def attending(config: ModelArchitectureConfig) -> list[LayerConfig]:
    """The layers that have a backend of attention."""
    return [layer for layer in config.layers if "attention_backend" in layer]


def asks_of_backends(keys: dict) -> tuple:
    """What the layers' backends are asked for and called with; empty without attention."""
    shape = ("n_head", "n_kv_head", "head_dim", "position_encoding", "qk_norm")
    return tuple(
        (attention_needs(layer), layer.index, *(layer.get(key) for key in shape))
        for layer in attending(tiny_config(**keys))
    )


FIRST_ASKED = {asks_of_backends(keys): name for name, keys in reversed(VARIANTS.items())}
every_use_of_backends = pytest.mark.parametrize(
    "keys",
    one_in(8, {name: VARIANTS[name] for asks, name in reversed(FIRST_ASKED.items()) if asks}),
)


def biases(model: GPT) -> int:
    """FLOPs of the score biases for one pair of positions."""
    return sum(encoding.forward_flops(1) for encoding in model.position_encodings)


@every_attention
@pytest.mark.parametrize("length", [pytest.param(T, marks=pytest.mark.slow), SIZES["block_size"]])
def test_cost_equals_the_counter(keys, length):
    """A training step is 3 x forward, which equals the count of forward and backward exactly. The
    counter ignores windows. It counts the backward pass of depthwise convolutions as if every
    channel read all others, so with Canon layers only the forward pass is compared. The sequences
    of a batch share the biases of FIRE, whose cost is that of one sequence."""
    model = GPT(tiny_config(**keys)).train()
    idx = tokens(length, batch=1 if biases(model) else 3)
    backward = all(layer.canon == "none" and not layer.engram for layer in model.config.layers)
    with FlopCounterMode(display=False) as counter:
        loss = training_loss(model, idx, idx)
        if backward:
            loss.backward()
    counted = counter.get_total_flops() * (1 if backward else 3)
    full = GPT(tiny_config(**keys).adapted(sliding_window=None))
    assert counted == full.flops_per_token(length) * idx.numel()


@every_attention
def test_cost_of_a_window_and_of_causality(keys):
    """Against an explicit count of the unmasked pairs."""
    config = tiny_config(**keys)
    model = GPT(config)
    layers = [config.layers[index] for index in config.applied_layers]
    layers += [config.layers[-1] for _ in model.mtp]
    widths = [config.n_head * layer.head_dim for layer in layers]
    for index, layer in enumerate(layers):
        widths[index] *= 1.5 if layer.differential_attention else 1  # values of two heads
    matrices = model.flops_per_token(1) - 3 * biases(model) - 12 * sum(widths)
    for causal in (False, True):
        scores = 0.0
        for layer, width in zip(layers, widths, strict=True):
            window = window_of(layer) or T
            seen = (min(t + 1, window) if causal else min(T, window) for t in range(T))
            scores += 12 * width * sum(seen) / T
        positions = (T + 1) / 2 if causal else T  # FIRE ignores windows
        expected = matrices + scores + 3 * biases(model) * positions
        assert model.flops_per_token(T, causal=causal) == pytest.approx(expected, rel=1e-12)


@some_variants(0)
def test_cache_equals_no_cache(keys):
    model, idx = tiny_model(**keys), tokens(T)
    whole = model(idx)
    state = model.new_state(2)
    parts = [model(piece, state=state) for piece in idx.split([5, 1, 1, 6, 3], dim=1)]
    assert_close(torch.cat(parts, dim=1), whole, 1e-5)
    assert state.length == T


@some_variants(1)
def test_generation_with_and_without_cache(keys):
    """Also beyond block_size, where the context window slides."""
    model, prompt = tiny_model(**keys), tokens(SIZES["block_size"] - 6)
    cached = model.generate(prompt, 10, temperature=0)
    plain = model.generate(prompt, 10, temperature=0, use_cache=False)
    assert torch.equal(cached, plain)
    assert torch.equal(cached[:, : prompt.shape[1]], prompt)


def lacks(backend: str, config: ModelArchitectureConfig) -> bool:
    """Whether a layer asks for what a backend cannot do."""
    needs = map(attention_needs, attending(config))
    return any(ATTENTION_BACKENDS[backend].lacks(each) for each in needs)


@every_use_of_backends
def test_backends_agree(keys):
    config = tiny_config(**keys)
    idx = tokens(T)
    reference = tiny_model(**keys)
    compared = []
    for name in ("sdpa", "flex", "auto"):
        if lacks(name, config):
            continue
        other = tiny_model(**{**keys, "attention_backend": name})
        with torch.no_grad():
            assert_close(other(idx), reference(idx), 1e-5, name)
            state = other.new_state(2)
            parts = [other(piece, state=state) for piece in idx.split([9, 1, 6], dim=1)]
            assert_close(torch.cat(parts, dim=1), reference(idx), 1e-5, name)
        compared.append(name)
    scored = any(attention_needs(layer).scores for layer in attending(config))
    assert ({"auto"} if scored else {"flex", "auto"}) <= set(compared)


@every_use_of_backends
def test_backends_agree_on_gradients(keys):
    config = tiny_config(**keys)
    if lacks("sdpa", config):
        pytest.skip("sdpa cannot do this")
    idx = tokens(T)
    gradients = []
    for name in ("manual", "sdpa"):
        model = tiny_model(**{**keys, "attention_backend": name})
        training_loss(model, idx, idx).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert_close(*gradients, 1e-5)


@some_variants(2)
def test_save_and_load(keys, tmp_path):
    model, idx = tiny_model(**keys), tokens(T)
    save_model(model, str(tmp_path / "model.safetensors"))
    config = ModelArchitectureConfig.from_dict(model.config.to_dict())
    assert config == model.config
    other = GPT(config).eval()
    assert not torch.equal(other(idx), model(idx))
    load_model(other, str(tmp_path / "model.safetensors"))
    assert torch.equal(other(idx), model(idx))


OWN_LAWS = (
    *("value_share", "shares", "A_log", "dt_bias", "D", "alpha_p", "alpha_n", "current"),
    *("lambdas", "bases", "stored"),
    *("vectors", "scale", "threshold", "slopes", "offsets", "mixing"),
)
"""Parameters that their parts initialise otherwise, besides convolutions and residual streams."""


@some_variants(0)
def test_initialised_as_documented(keys):
    """N(0, init_std), residual projections divided by sqrt(2 n_layer), or sqrt(n_layer) in layers
    of one sublayer, biases 0, norms at their defaults."""
    sizes = {**SIZES, "n_embd": 144, "n_head": 4, "init_std": 0.05, "vocab_size": 997}
    torch.manual_seed(0)
    config = ModelArchitectureConfig.make(sizes, {**keys, "n_embd": 144})
    model = GPT(config)
    for name, parameter in model.named_parameters():
        owner, _, kind = name.rpartition(".")
        if ".mixer." in name and config.layers[int(name.split(".")[1])].mixer == "rwkv7":
            continue  # unit/test_rwkv7.py
        if ".residual." in name or owner.endswith("conv") or kind in OWN_LAWS:
            continue
        if owner.endswith("value_embedding.gate"):  # open at first
            assert not parameter.any()
            continue
        if owner.endswith("norm"):
            layer = int(owner.split(".")[1]) if owner.startswith("blocks.") else -1
            fresh_norm = make_norm(config.layers[layer]).state_dict()
            as_made = fresh_norm.get(kind, torch.ones(()))  # a norm of queries or keys: ones
            assert (parameter == as_made.flatten()[0]).all(), name
            continue
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.zeros_like(parameter)), name
            continue
        if config.sphere_weights:
            along = 0 if name.endswith(("mixer.out.weight", "down.weight")) else 1
            lengths = parameter.norm(dim=along) if "positions" not in name else torch.ones(1)
            assert torch.allclose(lengths, torch.ones(()), atol=1e-5), name
            continue
        std = 0.05 * documented_factor(name, config)
        if std == 0:
            assert not parameter.any(), name
            continue
        chance = max(0.06, 4 * parameter.numel() ** -0.5)  # 4 standard errors of the mean
        assert parameter.std().item() == pytest.approx(std, rel=chance), name
        assert abs(parameter.mean().item()) < chance * std, name


def documented_factor(name: str, config: ModelArchitectureConfig) -> float:
    """By what the standard deviation of a weight differs from init_std."""
    factor = 1.0
    outputs = ("mixer.out.weight", "embedding.out.weight", "engram.value.weight")
    outputs += ("attention.out.weight", "mamba.out.weight", "down.weight", "experts.down")
    if name.endswith(outputs):
        layer = config.layers[int(name.split(".")[1])]
        sublayers = 1 if "none" in (layer.mixer, layer.ffn_type) else 2
        if config.zero_init:
            return 0.0
        scaled = config.parametrization != "completep"
        factor = (sublayers * config.effective_depth) ** -0.5 if scaled else 1.0
    if "mup_base_width" in config and name.startswith("blocks."):
        factor *= (config.n_embd / config.mup_base_width) ** -0.5
    return factor


def test_names_tell_architectures_apart():
    names: dict[str, dict] = {}
    for keys in VARIANTS.values():
        config = tiny_config(**keys)
        known = names.setdefault(config.architecture_name, config.to_dict())
        assert known == config.to_dict(), f"{config.architecture_name} names two architectures"
