"""Each optimizer against torch's or transformers', or against its paper; what it updates, and how
much that costs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from components.part import Part
from errors import ConfigError, UserError
from recipe.muon import orthogonalized
from recipe.optimizers import OPTIMIZERS, UpdateRule, make_optimizer
from recipe.parameters import hidden_matrices, trainable_parameters
from tests.own_parts import forgotten
from tests.tiny import SIZES, tiny_config, tiny_model, tokens
from training_config import TrainingConfig


def settings(optimizer: str = "adamw", **keys: Any) -> TrainingConfig:
    return TrainingConfig(**{"optimizer": optimizer, "learning_rate": 0.01, **keys})


class Layers(nn.Module):
    """A tall matrix, a wide one, a square one, and vectors, none of them small."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = (6, 10, 4, 4)
        pairs = zip(sizes, sizes[1:], strict=False)
        self.layers = nn.ModuleList(nn.Linear(width, height) for width, height in pairs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def trained(
    model: nn.Module, make: Callable[[nn.Module], torch.optim.Optimizer], steps: int = 8
) -> list[Tensor]:
    """The parameters after some steps, with the learning rate changing."""
    model = copy.deepcopy(model)
    optimizer = make(model)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (1 + step)
        x = torch.randn(16, 6, generator=generator)
        (model(x) - x[:, :4]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach() for parameter in model.parameters()]


def assert_trains_as(
    own: TrainingConfig,
    reference: Callable[[nn.Module], torch.optim.Optimizer],
    model: nn.Module | None = None,
    **tolerance: float,
) -> None:
    model = model or Layers()
    found = trained(model, lambda net: make_optimizer(net, own))
    expected = trained(model, reference)
    torch.testing.assert_close(found, expected, **tolerance)
    moved = [not torch.equal(old, new) for old, new in zip(model.parameters(), found, strict=True)]
    assert all(moved)


def vectors_and_matrices(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim == 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]


EXACT = {"rtol": 0.0, "atol": 0.0}


# --- What is updated


def test_an_optimizer_that_leaves_out_a_parameter_is_refused():
    class Partial(UpdateRule, torch.optim.SGD):
        """Updates weights only."""

        def __init__(self, model: nn.Module, config: TrainingConfig):
            super().__init__([p for p in model.parameters() if p.ndim == 2], lr=0.1)

    with forgotten():
        OPTIMIZERS.register("partial", label="Partial")(Partial)
        message = r"='partial' updates 3 parameters, but .* has 6 .*omits layers\.0\.bias, lay"
        with pytest.raises(UserError, match=message):
            make_optimizer(Layers(), settings("partial"))


def test_an_optimizer_of_frozen_parameters_is_refused():
    class Whole(UpdateRule, torch.optim.SGD):
        """Updates everything."""

        def __init__(self, model: nn.Module, config: TrainingConfig):
            super().__init__(model.parameters(), lr=0.1)

    model = Layers()
    model.layers[0].bias.requires_grad_(False)
    with forgotten():
        OPTIMIZERS.register("whole", label="Whole")(Whole)
        with pytest.raises(UserError, match="updates 6 parameters, .* has 5 .* includes others"):
            make_optimizer(model, settings("whole"))


# --- Hidden matrices


def rows_by_name(model: nn.Module) -> dict[str, tuple[int, ...]]:
    names = {parameter: name for name, parameter in trainable_parameters(model)}
    return {names[p].removeprefix("blocks.0."): rows for p, rows in hidden_matrices(model).items()}


@pytest.mark.parametrize("tying", [True, False])
def test_hidden_matrices_are_those_of_the_blocks_split_as_parts_declare(tying):
    keys = {"ffn_type": "swiglu", "n_kv_head": 2, "weight_tying": tying, "head_bias": not tying}
    found = rows_by_name(tiny_model(n_layer=1, **keys))
    hidden = tiny_config(**keys).ffn_hidden
    assert found == {
        "mixer.qkv.weight": (32, 16, 16),
        "mixer.out.weight": (32,),
        "ffn.gate_up.weight": (hidden, hidden),
        "ffn.down.weight": (32,),
    }


def test_filters_of_a_convolution_and_mixtures_of_streams_are_no_hidden_matrices():
    model = tiny_model(n_layer=1, mixer="short_conv", residual="hyper_connections")
    assert rows_by_name(model) == {
        "mixer.gates_in.weight": (32, 32, 32),
        "mixer.out.weight": (32,),
        "ffn.up.weight": (128,),
        "ffn.down.weight": (32,),
    }
    assert any(p.ndim >= 2 for name, p in model.named_parameters() if "conv" in name)


def test_each_expert_has_matrices_of_its_own():
    model = tiny_model(n_layer=1, ffn_type="moe", n_experts=4, n_shared_experts=1, ffn_hidden=20)
    found = {name: rows for name, rows in rows_by_name(model).items() if name.startswith("ffn")}
    assert found == {
        "ffn.router.weight": (4,),
        "ffn.experts.gate_up": (20, 20),
        "ffn.experts.down": (32,),
        "ffn.shared.gate_up.weight": (20, 20),
        "ffn.shared.down.weight": (32,),
    }


def test_gated_deltanet_stacks_queries_keys_values_gates_and_decays():
    model = tiny_model(n_layer=1, mixer="gated_deltanet", linear_n_head=2, linear_n_value_head=4)
    found = rows_by_name(model)
    assert found["mixer.qkvz.weight"] == (32, 32, 64, 64)
    assert found["mixer.beta_decay.weight"] == (4, 4)


class Experts(Part):
    """Two expert networks of one matrix each, which stacks two; and a matrix that is not named."""

    rows: tuple[int, ...] = (3, 5)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, 8, 4))
        self.table = nn.Parameter(torch.randn(8, 4))

    @property
    def matrix_rows(self) -> dict[str, tuple[int, ...]]:
        return {"weight": self.rows}


