"""Tables of families that differ from GPT-2 in positions or norms, such as OPT and Falcon."""

from __future__ import annotations

from components.layer_config import LayerConfig
from errors import UserError
from interop.activation_fields import activation
from interop.family import Family, Weights, WeightTable
from interop.family_tables import NO_BIASES, PLAIN_NORMS, ROPE, SIZES, TIED
from interop.fields import (
    NO_HEAD_DIM,
    Aspect,
    Fields,
    Keys,
    ffn_width,
    four_times_as_wide,
    same,
    switch,
    value_of,
)
from interop.layouts import HEAD_MAJOR, POSITIONS_AFTER_PADDING
from interop.rope_fields import rope
from model_config import ModelArchitectureConfig

# OPT, BioGPT


def _fairseq_weights(prefix: str, final_norm: str) -> dict[str, Weights]:
    """The names of models that were trained with fairseq."""
    layer = prefix + "layers.{}."
    return {
        "embedding": Weights((prefix + "embed_tokens",)),
        "positions.table": Weights((prefix + "embed_positions",), POSITIONS_AFTER_PADDING),
        "blocks.{}.mixer_norm": Weights((layer + "self_attn_layer_norm",)),
        "blocks.{}.mixer.qkv": Weights(tuple(f"{layer}self_attn.{one}_proj" for one in "qkv")),
        "blocks.{}.mixer.out": Weights((layer + "self_attn.out_proj",)),
        "blocks.{}.ffn_norm": Weights((layer + "final_layer_norm",)),
        "blocks.{}.ffn.up": Weights((layer + "fc1",)),
        "blocks.{}.ffn.down": Weights((layer + "fc2",)),
        "final_norm": Weights((prefix + final_norm,)),
        "head": Weights(("lm_head",)),
    }


def _refuse_projection(given: Fields) -> Keys:
    width = given.get("word_embed_proj_dim")
    if width not in (None, given["hidden_size"]):
        raise UserError(
            f"word_embed_proj_dim={width} cannot be expressed here; only hidden_size="
            f"{given['hidden_size']}, which needs no projection, can."
        )
    return {}


_OPT = Family(
    model_type="opt",
    architecture="OPTForCausalLM",
    fixed={"position_encoding": "learned", "ffn_type": "standard", "norm_eps": 1e-5},
    aspects=(
        same(
            n_layer="num_hidden_layers",
            n_head="num_attention_heads",
            n_embd="hidden_size",
            block_size="max_position_embeddings",
            vocab_size="vocab_size",
            ffn_hidden="ffn_dim",
            init_std="init_std",
            weight_tying="tie_word_embeddings",
        ),
        activation("activation_function"),
        same(bias="enable_bias", attention_bias="enable_bias", attention_out_bias="enable_bias"),
        switch("norm_position", "do_layer_norm_before", on="pre", off="post"),
        switch(
            "normalization",
            "layer_norm_elementwise_affine",
            on="layernorm",
            off="layernorm_nogain",
        ),
        Aspect(_refuse_projection, lambda config: {"word_embed_proj_dim": config.n_embd}),
    ),
    defaults={
        "tie_word_embeddings": True,
        "init_std": 0.02,
        "activation_function": "relu",
        "enable_bias": True,
        "do_layer_norm_before": True,
        "layer_norm_elementwise_affine": True,
    },
    required={"_remove_final_layer_norm": (False,)},
    weights=_fairseq_weights("model.decoder.", "final_layer_norm"),
)


def _embedding_scale_field(config: ModelArchitectureConfig) -> Fields:
    return {"scale_embedding": config.embedding_scale != 1}


_BIOGPT = Family(
    model_type="biogpt",
    architecture="BioGptForCausalLM",
    prefix="biogpt.",
    # Its class in transformers reads layer_norm_eps, but never applies it.
    fixed={
        **PLAIN_NORMS,
        "norm_position": "pre",
        "position_encoding": "learned",
        "ffn_type": "standard",
        "norm_eps": 1e-5,
    },
    aspects=(
        SIZES,
        activation("hidden_act"),
        Aspect(
            lambda given: {
                "embedding_scale": given["hidden_size"] ** 0.5 if given["scale_embedding"] else 1.0
            },
            _embedding_scale_field,
        ),
    ),
    defaults={**TIED, "hidden_act": "gelu", "scale_embedding": True},
    weights=_fairseq_weights("biogpt.", "layer_norm") | {"head": Weights(("output_projection",))},
)

# MPT, BLOOM: ALiBi

