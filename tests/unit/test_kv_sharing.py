"""Layers that share keys and values: equal to Gemma 3n's, and stored once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from components.context import Context, LayerInputs
from components.positions import PositionEncoding
from components.tensor_split import TensorSplit
from errors import ConfigError
from model_builder import GPT
from recipe.adapters import adapt
from recipe.objectives import make_objective
from tests.tiny import SIZES, tiny_config, tokens
from training.memory import least_parameters
from training_config import TrainingConfig

C, H, G, D, T = 32, 4, 2, 8, 9
GEMMA = {
    "n_layer": 5,
    "sliding_window": "4+none",
    "kv_sharing": "false*3+true*",
    "n_kv_head": G,
    "qk_norm": True,
    "attention_scale": 1.0,
    "position_encoding": "rope",
    "rope_theta": "50+1e4",
    "normalization": "rmsnorm",
    "bias": False,
}


def made(**keys: Any) -> GPT:
    """A model in float64 with random parameters."""
    torch.manual_seed(0)
    model = GPT(tiny_config(**keys)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return model


def gemma_3n(model: GPT) -> list[nn.Module]:
    """Gemma 3n's attention layers with the weights of a model's attention layers."""
    from transformers import Gemma3nTextConfig
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextAttention

    config = Gemma3nTextConfig(
        hidden_size=C,
        num_attention_heads=H,
        num_key_value_heads=G,
        head_dim=D,
        num_hidden_layers=5,
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
        sliding_window=4,
        rms_norm_eps=1e-5,
        activation_sparsity_pattern=[0.0] * 5,
    )
    config._attn_implementation = "eager"
    assert config.kv_sharing_modes == [None, "store", "store", "reuse", "reuse"]
    layers = [Gemma3nTextAttention(config, layer_idx=i).double().eval() for i in range(5)]
    for layer, block in zip(layers, model.blocks, strict=True):
        own = block.mixer
        weights = dict(zip(("q", "k", "v"), own.qkv.weight.split(own.widths), strict=False))
        with torch.no_grad():
            for name, weight in weights.items():
                getattr(layer, f"{name}_proj").weight.copy_(weight)
            layer.q_norm.weight.copy_(own.q_norm.weight)
            if "k" in weights:
                layer.k_norm.weight.copy_(own.k_norm.weight)
                layer.v_norm = nn.Identity()  # which has no counterpart here
            layer.o_proj.weight.copy_(own.out.weight)
    return layers


def angles(encoding: PositionEncoding) -> tuple[Tensor, ...]:
    return tuple(table[:T].repeat(1, 2)[None] for table in (encoding.cos, encoding.sin))


def test_layers_are_those_of_gemma_3n():
    """Equal outputs and input gradients, which also flow through shared keys and values."""
    model = made(**GEMMA)
    layers = model.config.layers
    assert [layer.kv_source for layer in layers] == [None, None, None, 1, 2]
    assert [layer.kv_readers for layer in layers] == [(), (3,), (4,), (), ()]
    idx, inputs = tokens(T), torch.randn(5, 2, T, C).double().requires_grad_()
    given: dict[str, Tensor] = {}
    ours, expected, kept = [], [], {}
    seen = torch.ones(T, T, dtype=torch.bool).tril()
    for index, (block, other) in enumerate(zip(model.blocks, gemma_3n(model), strict=True)):
        encoding, x = model.position_encodings[index % 2], inputs[index]
        about = Context(LayerInputs(idx, encoding, None, 0, None, given)).of("mixer")
        ours.append(block.mixer(x, about))
        given |= about.outputs.given
        visible = seen & ~seen.tril(-4) if other.is_sliding else seen
        mask = torch.zeros(T, T, dtype=torch.float64).masked_fill(~visible, -torch.inf)
        expected.append(other(x, angles(encoding), mask[None, None], shared_kv_states=kept)[0])
    assert len(given) == 4  # keys and values of each kind
    assert_close(ours, expected, rtol=1e-5, atol=1e-6)  # their norms are in float32
    gradients = []
    for outputs in (ours, expected):
        weights = torch.linspace(-1, 1, inputs.numel()).double().view_as(inputs)
        gradients.append(torch.autograd.grad((torch.stack(outputs) * weights).sum(), inputs)[0])
    assert_close(*gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kv_sharing", "keys", "sources"),
    [
        ("false+true", {}, [None, 0, None, 2, None, 4]),
        ("false+true*2", {}, [None, 0, 0, None, 3, 3]),
        ("false+true*", {}, [None, 0, 0, 0, 0, 0]),
        ("false*2+true*", {"sliding_window": "4+none"}, [None, None, 0, 1, 0, 1]),
        ("false*3+true*", {"n_kv_head": "2+4*2"}, [None, None, None, 0, 2, 2]),
        ("false*2+true", {"rope_theta": "50+1e4"}, [None, None, 0, None, None, 3]),
        ("false+true", {"mixer": "attention*2+short_conv"}, [None, 0, None, 0, None, None]),
    ],
)
def test_the_last_layer_of_the_same_kind_is_the_source(kv_sharing, keys, sources):
    config = tiny_config(
        n_layer=6, **{"kv_sharing": kv_sharing, "position_encoding": "rope", **keys}
    )
    assert [layer.kv_source for layer in config.layers] == sources
    for index, layer in enumerate(config.layers):
        assert layer.kv_readers == tuple(i for i, s in enumerate(sources) if s == index)
    model = GPT(config)
    model(tokens(5), tokens(5))[1].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_looped_layers_keep_their_source():
    """Even after another layer of the same kind has been applied."""
    model = made(kv_sharing="false+true", n_layer=4, loop_count=2, loop_prelude=1)
    given, taken = [], []
    blocks = model.blocks
    blocks[0].register_forward_hook(lambda *call: given.append(call[-1][1].given))
    blocks[1].register_forward_pre_hook(lambda block, args: taken.append(args[1].taken))
    model(tokens(T))
    (own,) = given
    assert len(taken) == 2
    for each in taken:
        assert len(own) == 2
        assert all(each[name] is tensor for name, tensor in own.items())


def test_shared_layers_have_neither_weights_nor_state_of_their_own():
    keys = {**GEMMA, "n_head": H, "ffn_hidden": 64}
    shared, own = made(**keys), made(**{**keys, "kv_sharing": False})
    weights = 2 * (2 * C * G * D + D)  # of two layers: keys, values and the norm of keys
    assert own.num_parameters() - shared.num_parameters() == weights
    matrices = 3 * 2 * 2 * 2 * C * G * D
    assert own.flops_per_token(T) - shared.flops_per_token(T) == matrices
    assert shared.decoding_state_bytes(T) * 5 == own.decoding_state_bytes(T) * 3
    assert shared.new_state(2).bytes * 5 == own.new_state(2).bytes * 3
    assert sum(state["mixer"] == {} for state in shared.new_state(2).layers) == 2
    counted = least_parameters(shared.config, SIZES["vocab_size"])
    assert counted < shared.num_parameters()


@pytest.mark.parametrize("static", [False, True])
@torch.no_grad()
def test_decoding_in_pieces(static):
    model, idx = made(**GEMMA), tokens(20)
    state = model.new_state(2, static=static)
    parts = [model(piece, state=state) for piece in idx.split([7, 1, 1, 6, 5], dim=1)]
    assert_close(torch.cat(parts, dim=1), model(idx), rtol=1e-9, atol=1e-10)


def test_gradients():
    model = made(n_layer=2, kv_sharing="false+true", position_encoding="rope", n_kv_head=1)
    names, parameters = zip(*model.named_parameters(), strict=True)
    idx = tokens(4, batch=1)

    def call(*values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (idx,))

    assert gradcheck(call, parameters, fast_mode=True)


@pytest.mark.parametrize("keys", [{}, {"differential_attention": True}])
@pytest.mark.parametrize("pattern", ["blocks.1.*", "blocks.0.*", "blocks.0.mixer.out", "ffn.*"])
def test_cost_of_adapters_equals_the_counter(pattern, keys):
    training = {"init_from": "m", "adapter": "lora", "adapter_rank": 2, "max_iters": 1}
    settings = TrainingConfig.make({**training, "adapter_pattern": pattern})
    model = GPT(tiny_config(n_layer=2, kv_sharing="false+true", n_kv_head=2, **keys)).train()
    adapt(model, settings)
    idx = tokens(12)
    with FlopCounterMode(display=False) as counter:
        model(idx, idx, objective=make_objective(settings)).loss.backward()
    assert counter.get_total_flops() == model.flops_per_token(12) * idx.numel()


def test_tensor_parallelism_replicates_them():
    model = GPT(tiny_config(n_layer=3, kv_sharing="false+true+false", ffn_hidden=64))
    whole = [block.split(TensorSplit(0, 2)) for block in model.blocks]
    assert whole == [{"Attention"}, {"Attention"}, set()]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"kv_sharing": True}, "needs an earlier attention layer that computes keys and values"),
        ({"kv_sharing": "true+false"}, "layer 0: kv_sharing=True needs an earlier"),
        ({"kv_sharing": "false+true", "n_kv_head": "4+2"}, "n_kv_head=2 instead of 4"),
        ({"kv_sharing": "false+true", "head_dim": "8+16"}, "head_dim=16 instead of 8"),
        ({"kv_sharing": "false+true", "sliding_window": "none+4"}, "sliding_window=4 instead of n"),
        (
            {"kv_sharing": "false+true", "position_encoding": "rope", "rope_theta": "50+1e4"},
            "other options of its position encoding",
        ),
        (
            {"kv_sharing": "false+true", "value_residual": "fixed"},
            "value_residual='fixed' changes keys or values",
        ),
        (
            {"kv_sharing": "false+true", "value_embedding": "mixed"},
            "use value_embedding=.none. there",
        ),
        ({"kv_sharing": "false+true", "exclusive_attention": "full"}, "none of its own"),
        ({"kv_sharing": "false+true", "qk_sphere": True}, "use qk_sphere=False there"),
        ({"kv_sharing": "false+true", "mixer": "mla"}, "belongs to mixer=attention"),
        ({"kv_sharing": "false+true", "mixer": "short_conv+attention"}, "needs an earlier"),
    ],
)
def test_refusals(keys, problem):
    with pytest.raises(ConfigError, match=problem):
        tiny_config(**keys)
