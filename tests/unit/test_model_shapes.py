"""Shapes over a sweep of sizes, and parameter counts against closed forms written out here."""

from __future__ import annotations

import itertools

import pytest
import torch

from components.layer_config import LayerConfig
from model_builder import GPT
from model_components import BLOCKS, FFNS, MIXERS, NORMS, POSITIONS, RESIDUALS
from model_config import ModelArchitectureConfig
from tests.tiny import VARIANTS, tiny_config, tiny_model, tokens

# Parameter counts


VECTORS_OF_A_NORM = {
    "layernorm": 2,
    "layernorm_nobias": 1,
    "rmsnorm": 1,
    "rmsnorm_unit_offset": 1,
    "layernorm_unit_offset": 2,
    "layernorm_nogain": 0,
    "rmsnorm_nogain": 0,
    "dyt": 2,
    "derf": 2,
    "none": 0,
}


def norm(c: LayerConfig) -> int:
    scalars = {"dyt": 1, "derf": 2}.get(c.normalization, 0)
    return VECTORS_OF_A_NORM[c.normalization] * c.n_embd + scalars


def short_conv(c: LayerConfig) -> int:
    C = c.n_embd
    return 4 * C * C + C * c.short_conv_kernel + (4 * C + C) * c.bias


def linear_mixer(c: LayerConfig) -> int:
    """Queries, keys, values, output and convolution."""
    C, keys = c.n_embd, c.linear_n_head * c.linear_key_dim
    values = c.linear_n_value_head * c.linear_value_dim
    return (
        (C + c.linear_kernel) * (2 * keys + values) + values * C + (2 * keys + values + C) * c.bias
    )


def output_gate(c: LayerConfig) -> int:
    return c.linear_n_value_head * c.linear_value_dim * (c.n_embd + c.bias)


def retnet(c: LayerConfig) -> int:
    return linear_mixer(c) + output_gate(c) + c.linear_value_dim


def gla(c: LayerConfig) -> int:
    decays = c.linear_n_value_head * c.linear_key_dim
    return retnet(c) + c.gla_rank * (c.n_embd + decays) + decays


def deltanet(c: LayerConfig) -> int:
    return linear_mixer(c) + c.linear_value_dim + c.n_embd * c.linear_n_value_head


def gated_deltanet(c: LayerConfig) -> int:
    return deltanet(c) + output_gate(c) + (c.n_embd + 2) * c.linear_n_value_head


def kda(c: LayerConfig) -> int:
    decays, values = (c.linear_n_value_head * d for d in (c.linear_key_dim, c.linear_value_dim))
    low_rank = c.kda_rank * (2 * c.n_embd + decays + values)
    return deltanet(c) + low_rank + decays + c.linear_n_value_head


def mamba2(c: LayerConfig) -> int:
    C, H = c.n_embd, c.mamba_n_head
    inner, shared = H * c.mamba_head_dim, c.mamba_n_group * c.mamba_state_dim
    matrices = C * (2 * inner + 2 * shared + H) + inner * C
    convolved = (inner + 2 * shared) * (c.mamba_kernel + c.mamba_conv_bias)
    biases = (2 * inner + 2 * shared + H + C) * c.bias
    return matrices + convolved + biases + 3 * H + inner * (c.mamba_norm != "none")


def attention(c: LayerConfig) -> int:
    C, H, G, D = c.n_embd, c.n_head, c.n_kv_head, c.head_dim
    matrices = C * H * D + 2 * C * G * D + H * D * C
    biases = (H * D + 2 * G * D) * c.attention_bias + C * c.attention_out_bias
    normed = {"head": 2 * D, "projection": H * D + G * D}[c.qk_norm_over]
    outputs = H // 2 if c.differential_attention else H
    gates = {"none": 0, "channel": H * D, "head": outputs}[c.attention_gate]
    gated = gates * (C + c.attention_bias)
    per_head = H * c.attention_sinks + H * (c.exclusive_attention == "learned")
    per_head += (C + 1) * H * c.forget_gate + H * (c.query_scaling == "ssmax")
    per_head += 4 * D * c.differential_attention
    shared = c.value_residual == "learned" and c.index > 0
    normed *= c.qk_norm and c.normalization != "rmsnorm_nogain"
    embedding = c.vocab_size * G * D + {"mixed": 2, "gated": G * min(C, 32)}.get(
        c.value_embedding, 0
    )
    per_head += embedding * (c.value_embedding != "none")
    return matrices + biases + normed + gated + per_head + shared + G * D * c.qk_sphere


