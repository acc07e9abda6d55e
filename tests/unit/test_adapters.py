"""Adapters: what they compute and cost, what they train, and which layers a pattern names."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from components import head
from components.adapted_linear import AdaptedLinear, Adapter, section_names
from components.backward_cost import backward_flops, pass_flops
from errors import ConfigError
from model_builder import GPT
from model_config import ModelArchitectureConfig
from recipe.adapters import ADAPTERS, adapt, adapted_model, merge
from recipe.objectives import make_objective
from recipe.optimizers import make_optimizer, parameter_groups
from tests.own_parts import forgotten
from tests.tiny import PATTERNS, VARIANTS, tiny_config, tiny_model, tokens
from training.base_model import BaseDigests, adapt_base, weights_sha256
from training.gradients import Gradients
from training.memory import expected_memory
from training.sharded_tensors import own_tensors
from training_config import TrainingConfig

every_adapter = pytest.mark.parametrize("name", ADAPTERS.names)

LLAMA = VARIANTS["preset llama"]


def settings(**keys) -> TrainingConfig:
    usual = {"init_from": "model", "adapter": "lora", "adapter_rank": 3, "max_iters": 10}
    return TrainingConfig.make(usual, keys)


def adapted(model: GPT | None = None, **keys) -> GPT:
    """A model whose adapters do something."""
    model = tiny_model(**LLAMA) if model is None else model
    adapt(model, settings(**keys))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.add_(0.05 * noise)
    return model


def new_model(dtype: torch.dtype) -> GPT:
    """A model with initial weights."""
    torch.manual_seed(0)
    return GPT(tiny_config(**LLAMA)).to(dtype).eval()


def trained_names(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


# What they compute


@every_adapter
def test_new_adapters_change_nothing(name):
    plain, model = tiny_model(**LLAMA), tiny_model(**LLAMA)
    adapt(model, settings(adapter=name))
    assert (plain(tokens(12)) - model(tokens(12))).abs().max() < 1e-5


@every_adapter
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_a_merged_model_computes_the_same(name, dtype, tolerance):
    plain, model = new_model(dtype), adapted(new_model(dtype), adapter=name)
    expected = model(tokens(12))
    assert (plain(tokens(12)) - expected).abs().max() > 1e-2
    merge(model)
    assert not any(isinstance(module, AdaptedLinear) for module in model.modules())
    assert trained_names(model) == trained_names(plain)
    assert (model(tokens(12)) - expected).abs().max() < tolerance


@pytest.mark.parametrize("name", ["lora", "rslora"])
def test_gradients_of_a_layer(name):
    layer = ADAPTERS[name](torch.randn(4, 5).double(), settings(adapter=name))
    x, y = torch.randn(2, 5).double(), torch.randn(2, 4).double()
    nn.init.normal_(layer.b)

    def output(a, b, x):
        return torch.func.functional_call(layer, {"a": a, "b": b}, (x, y, None, None))

    inputs = [own.detach().requires_grad_() for own in (layer.a, layer.b, x)]
    assert torch.autograd.gradcheck(output, inputs)


def test_dora_computes_its_formula():
    """m V/|V| x + bias, where V = W + alpha/r B A, and |V| is constant in the backward pass."""
    weight, bias, x = (torch.randn(*shape).double() for shape in ((4, 5), (4,), (2, 5)))
    layer = ADAPTERS["dora"](weight, settings(adapter="dora", adapter_alpha=2.0))
    nn.init.normal_(layer.b)
    nn.init.normal_(layer.m)
    layer(x, x @ weight.T + bias, weight, bias).square().sum().backward()
    a, b, m = (own.detach().clone().requires_grad_() for own in (layer.a, layer.b, layer.m))
    v = weight + 2 / 3 * b @ a
    expected = x @ (m[:, None] * v / v.detach().norm(dim=1, keepdim=True)).T + bias
    expected.square().sum().backward()
    assert torch.allclose(layer(x, x @ weight.T + bias, weight, bias), expected)
    for own, other in ((layer.a, a), (layer.b, b), (layer.m, m)):
        assert torch.allclose(own.grad, other.grad)


def test_dora_leaves_rows_of_zeros_at_zero():
    """They have no direction: the quotient of the formula would be 0/0."""
    torch.manual_seed(0)
    weight, x = torch.randn(4, 5).double(), torch.randn(2, 5).double()
    weight[1] = 0
    layer = ADAPTERS["dora"](weight, settings(adapter="dora"))
    y = layer(x, x @ weight.T, weight, None)
    assert torch.allclose(y, x @ weight.T)
    y.square().sum().backward()
    assert all(own.grad.isfinite().all() for own in layer.parameters())
    assert torch.equal(layer.merged(weight)[1], weight[1])


def test_dropout_is_of_training_only():
    model = adapted(adapter_dropout=0.5)
    assert torch.equal(model(tokens(12)), model(tokens(12)))
    model.train()
    assert not torch.equal(model(tokens(12)), model(tokens(12)))


@pytest.mark.parametrize("name", ["preset llama", "mla"])
def test_decoding_with_a_state(name):
    """Also where attention multiplies the weight of a Linear with something else (MLA)."""
    model, idx = adapted(tiny_model(**VARIANTS[name]).double()), tokens(12)
    state = model.new_state(2, dtype=torch.float64)
    steps = [model(part, state=state) for part in idx.split((5, *[1] * 7), dim=1)]
    assert (torch.cat(steps, dim=1) - model(idx)).abs().max() < 1e-10


@pytest.mark.slow
@every_adapter
def test_compiled(name):
    model, eager, idx = adapted(adapter=name), adapted(adapter=name), tokens(12)
    eager(idx, idx)[1].backward()
    torch.compile(model, fullgraph=True)(idx, idx)[1].backward()
    for own, other in zip(model.parameters(), eager.parameters(), strict=True):
        assert (own.grad is None) == (other.grad is None)
        assert own.grad is None or torch.allclose(own.grad, other.grad, atol=1e-5)


def test_an_adapter_of_ones_own():
    """Scales of outputs, as in IA3 (arXiv 2205.05638)."""
    with forgotten():

        @ADAPTERS.register("scales", label="Scales")
        class Scales(Adapter):
            """A learned factor of each output."""

            def __init__(self, weight, config):
                super().__init__()
                self.factors = nn.Parameter(weight.new_ones(len(weight)))

            def forward(self, x, y, weight, bias):
                return y + (self.factors - 1) * (y if bias is None else y - bias)

            def merged(self, weight):
                return self.factors[:, None] * weight

            def forward_flops(self, seq_len, causal=False):
                return 0

            def backward_flops(self, seq_len, into_input):
                return 0

        config = TrainingConfig(init_from="model", adapter="scales", adapter_pattern="k,up")
        model = tiny_model(**VARIANTS["preset gpt2"])
        adapt(model, config)
        with torch.no_grad():
            model.blocks[1].ffn.up.adapters["up"].factors.mul_(1.5)
        assert counted(model, config) == model.flops_per_token(12) * tokens(12).numel()
        expected = model.eval()(tokens(12))
        merge(model)
        assert (model(tokens(12)) - expected).abs().max() < 1e-4


# What they cost

COSTS = [
    ("preset llama", {}),
    ("preset gpt2", {"adapter_pattern": "q,down"}),
    ("preset llama", {"adapter": "dora", "adapter_pattern": "blocks.1.*"}),
    ("preset llama", {"adapter": "dora", "adapter_dropout": 0.1, "adapter_pattern": "v"}),
    ("norm_position=parallel", {"adapter_pattern": "out"}),
    ("attention_gate=channel", {"adapter_pattern": "gate"}),
    ("forget_gate", {"adapter_pattern": "forget.gate"}),
    ("cope, forget_gate, differential_attention", {"adapter_pattern": "forget.gate"}),
    ("value_embedding=gated", {"adapter_pattern": "value_embedding.gate"}),
    ("mixer=short_conv", {"adapter_pattern": "gates_in"}),
    ("mla", {"adapter_pattern": "mixer.q"}),
    ("mla", {"adapter_pattern": "kv"}),
    ("moe as in DeepSeek-V3", {"adapter_pattern": "mixer.*"}),
    ("residual=hyper_connections", {"adapter_pattern": "blocks.0.*"}),
    ("static hyper-connections", {"adapter_pattern": "blocks.0.*"}),
    ("residual=attention", {"adapter_pattern": "blocks.1.*"}),
    ("position_encoding=cope", {"adapter_pattern": "q"}),
    ("position_encoding=cope", {"adapter_pattern": "out"}),
]


def counted(model: GPT, training: TrainingConfig) -> int:
    idx = tokens(12)
    model.train()
    with FlopCounterMode(display=False) as counter:
        model(idx, idx, objective=make_objective(training)).loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(("name", "keys"), COSTS)
def test_cost_equals_the_counter(name, keys):
    """All of the forward pass, gradients of activations only after the first adapter, and gradients
    of weights only of adapters."""
    model = adapted(tiny_model(**VARIANTS[name]), **keys)
    expected = model.flops_per_token(12) * tokens(12).numel() + pass_flops(model)
    assert counted(model, settings(**keys)) == expected
    assert model.training


def test_a_chunked_loss_computes_no_gradient_of_a_frozen_head(monkeypatch):
    monkeypatch.setattr(head, "CPU_CHUNK_BYTES", 4 * 61 * 5)
    model = adapted()
    assert counted(model, settings()) == model.flops_per_token(12) * tokens(12).numel()


@pytest.mark.parametrize("parametrization", ["mup", "completep"])
def test_adapters_have_the_settings_of_the_optimizer_at_every_width(parametrization):
    """Their rank does not grow with the width, so muP does not scale them."""
    model = tiny_model(parametrization=parametrization, mup_base_width=16)
    adapt(model, settings())
    for group in parameter_groups(model, 0.1):
        assert group.keys() == {"params", "weight_decay"}
        assert group["weight_decay"] == 0.1


def test_cost_without_adapters_is_that_of_all():
    model = tiny_model(**LLAMA)
    assert backward_flops(model, 12) == 2 * model.forward_flops(12)
    assert "trained_parameters" not in model.cost_report()


def test_expected_memory():
    """Weights of all parameters; gradients and moments of those that are trained."""
    training = settings(batch_size=2, sequence_length=12, adapter="dora", adapter_pattern="down")
    found = expected_memory(tiny_config(**LLAMA), training, "cpu", torch.float32)
    model = adapted(adapter="dora", adapter_pattern="down")
    trained, steps = model.trained_parameters(), 4 * len(trained_names(model))
    assert found.weights == 4 * (model.num_parameters() + trained)
    assert found.gradients == 4 * trained
    assert found.optimizer == 8 * trained + steps
    deeper = settings(batch_size=2, sequence_length=12, adapter_pattern="blocks.9.*")
    assert expected_memory(tiny_config(**LLAMA, n_layer=10), deeper, "cpu", torch.float32)


# What they train


@every_adapter
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_only_adapters_are_trained(name, optimizer):
    model = tiny_model(**LLAMA)
    frozen = {own: weight.detach().clone() for own, weight in model.named_parameters()}
    config = settings(adapter=name, optimizer=optimizer, adapter_pattern="q,down")
    adapt(model, config)
    updates = make_optimizer(model, config)
    model(tokens(12), tokens(12))[1].backward()
    expected = sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None).sqrt()
    assert torch.allclose(Gradients(model.parameters()).norm(), expected)
    updates.step()
    suffixes = {own.rpartition(".")[2] for own in trained_names(model)}
    assert suffixes == {"a", "b", *(["m"] if name == "dora" else [])}
    decays = {p: group["weight_decay"] for group in updates.param_groups for p in group["params"]}
    assert len(decays) == len(trained_names(model)) == (3 if name == "dora" else 2) * 2 * 2
    assert all((decay > 0) == (parameter.ndim == 2) for parameter, decay in decays.items())
    for own, weight in frozen.items():
        assert torch.equal(model.get_parameter(own), weight)
    trained = sum(parameter.numel() for parameter in decays)
    report = model.cost_report()
    assert ("adapter_flops_per_pass" in report) == (name == "dora")
    assert report["trained_parameters"] == model.trained_parameters() == trained
    assert report["parameters"] == tiny_model(**LLAMA).num_parameters() + trained


def test_buffers_of_the_base_are_frozen():
    model = adapted(tiny_model(**VARIANTS["moe as in DeepSeek-V3"]))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    output = model(tokens(12), tokens(12), objective=make_objective(settings()))
    model.after_step(output.metrics)
    assert any("expert_bias" in name for name in before)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_initial_values_depend_on_seed_and_name_alone():
    one, two = tiny_model(**LLAMA), tiny_model(**LLAMA)
    for model, pattern in ((one, "q,up"), (two, "up")):
        adapt(model, settings(adapter_pattern=pattern))
    name = "blocks.1.ffn.gate_up.adapters.up.a"
    assert torch.equal(one.get_parameter(name), two.get_parameter(name))


def test_a_checkpoint_has_the_adapters_only():
    model = adapted(adapter_pattern="blocks.0.mixer.out")
    assert [*own_tensors(model)] == [f"blocks.0.mixer.out.adapters.out.{own}" for own in "ab"]


def test_a_base_is_known_by_its_weights():
    model, other = tiny_model(**LLAMA), tiny_model(**LLAMA)
    digest = weights_sha256(model)
    with torch.no_grad():
        other.head.weight[0, 0] += 1e-3
    assert adapt_base(tiny_model(**LLAMA), settings(), BaseDigests(digest)) == BaseDigests(digest)
    with pytest.raises(ValueError, match=r"the sha256 .*, but those in init_from='model' have"):
        adapt_base(other, settings(), BaseDigests(digest))
    assert adapt_base(model, TrainingConfig()) == BaseDigests()
    assert not model.adapted


def test_a_base_is_known_by_its_buffers():
    """The biases of a router are loaded with the base, and change what it computes."""
    model = tiny_model(ffn_type="moe", router_bias_rate=0.1)
    digest = weights_sha256(model)
    model.blocks[0].ffn.router.expert_bias[0] += 1
    assert weights_sha256(model) != digest


# Which layers


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", "q k v out gate up down"),
        ("q,v", "q v"),
        ("qkv", "q k v"),
        ("mixer.*", "q k v out"),
        ("gate_up.gate, blocks.*.down", "gate down"),
        ("*.mixer.[kv]", ""),
        ("[kv]", "k v"),
    ],
)
def test_patterns(pattern, expected):
    if not expected:
        with pytest.raises(ConfigError, match="which is no Linear layer of the blocks"):
            adapted(adapter_pattern=pattern)
        return
    model = adapted(adapter_pattern=pattern)
    linears = [module for module in model.blocks[1].modules() if isinstance(module, AdaptedLinear)]
    assert [name for linear in linears for name in linear.adapters] == expected.split()


@pytest.mark.parametrize("pattern", ["head", "embedding", "q,walk", ""])
def test_a_pattern_that_names_nothing_is_refused(pattern):
    with pytest.raises(ConfigError) as raised:
        adapted(adapter_pattern=pattern)
    wanted = pattern.rpartition(",")[2]
    assert f"adapter_pattern names {wanted!r}" in str(raised.value)
    assert "are ffn.down, ffn.gate_up.gate, ffn.gate_up.up, mixer.out" in str(raised.value)


def test_routers_and_experts_are_not_adapted():
    model = adapted(tiny_model(**PATTERNS["ffn_type=swiglu+moe*"]))
    assert not [name for name in trained_names(model) if "router" in name or "experts" in name]


def test_names_of_sections():
    assert section_names("qkv", (4, 2, 2)) == ("q", "k", "v")
    assert section_names("gate_up", (4, 4)) == ("gate", "up")
    assert section_names("down", (4,)) == ("down",)
    assert section_names("gates_in", (4, 4, 4)) == ("0", "1", "2")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"init_from": "none"}, "adapter='lora' adapts a trained model, but init_from='none'"),
        ({"parallelism": "fsdp"}, "adapter='lora' cannot be combined with parallelism='fsdp'"),
        ({"parallelism": "zero1"}, "adapter='lora' cannot be combined with parallelism='zero1'"),
        ({"tensor_parallel": 2}, "adapter='lora' cannot be combined with tensor_parallel=2"),
        ({"adapter": "none", "adapter_rank": 4}, "adapter_rank=4 belongs to adapter=lora"),
    ],
)
def test_settings_that_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**{"init_from": "model", "adapter": "lora", **keys})


# The document

DOCUMENT = (Path(__file__).parents[2] / "docs" / "finetuning.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("row", "keys"),
    [
        ("`lora`, rank 16, `*`", {}),
        ("`lora`, rank 16, `q,v`", {"adapter_pattern": "q,v"}),
        ("`dora`, rank 16, `*`", {"adapter": "dora"}),
    ],
)
def test_the_document_has_the_cost(row, keys):
    with torch.device("meta"):
        config = ModelArchitectureConfig.from_preset("llama")
        report = adapted_model(config, settings(adapter_rank=16, **keys)).cost_report(1024)
    costs = f"{report['trained_parameters']:,} | {report['flops_per_token']:,} |"
    assert f"| {row} | {costs}" in DOCUMENT
    assert f"{report.get('adapter_flops_per_pass', 0):,}" in DOCUMENT


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="needs bitsandbytes; see requirements-dev.txt",
)
@pytest.mark.parametrize("scheme", ["nf4", "nf4-dq"])
def test_the_document_has_the_bytes(scheme):
    with torch.device("meta"):
        config = ModelArchitectureConfig.from_preset("llama")
        report = adapted_model(config, settings(quantize_base=scheme)).cost_report(1024)
    assert f"| `{scheme}` | {report['base_bytes']:,} |" in DOCUMENT
    assert f"| `none` | {report['unquantized_base_bytes']:,} |" in DOCUMENT