_MPT_ATTENTION = {
    "attn_type": ("multihead_attention",),
    "clip_qkv": (None, 0),
    "prefix_lm": (False,),
    "qk_ln": (False,),
    "attn_uses_sequence_id": (False,),
    "alibi": (True,),
    "alibi_bias_max": (8,),
}
"""Fields of MPT's `attn_config`, with the values that can be expressed here and there."""


def _mpt_attention(given: Fields) -> Keys:
    fields = given.get("attn_config") or {}
    for name, allowed in _MPT_ATTENTION.items():
        if fields.get(name, allowed[0]) not in allowed:
            raise UserError(
                f"attn_config has {name}={fields[name]!r}, which cannot be expressed here; only "
                f"{allowed[0]!r} can."
            )
    return {"attention_scale": fields.get("softmax_scale")}


def _mpt_attention_field(config: ModelArchitectureConfig) -> Fields:
    fields = {name: allowed[0] for name, allowed in _MPT_ATTENTION.items()}
    return {"attn_config": fields | {"softmax_scale": value_of(config, "attention_scale")}}


_MPT = Family(
    model_type="mpt",
    architecture="MptForCausalLM",
    prefix="transformer.",
    fixed={
        "normalization": "layernorm_nobias",
        "norm_position": "pre",
        "position_encoding": "alibi",
        "ffn_type": "standard",
        "activation": "gelu",
        **NO_BIASES,
    },
    aspects=(
        same(
            n_layer="n_layers",
            n_head="n_heads",
            n_embd="d_model",
            block_size="max_seq_len",
            vocab_size="vocab_size",
            norm_eps="layer_norm_epsilon",
            init_std="initializer_range",
            weight_tying="tie_word_embeddings",
        ),
        four_times_as_wide("d_model"),
        Aspect(_mpt_attention, _mpt_attention_field),
    ),
    defaults={**TIED, "layer_norm_epsilon": 1e-5},
    aliases={
        "num_attention_heads": "n_heads",
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
    },
    required={"expansion_ratio": (4,), "no_bias": (True,), "logit_scale": (None,)},
    weights={
        "embedding": Weights(("transformer.wte",)),
        "blocks.{}.mixer_norm": Weights(("transformer.blocks.{}.norm_1",)),
        "blocks.{}.mixer.qkv": Weights(("transformer.blocks.{}.attn.Wqkv",)),
        "blocks.{}.mixer.out": Weights(("transformer.blocks.{}.attn.out_proj",)),
        "blocks.{}.ffn_norm": Weights(("transformer.blocks.{}.norm_2",)),
        "blocks.{}.ffn.up": Weights(("transformer.blocks.{}.ffn.up_proj",)),
        "blocks.{}.ffn.down": Weights(("transformer.blocks.{}.ffn.down_proj",)),
        "final_norm": Weights(("transformer.norm_f",)),
        "head": Weights(("lm_head",)),
    },
)

_MEGATRON_LAYER = "transformer.h.{}."
_MEGATRON_WEIGHTS = {
    "embedding": Weights(("transformer.word_embeddings",)),
    "blocks.{}.mixer_norm": Weights((_MEGATRON_LAYER + "input_layernorm",)),
    "blocks.{}.mixer.qkv": Weights(
        (_MEGATRON_LAYER + "self_attention.query_key_value",), HEAD_MAJOR
    ),
    "blocks.{}.mixer.out": Weights((_MEGATRON_LAYER + "self_attention.dense",)),
    "blocks.{}.ffn_norm": Weights((_MEGATRON_LAYER + "post_attention_layernorm",)),
    "blocks.{}.ffn.up": Weights((_MEGATRON_LAYER + "mlp.dense_h_to_4h",)),
    "blocks.{}.ffn.down": Weights((_MEGATRON_LAYER + "mlp.dense_4h_to_h",)),
    "final_norm": Weights(("transformer.ln_f",)),
    "head": Weights(("lm_head",)),
}

