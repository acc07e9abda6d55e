"""What a model is: one flat config, its presets, and what may be combined."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch

from components.attention import Attention
from components.attention_backends import AttentionNeeds
from errors import ConfigError, Problem, UserError, unknown_name
from model_components import (
    ACTIVATIONS,
    ATTENTION_BACKENDS,
    BLOCKS,
    FFNS,
    NORMS,
    POSITIONS,
    REGISTRIES,
    ROPE_SCALINGS,
)
from options import convert_fields, field_problems, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelArchitectureConfig:
    """The architecture of a GPT, checked when made.

    A field left at None is derived from the others; `changed` derives it anew. The option
    `tag` is how an architecture's name spells a value that departs from the plain one; a field
    without a tag is spelled in the name's head, follows from fields that are, or is no part of the
    architecture (the vocabulary is the data's, and every attention backend computes the same).

    Raises:
        ConfigError: with every problem found, each naming the fix.
    """

    # Sizes
    n_layer: int = option(12, "blocks", at_least=1)
    n_head: int = option(12, "attention heads (queries)", at_least=1)
    n_embd: int = option(768, "width of the residual stream", at_least=1)
    block_size: int = option(1024, "longest sequence, in tokens", at_least=1, plain=1024, tag="T{}")
    vocab_size: int = option(50304, "tokens of the vocabulary; the data's own in a run", at_least=1)

    # Normalization
    normalization: str = option(
        "layernorm", "norm of the residual stream; auto: by bias", choices=NORMS.plus("auto")
    )
    norm_position: str = option("pre", "where a block normalises", choices=BLOCKS)
    norm_eps: float = option(1e-5, "added inside a norm's root", above=0, tag="Eps{}")

    # Feed-forward network
    ffn_type: str = option("standard", "feed-forward network", choices=FFNS)
    activation: str | None = option(
        None, "its nonlinearity or gate; none: ffn_type's own", choices=ACTIVATIONS
    )
    ffn_multiplier: float | None = option(
        None, "its hidden width over n_embd; none: 4, gated 8/3", above=0, at_most=10_000
    )
    ffn_multiple_of: int = option(1, "round its hidden width up to a multiple", at_least=1)
    ffn_hidden: int | None = option(
        None, "its hidden width; none: ffn_multiplier x n_embd", at_least=1, tag="F{}"
    )

    # Attention
    n_kv_head: int | None = option(
        None, "heads of keys and values; none: n_head; 1: multi-query", at_least=1, tag="{}KV"
    )
    head_dim: int | None = option(
        None, "width of a head; none: n_embd/n_head", at_least=1, tag="HD{}"
    )
    qk_norm: bool = option(False, "RMSNorm on queries and keys", tag="QKNorm")
    qk_norm_over: str = option(
        "head",
        "what qk_norm normalises: each head by itself, or the whole projection",
        choices=("head", "projection"),
        tag={"projection": "WholeQK"},
    )
    attention_scale: float | None = option(
        None, "factor on query-key products; none: 1/sqrt(head_dim)", above=0, tag="AttnScale{}"
    )
    sliding_window: int | None = option(
        None, "tokens a windowed layer sees, itself included; none: all", at_least=1, tag="SWA{}"
    )
    window_pattern: str = option(
        "S", "which layers are windowed, repeated: S sliding, L all", tag="{}"
    )
    attention_softcap: float | None = option(
        None, "scores s become c tanh(s/c); none: not", above=0, tag="AttnCap{}"
    )
    attention_bias: bool | None = option(
        None, "biases in attention's matrices; none: as bias", tag=("NoAttnBias", "AttnBias")
    )
    attention_out_bias: bool | None = option(
        None,
        "bias in attention's output matrix; none: as attention_bias",
        tag=("NoAttnOutBias", "AttnOutBias"),
    )
    attention_backend: str = option("auto", "how attention is computed", choices=ATTENTION_BACKENDS)

    # Positions
    position_encoding: str = option("learned", "position encoding", choices=POSITIONS)
    rope_theta: float = option(10000.0, "RoPE: base of the wavelengths", above=1, tag="Theta{}")
    rope_fraction: float = option(
        1.0, "RoPE: share of each head that is rotated", above=0, at_most=1, tag="Rot{}"
    )
    rope_local_theta: float | None = option(
        None,
        "RoPE: base in windowed layers, which are not stretched; none: as all",
        above=1,
        tag="LocalTheta{}",
    )
    rope_pattern: str = option(
        "R", "RoPE: which layers are rotated, repeated: R rotated, N not", tag="{}"
    )
    rope_scaling: str = option(
        "none", "RoPE: how it is stretched", choices=ROPE_SCALINGS, tag=ROPE_SCALINGS
    )
    rope_scaling_factor: float = option(
        1.0, "RoPE scaling: times the original length", at_least=1, tag="x{}"
    )
    rope_original_block_size: int = option(
        1024, "RoPE scaling: length trained at first", at_least=1, tag="From{}"
    )
    rope_beta_fast: float = option(32.0, "YaRN: turns kept whole", above=0, tag="BetaFast{}")
    rope_beta_slow: float = option(1.0, "YaRN: turns interpolated", above=0, tag="BetaSlow{}")
    rope_low_freq_factor: float = option(
        1.0, "llama3 scaling: turns interpolated", above=0, tag="LowFreq{}"
    )
    rope_high_freq_factor: float = option(
        4.0, "llama3 scaling: turns kept whole", above=0, tag="HighFreq{}"
    )

    # Whole model
    bias: bool = option(True, "biases in the Linear layers", tag=("NoBias", "Bias"))
    head_bias: bool = option(False, "bias in the output head", tag=("NoHeadBias", "HeadBias"))
    weight_tying: bool = option(
        True, "the output head shares the token embedding", tag=("Untied", "Tied")
    )
    dropout: float = option(
        0.0, "share of activations dropped in training", at_least=0, below=1, tag="Drop{}"
    )
    output_softcap: float | None = option(
        None, "logits l become c tanh(l/c); none: not", above=0, tag="Cap{}"
    )
    embedding_scale: float = option(1.0, "factor on token embeddings", above=0, tag="Emb{}")
    init_std: float = option(0.02, "deviation of initial weights", above=0, tag="Init{}")

    def __post_init__(self) -> None:
        problems = field_problems(self) or list(self._pattern_problems())
        if not problems:
            convert_fields(self)
            self._set("_derived", frozenset(k for k in DERIVED if getattr(self, k) is None))
            self._resolve_names()
            self._derive()
            problems = list(self._combination_problems())
        if problems:
            raise ConfigError(problems)

    def _set(self, key: str, value: Any) -> None:
        object.__setattr__(self, key, value)

    def _resolve_names(self) -> None:
        if self.normalization == "auto":
            self._set("normalization", "layernorm" if self.bias else "layernorm_nobias")
        for key, registry in REGISTRIES.items():
            name = getattr(self, key)
            if name is not None:
                self._set(key, registry.canonical(name))

    def _derive(self) -> None:
        for key, rule in DERIVED.items():
            if getattr(self, key) is None:
                self._set(key, rule(self))

    # What may be combined

    def _combination_problems(self) -> Iterator[Problem]:
        yield from self._width_problems()
        for part in (Attention, *self._parts()):
            yield from getattr(part, "problems", lambda config: ())(self)
        yield from self._window_problems()
        yield from self._rotation_problems()
        yield from self._unused_problems()

    def _width_problems(self) -> Iterator[Problem]:
        if "head_dim" in self._derived and self.n_embd % self.n_head:
            yield Problem(
                ("n_embd", "n_head"),
                f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}; change one, or "
                "set head_dim.",
            )
        if "ffn_hidden" in self._derived:
            return
        if self.ffn_hidden % self.ffn_multiple_of:
            yield Problem(
                ("ffn_hidden", "ffn_multiple_of"),
                f"ffn_hidden={self.ffn_hidden} is not a multiple of "
                f"ffn_multiple_of={self.ffn_multiple_of}; drop one.",
            )
        elif self.ffn_multiplier is not None and self.ffn_hidden != _ffn_hidden(self):
            yield Problem(
                ("ffn_hidden", "ffn_multiplier"),
                f"ffn_hidden={self.ffn_hidden} and ffn_multiplier={self.ffn_multiplier:g}, which "
                f"makes {_ffn_hidden(self)}, disagree; drop one.",
            )

    def _pattern_problems(self) -> Iterator[Problem]:
        for key, letters, meaning in (
            ("window_pattern", "SL", "S (sliding) and L (all), e.g. 'SSSL'"),
            ("rope_pattern", "RN", "R (rotated) and N (not), e.g. 'RRRN'"),
        ):
            pattern = getattr(self, key)
            if not pattern or set(pattern) - set(letters):
                yield Problem((key,), f"{key}={pattern!r} must be letters {meaning}.")

    def _window_problems(self) -> Iterator[Problem]:
        pattern = self.window_pattern
        if self.sliding_window is None and pattern != "S":
            yield Problem(
                ("window_pattern", "sliding_window"),
                f"window_pattern={pattern!r} does nothing without sliding_window; set it to a "
                "number of tokens.",
            )
        elif self.sliding_window is not None and "S" not in pattern[: self.n_layer]:
            yield Problem(
                ("window_pattern", "sliding_window", "n_layer"),
                f"sliding_window={self.sliding_window} does nothing: window_pattern={pattern!r} "
                f"makes none of the n_layer={self.n_layer} layers sliding; put an S earlier.",
            )
        if self._window_reaches_over_all() and self.rope_local_theta is None:
            yield Problem(
                ("sliding_window", "block_size"),
                f"sliding_window={self.sliding_window} does nothing: it reaches over the whole "
                f"block_size={self.block_size}; make it smaller or drop it.",
            )

    def _rotation_problems(self) -> Iterator[Problem]:
        pattern = self.rope_pattern
        rotated = {letter == "R" for letter in pattern[: self.n_layer]}
        if pattern != "R" and len(rotated) == 1:
            which, fix = (
                ("all", "put an N earlier, or drop it")
                if rotated == {True}
                else ("none", "put an R earlier, or set position_encoding='none'")
            )
            yield Problem(
                ("rope_pattern", "n_layer"),
                f"rope_pattern={pattern!r} rotates {which} of the n_layer={self.n_layer} layers; "
                f"{fix}.",
            )

    def _unused_problems(self) -> Iterator[Problem]:
        for key in self.unused_keys():
            value = getattr(self, key)
            if value != getattr(type(self), key):
                yield Problem(
                    (key,),
                    f"{key}={value} does nothing here; it is used by {', '.join(_users(key))}. "
                    "Drop it or choose one of those.",
                )

    def unused_keys(self) -> list[str]:
        """The keys that do nothing, for only parts that are not chosen use them."""
        used = {key for part in self._parts() for key in getattr(part, "uses", ())}
        if self.qk_norm:
            used.add("norm_eps")
        keys = (field.name for field in dataclasses.fields(self))
        return [key for key in keys if key not in used and _users(key)]

    def _parts(self) -> list[type]:
        return [registry[getattr(self, key)] for key, registry in REGISTRIES.items()]

    # What the layers ask

    def by_layer(self, pattern: str) -> str:
        """The letter of each layer."""
        return "".join(_of_layer(pattern, layer) for layer in range(self.n_layer))

    @property
    def period(self) -> int:
        """Layers after which the patterns repeat: layer i is made like layer i + period."""
        return math.lcm(len(self.window_pattern), len(self.rope_pattern))

    @property
    def distinct_layers(self) -> range:
        """Layers among which there is one of every kind that the patterns make."""
        return range(min(self.period, self.n_layer))

    def rotates(self, layer: int) -> bool:
        """Whether a layer's queries and keys are rotated, where the position encoding rotates."""
        return _of_layer(self.rope_pattern, layer) == "R"

    def windowed(self, layer: int) -> bool:
        """Whether a layer has a sliding window, however long; `rope_local_theta` is for these."""
        return self.sliding_window is not None and _of_layer(self.window_pattern, layer) == "S"

    def window(self, layer: int) -> int | None:
        """Tokens that a layer's queries see, or None for all."""
        if not self.windowed(layer) or self._window_reaches_over_all():
            return None
        return self.sliding_window

    def _window_reaches_over_all(self) -> bool:
        return self.sliding_window is not None and self.sliding_window >= self.block_size

    def attention_needs(self, layer: int) -> AttentionNeeds:
        """What a layer asks of its attention backend."""
        return AttentionNeeds(
            scale=self.attention_scale,
            window=self.window(layer),
            softcap=self.attention_softcap,
            bias=POSITIONS[self.position_encoding].biases_scores,
            dropout=self.dropout > 0,
            head_dim=self.head_dim,
        )

    def attention_backends_on(self, device: str) -> list[str]:
        """The backends that do the work on a device type, each once; more than one under auto."""
        backend = ATTENTION_BACKENDS[self.attention_backend]
        needs = dict.fromkeys(self.attention_needs(layer) for layer in self.distinct_layers)
        return list(dict.fromkeys(backend(need).name_on(device) for need in needs))

    def backend_refusals(self, device: str, dtype: torch.dtype) -> list[str]:
        """Why its attention cannot be trained on a device type in a compute dtype."""
        kind = ATTENTION_BACKENDS[self.attention_backend]
        refusals = []
        for layer in self.distinct_layers:
            needs = self.attention_needs(layer)
            backend = ATTENTION_BACKENDS[kind(needs).name_on(device)]
            refusals.append(backend.refusal(needs, device, dtype, training=True))
        return [refusal for refusal in dict.fromkeys(refusals) if refusal]

    # Making, naming, saving

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> ModelArchitectureConfig:
        """The config of a preset, with some keys changed. Raises UserError for an unknown name."""
        if name not in PRESETS:
            raise UserError(unknown_name("preset", name, PRESETS))
        return cls._from_keys({**PRESETS[name].keys, **overrides})

    @classmethod
    def from_dict(cls, keys: dict[str, Any]) -> ModelArchitectureConfig:
        """The inverse of `to_dict`. Raises ConfigError for an unknown key."""
        return cls._from_keys(keys)

    @classmethod
    def _from_keys(cls, keys: dict[str, Any]) -> ModelArchitectureConfig:
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [key for key in keys if key not in known]
        if unknown:
            raise ConfigError([Problem((k,), unknown_name("key", k, known)) for k in unknown])
        return cls(**keys)

    def to_dict(self) -> dict[str, Any]:
        """Every key and its value, derived ones included."""
        return dataclasses.asdict(self)

    def changed(self, **changes: Any) -> ModelArchitectureConfig:
        """A config with some keys changed, and what was derived derived anew."""
        kept = {key: value for key, value in self.to_dict().items() if key not in self._derived}
        return self._from_keys({**kept, **changes})

    @property
    def architecture_name(self) -> str:
        """What it is, in one line; different architectures have different names.

        Sizes and parts, then a tag for all else that departs from plain. Plain is the default of
        a key, save for `bias` (plain where the norm has one) and `weight_tying` (plain where the
        family that made the FFN known ties): so neither GPT-2 nor LLaMA needs a tag.
        """
        head = [f"{self.n_layer}L", f"{self.n_head}H", f"{self.n_embd}D"]
        head.append(POSITIONS.entry(self.position_encoding).label)
        head.append(NORMS.entry(self.normalization).label)
        head.append(self._ffn_label())
        head.append(BLOCKS.entry(self.norm_position).label)
        tags = [
            _tag(field.metadata["tag"], getattr(self, field.name))
            for field in dataclasses.fields(self)
            if "tag" in field.metadata and getattr(self, field.name) != self._plain(field)
        ]
        return "-".join(head + tags)

    def _ffn_label(self) -> str:
        ffn = FFNS[self.ffn_type]
        activation = ACTIVATIONS.entry(self.activation).label
        if self.ffn_type == type(self).ffn_type:
            return activation
        label = FFNS.entry(self.ffn_type).label
        return label if self.activation == ffn.default_activation else f"{label}({activation})"

    def _plain(self, field: dataclasses.Field) -> Any:
        """The value of a tagged field that an architecture's name leaves out."""
        if field.name == "bias":
            return self.normalization == "layernorm"
        if field.name == "weight_tying":
            return FFNS[self.ffn_type].plain_tying
        if field.name == "ffn_hidden":
            return _width(self.n_embd, FFNS[self.ffn_type].default_multiplier)
        return DERIVED[field.name](self) if field.name in DERIVED else field.default

    def summary(self) -> str:
        """The name, then every key and its value, a line each."""
        rows = (f"  {key:<26}{value}" for key, value in self.to_dict().items())
        return "\n".join([self.architecture_name, *rows])


def _of_layer(pattern: str, layer: int) -> str:
    """The letter of a layer in a pattern that repeats over the layers."""
    return pattern[layer % len(pattern)]


def _tag(tag: Any, value: Any) -> str:
    """A departing value as an architecture's name spells it."""
    if tag is ROPE_SCALINGS:
        return ROPE_SCALINGS.entry(value).label
    if isinstance(tag, tuple | dict):  # what False and True, or some values, are called
        return tag[value]
    whole = isinstance(value, float) and value.is_integer() and value < 1e15
    return tag.format(int(value) if whole else value)


def _width(n_embd: int, multiplier: float) -> int:
    return max(1, round(n_embd * multiplier))


def _ffn_hidden(config: ModelArchitectureConfig) -> int:
    multiplier = config.ffn_multiplier or FFNS[config.ffn_type].default_multiplier
    multiples = -(-_width(config.n_embd, multiplier) // config.ffn_multiple_of)
    return multiples * config.ffn_multiple_of


DERIVED = {
    "activation": lambda config: FFNS[config.ffn_type].default_activation,
    "ffn_hidden": _ffn_hidden,
    "n_kv_head": lambda config: config.n_head,
    "head_dim": lambda config: max(config.n_embd // config.n_head, 1),
    "attention_bias": lambda config: config.bias,
    "attention_out_bias": lambda config: config.attention_bias,
    "attention_scale": lambda config: config.head_dim**-0.5,
}
"""How each field left at None follows from the others."""


def _users(key: str) -> list[str]:
    """The parts that a key belongs to, as `config_key=name`; none for a key of every model."""
    return [
        f"{registry.key}={name}"
        for registry in REGISTRIES.values()
        for name in registry.names
        if key in getattr(registry[name], "uses", ())
    ]


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named architecture: the keys in which it departs from the defaults."""

    description: str
    keys: dict[str, Any]


_GPT2 = {
    "position_encoding": "learned",
    "normalization": "layernorm",
    "norm_position": "pre",
    "ffn_type": "standard",
    "bias": True,
    "weight_tying": True,
}
_LLAMA = {
    "position_encoding": "rope",
    "normalization": "rmsnorm",
    "norm_position": "pre",
    "ffn_type": "swiglu",
    "bias": False,
    "weight_tying": False,
}

PRESETS: dict[str, Preset] = {
    "gpt2": Preset("GPT-2: learned positions, LayerNorm before each sublayer, GELU, tied", _GPT2),
    "llama": Preset("LLaMA: RoPE, RMSNorm, SwiGLU, no biases, untied", _LLAMA),
    "team": Preset("model_v1: the parts of llama", _LLAMA),
    "hybrid": Preset(
        "RoPE and LayerNorm without bias around GPT-2's GELU network, tied",
        {**_GPT2, "position_encoding": "rope", "normalization": "layernorm_nobias", "bias": False},
    ),
    "custom": Preset("every key at its default, to be changed one by one", {}),
    "legacy": Preset(
        "nanoGPT's flat keys: GPT-2's parts, `bias` deciding for the norms too",
        {**_GPT2, "normalization": "auto", "bias": False},
    ),
}
