"""What a model is: one flat config, its presets, and what may be combined."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from components.attention import Attention
from components.attention_backends import attention_needs
from components.layer_config import LayerConfig
from components.registry import Choices, Registry
from errors import ConfigError, Problem, UserError, quoted, unknown_name
from model_components import (
    ACTIVATIONS,
    ATTENTION_BACKENDS,
    BLOCKS,
    FFNS,
    NORMS,
    POSITIONS,
)
from options import KEYS, SPELLED_BY_KEY, Key, Role, Section, keys_of, options_of
from patterns import Pattern, by_layer, spelled, with_rest

_sizes = Section("Sizes", Role.ARCHITECTURE)
_parts = Section("Parts", Role.ARCHITECTURE)
_whole = Section("Whole model", Role.ARCHITECTURE)

HEAD_SHAPE = ("n_kv_head", "head_dim")
"""Keys that a position encoding in attention sees, besides its own and those of every model."""


class ModelOptions:
    """The keys that every model has, whatever its parts."""

    n_layer: int = _sizes.option(12, "blocks", at_least=1, tag=None)
    n_head: int = _sizes.option(12, "attention heads (queries)", at_least=1, tag=None)
    n_embd: int = _sizes.option(768, "width of the residual stream", at_least=1, tag=None)
    block_size: int = _sizes.option(1024, "longest sequence, in tokens", at_least=1, tag="T{}")
    vocab_size: int = _sizes.option(
        50304, "tokens of the vocabulary; the data's own in a run", at_least=1, tag=None
    )

    normalization: str = _parts.option(
        "layernorm",
        "norm of the residual stream; auto: by bias",
        choices=NORMS.plus("auto"),
        per_layer=True,
        tag=None,
    )
    norm_position: str = _parts.option(
        "pre", "where a block normalises", choices=BLOCKS, per_layer=True, tag=None
    )
    ffn_type: str = _parts.option(
        "standard", "feed-forward network", choices=FFNS, per_layer=True, tag=None
    )
    position_encoding: str = _parts.option(
        "learned", "position encoding", choices=POSITIONS, per_layer=True, tag=None
    )
    attention_backend: str = _parts.option(
        "auto",
        "how attention is computed",
        choices=ATTENTION_BACKENDS,
        role=Role.EXECUTION,
        tag=None,
    )

    bias: bool = _whole.option(True, "biases in the Linear layers", tag=("NoBias", "Bias"))
    head_bias: bool = _whole.option(False, "bias in the LM head", tag=("NoHeadBias", "HeadBias"))
    weight_tying: bool = _whole.option(
        True, "the LM head shares the token embedding", tag=("Untied", "Tied")
    )
    dropout: float = _whole.option(
        0.0, "share of activations dropped in training", at_least=0, below=1, tag="Drop{}"
    )
    output_softcap: float | None = _whole.option(
        None, "logits l become c tanh(l/c); none: not", above=0, tag="Cap{}"
    )
    embedding_scale: float = _whole.option(1.0, "factor on token embeddings", above=0, tag="Emb{}")
    init_std: float = _whole.option(
        0.02, "standard deviation of initial weights", above=0, tag="Init{}"
    )


MODEL_KEYS = keys_of(ModelOptions) | keys_of(
    options_of(Attention), role=Role.ARCHITECTURE, section="Attention"
)
KEYS.declare("", MODEL_KEYS)

REPLACED = {
    "window_pattern": "write the pattern into sliding_window itself: sliding_window='128*5+none' "
    "for five layers with a window and one without, repeated",
    "rope_pattern": "write the pattern into position_encoding: position_encoding='rope*3+none' for "
    "three layers with RoPE and one without, repeated",
    "rope_local_theta": "give rope_theta, and rope_scaling where there is one, a pattern over the "
    "layers: rope_theta='1e4*5+1e6' beside sliding_window='512*5+none'",
}
"""Keys of earlier versions, and what to write instead."""


def unknown_key_message(key: str) -> str:
    """What to write instead of a name that is no key of a model."""
    if key in REPLACED:
        return f"there is no key {key!r} any more; {REPLACED[key]}."
    return unknown_name("key", key, architecture_keys())


def registry_of(key: Key) -> Registry | None:
    """The registry that a key chooses a part from, or None."""
    choices = key.choices.registry if isinstance(key.choices, Choices) else key.choices
    return choices if isinstance(choices, Registry) else None


def architecture_keys() -> dict[str, Key]:
    """Every key of a model, those of parts after the key that chooses the part."""
    found: dict[str, Key] = {}

    def add(keys: Iterable[Key]) -> None:
        for key in keys:
            if key.name in found:
                continue
            found[key.name] = key
            registry = registry_of(key)
            for name in () if registry is None else registry.names:
                add(registry.entry(name).keys.values())

    add(MODEL_KEYS.values())
    return found


# One layer


class _Draft:
    """A layer whose values are being found: to read a key is to derive it.

    At first it has the keys of every model; `resolved` adds the options of the chosen parts.
    """

    def __init__(self, given: Mapping[str, Any]):
        self._given = given
        self._keys = dict(MODEL_KEYS)
        self._values: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self._keys:
            raise AttributeError(f"no part of this layer has the option {name!r}")
        if name not in self._values:
            self._values[name] = self._found(self._keys[name])
        return self._values[name]

    def _found(self, key: Key) -> Any:
        value = self._given.get(key.name, key.default)
        if value is None and key.derive is not None:
            value = key.derive(self)
        if (key.name, value) == ("normalization", "auto"):
            return "layernorm" if self.bias else "layernorm_nobias"
        registry = registry_of(key)
        return value if registry is None or value is None else registry.canonical(value)

    def _admit(self, keys: Iterable[Key]) -> None:
        """Make the options of the parts that these keys choose keys of the layer."""
        for key in keys:
            registry = registry_of(key)
            if registry is not None and getattr(self, key.name) is not None:
                own = registry.entry(getattr(self, key.name)).keys
                self._keys.update(own)
                self._admit(own.values())

    def resolved(self) -> dict[str, Any]:
        """Every key of the layer and its value, in the order of `architecture_keys`."""
        self._admit(MODEL_KEYS.values())
        return {name: getattr(self, name) for name in architecture_keys() if name in self._keys}


def parts_of(layer: LayerConfig) -> Iterator[tuple[str, type]]:
    """The parts that a layer is made of, with the keys that chose them."""
    for name, key in architecture_keys().items():
        registry = registry_of(key)
        if registry is not None and layer.get(name) is not None:
            yield name, registry[getattr(layer, name)]


class _Layers(Sequence):
    """The configs of the layers, made when asked for: a model may have very many."""

    def __init__(self, count: int, config_of: Callable[[int], LayerConfig]):
        self._count = count
        self._config_of = config_of

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, layer: int) -> LayerConfig:
        if not -self._count <= layer < self._count:
            raise IndexError(f"layer {layer} of {self._count}")
        return self._config_of(layer % self._count)


def _chosen_through(key: Key, layer: LayerConfig) -> set[str]:
    """The key, and the options of the part that it chooses, and of those that they choose."""
    found, registry = {key.name}, registry_of(key)
    if registry is None or layer.get(key.name) is None:
        return found
    own = registry.entry(getattr(layer, key.name)).keys.values()
    return found.union(*(_chosen_through(option, layer) for option in own))


# Patterns

MOST_LAYERS_TO_DIFFER = 10_000
"""Layers of a model in which patterns are expanded."""


def _at(value: Any, layer: int) -> Any:
    return value.at(layer) if isinstance(value, Pattern) else value


def _over(value: Any, layers: int) -> Any:
    return value.over(layers) if isinstance(value, Pattern) else value


def _pattern_problems(key: str, value: Any, layers: int) -> Iterator[Problem]:
    """What is wrong with a pattern that a user gave."""
    if not isinstance(value, Pattern):
        return
    length = value.length if value.repeats else value.length + 1
    if length > layers:
        yield Problem(
            (key, "n_layer"),
            f"{key}={quoted(str(value))} needs at least {length} layers, but n_layer={layers}; "
            "shorten it, or raise n_layer.",
        )
    elif not isinstance(value.simplified(), Pattern):
        same = spelled(value.simplified())
        message = f"{key}={quoted(str(value))} gives every layer {same}; write {key}={same}."
        yield Problem((key,), message)


def _problems_of_many(meant: Mapping[str, Any], layers: int) -> list[Problem]:
    """Patterns over more layers than can be told apart."""
    keys = [key for key, value in meant.items() if isinstance(value, Pattern)]
    if not keys or layers <= MOST_LAYERS_TO_DIFFER:
        return []
    message = (
        f"n_layer={layers} is more than the {MOST_LAYERS_TO_DIFFER:,} layers that may differ; "
        f"lower it, or drop the patterns of {', '.join(keys)}."
    )
    return [Problem(("n_layer", *keys), message)]


# Names


def _ffn_label(layer: LayerConfig) -> str:
    """The activation of a standard network; another kind's label, with an activation of its own
    choice in parentheses."""
    entry, activation = FFNS.entry(layer.ffn_type), layer.get("activation")
    if activation is None:
        return entry.label
    label = ACTIVATIONS.entry(activation).label
    if layer.ffn_type == MODEL_KEYS["ffn_type"].default:
        return label
    return entry.label if activation == entry.part.default_activation else f"{entry.label}({label})"


def _plain(key: Key, layer: LayerConfig) -> Any:
    """The value that an architecture's name leaves out."""
    plain = key.metadata["plain"]
    if plain is not None:
        return plain(layer) if callable(plain) else plain
    if key.default is None and key.derive is not None:
        return key.derive(layer)
    return key.default


