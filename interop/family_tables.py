"""What the tables of several model families have in common."""

from __future__ import annotations

import dataclasses

from interop.activation_fields import gate
from interop.family import Weights, WeightTable
from interop.fields import HEAD_DIM, KEY_HEADS, same
from interop.layouts import NEIGHBOUR_PAIRS

PLAIN_NORMS = {"normalization": "layernorm", "bias": True}
ROPE = {"position_encoding": "rope"}
NO_BIASES = {"bias": False, "attention_bias": False, "attention_out_bias": False}

SIZES = same(
    n_layer="num_hidden_layers",
    n_head="num_attention_heads",
    n_embd="hidden_size",
    block_size="max_position_embeddings",
    vocab_size="vocab_size",
    ffn_hidden="intermediate_size",
    init_std="initializer_range",
    weight_tying="tie_word_embeddings",
)
RMS_EPS = same(norm_eps="rms_norm_eps")
LAYER_NORM_EPS = same(norm_eps="layer_norm_eps")
LLAMA_ASPECTS = (SIZES, RMS_EPS, KEY_HEADS, HEAD_DIM, gate("hidden_act"))
"""Sizes, heads and activation of a LLaMA whose head_dim a file may set."""

UNTIED = {"tie_word_embeddings": False, "initializer_range": 0.02}
TIED = {"tie_word_embeddings": True, "initializer_range": 0.02}

LAYER = "model.layers.{}."


def layer_weights(*names: str) -> Weights:
    """Weights of a layer, named below `LAYER`."""
    return Weights(tuple(LAYER + name for name in names))


LLAMA_WEIGHTS: WeightTable = {
    "embedding": Weights(("model.embed_tokens",)),
    "blocks.{}.mixer_norm": layer_weights("input_layernorm"),
    "blocks.{}.mixer.qkv": layer_weights(
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"
    ),
    "blocks.{}.mixer.q_norm": layer_weights("self_attn.q_norm"),
    "blocks.{}.mixer.k_norm": layer_weights("self_attn.k_norm"),
    "blocks.{}.mixer.out": layer_weights("self_attn.o_proj"),
    "blocks.{}.ffn_norm": layer_weights("post_attention_layernorm"),
    "blocks.{}.ffn.gate_up": layer_weights("mlp.gate_proj", "mlp.up_proj"),
    "blocks.{}.ffn.down": layer_weights("mlp.down_proj"),
    "final_norm": Weights(("model.norm",)),
    "head": Weights(("lm_head",)),
}
SANDWICH_WEIGHTS = LLAMA_WEIGHTS | {
    "blocks.{}.mixer_out_norm": layer_weights("post_attention_layernorm"),
    "blocks.{}.ffn_norm": layer_weights("pre_feedforward_layernorm"),
    "blocks.{}.ffn_out_norm": layer_weights("post_feedforward_layernorm"),
}

PAIRED_WEIGHTS = LLAMA_WEIGHTS | {
    "blocks.{}.mixer.qkv": dataclasses.replace(
        LLAMA_WEIGHTS["blocks.{}.mixer.qkv"], layout=NEIGHBOUR_PAIRS
    )
}
"""With the rotated dimensions of GPT-J."""

LLAMA_KEYS = {
    **ROPE,
    **NO_BIASES,
    "normalization": "rmsnorm",
    "norm_position": "pre",
}
