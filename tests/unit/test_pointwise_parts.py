"""Norms without statistics or gain, activations and gates: equal to their formulas and to
published implementations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional as F
from torch.testing import assert_close

from components.activations import ACTIVATIONS
from components.ffns import FFNS
from components.norms import NORMS
from model_builder import GPT
from tests.tiny import SIZES, tiny_config, tiny_layer, tiny_model, tokens


def inputs(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return 2 * torch.randn(shape, dtype=torch.float64)


def with_random_parameters(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 + 0.2 * torch.randn_like(parameter))
    return module.double()


def norm(name: str, **keys: float) -> nn.Module:
    return with_random_parameters(NORMS[name](8, tiny_layer(normalization=name, **keys)))


class TestNorms:
    def test_dyt_and_derf_by_hand(self):
        for name, function in (("dyt", math.tanh), ("derf", math.erf)):
            made, x = norm(name), inputs(8)
            assert_close(made(x), self.by_hand(function, made, x, made.alpha.item()))

    def test_their_first_scale(self):
        """The scale is `norm_alpha`."""
        for name, function in (("dyt", math.tanh), ("derf", math.erf)):
            config = tiny_layer(normalization=name, norm_alpha=1.5)
            made, x = NORMS[name](8, config).double(), inputs(8)
            assert_close(made(x), self.by_hand(function, made, x, 1.5))

    def by_hand(self, function: Any, made: nn.Module, x: Tensor, alpha: float) -> Tensor:
        shift = made.shift.item() if function is math.erf else 0.0
        expected = [
            function(alpha * x[i].item() + shift) * made.weight[i].item() + made.bias[i].item()
            for i in range(8)
        ]
        return torch.tensor(expected, dtype=torch.float64)

    @pytest.mark.parametrize("name", ["dyt", "derf"])
    def test_gradients(self, name):
        made = norm(name)
        names, parameters = zip(*made.named_parameters(), strict=True)

        def call(x: Tensor, *values: Tensor) -> Tensor:
            return torch.func.functional_call(made, dict(zip(names, values, strict=True)), x)

        assert gradcheck(call, (inputs(3, 8).requires_grad_(), *parameters))

    @pytest.mark.parametrize("name", ["layernorm", "rmsnorm"])
    def test_without_a_gain_they_are_as_with_one_of_1(self, name):
        plain = NORMS[f"{name}_nogain"](8, tiny_layer(normalization=name)).double()
        gained = NORMS[name](8, tiny_layer(normalization=name)).double()
        assert not list(plain.parameters())
        assert_close(plain(inputs(3, 8)), gained(inputs(3, 8)))

    def test_a_layer_norm_with_an_offset_is_that_of_nemotron(self):
        from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P

        ours, theirs = norm("layernorm_unit_offset"), NemotronLayerNorm1P(8).double()
        theirs.load_state_dict({"weight": ours.offset.data, "bias": ours.bias.data})
        assert_close(ours(inputs(3, 8)), theirs(inputs(3, 8)))


def test_embedding_norm_normalizes_what_the_first_block_reads():
    model = GPT(tiny_config(embedding_norm=True, position_encoding="learned")).eval()
    with torch.no_grad():
        model.embedding_norm.weight.normal_()
        idx = tokens(12)
        x = model.embedding(idx) + model.positions.table.weight[:12]
        expected = F.layer_norm(x, (32,), model.embedding_norm.weight, model.embedding_norm.bias)
        read = []
        model.blocks[0].register_forward_pre_hook(lambda block, given: read.append(given[0]))
        model(idx)
    assert_close(read[0], expected)


@torch.no_grad()
@pytest.mark.parametrize("normalization", NORMS.names)
def test_norms_of_a_model_in_bfloat16(normalization):
    model = tiny_model(normalization=normalization, qk_norm=True)
    expected = model(tokens(9))
    logits = model.bfloat16()(tokens(9))
    assert logits.dtype == torch.bfloat16
    assert_close(logits.float(), expected, rtol=0.1, atol=0.05 * expected.abs().max().item())


@torch.no_grad()
def test_layer_norm_scaling_divides_by_the_root_of_the_layer():
    """As if the weights that read the norms of layer l were divided by sqrt(l)."""
    torch.manual_seed(0)
    scaled = GPT(tiny_config(layer_norm_scaling=True, n_layer=3)).eval()
    plain = GPT(scaled.config.changed(layer_norm_scaling=False)).eval()
    plain.load_state_dict(scaled.state_dict())
    with torch.no_grad():
        for layer, block in enumerate(plain.blocks, start=1):
            for weight in (block.mixer.qkv.weight, block.ffn.up.weight):
                weight.div_(math.sqrt(layer))
    assert_close(scaled(tokens(12)), plain(tokens(12)))


class TestActivations:
    def test_xielu_is_that_of_transformers(self):
        from transformers.activations import XIELUActivation

        theirs = XIELUActivation(dtype=torch.float64)
        ours = ACTIVATIONS["xielu"](tiny_layer(activation="xielu")).double()
        assert_close(ours.state_dict()["alpha_p"], theirs.alpha_p.data, rtol=1e-6, atol=1e-6)
        with torch.no_grad():
            for own, other in ((ours.alpha_p, theirs.alpha_p), (ours.alpha_n, theirs.alpha_n)):
                own.copy_(other.normal_())
        x = inputs(50).requires_grad_()
        assert_close(ours(x), theirs(x))
        given = [
            torch.autograd.grad(act(x).square().sum(), [x, act.alpha_n]) for act in (ours, theirs)
        ]
        assert_close(given[0], given[1])

    def test_xielu_is_smooth_at_0(self):
        ours = ACTIVATIONS["xielu"](tiny_layer(activation="xielu")).double()
        x = torch.tensor([-1e-5, 0.0, 1e-5], dtype=torch.float64, requires_grad=True)
        slopes = torch.autograd.grad(ours(x).sum(), x)[0]
        assert_close(slopes, torch.full_like(slopes, 0.5), rtol=0, atol=1e-4)

    def test_quick_gelu_is_that_of_transformers(self):
        from transformers.activations import ACT2FN

        ours = ACTIVATIONS["quick_gelu"](tiny_layer(activation="quick_gelu"))
        assert_close(ours(inputs(50)), ACT2FN["quick_gelu"](inputs(50)))


@pytest.mark.parametrize("ffn_type", ["glu", "moe"])
def test_experts_of_gpt_oss(ffn_type):
    """The clamped gate, as GptOssExperts computes it, in a network and in each expert."""
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    limit, width, C = 0.7, 6, SIZES["n_embd"]
    config = GptOssConfig(
        hidden_size=C, intermediate_size=width, num_local_experts=1, num_hidden_layers=1
    )
    theirs = GptOssExperts(config).double()
    theirs.limit = limit
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    keys = {"ffn_type": ffn_type, "activation": "quick_gelu", "ffn_hidden": width, "glu_shift": 1.0}
    if ffn_type == "moe":
        keys |= {"n_experts": 2, "n_experts_per_token": 1}
    ours = FFNS[ffn_type](tiny_layer(**keys, glu_limit=limit)).double().eval()
    x = inputs(5, C)
    gate_up = torch.cat((theirs.gate_up_proj[0, :, ::2], theirs.gate_up_proj[0, :, 1::2]), dim=1)
    biases = theirs.gate_up_proj_bias[0].view(width, 2).T.flatten()
    weights = {"gate_up": gate_up.T, "down": theirs.down_proj[0].T}
    with torch.no_grad():
        if ffn_type == "glu":
            for name, bias in (("gate_up", biases), ("down", theirs.down_proj_bias[0])):
                getattr(ours, name).weight.copy_(weights[name])
                getattr(ours, name).bias.copy_(bias)
            y = ours(x, None)
        else:
            ours.experts.gate_up[0].copy_(weights["gate_up"])
            ours.experts.down[0].copy_(weights["down"])
            ours.experts.gate_up_bias[: 2 * width] = biases
            ours.experts.down_bias[:C] = theirs.down_proj_bias[0]
            ends = torch.tensor([5, 5], dtype=torch.int32)  # all of the first expert
            y = ours.experts(x, torch.zeros(5, dtype=torch.long), ends)
    routed = torch.zeros(5, 1, dtype=torch.long), torch.ones(5, 1, dtype=torch.float64)
    assert_close(y, theirs(x, *routed).view(5, C))
    assert (F.linear(x, weights["gate_up"]).abs() > limit).any()