def _counted(words: Pattern) -> str:
    """A pattern in a name, which holds no `*`: `3xRoPE+NoPos`."""
    return "+".join(
        spelled(word) if count == 1 else f"{count}x{spelled(word)}" for word, count in words.runs
    )


def _spelled_words(words: Mapping[Any, str], values: Any) -> str:
    if isinstance(values, Pattern):
        return f"({_counted(values.mapped(lambda value: words.get(value, value)))})"
    return words[values]


# The model


class ModelArchitectureConfig:
    """The architecture of a GPT, checked when made.

    Its keys are read as attributes: those of every model (`ModelOptions`), those of attention, and
    the options of the parts that are chosen. Where layers differ in a key, read it from
    `config.layers[i]`. A key left at None is derived from the others; `changed` derives it anew.

    Args:
        keys: Each is a user's own: one that no layer has a use for is refused.

    Raises:
        ConfigError: with every problem found, each naming the fix.
    """

    def __init__(self, **keys: Any):
        self._set_up({}, keys)

    @classmethod
    def make(
        cls, base: Mapping[str, Any], given: Mapping[str, Any] | None = None
    ) -> ModelArchitectureConfig:
        """The config of a base, such as a preset or a saved config, and what a user changes of it.

        Values of the base go with their part: they are dropped where no layer has a use for them,
        and a pattern is cut to the layers there are. See the class for what it raises.
        """
        config = cls.__new__(cls)
        config._set_up(base, given or {})
        return config

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> ModelArchitectureConfig:
        """The config of a preset, with some keys changed. Raises UserError for an unknown name."""
        if name not in PRESETS:
            raise UserError(unknown_name("preset", name, PRESETS))
        return cls.make(PRESETS[name].keys, overrides)

    @classmethod
    def from_dict(cls, keys: Mapping[str, Any]) -> ModelArchitectureConfig:
        """The inverse of `to_dict`. Raises ConfigError for an unknown key."""
        return cls.make(keys)

    def changed(self, **changes: Any) -> ModelArchitectureConfig:
        """A config with some keys changed, and what was derived derived anew."""
        return self.make(self._base, {**self._given, **changes})

    def adapted(self, **changes: Any) -> ModelArchitectureConfig:
        """A config with some keys changed where a layer has a use for them, such as a smaller one
        to trace: patterns are repeated or cut to its layers."""
        return self.make({**self._base, **self._given, **changes})

    def _set_up(self, base: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        keys = architecture_keys()
        both = {**base, **given}
        problems = [Problem((k,), unknown_key_message(k)) for k in both if k not in keys]
        alone = (keys[name].problem(value) for name, value in both.items() if name in keys)
        problems += [problem for problem in alone if problem]
        if problems:
            raise ConfigError(problems)
        meant = {name: keys[name].converted(value) for name, value in both.items()}
        layers = meant.get("n_layer", keys["n_layer"].default)
        own = {name: meant[name] for name in given}
        problems = [problem for item in own.items() for problem in _pattern_problems(*item, layers)]
        problems += _problems_of_many(meant, layers)
        if problems:
            raise ConfigError(problems)
        self._fill(keys, dict(base), dict(given), {k: _over(v, layers) for k, v in meant.items()})
        problems = list(self._combination_problems())
        if problems:
            raise ConfigError(list(dict.fromkeys(problems)))

    def _fill(
        self,
        keys: Mapping[str, Key],
        base: dict[str, Any],
        given: dict[str, Any],
        meant: dict[str, Any],
    ) -> None:
        """Find the values of every layer, and of the keys in which they agree."""
        patterns = [value for value in meant.values() if isinstance(value, Pattern)]
        own = vars(self)
        own["_base"], own["_given"], own["_meant"] = base, given, meant
        own["prefix"] = max((p.length for p in patterns if not p.repeats), default=0)
        own["period"] = math.lcm(*(p.length for p in patterns if p.repeats))
        n_layer = meant.get("n_layer", keys["n_layer"].default)
        own["_resolved"] = [
            _Draft({name: _at(value, layer) for name, value in meant.items()}).resolved()
            for layer in range(min(n_layer, self.prefix + self.period))
        ]
        used = [name for name in keys if any(name in values for values in self._resolved)]
        own["_used"] = {name: keys[name] for name in used}
        for name in used:
            first, *others = (values[name] for values in self._resolved if name in values)
            if all(type(v) is type(first) and v == first for v in others):
                own[name] = first

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError(f"{key}: a config does not change; use `changed`")

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_"):
            raise AttributeError(key)
        if key in self._used:
            raise AttributeError(f"layers differ in {key!r}; read it from config.layers[i]")
        if key in KEYS:
            whose = KEYS.owned_by(key) or "training"
            raise AttributeError(f"this model has no key {key!r}, which belongs to {whose}")
        raise AttributeError(f"a model has no key {key!r}")

    def __contains__(self, key: str) -> bool:
        """Whether a layer has a use for a key."""
        return key in self._used

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelArchitectureConfig) and self._values == other._values

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        values = ", ".join(f"{key}={value!r}" for key, value in self._values.items())
        return f"ModelArchitectureConfig({values})"

    # Layers

    @cached_property
    def layers(self) -> Sequence[LayerConfig]:
        """The config of each layer, in which every key is a single value."""
        return _Layers(self.n_layer, self._layer)

    def _layer(self, layer: int) -> LayerConfig:
        place = layer
        if layer >= self.prefix:
            place = self.prefix + (layer - self.prefix) % self.period
        return LayerConfig(self._resolved[place], layer)

    @property
    def kinds(self) -> list[LayerConfig]:
        """The configs of the first layers, up to where they repeat: one or more of each kind."""
        return [self._layer(layer) for layer in range(len(self._resolved))]

    @cached_property
    def positions(self) -> list[LayerConfig]:
        """What the position encoding of each layer is made from, equal where layers share one.

        It has the keys of every model in which layers cannot differ, the options of the encoding,
        and the shape of the heads unless the encoding acts on the embedding.
        """
        return [self._of_position(layer) for layer in self.layers]

    def _of_position(self, layer: LayerConfig) -> LayerConfig:
        seen = {name for name, key in MODEL_KEYS.items() if not key.per_layer}
        seen |= _chosen_through(MODEL_KEYS["position_encoding"], layer)
        if not POSITIONS[layer.position_encoding].of_whole_model:
            seen.update(HEAD_SHAPE)
        return layer.only(seen)

    # What may be combined

    def _combination_problems(self) -> Iterator[Problem]:
        head_dim = self._meant.get("head_dim")
        derived = None in (head_dim.values if isinstance(head_dim, Pattern) else [head_dim])
        if derived and self.n_embd % self.n_head:
            yield Problem(
                ("n_embd", "n_head"),
                f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}; change one, or "
                "set head_dim.",
            )
        yield from self._unused_problems()
        yield from self._position_problems()
        yield from self._window_problems()
        for layer in self.kinds:
            where = f"layer {layer.index}: " if len(self.kinds) > 1 else ""
            for part in (Attention, *dict(parts_of(layer)).values()):
                for problem in getattr(part, "problems", lambda config: ())(layer):
                    yield Problem(problem.keys, where + problem.message)

    def _unused_problems(self) -> Iterator[Problem]:
        for key in self._given:
            if key not in self._used:
                yield Problem(
                    (key,),
                    f"{key}={quoted(self._given[key])} belongs to {KEYS.owned_by(key)}, which no "
                    "layer has; drop it, or choose that.",
                )

    def _position_problems(self) -> Iterator[Problem]:
        chosen = list(dict.fromkeys(layer.position_encoding for layer in self.kinds))
        for name in chosen:
            if not POSITIONS[name].of_whole_model:
                continue
            if len(chosen) > 1:
                yield Problem(
                    ("position_encoding",),
                    f"position_encoding={name!r} acts on the embedding, so every layer must have "
                    f"it, but others have {', '.join(set(chosen) - {name})}.",
                )
            for key in POSITIONS.entry(name).keys:
                if len({layer.get(key) for layer in self.kinds}) > 1:
                    yield Problem(
                        (key, "position_encoding"),
                        f"{key}={quoted(self._said(key))} differs from layer to layer, but "
                        f"position_encoding={name!r} acts on the embedding, once for all layers; "
                        f"give {key} one value.",
                    )

    def _window_problems(self) -> Iterator[Problem]:
        """A window of a user's own that hides nothing; a base's may where block_size is lowered."""
        if "sliding_window" not in self._given:
            return
        for window in dict.fromkeys(layer.sliding_window for layer in self.kinds):
            if window is not None and window >= self.block_size:
                yield Problem(
                    ("sliding_window", "block_size"),
                    f"sliding_window={window} does nothing: it reaches over the whole "
                    f"block_size={self.block_size}; make it smaller, or none.",
                )

    # Attention backends

    def attention_backends_on(self, device: str) -> list[str]:
        """The backends that do the work on a device type, each once; more than one under auto."""
        backend = ATTENTION_BACKENDS[self.attention_backend]
        needs = dict.fromkeys(attention_needs(layer) for layer in self.kinds)
        return list(dict.fromkeys(backend(need).name_on(device) for need in needs))

    def backend_refusals(self, device: str, dtype: torch.dtype) -> list[str]:
        """Why its attention cannot be trained on a device type in a compute dtype."""
        kind = ATTENTION_BACKENDS[self.attention_backend]
        refusals = []
        for layer in self.kinds:
            needs = attention_needs(layer)
            backend = ATTENTION_BACKENDS[kind(needs).name_on(device)]
            refusals.append(backend.refusal(needs, device, dtype, training=True))
        return [refusal for refusal in dict.fromkeys(refusals) if refusal]

    # Naming, saving

    @property
    def _named_layers(self) -> list[LayerConfig]:
        """Layers enough to name them all: where nothing differs, one."""
        return list(self.layers) if len(self.kinds) > 1 else self.kinds

    @cached_property
    def _values(self) -> dict[str, Any]:
        return {name: self._said(name) for name in self._used}

    def _said(self, name: str) -> Any:
        """The value of a key, or the pattern that its values make, as text."""
        if name in vars(self):
            return vars(self)[name]
        meant = self._meant.get(name)
        derives = self._used[name].derive is not None
        if isinstance(meant, Pattern) and not (derives and None in meant.values):
            return str(meant.mapped(self._canonical(name)))
        return str(with_rest([layer.get(name) for layer in self.layers]))

    def _canonical(self, name: str) -> Callable[[Any], Any]:
        registry = registry_of(self._used[name])
        return lambda value: value if registry is None else registry.canonical(value)

    def to_dict(self) -> dict[str, Any]:
        """Every key that a layer has a use for and its value, derived ones included; patterns over
        the layers as text."""
        return dict(self._values)

    @property
    def derived(self) -> frozenset[str]:
        """The keys whose values follow from those of others."""
        return frozenset(
            name
            for name, key in self._used.items()
            if key.derive is not None and self._meant.get(name) is None
        )

    @property
    def architecture_name(self) -> str:
        """What it is, in one line; different architectures have different names.

        Sizes and parts, then a tag for each key that departs from its default, or from what would
        be derived. Values that differ from layer to layer are spelled `(3xRoPE+NoPos)`.
        """
        return "-".join([*self._head(), *self._tags()])

    def _head(self) -> Iterator[str]:
        yield from (f"{self.n_layer}L", f"{self.n_head}H", f"{self.n_embd}D")
        yield self._by_layer(lambda layer: POSITIONS.entry(layer.position_encoding).label)
        yield self._by_layer(lambda layer: NORMS.entry(layer.normalization).label)
        yield self._by_layer(_ffn_label)
        yield self._by_layer(lambda layer: BLOCKS.entry(layer.norm_position).label)

    def _by_layer(self, word: Callable[[LayerConfig], Any]) -> str:
        """What layers are called, in the fewest words."""
        words = by_layer([word(layer) for layer in self._named_layers])
        return f"({_counted(words)})" if isinstance(words, Pattern) else words

    def _tags(self) -> Iterator[str]:
        for name, key in self._used.items():
            if key.metadata["tag"] is not None and key.role is Role.ARCHITECTURE:
                layers = [layer for layer in self.kinds if name in layer]
                if any(getattr(layer, name) != _plain(key, layer) for layer in layers):
                    yield self._tag(key)

    def _tag(self, key: Key) -> str:
        """How the name spells a key that departs from the plain."""
        values = by_layer([layer.get(key.name) for layer in self._named_layers])
        tag, registry = key.metadata["tag"], registry_of(key)
        if registry is not None and tag == SPELLED_BY_KEY:
            words = {name: registry.entry(name).label for name in registry.names}
            return _spelled_words(words, values)
        if isinstance(tag, tuple | dict):  # what False and True, or some values, are called
            words = {index == 1: word for index, word in enumerate(tag)}
            return _spelled_words(tag if isinstance(tag, dict) else words, values)
        if tag == SPELLED_BY_KEY:
            tag = "".join(word.capitalize() for word in key.name.split("_")) + "{}"
        text = f"({_counted(values)})" if isinstance(values, Pattern) else spelled(values)
        return tag.format(text)

    def summary(self) -> str:
        """The name, then every key and its value, a line each."""
        rows = (f"  {key:<26}{value}" for key, value in self.to_dict().items())
        return "\n".join([self.architecture_name, *rows])


KEYS.reserve(name for kind in (ModelArchitectureConfig, LayerConfig) for name in dir(kind))
KEYS.reserve(("index", "prefix", "period"))


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