def test_a_parameter_is_a_hidden_matrix_only_if_its_part_says_so():
    part = Experts()
    assert hidden_matrices(part) == {part.weight: (3, 5)}


def test_declared_rows_that_are_not_those_of_the_weight_are_refused(monkeypatch):
    monkeypatch.setattr(Experts, "rows", (3, 3))
    with pytest.raises(UserError, match=r"Experts.matrix_rows declares 6 rows for weight, .* 8"):
        hidden_matrices(Experts())


# --- AdamW, SGD


def test_adamw_is_torchs_bit_for_bit():
    own = settings(weight_decay=0.3, beta1=0.8, beta2=0.9, adam_eps=1e-6)
    assert_trains_as(
        own,
        lambda model: torch.optim.AdamW(
            vectors_and_matrices(model, 0.3), betas=(0.8, 0.9), eps=1e-6, fused=True
        ),
        **EXACT,
    )


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.7, False), (0.7, True)])
def test_sgd_is_torchs(momentum, nesterov):
    own = settings("sgd", sgd_momentum=momentum, sgd_nesterov=nesterov, weight_decay=0.3)
    assert_trains_as(
        own,
        lambda model: torch.optim.SGD(
            vectors_and_matrices(model, 0.3), momentum=momentum, nesterov=nesterov, foreach=False
        ),
    )


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(ConfigError, match="sgd_nesterov=True has no effect with sgd_momentum=0"):
        settings("sgd", sgd_momentum=0.0, sgd_nesterov=True)


# --- Lion


def test_lion_is_algorithm_2_of_the_paper_entry_by_entry():
    """Chen et al. 2023: theta -= eta (sign(beta1 m + (1 - beta1) g) + lambda theta), then the
    average m becomes beta2 m + (1 - beta2) g. Here on floats of Python."""
    own = settings("lion", lion_beta1=0.8, lion_beta2=0.9, weight_decay=0.3)
    torch.manual_seed(3)
    layer = nn.Linear(3, 2, bias=False).double()
    optimizer = make_optimizer(layer, own)
    theta, m = layer.weight.flatten().tolist(), [0.0] * 6
    for _ in range(6):
        gradient = torch.randn(2, 3, dtype=torch.double)
        layer.weight.grad = gradient.clone()
        optimizer.step()
        for i, g in enumerate(gradient.flatten().tolist()):
            sign = math.copysign(1.0, 0.8 * m[i] + (1 - 0.8) * g)
            theta[i] -= 0.01 * (sign + 0.3 * theta[i])
            m[i] = 0.9 * m[i] + (1 - 0.9) * g
    assert layer.weight.flatten().tolist() == pytest.approx(theta, rel=1e-12)