def mla(c: LayerConfig) -> int:
    C, H, R, Q = c.n_embd, c.n_head, c.kv_lora_rank, c.q_lora_rank
    D, P, V = c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim
    queries = H * (D + P) * (Q or C) + (C * Q + Q if Q else 0)
    keys = C * (R + P) + R + R * H * (D + V)
    biases = (R + P + (Q or 0)) * c.attention_bias + C * c.attention_out_bias
    return queries + keys + H * V * C + biases + H * c.attention_sinks


def activation(c: LayerConfig) -> int:
    return 2 * (c.activation == "xielu")


def plain_network(c: LayerConfig) -> int:
    C, F = c.n_embd, c.ffn_hidden
    return 2 * C * F + (F + C) * c.bias + activation(c) + F * c.hidden_gain


def gated_network(c: LayerConfig) -> int:
    C, F = c.n_embd, c.ffn_hidden
    return 3 * C * F + (2 * F + C) * c.bias + activation(c) + 2 * F * c.hidden_gain


def mixture(c: LayerConfig) -> int:
    C, F, shared = c.n_embd, c.ffn_hidden, c.n_shared_experts
    gates = (C + c.router_logit_bias) * c.n_experts + C * c.shared_expert_gate
    matrices = 3 * C * F * (c.n_experts + shared)
    biases = (2 * F + C) * c.n_experts + 2 * F * shared + C * (shared > 0)
    return gates + matrices + biases * c.bias


NETWORKS = {
    "standard": plain_network,
    "glu": gated_network,
    "swiglu": gated_network,
    "geglu": gated_network,
    "reglu": gated_network,
    "moe": mixture,
}


def hyper_connections(c: LayerConfig, sites: int) -> int:
    n, C = c.hyper_streams, c.n_embd
    dynamic = C * (n + 2) + 2 + norm(c)
    return sites * (n * (n + 2) + dynamic * c.hyper_dynamic)


def mhc(c: LayerConfig, sites: int) -> int:
    n = c.hyper_streams
    return sites * (n * (n + 2) * (n * c.n_embd + 1) + 3)


RESIDUAL_STREAMS = {
    "plain": lambda c, sites: 0,
    "unet": lambda c, sites: int(2 * c.index > c.n_layer - 1),
    "hyper_connections": hyper_connections,
    "mhc": mhc,
    "ngpt": lambda c, sites: sites * c.n_embd,
}
MIXERS_OF_A_BLOCK = {
    "attention": attention,
    "short_conv": short_conv,
    "linear_attention": linear_mixer,
    "retnet": retnet,
    "gla": gla,
    "deltanet": deltanet,
    "gated_deltanet": gated_deltanet,
    "kda": kda,
    "mla": mla,
    "mamba2": mamba2,
}
NORMS_OF_A_BLOCK = {
    "pre": 2,
    "post": 2,
    "res_post": 2,
    "sandwich": 4,
    "parallel": 2,
    "parallel_shared": 1,
}
NORMS_AFTER_THE_BLOCKS = {name: int(name != "post") for name in NORMS_OF_A_BLOCK}
POSITION_TABLES = {
    "none": lambda c: 0,
    "learned": lambda c: c.block_size * c.n_embd,
    "sinusoidal": lambda c: 0,
    "rope": lambda c: 0,
    "alibi": lambda c: 0,
}


def parameters(c: ModelArchitectureConfig) -> int:
    """How many parameters a model has, by hand."""
    encodings = [layer.position_encoding for layer in c.layers if "position_encoding" in layer]
    last = c.layers[-1]
    return (
        c.vocab_size * c.n_embd * (1 if c.weight_tying else 2)
        + c.vocab_size * (c.head_bias + c.logit_gain)
        + POSITION_TABLES[encodings[-1] if encodings else "none"](c)
        + sum(map(block, c.layers))
        + NORMS_AFTER_THE_BLOCKS[last.norm_position] * norm(last)
        + c.embedding_norm * norm(c.layers[0])
    )


def block(c: LayerConfig) -> int:
    norms = NORMS_OF_A_BLOCK[c.norm_position] * norm(c)
    sites = 1 if c.norm_position.startswith("parallel") else 2
    stream = RESIDUAL_STREAMS[c.residual](c, sites)
    return (
        MIXERS_OF_A_BLOCK[c.mixer](c)
        + NETWORKS[c.ffn_type](c)
        + norms
        + stream
        + canon(c)
        + shifts(c)
    )


