"""Mamba-2: equal to the layers of transformers, its decoding state and its cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from components.mamba2 import Mamba2
from errors import ConfigError
from tests.tiny import context, tiny_config, tiny_model, tokens

C = 24
SHAPE = {
    "n_embd": C,
    "mixer": "mamba2",
    "mamba_n_head": 6,
    "mamba_head_dim": 4,
    "mamba_state_dim": 5,
    "mamba_n_group": 2,
    "mamba_kernel": 3,
    "mamba_chunk": 4,
}


def layer_of(**keys: Any) -> Mamba2:
    return Mamba2(tiny_config(**{**SHAPE, **keys}).layers[0]).double().eval()


def of_mamba2(**keys: Any) -> nn.Module:
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    sizes = {"num_heads": 6, "head_dim": 4, "state_size": 5, "n_groups": 2, "conv_kernel": 3}
    config = Mamba2Config(
        hidden_size=C, expand=1, num_hidden_layers=1, layer_norm_epsilon=1e-5, **sizes, **keys
    )
    return Mamba2Mixer(config, layer_idx=0)


SIZES = {"n_heads": 6, "d_head": 4, "d_state": 5, "n_groups": 2, "d_conv": 3, "expand": 1}


def of_bamba(**keys: Any) -> nn.Module:
    from transformers import BambaConfig
    from transformers.models.bamba.modeling_bamba import BambaMixer

    sizes = {f"mamba_{key}": value for key, value in SIZES.items()}
    config = BambaConfig(hidden_size=C, num_hidden_layers=1, **sizes, rms_norm_eps=1e-5, **keys)
    return BambaMixer(config, layer_idx=0)


def of_falcon_h1(**keys: Any) -> nn.Module:
    from transformers import FalconH1Config
    from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1Mixer

    sizes = {f"mamba_{key}": value for key, value in SIZES.items()}
    sizes["mamba_d_ssm"] = 24
    config = FalconH1Config(hidden_size=C, num_hidden_layers=1, **sizes, rms_norm_eps=1e-5, **keys)
    layer = FalconH1Mixer(config, layer_idx=0)
    layer.register_buffer("mup_vector", torch.ones(()))  # set by the model
    return layer


PUBLISHED = {
    "mamba2": (of_mamba2, {}, {}),
    "mamba2, limits": (
        of_mamba2,
        {"time_step_limit": (0.3, 1.5), "use_conv_bias": False, "use_bias": True},
        {"mamba_dt_min": 0.3, "mamba_dt_max": 1.5, "mamba_conv_bias": False, "bias": True},
    ),
    "bamba": (of_bamba, {}, {"mamba_n_head": None, "mamba_expand": 1.0}),
    "falcon_h1": (of_falcon_h1, {"mamba_rms_norm": False}, {"mamba_norm": "none"}),
    "falcon_h1, norm before": (
        of_falcon_h1,
        {"mamba_rms_norm": True, "mamba_norm_before_gate": True},
        {"mamba_norm": "before_gate"},
    ),
}
NAMES = {"in_proj": "zxbcdt", "conv1d": "conv", "out_proj": "out"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_is_the_layer_of_transformers(name):
    """Theirs computes the recurrence in float32."""
    make, theirs_keys, keys = PUBLISHED[name]
    torch.manual_seed(0)
    theirs, ours = make(**theirs_keys).double().eval(), layer_of(**{"bias": False, **keys})
    renamed = {
        ".".join([NAMES.get(each, each) for each in parameter.split(".")]): value
        for parameter, value in theirs.named_parameters()
    }
    assert renamed.keys() == dict(ours.named_parameters()).keys()
    with torch.no_grad():
        for own, value in renamed.items():
            value.add_(0.2 * torch.randn_like(value))
            ours.get_parameter(own).copy_(value)
    x = torch.randn(2, 11, C, dtype=torch.float64)
    results = []
    for call in (lambda x: ours(x, context(x)), theirs):
        given = x.clone().requires_grad_()
        y = call(given)
        (y * torch.linspace(-1, 1, y.numel()).double().view_as(y)).sum().backward()
        results.append((y, given.grad))
    close = {"rtol": 1e-4, "atol": 2e-6}
    assert_close(results[0], results[1], **close)
    for own, value in renamed.items():
        assert_close(ours.get_parameter(own).grad, value.grad, **close)


def test_gradients():
    torch.manual_seed(0)
    layer = layer_of(mamba_dt_min=0.01, mamba_dt_max=5.0)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def call(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, given, (x, context(x)))

    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(0.3 * torch.randn_like(parameter))
    x = torch.randn(1, 6, C, dtype=torch.float64, requires_grad=True)
    assert gradcheck(call, (x, *parameters), fast_mode=True)


def test_the_state_is_a_matrix_per_head_and_the_inputs_of_the_convolution():
    model = tiny_model(**SHAPE)
    numbers = 6 * 5 * 4 + 2 * (24 + 2 * 2 * 5)
    assert model.new_state(1).bytes == 4 * 2 * numbers  # 2 layers
    assert model.unbounded
    state, idx = model.new_state(2), tokens(60)  # of block_size 24
    parts = [model(piece, state=state) for piece in idx.split([30, 1, 1, 28], dim=1)]
    assert_close(torch.cat(parts, dim=1), model(idx), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("length", [1, 7])
def test_its_cost_equals_the_counter(length):
    """By token, where every product of the recurrence is a matmul."""
    layer = layer_of(mamba_chunk=1)
    x = torch.randn(1, length, C, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        layer(x, context(x))
    assert layer.forward_flops(length) == counter.get_total_flops()
    assert layer.forward_flops(1) == (
        2 * C * (2 * 24 + 2 * 2 * 5 + 6) + 2 * 24 * C + 2 * 3 * (24 + 20) + 4 * 6 * 5 * 4
    )


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"mamba_n_group": 4}, "mamba_n_head=6 is not a multiple of mamba_n_group=4"),
        ({"mamba_expand": 1.5}, "mamba_expand=1.5 x n_embd=24 is not the width 24"),
        (
            {"mamba_expand": None, "mamba_n_head": None, "mamba_head_dim": 9},
            "2 x n_embd=48 is not a multiple of mamba_head_dim=9; change one, or set mamba_n_head",
        ),
        ({"mamba_dt_min": 1.0, "mamba_dt_max": 1.0}, "mamba_dt_min=1 is not below mamba_dt_max=1"),
    ],
)
def test_what_does_not_fit_is_refused(keys, said):
    with pytest.raises(ConfigError, match=said):
        tiny_config(**{**SHAPE, **keys})