def test_lion_does_not_move_where_there_was_never_a_gradient():
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    layer.weight.grad, layer.bias.grad = torch.zeros(2, 3), torch.ones(2)
    make_optimizer(layer, settings("lion", weight_decay=0.0)).step()
    assert torch.equal(layer.weight, before)


# --- Adafactor


@pytest.mark.parametrize("relative", [True, False])
def test_adafactor_is_that_of_transformers(relative):
    own = settings("adafactor", adafactor_relative=relative, adafactor_decay=0.7, weight_decay=0.0)
    assert_trains_as(
        own,
        lambda model: transformers.Adafactor(
            model.parameters(),
            lr=0.01,
            decay_rate=-0.7,
            scale_parameter=relative,
            relative_step=False,
            warmup_init=False,
        ),
        rtol=1e-5,
        atol=1e-7,
    )


def test_adafactor_is_that_of_torch_with_weight_decay_and_experts():
    """Up to the place of epsilon 1, which is tiny: torch's learning rate is capped at 1/sqrt(step),
    which is above it here."""
    part = Experts()
    own = make_optimizer(part, settings("adafactor", adafactor_clip=1.5, weight_decay=0.2))
    other = copy.deepcopy(part)
    reference = torch.optim.Adafactor(
        other.parameters(), lr=0.01, d=1.5, eps=(1e-15, 1e-3), weight_decay=0.2
    )
    for _ in range(5):
        for parameter, twin in zip(part.parameters(), other.parameters(), strict=True):
            parameter.grad = torch.randn_like(parameter)
            twin.grad = parameter.grad.clone()
        own.step()
        reference.step()
    torch.testing.assert_close(list(part.parameters()), list(other.parameters()))


def test_adafactor_keeps_means_of_rows_and_columns_of_each_expert():
    part = Experts()
    optimizer = make_optimizer(part, settings("adafactor"))
    part.weight.grad = torch.ones_like(part.weight)
    optimizer.step()
    shapes = {key: tuple(value.shape) for key, value in optimizer.state[part.weight].items()}
    assert shapes == {"step": (), "row": (2, 8, 1), "column": (2, 1, 4)}


def test_parameters_of_zeros_grow_under_adafactor():
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    layer.weight.grad, layer.bias.grad = torch.ones(2, 3), torch.ones(2)
    make_optimizer(layer, settings("adafactor", learning_rate=0.1)).step()
    torch.testing.assert_close(layer.weight, torch.full((2, 3), -0.1 * 1e-3))


# --- Muon


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_on_matrices_in_bfloat16_is_torchs_bit_for_bit(adjust, nesterov):
    model = Layers()
    for layer in model.layers:
        layer.bias = None
    own = settings("muon", muon_adjust=adjust, muon_nesterov=nesterov, weight_decay=0.3)
    assert_trains_as(
        own,
        lambda net: torch.optim.Muon(
            net.parameters(), weight_decay=0.3, nesterov=nesterov, adjust_lr_fn=adjust
        ),
        model,
        **EXACT,
    )


def test_what_is_no_hidden_matrix_is_updated_by_adamw():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 6), nn.LayerNorm(6))
    other = copy.deepcopy(model)
    own = make_optimizer(model, settings("muon", weight_decay=0.3, beta2=0.9))
    reference = torch.optim.AdamW(
        vectors_and_matrices(other, 0.3), lr=0.01, betas=(0.9, 0.9), eps=1e-8
    )
    for step in range(6):
        for net, optimizer in ((model, own), (other, reference)):
            optimizer.zero_grad()
            net(torch.arange(step, 7)).pow(3).sum().backward()
            optimizer.step()
    torch.testing.assert_close(list(model.parameters()), list(other.parameters()))


