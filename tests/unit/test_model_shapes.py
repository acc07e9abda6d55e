"""Shapes over a sweep of sizes, and parameter counts against closed forms written out here."""

from __future__ import annotations

import itertools

import pytest
import torch

from components.layer_config import LayerConfig
from model_builder import GPT
from model_components import BLOCKS, FFNS, MIXERS, NORMS, POSITIONS, RESIDUALS
from model_config import ModelArchitectureConfig
from tests.parametrized import in_turn, one_in
from tests.tiny import some_variants, tiny_config, tiny_model, tokens

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


def rwkv7(c: LayerConfig) -> int:
    """Without the shares of the first layer's values, which that layer does not have."""
    C, ranks = c.n_embd, c.rwkv_decay_rank + c.rwkv_rate_rank + c.rwkv_gate_rank
    vectors = 6 + 3 + 2 + 2  # mu; of keys and bonus; norm; biases of decays and rates
    return 4 * C * (C + c.bias) + 2 * C * ranks + vectors * C


def rwkv7_value_shares(c: ModelArchitectureConfig) -> int:
    layers = [layer for layer in c.layers if layer.mixer == "rwkv7"]
    return sum(c.n_embd * (2 * layer.rwkv_value_rank + 1) for layer in layers[1:])


def attention(c: LayerConfig) -> int:
    C, H, G, D = c.n_embd, c.n_head, c.n_kv_head, c.head_dim
    G = 0 if c.kv_sharing else G
    matrices = C * H * D + 2 * C * G * D + H * D * C
    biases = (H * D + 2 * G * D) * c.attention_bias + C * c.attention_out_bias
    normed = {"head": (1 + (G > 0)) * D, "projection": H * D + G * D}[c.qk_norm_over]
    normed *= 2 if c.qk_norm_type == "layernorm" else c.normalization != "rmsnorm_nogain"
    outputs = H // 2 if c.differential_attention else H
    gates = {"none": 0, "channel": H * D, "head": outputs}[c.attention_gate]
    gated = gates * (C + c.attention_bias)
    per_head = H * c.attention_sinks + H * (c.exclusive_attention == "learned")
    per_head += (C + 1) * H * c.forget_gate + H * (c.query_scaling == "ssmax")
    per_head += 4 * D * c.differential_attention
    if c.position_encoding == "path":
        width = c.n_kv_head * D
        low_rank = c.path_rank * (C + width) if c.path_rank else C * width
        per_head += low_rank + c.path_kernel * width + (C + 1) * c.n_kv_head
    per_head += c.get("cope_max_positions", 0) * D
    shared = c.value_residual == "learned" and c.index > 0
    normed *= c.qk_norm
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


def attention_residual(c: LayerConfig, sites: int) -> int:
    queries = sites - (c.index == 0) + (c.index == c.n_layer - 1)
    return 2 * c.n_embd * queries


RESIDUAL_STREAMS = {
    "plain": lambda c, sites: 0,
    "unet": lambda c, sites: int(2 * c.index > c.n_layer - 1),
    "hyper_connections": hyper_connections,
    "mhc": mhc,
    "ngpt": lambda c, sites: sites * c.n_embd,
    "attention": attention_residual,
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
    "attention_mamba2": lambda c: attention(c) + mamba2(c),
    "rwkv7": rwkv7,
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
    "cope": lambda c: 0,  # in each layer, like those of path
    "path": lambda c: 0,
    "fire": lambda c: 2 + (2 + c.n_head) * c.fire_width,
}


def parameters(c: ModelArchitectureConfig) -> int:
    """How many parameters a model has, by hand."""
    encodings = [layer.position_encoding for layer in c.layers if "position_encoding" in layer]
    last = c.layers[-1]
    return (
        c.vocab_size * c.n_embd * (1 if c.weight_tying else 2)
        + c.vocab_size * (c.head_bias + c.logit_gain)
        + POSITION_TABLES[encodings[-1] if encodings else "none"](last)
        + sum(map(block, c.layers))
        + rwkv7_value_shares(c)
        + NORMS_AFTER_THE_BLOCKS[last.norm_position] * norm(last)
        + c.embedding_norm * norm(c.layers[0])
    )


def block(c: LayerConfig) -> int:
    norms = NORMS_OF_A_BLOCK[c.norm_position] * norm(c)
    sites = 1 if c.norm_position.startswith("parallel") else 2
    if "none" in (c.mixer, c.ffn_type):
        sites = 1
        norms //= 1 if c.norm_position == "parallel_shared" else 2
    sites += c.engram
    sites += c.per_layer_embedding is not None
    stream = RESIDUAL_STREAMS[c.residual](c, sites)
    return (
        (0 if c.mixer == "none" else MIXERS_OF_A_BLOCK[c.mixer](c))
        + (0 if c.ffn_type == "none" else NETWORKS[c.ffn_type](c))
        + norms
        + stream
        + canon(c)
        + shifts(c)
        + engram(c)
        + per_layer_embedding(c)
    )


def engram(c: LayerConfig) -> int:
    if not c.engram:
        return 0
    C, orders, heads = c.n_embd, c.engram_order - 1, c.engram_heads
    width = c.engram_width or C // heads * heads
    primes = [
        n
        for n in range(c.engram_table_size or c.vocab_size, 999)
        if all(n % k for k in range(2, n))
    ]
    tables = sum(primes[: orders * heads]) * width // heads
    projections = 2 * C * orders * width + 2 * C * c.bias
    return tables + projections + C * c.engram_kernel + 3 * norm(c)


def per_layer_embedding(c: LayerConfig) -> int:
    C, P = c.n_embd, c.per_layer_embedding or 0
    weights = (c.per_layer_vocab_size or c.vocab_size) * P + 3 * C * P + (2 * P + C) * c.bias
    return weights + norm(c) * (C + P) // C if P else 0


def shifts(c: LayerConfig) -> int:
    return c.n_embd * {"none": 0, "mixer": 1, "ffn": 1, "both": 2}[c.token_shift]


def canon(c: LayerConfig) -> int:
    if c.canon == "none":
        return 0
    channels = {"a": c.n_embd, "c": c.n_embd}
    if c.mixer in ("attention", "attention_mamba2"):
        keys = 0 if c.kv_sharing else c.n_kv_head
        channels["b"] = (c.n_head + 2 * keys) * c.head_dim
    if c.ffn_type != "none":
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


@some_variants(0)
def test_parameter_counts(keys):
    model = GPT(tiny_config(**keys))
    assert model.num_parameters() == parameters(model.config)


TRIPLES = [
    (ffn_type, norm_position, normalization)
    for ffn_type, norm_position, normalization in itertools.product(
        NETWORKS, NORMS_OF_A_BLOCK, VECTORS_OF_A_NORM
    )
    if normalization != "none" or norm_position not in ("post", "res_post", "sandwich")
]


@pytest.mark.parametrize("parts", one_in(4, in_turn(TRIPLES, POSITION_TABLES)))
def test_parameter_counts_of_parts_together(parts):
    """Every FFN in every block with every norm; the position encodings take turns."""
    (ffn_type, norm_position, normalization), position_encoding = parts
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