def shifts(c: LayerConfig) -> int:
    return c.n_embd * {"none": 0, "mixer": 1, "ffn": 1, "both": 2}[c.token_shift]


def canon(c: LayerConfig) -> int:
    if c.canon == "none":
        return 0
    channels = {"a": c.n_embd, "c": c.n_embd}
    if c.mixer == "attention":
        channels["b"] = (c.n_head + 2 * c.n_kv_head) * c.head_dim
    channels["d"] = (1 if c.ffn_type == "standard" else 2) * c.ffn_hidden
    return c.canon_kernel * sum(channels[position] for position in c.canon)


@pytest.mark.parametrize(
    ("registry", "counted"),
    [
        (NORMS, VECTORS_OF_A_NORM),
        (FFNS, NETWORKS),
        (BLOCKS, NORMS_OF_A_BLOCK),
        (POSITIONS, POSITION_TABLES),
        (MIXERS, MIXERS_OF_A_BLOCK),
        (RESIDUALS, RESIDUAL_STREAMS),
    ],
    ids=lambda argument: getattr(argument, "key", ""),
)
def test_every_part_is_counted(registry, counted):
    assert set(registry.names) == set(counted), "write down the parameters of what is missing"


@pytest.mark.parametrize("keys", VARIANTS.values(), ids=VARIANTS)
def test_parameter_counts(keys):
    model = GPT(tiny_config(**keys))
    assert model.num_parameters() == parameters(model.config)


TRIPLES = list(itertools.product(NETWORKS, NORMS_OF_A_BLOCK, VECTORS_OF_A_NORM))


@pytest.mark.parametrize(
    ("ffn_type", "norm_position", "normalization", "position_encoding"),
    [
        (*parts, position)
        for parts, position in zip(TRIPLES, itertools.cycle(POSITION_TABLES), strict=False)
    ],
)
def test_parameter_counts_of_parts_together(
    ffn_type, norm_position, normalization, position_encoding
):
    """Every FFN in every block with every norm; the position encodings take turns."""
    config = tiny_config(
        ffn_type=ffn_type,
        norm_position=norm_position,
        normalization=normalization,
        position_encoding=position_encoding,
        bias=False,
        attention_bias=True,
        weight_tying=False,
        n_kv_head=2,
        qk_norm=True,
    )
    with torch.device("meta"):
        model = GPT(config)
    assert model.num_parameters() == parameters(config)


# Shapes

LAYERS = (1, 3)
HEADS = ((1, 1), (4, 4), (4, 2), (4, 1), (6, 3), (3, 1))
HEAD_DIMS = (None, 2, 6, 16)


@pytest.mark.parametrize("n_layer", LAYERS)
@pytest.mark.parametrize(("n_head", "n_kv_head"), HEADS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_sizes(n_layer, n_head, n_kv_head, head_dim):
    """Logits, weights and cache have the expected shapes; the parameter count is exact."""
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_kv_head": n_kv_head, "head_dim": head_dim}
    model = tiny_model(**sizes, n_embd=24, position_encoding="rope")
    D = head_dim or 24 // n_head
    assert len(model.blocks) == n_layer
    assert model.num_parameters() == parameters(model.config)
    for block in model.blocks:
        assert block.mixer.qkv.weight.shape == ((n_head + 2 * n_kv_head) * D, 24)
        assert block.mixer.out.weight.shape == (24, n_head * D)
    state = model.new_state(3)
    assert model(tokens(7, batch=3), state=state).shape == (3, 7, model.config.vocab_size)
    assert len(state.layers) == n_layer
    for layer in state.layers:
        assert {t.shape for t in layer["mixer"].values()} == {(3, n_kv_head, 24, D)}
    assert (state.length, state.bytes) == (7, n_layer * 2 * 4 * 3 * n_kv_head * 24 * D)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("length", [1, 2, 24])
def test_any_batch_and_length_up_to_block_size(batch, length):
    model, idx = tiny_model(), tokens(length, batch=batch)
    logits, loss = model(idx, idx)
    assert logits.shape == (batch, length, model.config.vocab_size)
    assert loss.shape == ()


def test_a_sequence_too_long_is_refused():
    with pytest.raises(ValueError, match="25 tokens do not fit block_size=24"):
        tiny_model()(tokens(25))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_logits_keep_the_precision_and_the_loss_has_float32_at_least(dtype):
    model, idx = tiny_model().to(dtype), tokens(8)
    logits, loss = model(idx, idx)
    assert logits.dtype == dtype
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