class Stacked(Part):
    """One Linear layer that makes what `parts` Linear layers would."""

    def __init__(self, rows: tuple[int, ...]):
        super().__init__()
        torch.manual_seed(0)
        self.rows = rows
        self.all = nn.Linear(4, sum(rows), bias=False)

    @property
    def matrix_rows(self) -> dict[str, tuple[int, ...]]:
        return {"all": self.rows}


def stepped(model: nn.Module, gradients: list[Tensor], **keys: Any) -> list[Tensor]:
    """The parameters after two steps of Muon."""
    optimizer = make_optimizer(model, settings("muon", muon_dtype="float32", **keys))
    for factor in (1.0, -0.3):
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = factor * gradient + factor**2
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("rows", [(6, 2, 2), (5, 5)])
def test_stacked_matrices_are_updated_as_if_they_were_apart(rows, adjust):
    model = Stacked(rows)
    apart = nn.ModuleList(nn.Linear(4, height, bias=False) for height in rows)
    with torch.no_grad():
        for layer, weight in zip(apart, model.all.weight.split(rows), strict=True):
            layer.weight.copy_(weight)
    gradient = torch.randn(10, 4)
    (whole,) = stepped(model, [gradient], muon_adjust=adjust)
    parts = stepped(apart, list(gradient.split(rows)), muon_adjust=adjust)
    torch.testing.assert_close(whole, torch.cat(parts))
    (unsplit,) = stepped(Stacked((10,)), [gradient], muon_adjust=adjust)
    assert not torch.allclose(whole, unsplit, rtol=1e-3)


def test_the_matrices_of_experts_are_updated_as_if_they_were_apart():
    part = Experts()
    alone = [Stacked(part.rows) for _ in part.weight]
    with torch.no_grad():
        for one, weight in zip(alone, part.weight, strict=True):
            one.all.weight.copy_(weight)
    gradient = torch.randn(2, 8, 4)
    together, _ = stepped(part, [gradient, torch.zeros(8, 4)])
    apart = [stepped(one, [own])[0] for one, own in zip(alone, gradient, strict=True)]
    torch.testing.assert_close(together, torch.stack(apart))


@pytest.mark.parametrize("shape", [(24, 24), (8, 40), (40, 8), (3, 16, 9)])
def test_orthogonalized_keeps_the_directions_of_a_matrix_and_evens_its_singular_values(shape):
    torch.manual_seed(0)
    x = torch.randn(shape)
    found = orthogonalized(x, 5, torch.float32)
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    inside = u.mT @ found @ v.mT
    values = inside.diagonal(dim1=-2, dim2=-1)
    seen = s / s.square().sum(dim=-1, keepdim=True).sqrt() > 0.002
    assert values[seen].min() > 0.68
    assert values[seen].max() < 1.21
    assert (inside - values.diag_embed()).abs().max() < 1e-4


def test_a_matrix_of_zeros_has_no_direction():
    assert torch.equal(orthogonalized(torch.zeros(3, 5), 5, torch.float32), torch.zeros(3, 5))


def test_the_rate_of_hidden_matrices_is_scaled_by_an_option():
    groups = make_optimizer(Layers(), settings("muon", muon_rate_scale=20.0)).param_groups
    scales = {p.ndim: group.get("rate_scale") for group in groups for p in group["params"]}
    assert scales == {2: 20.0, 1: None}


# --- Cost


@pytest.mark.parametrize(
    "keys", [{}, {"ffn_type": "swiglu", "n_kv_head": 2}, {"ffn_type": "moe", "n_experts": 4}]
)
@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_the_flops_of_a_step_are_those_that_torch_counts(name, keys):
    model = tiny_model(**keys).train()
    optimizer = make_optimizer(model, settings(name))
    idx = tokens(SIZES["block_size"])
    model(idx, idx)[1].backward()
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    assert counter.get_total_flops() == optimizer.step_flops()
    assert (optimizer.step_flops() > 0) == (name == "muon")
