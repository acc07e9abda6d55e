"""Tables of the GPT families: LayerNorm and a plain feed-forward network."""

from __future__ import annotations

from errors import UserError
from interop.activation_fields import activation
from interop.family import Family, Weights
from interop.family_tables import (
    LAYER_NORM_EPS,
    PLAIN_NORMS,
    ROPE,
    SIZES,
    TIED,
    UNTIED,
)
from interop.fields import (
    ATTENTION_BIAS,
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
from interop.file_forms import Renamed
from interop.layouts import CODEGEN, CONV1D, HEAD_MAJOR, NEIGHBOUR_PAIRS
from interop.rope_fields import ROTARY_DIM, rope
from interop.window_fields import fields_of_windows, keys_of_windows, types_of, windowed_layers
from model_config import ModelArchitectureConfig

_OLD_LENGTH = Aspect(lambda given: {}, lambda config: {"n_ctx": config.block_size})
"""A field that transformers ignores; llama.cpp's converter reads no other."""

_GPT2_SIZES = same(
    n_layer="n_layer",
    n_head="n_head",
    n_embd="n_embd",
    block_size="n_positions",
    vocab_size="vocab_size",
    norm_eps="layer_norm_epsilon",
    init_std="initializer_range",
    weight_tying="tie_word_embeddings",
)

_GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    fixed={**PLAIN_NORMS, "position_encoding": "learned", "norm_position": "pre"},
    aspects=(
        _GPT2_SIZES,
        _OLD_LENGTH,
        ffn_width("n_inner"),
        activation("activation_function"),
    ),
    defaults={**TIED, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5},
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    required={
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    weights={
        "embedding": Weights(("transformer.wte",)),
        "positions.table": Weights(("transformer.wpe",)),
        "blocks.{}.mixer_norm": Weights(("transformer.h.{}.ln_1",)),
        "blocks.{}.mixer.qkv": Weights(("transformer.h.{}.attn.c_attn",), CONV1D),
        "blocks.{}.mixer.out": Weights(("transformer.h.{}.attn.c_proj",), CONV1D),
        "blocks.{}.ffn_norm": Weights(("transformer.h.{}.ln_2",)),
        "blocks.{}.ffn.up": Weights(("transformer.h.{}.mlp.c_fc",), CONV1D),
        "blocks.{}.ffn.down": Weights(("transformer.h.{}.mlp.c_proj",), CONV1D),
        "final_norm": Weights(("transformer.ln_f",)),
        "head": Weights(("lm_head",)),
    },
)

_GPTJ = Family(
    model_type="gptj",
    architecture="GPTJForCausalLM",
    prefix="transformer.",
    fixed={
        **PLAIN_NORMS,
        **ROPE,
        "norm_position": "parallel_shared",
        "attention_bias": False,
        "head_bias": True,
    },
    aspects=(*_GPT2.aspects, ROTARY_DIM),
    defaults={**_GPT2.defaults, "tie_word_embeddings": False},
    aliases=_GPT2.aliases,
    weights={
        "embedding": Weights(("transformer.wte",)),
        "blocks.{}.norm": Weights(("transformer.h.{}.ln_1",)),
        "blocks.{}.mixer.qkv": Weights(
            tuple(f"transformer.h.{{}}.attn.{kind}_proj" for kind in "qkv"), NEIGHBOUR_PAIRS
        ),
        "blocks.{}.mixer.out": Weights(("transformer.h.{}.attn.out_proj",)),
        "blocks.{}.ffn.up": Weights(("transformer.h.{}.mlp.fc_in",)),
        "blocks.{}.ffn.down": Weights(("transformer.h.{}.mlp.fc_out",)),
        "final_norm": Weights(("transformer.ln_f",)),
        "head": Weights(("lm_head",)),
    },
)

_NEOX_LAYER = "gpt_neox.layers.{}."
_GPT_NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    prefix="gpt_neox.",
    fixed={**PLAIN_NORMS, **ROPE},
    aspects=(
        SIZES,
        LAYER_NORM_EPS,
        ATTENTION_BIAS,
        activation("hidden_act"),
        switch("norm_position", "use_parallel_residual", on="parallel", off="pre"),
        NO_HEAD_DIM,
        rope("rotary_emb_base", fraction_field="rotary_pct", fraction=0.25),
    ),
    defaults={
        **UNTIED,
        "layer_norm_eps": 1e-5,
        "attention_bias": True,
        "hidden_act": "gelu",
        "use_parallel_residual": True,
    },
    weights={
        "embedding": Weights(("gpt_neox.embed_in",)),
        "blocks.{}.mixer_norm": Weights((_NEOX_LAYER + "input_layernorm",)),
        "blocks.{}.mixer.qkv": Weights((_NEOX_LAYER + "attention.query_key_value",), HEAD_MAJOR),
        "blocks.{}.mixer.out": Weights((_NEOX_LAYER + "attention.dense",)),
        "blocks.{}.ffn_norm": Weights((_NEOX_LAYER + "post_attention_layernorm",)),
        "blocks.{}.ffn.up": Weights((_NEOX_LAYER + "mlp.dense_h_to_4h",)),
        "blocks.{}.ffn.down": Weights((_NEOX_LAYER + "mlp.dense_4h_to_h",)),
        "final_norm": Weights(("gpt_neox.final_layer_norm",)),
        "head": Weights(("lm_head",)),
    },
    file_forms=(Renamed("embed_out.", "lm_head."),),
)


# GPT-1


def _gpt1_activation(given: Fields) -> Keys:
    """Its `gelu` is the tanh approximation; it has no exact one."""
    name = given["afn"]
    if name not in ("gelu", "relu", "silu", "swish"):
        raise UserError(f"afn={name!r} is not an activation of GPT-1; it has gelu, relu and silu.")
    return activation("afn").read({"afn": {"gelu": "gelu_new"}.get(name, name)})


