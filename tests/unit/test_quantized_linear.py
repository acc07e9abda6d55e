"""Linear layers in 4 bits: what they compute, cost and store."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from components.quantized_linear import (
    QuantizedLinear,
    dequantize_linear,
    quantize_linear,
    quantized_sha256,
    quantized_tensors,
    storage_bytes,
)
from errors import ConfigError
from model_builder import GPT
from recipe.adapters import adapt, adaptable, adapted_model, merge
from tests.tiny import VARIANTS, tiny_model, tokens
from tests.unit.test_adapters import adapted, settings
from training.activation_checkpointing import checkpoint_block
from training.memory import expected_memory
from training_config import TrainingConfig

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="needs bitsandbytes; see requirements-dev.txt",
)

every_scheme = pytest.mark.parametrize("scheme", ["nf4", "nf4-dq"])

LLAMA = VARIANTS["preset llama"]

NF4 = (
    *(-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
)
"""The numbers of NF4 (appendix E of the paper)."""


def made(out: int = 6, width: int = 96, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, out, bias=bias)


def quantized(scheme: str, **keys) -> QuantizedLinear:
    linear = made(**keys)
    quantize_linear(linear, {"one": 2, "two": linear.out_features - 2}, scheme)
    return linear


def dequantized_by_bitsandbytes(weight: torch.Tensor, scheme: str) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    double = scheme == "nf4-dq"
    packed, state = quantize_4bit(
        weight.flatten(), blocksize=64, quant_type="nf4", compress_statistics=double
    )
    return dequantize_4bit(packed, state).view_as(weight)


def test_the_values_are_the_nearest_of_nf4_times_the_largest_of_their_block():
    """Blocks go on from one row to the next."""
    weight = made().weight.detach()
    blocks = weight[:2].reshape(-1, 64)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    table = torch.tensor(NF4)
    nearest = (blocks / largest).unsqueeze(-1).sub(table).abs().argmin(dim=-1)
    expected = (table[nearest] * largest).reshape(2, -1)
    assert torch.allclose(quantized("nf4").section("one"), expected, atol=1e-6)


@every_scheme
@pytest.mark.parametrize("width", [96, 7])
def test_each_section_is_what_bitsandbytes_makes_of_it(scheme, width):
    linear = quantized(scheme, width=width)
    parts = made(width=width).weight.detach().split([2, 4])
    expected = torch.cat([dequantized_by_bitsandbytes(part, scheme) for part in parts])
    assert torch.equal(linear.weight, expected)
    dequantize_linear(linear)
    assert type(linear) is nn.Linear
    assert torch.equal(linear.weight, expected)


@every_scheme
def test_gradients_of_a_layer(scheme):
    linear = quantized(scheme).double()
    x = torch.randn(2, 3, 96, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear, x)
    linear(x).sum().backward()
    assert linear.bias.grad is None
    assert not linear(x.detach()).requires_grad


@every_scheme
def test_the_backward_pass_keeps_the_weight_in_4_bits(scheme):
    linear, kept = quantized(scheme, out=64), []
    x = torch.randn(1, 96, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        linear(x)
    assert storage_bytes(kept) == storage_bytes(quantized_tensors(linear).values())


@every_scheme
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_it_computes_what_adapters_of_the_dequantized_weights_do(scheme, name):
    """Bit for bit, including gradients, with the same FLOPs."""
    model, reference = adapted(adapter=name, quantize_base=scheme), tiny_model(**LLAMA)
    for linear_name, rows in adaptable(reference).items():
        weight = reference.get_submodule(linear_name).weight.detach()
        parts = [dequantized_by_bitsandbytes(p, scheme) for p in weight.split([*rows.values()])]
        weight.copy_(torch.cat(parts))
    reference = adapted(reference, adapter=name)
    idx, losses, flops = tokens(12), [], []
    for own in (model, reference):
        with FlopCounterMode(display=False) as counter:
            losses.append(own(idx, idx)[1])
            losses[-1].backward()
        flops.append(counter.get_total_flops())
    assert losses[0] == losses[1]
    assert flops[0] == flops[1]
    assert model.flops_per_token(12) == reference.flops_per_token(12)
    assert model.num_parameters() == reference.num_parameters()
    assert model.num_parameters(embeddings=False) == reference.num_parameters(embeddings=False)
    theirs = dict(reference.named_parameters())
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == {n for n, p in theirs.items() if p.requires_grad}
    assert all(torch.equal(p.grad, theirs[n].grad) for n, p in trained.items())


@every_scheme
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_a_merged_model_computes_the_same(scheme, name):
    """Even if a Linear has no adapter."""
    model = adapted(adapter=name, adapter_pattern="q,down", quantize_base=scheme)
    expected = model(tokens(12))
    merge(model)
    assert all(type(m) is nn.Linear for m in model.blocks.modules() if isinstance(m, nn.Linear))
    assert model.num_parameters() == tiny_model(**LLAMA).num_parameters()
    assert (model(tokens(12)) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["mla", "mixer=gated_deltanet*3+attention"])
def test_parts_that_read_weights_and_decode(name):
    """MLA multiplies the weight of a Linear with something else."""
    variant = VARIANTS.get(name, {"mixer": "gated_deltanet+attention"})
    model, idx = adapted(tiny_model(**variant), quantize_base="nf4"), tokens(12)
    state = model.new_state(2, dtype=torch.float32)
    steps = [model(part, state=state) for part in idx.split((5, *[1] * 7), dim=1)]
    assert (torch.cat(steps, dim=1) - model(idx)).abs().max() < 1e-4


@every_scheme
@pytest.mark.parametrize("mode", ["block", "selective"])
def test_checkpointing(scheme, mode):
    model, plain = (adapted(quantize_base=scheme) for _ in range(2))
    for block in model.blocks:
        checkpoint_block(block, mode)
    for own in (model.train(), plain.train()):
        own(tokens(12), tokens(12))[1].backward()
    pairs = zip(model.parameters(), plain.parameters(), strict=True)
    assert all(torch.equal(p.grad, q.grad) for p, q in pairs if p.requires_grad)


@pytest.mark.slow
def test_compiled():
    model, eager = (adapted(adapter="dora", quantize_base="nf4-dq") for _ in range(2))
    eager(tokens(12), tokens(12))[1].backward()
    torch.compile(model, fullgraph=True)(tokens(12), tokens(12))[1].backward()
    pairs = zip(model.parameters(), eager.parameters(), strict=True)
    assert all(torch.allclose(p.grad, q.grad, atol=1e-5) for p, q in pairs if p.requires_grad)


def test_in_bfloat16():
    model, idx = adapted(quantize_base="nf4"), tokens(12)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(idx, idx)[1]
    loss.backward()
    assert abs(loss - adapted(quantize_base="nf4")(idx, idx)[1]) < 0.05
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)


# Bytes


@pytest.mark.parametrize(("scheme", "most"), [("nf4", 0.57), ("nf4-dq", 0.53)])
def test_bytes_per_weight(scheme, most):
    linear = made(out=512, width=512, bias=False)
    quantize_linear(linear, {"all": 512}, scheme)
    assert 0.5 < storage_bytes(quantized_tensors(linear).values()) / 512**2 < most


@every_scheme
def test_the_cost_has_the_bytes_before_and_after(scheme):
    """Measured; estimates on the meta device are the same."""
    model, plain = tiny_model(**LLAMA), tiny_model(**LLAMA)
    adapt(model, settings(quantize_base=scheme))
    cost = model.cost_report(12)
    assert cost["unquantized_base_bytes"] == 4 * plain.num_parameters()
    linears = sum(m.weight.numel() for m in map(plain.get_submodule, adaptable(plain)))
    whole = 4 * (plain.num_parameters() - linears)
    assert cost["base_bytes"] == whole + storage_bytes(quantized_tensors(model).values())
    with torch.device("meta"):
        estimated = adapted_model(model.config, settings(quantize_base=scheme)).cost_report(12)
    for key in ("base_bytes", "unquantized_base_bytes", "parameters", "trained_parameters"):
        assert estimated[key] == cost[key]
    assert "base_bytes" not in adapted().cost_report(12)


@every_scheme
def test_the_expected_memory_has_the_quantized_weights(scheme):
    config = tiny_model(**LLAMA).config
    keys = {"sequence_length": 12, "quantize_base": scheme}
    memory, whole = (
        expected_memory(config, settings(**own), "cpu", torch.float32)
        for own in (keys, {"sequence_length": 12})
    )
    base = adapted(quantize_base=scheme).cost_report(12)["base_bytes"]
    assert memory.frozen == pytest.approx(base, rel=0.3)  # estimates count each codebook
    assert memory.gradients == whole.gradients
    assert memory.activations <= whole.activations


# Which models


def test_the_digest_is_of_the_values():
    model, other = (adapted(tiny_model(seed=s, **LLAMA), quantize_base="nf4") for s in (0, 1))
    again = adapted(tiny_model(seed=0, **LLAMA), quantize_base="nf4", adapter_rank=5)
    assert quantized_sha256(model) == quantized_sha256(again) != quantized_sha256(other)
    assert quantized_sha256(adapted()) is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"adapter": "none"}, "quantize_base='nf4' belongs to adapter=lora"),
        ({"init_from": "none"}, "adapts a trained model, but init_from='none'"),
        ({"tensor_parallel": 2}, "cannot be combined with tensor_parallel=2"),
        ({"parallelism": "fsdp"}, "cannot be combined with parallelism='fsdp'"),
        ({"quantize_base": "int3"}, "quantize_base"),
    ],
)
def test_settings_that_are_refused(keys, message):
    usual = {"init_from": "model", "adapter": "lora", "quantize_base": "nf4"}
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**{**usual, **keys})


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_only_adapters_are_optimized(optimizer):
    from recipe.optimizers import make_optimizer

    model = adapted(quantize_base="nf4")
    groups = make_optimizer(model, settings(quantize_base="nf4", optimizer=optimizer)).param_groups
    optimized = {id(p) for group in groups for p in group["params"]}
    assert optimized == {id(p) for p in model.parameters() if p.requires_grad}


def test_every_linear_of_the_blocks_is_quantized():
    model: GPT = adapted(adapter_pattern="q", quantize_base="nf4")
    linears = [m for m in model.blocks.modules() if isinstance(m, nn.Linear)]
    assert linears
    assert all(isinstance(linear, QuantizedLinear) for linear in linears)
    assert not isinstance(model.head, QuantizedLinear)