_BLOOM = Family(
    model_type="bloom",
    architecture="BloomForCausalLM",
    prefix="transformer.",
    fixed={
        **PLAIN_NORMS,
        "norm_position": "pre",
        "position_encoding": "alibi",
        "ffn_type": "standard",
        "activation": "gelu_tanh",
        "embedding_norm": True,
    },
    aspects=(
        same(
            n_layer="n_layer",
            n_head="n_head",
            n_embd="hidden_size",
            block_size="seq_length",
            vocab_size="vocab_size",
            norm_eps="layer_norm_epsilon",
            init_std="initializer_range",
            weight_tying="tie_word_embeddings",
        ),
        four_times_as_wide("hidden_size"),
    ),
    # Its class in transformers has no longest sequence; files name that of the training.
    defaults={**TIED, "layer_norm_epsilon": 1e-5, "seq_length": 2048},
    aliases={
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
        "n_embed": "hidden_size",
    },
    # With slow_but_exact, its class forgets a bias.
    required={
        "apply_residual_connection_post_layernorm": (False,),
        "slow_but_exact": (False,),
    },
    weights=_MEGATRON_WEIGHTS
    | {"embedding_norm": Weights(("transformer.word_embeddings_layernorm",))},
)

# Falcon


def _falcon_block(given: Fields) -> Keys:
    """Where its norms are. Raises UserError where transformers' class lacks one that it needs."""
    new, parallel = given["new_decoder_architecture"], given["parallel_attn"]
    norms = given.get("num_ln_in_parallel_attn")
    two = norms == 2 or (norms is None and new)
    if (two and not new) or (new and not parallel) or (new and norms not in (None, 1, 2)):
        raise UserError(
            f"num_ln_in_parallel_attn={norms} with new_decoder_architecture={new} and "
            f"parallel_attn={parallel} cannot be computed by transformers."
        )
    if not parallel:
        return {"norm_position": "pre"}
    return {"norm_position": "parallel" if two else "parallel_shared"}


def _falcon_key_heads(given: Fields) -> Keys:
    heads, key_heads = given["num_attention_heads"], given.get("num_kv_heads")
    if given["new_decoder_architecture"]:
        return {"n_kv_head": heads if key_heads is None else key_heads}
    if given["multi_query"]:
        return {"n_kv_head": 1}
    if key_heads not in (None, heads):
        raise UserError(
            f"num_kv_heads={key_heads} needs new_decoder_architecture; without it, there are "
            f"num_attention_heads={heads} key heads, or one with multi_query."
        )
    return {"n_kv_head": heads}


def _falcon_fields(config: ModelArchitectureConfig) -> Fields:
    key_heads, place = value_of(config, "n_kv_head"), value_of(config, "norm_position")
    new = place == "parallel" or (place == "parallel_shared" and 1 < key_heads < config.n_head)
    return {
        "new_decoder_architecture": new,
        "parallel_attn": place != "pre",
        "num_ln_in_parallel_attn": {"parallel": 2, "parallel_shared": 1}.get(place),
        "multi_query": key_heads == 1,
        "num_kv_heads": key_heads if new else config.n_head,
    }


def _falcon_norms(layer: LayerConfig) -> WeightTable:
    """What the norms of a block with two in parallel are called."""
    if layer.norm_position != "parallel":
        return {}
    return {
        "blocks.{}.mixer_norm": Weights((_MEGATRON_LAYER + "ln_attn",)),
        "blocks.{}.ffn_norm": Weights((_MEGATRON_LAYER + "ln_mlp",)),
    }


_FALCON = Family(
    model_type="falcon",
    architecture="FalconForCausalLM",
    prefix="transformer.",
    fixed={**ROPE, "normalization": "layernorm", "ffn_type": "standard"},
    aspects=(
        same(
            n_layer="num_hidden_layers",
            n_head="num_attention_heads",
            n_embd="hidden_size",
            block_size="max_position_embeddings",
            vocab_size="vocab_size",
            norm_eps="layer_norm_epsilon",
            init_std="initializer_range",
            weight_tying="tie_word_embeddings",
        ),
        ffn_width("ffn_hidden_size", "hidden_size"),
        activation("activation"),
        same(bias="bias", attention_bias="bias", attention_out_bias="bias"),
        Aspect(lambda given: _falcon_block(given) | _falcon_key_heads(given), _falcon_fields),
        NO_HEAD_DIM,
        rope(),
    ),
    defaults={
        **TIED,
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": 2048,
        "activation": "gelu",
        "bias": False,
        "new_decoder_architecture": False,
        "multi_query": True,
        "parallel_attn": True,
    },
    aliases={"n_embed": "hidden_size"},
    # It scales and rounds its ALiBi to bfloat16.
    required={"alibi": (False,)},
    weights=_MEGATRON_WEIGHTS | {"blocks.{}.norm": Weights((_MEGATRON_LAYER + "input_layernorm",))},
    weights_of=_falcon_norms,
)

LATER_GPT_FAMILIES = (_OPT, _BIOGPT, _MPT, _BLOOM, _FALCON)