def _gpt1_field(config: ModelArchitectureConfig) -> Fields:
    name = activation("afn").write(config)["afn"]
    return {"afn": "gelu" if name == "gelu_pytorch_tanh" else name}


_GPT1 = Family(
    model_type="openai-gpt",
    architecture="OpenAIGPTLMHeadModel",
    prefix="transformer.",
    fixed={**_GPT2.fixed, "norm_position": "post"},
    aspects=(
        _GPT2_SIZES,
        four_times_as_wide("n_embd"),
        Aspect(_gpt1_activation, _gpt1_field),
    ),
    defaults={**_GPT2.defaults, "afn": "gelu"},
    aliases=_GPT2.aliases,
    weights=_GPT2.weights
    | {
        "embedding": Weights(("transformer.tokens_embed",)),
        "positions.table": Weights(("transformer.positions_embed",)),
    },
)

# GPT-Neo


def _gpt_neo_layers(given: Fields) -> Keys:
    """The windows of its `local` layers."""
    kinds = given.get("attention_layers")
    if kinds is None:
        groups = given["attention_types"]
        kinds = [kind for types, times in groups for _ in range(times) for kind in types]
    if len(kinds) != given["num_layers"]:
        raise UserError(
            f"attention_types has {len(kinds)} layers, num_layers is {given['num_layers']}; they "
            "must agree."
        )
    unknown = set(kinds) - {"global", "local"}
    if unknown:
        raise UserError(f"attention_types has {unknown.pop()!r}, which is not supported.")
    given = given | {"sliding_window": given["window_size"]}
    return keys_of_windows(given, types_of([kind == "local" for kind in kinds]))


def _gpt_neo_fields(config: ModelArchitectureConfig) -> Fields:
    windowed = windowed_layers(config)
    window = fields_of_windows(config, types_of(windowed))["sliding_window"]
    kinds = ["local" if one else "global" for one in windowed]
    return {"window_size": window, "attention_types": [[kinds, 1]]}


_GPT_NEO = Family(
    model_type="gpt_neo",
    architecture="GPTNeoForCausalLM",
    prefix="transformer.",
    fixed={
        **_GPT2.fixed,
        "attention_scale": 1.0,
        "attention_bias": False,
        "attention_out_bias": True,
    },
    aspects=(
        same(
            n_layer="num_layers",
            n_head="num_heads",
            n_embd="hidden_size",
            block_size="max_position_embeddings",
            vocab_size="vocab_size",
            norm_eps="layer_norm_epsilon",
            init_std="initializer_range",
            weight_tying="tie_word_embeddings",
        ),
        ffn_width("intermediate_size", "hidden_size"),
        activation("activation_function"),
        Aspect(_gpt_neo_layers, _gpt_neo_fields),
    ),
    defaults={
        **_GPT2.defaults,
        "window_size": 256,
        "attention_types": [[["global", "local"], 12]],
    },
    aliases={"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"},
    weights={
        **_GPT2.weights,
        "blocks.{}.mixer.qkv": Weights(
            tuple(f"transformer.h.{{}}.attn.attention.{kind}_proj" for kind in "qkv")
        ),
        "blocks.{}.mixer.out": Weights(("transformer.h.{}.attn.attention.out_proj",)),
        "blocks.{}.ffn.up": Weights(("transformer.h.{}.mlp.c_fc",)),
        "blocks.{}.ffn.down": Weights(("transformer.h.{}.mlp.c_proj",)),
    },
)

# CodeGen, StarCoder


def _whole_groups(given: Fields) -> Keys:
    if given["n_head"] % 4:
        raise UserError(
            f"n_head={given['n_head']} is not a multiple of 4, as transformers' class requires."
        )
    return {}


def _groups_of_heads(config: ModelArchitectureConfig) -> Fields:
    return _whole_groups({"n_head": config.n_head})


_CODEGEN = Family(
    model_type="codegen",
    architecture="CodeGenForCausalLM",
    prefix="transformer.",
    fixed=_GPTJ.fixed | {"attention_out_bias": False},
    aspects=(*_GPTJ.aspects, Aspect(_whole_groups, _groups_of_heads)),
    defaults=_GPTJ.defaults,
    aliases=_GPTJ.aliases,
    weights=_GPTJ.weights
    | {"blocks.{}.mixer.qkv": Weights(("transformer.h.{}.attn.qkv_proj",), CODEGEN)},
)

_MULTI_QUERY = Aspect(
    lambda given: {"n_kv_head": 1 if given["multi_query"] else given["n_head"]},
    lambda config: {"multi_query": value_of(config, "n_kv_head") == 1},
)
_GPT_BIGCODE = Family(
    model_type="gpt_bigcode",
    architecture="GPTBigCodeForCausalLM",
    prefix="transformer.",
    fixed=_GPT2.fixed,
    aspects=(*_GPT2.aspects, _MULTI_QUERY),
    defaults={**_GPT2.defaults, "activation_function": "gelu_pytorch_tanh", "multi_query": True},
    aliases=_GPT2.aliases,
    required={"scale_attn_weights": (True,), "add_cross_attention": (False,)},
    weights={name: Weights(own.theirs) for name, own in _GPT2.weights.items()}
    | {"blocks.{}.mixer.qkv": Weights(_GPT2.weights["blocks.{}.mixer.qkv"].theirs, HEAD_MAJOR)},
)

GPT_FAMILIES = (_GPT2, _GPT_NEOX, _GPTJ, _GPT_NEO, _CODEGEN, _GPT_BIGCODE, _GPT1)
