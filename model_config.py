"""The model architecture config and its presets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from architecture_names import architecture_name
from components.attention_backends import attention_needs
from components.kv_sharing import sources
from components.layer_config import PLACE, LayerConfig
from components.parametrizations import effective_depth
from errors import ConfigError, Problem, UserError, quoted, unknown_name
from model_checks import Combination
from model_components import ATTENTION_BACKENDS, POSITIONS
from model_keys import (
    MODEL_KEYS,
    architecture_keys,
    canonical,
    layer_values,
    unknown_key_message,
)
from model_presets import PRESETS
from options import KEYS, Key
from part_keys import chosen_through
from patterns import MOST_LAYERS_TO_DIFFER, Pattern, spelled, with_rest

HEAD_SHAPE = ("n_head", "n_kv_head", "head_dim", "qk_rope_head_dim")
"""Keys available to a position encoding in attention, besides its own and those of every model."""


class _Layers(Sequence):
    """The configs of the layers, created on demand, since a model may have very many layers."""

    def __init__(self, count: int, config_of: Callable[[int], LayerConfig]):
        self._count = count
        self._config_of = config_of

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, layer: int) -> LayerConfig:
        if not -self._count <= layer < self._count:
            raise IndexError(f"layer {layer} of {self._count}")
        return self._config_of(layer % self._count)


class ModelArchitectureConfig:
    """The architecture of a GPT, validated on creation.

    Keys are read as attributes: those of every model (`ModelOptions`), and the options of the
    chosen components. If layers differ in a key, read it from `config.layers[i]`. Keys left at None
    are derived from the others; `changed` derives them again.

    Args:
        keys: Values given by the user; keys that no layer uses are refused.

    Raises:
        ConfigError: If there are problems; it lists them all, with fixes.
    """

    def __init__(self, **keys: Any):
        self._set_up({}, keys)

    @classmethod
    def make(
        cls, base: Mapping[str, Any], given: Mapping[str, Any] | None = None
    ) -> ModelArchitectureConfig:
        """Create a config from a base, such as a preset or a saved config, and the user's changes.

        Values of the base that no layer uses are ignored, and its patterns are cut to the number of
        layers. See the class for the errors.
        """
        config = cls.__new__(cls)
        config._set_up(base, given or {})
        return config

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> ModelArchitectureConfig:
        """Create a config from a preset and changes. Raises UserError for an unknown name."""
        if name not in PRESETS:
            raise UserError(unknown_name("preset", name, PRESETS))
        return cls.make(PRESETS[name].keys, overrides)

    @classmethod
    def from_dict(cls, keys: Mapping[str, Any]) -> ModelArchitectureConfig:
        """The inverse of `to_dict`. Raises ConfigError for an unknown key."""
        return cls.make(keys)

    def changed(self, **changes: Any) -> ModelArchitectureConfig:
        """A config with some keys changed; derived values are recomputed."""
        return self.make(self._base, {**self._given, **changes})

    def adapted(self, **changes: Any) -> ModelArchitectureConfig:
        """A config with some keys changed if a layer uses them, for example a smaller model to
        trace; patterns are repeated or cut to its number of layers."""
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
        meant = {name: _named(keys[name], value, meant) for name, value in meant.items()}
        layers = meant.get("n_layer", keys["n_layer"].default)
        problems = [
            problem
            for name, value in given.items()
            for problem in _pattern_problems(name, value, meant[name], layers)
        ]
        problems += _problems_of_many(meant, layers)
        if problems:
            raise ConfigError(problems)
        self._fill(keys, dict(base), dict(given), {k: _over(v, layers) for k, v in meant.items()})
        combination = Combination(self.layers, self.kinds, self._meant, self._given, self._used)
        problems = list(dict.fromkeys(combination.problems()))
        if problems:
            raise ConfigError(problems)

    def _fill(
        self,
        keys: Mapping[str, Key],
        base: dict[str, Any],
        given: dict[str, Any],
        meant: dict[str, Any],
    ) -> None:
        """Set the values of every layer, and attributes for the keys in which all layers agree."""
        patterns = [value for value in meant.values() if isinstance(value, Pattern)]
        own = vars(self)
        own["_base"], own["_given"], own["_meant"] = base, given, meant
        own["prefix"] = max((p.length for p in patterns if not p.repeats), default=0)
        own["period"] = math.lcm(*(p.length for p in patterns if p.repeats))
        n_layer = meant.get("n_layer", keys["n_layer"].default)
        own["_resolved"] = [
            layer_values({name: _at(value, layer) for name, value in meant.items()}, keys)
            for layer in range(min(n_layer, self.prefix + self.period))
        ]
        used = [name for name in keys if any(name in values for values in self._resolved)]
        own["_used"] = {name: keys[name] for name in used}
        for name in used:
            first, *others = (values[name] for values in self._resolved if name in values)
            if all(type(v) is type(first) and v == first for v in others):
                own[name] = first

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError(f"{key}: a config is immutable; use `changed`")

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_"):
            raise AttributeError(key)
        if key in self._used:
            raise AttributeError(f"layers differ in {key!r}; read it from config.layers[i]")
        if key in KEYS:
            whose = KEYS.owned_by(key) or "training"
            raise AttributeError(f"this model has no key {key!r}, which belongs to {whose}")
        raise AttributeError(f"models have no key {key!r}")

    def __contains__(self, key: str) -> bool:
        """Whether any layer uses a key."""
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
        values = self._values_of(layer)
        if not self._shares_keys:
            return LayerConfig(values, layer)
        return LayerConfig(values, layer, self._kv_sources[layer], self._kv_readers[layer])

    def _values_of(self, layer: int) -> dict[str, Any]:
        place = layer
        if layer >= self.prefix:
            place = self.prefix + (layer - self.prefix) % self.period
        return self._resolved[place]

    @cached_property
    def _shares_keys(self) -> bool:
        """Whether layers differ in `kv_sharing`, so that some may use the keys of others."""
        return len({values.get("kv_sharing") for values in self._resolved} - {None}) > 1

    @cached_property
    def _kv_sources(self) -> list[int | None]:
        return sources([LayerConfig(self._values_of(layer)) for layer in range(self.n_layer)])

    @cached_property
    def _kv_readers(self) -> list[tuple[int, ...]]:
        readers: list[list[int]] = [[] for _ in range(self.n_layer)]
        for layer, source in enumerate(self._kv_sources):
            if source is not None:
                readers[source].append(layer)
        return list(map(tuple, readers))

    @property
    def applied_layers(self) -> list[int]:
        """The indices of the layers in the order in which they are applied: the looped layers, all
        but the first `loop_prelude` and the last `loop_coda`, `loop_count` times."""
        first, end = self.loop_prelude, self.n_layer - self.loop_coda
        looped = list(range(first, end)) * self.loop_count
        return [*range(first), *looped, *range(end, self.n_layer)]

    @property
    def effective_depth(self) -> int:
        """Number of layers that a token passes through."""
        return effective_depth(self)

    @property
    def fewest_layers(self) -> int:
        """Smallest n_layer with every kind of layer, for smaller models with the same keys."""
        looping = self.loop_prelude + self.loop_coda + 1 if self.loop_count > 1 else 1
        return max(self.prefix + self.period, looping)

    @cached_property
    def kinds(self) -> list[LayerConfig]:
        """The configs of the first layers until they repeat; covers every kind of layer."""
        return [self._layer(layer) for layer in range(len(self._resolved))]

    @cached_property
    def positions(self) -> list[LayerConfig]:
        """The config for the position encoding of each layer; layers with equal configs share one.

        It has the model-wide keys, the options of the encoding, and the shape of the heads unless
        the encoding acts on the embedding.
        """
        return [self._of_position(layer) for layer in self.layers]

    def _of_position(self, layer: LayerConfig) -> LayerConfig:
        if "position_encoding" not in layer:
            layer = LayerConfig({**layer.values(), "position_encoding": "none"})
        seen = {name for name, key in MODEL_KEYS.items() if not key.per_layer}
        for chooser in ("position_encoding", "parametrization"):
            seen |= chosen_through(KEYS[chooser], layer)
        if not POSITIONS[layer.position_encoding].of_whole_model:
            seen.update(HEAD_SHAPE)
        return layer.only(seen)

    # Attention backends

    @property
    def _attending(self) -> list[LayerConfig]:
        """The kinds of layers that have an attention backend."""
        return [layer for layer in self.kinds if "attention_backend" in layer]

    def attention_backends_on(self, device: str, length: int | None = None) -> list[str]:
        """The distinct backends used on a device type; `auto` may use more than one.

        Args:
            device: Device type.
            length: Sequence length in tokens. Defaults to block_size.
        """
        length = length or self.block_size
        return list(dict.fromkeys(_backend_on(layer, device, length) for layer in self._attending))

    def backend_refusals(self, device: str, dtype: torch.dtype) -> list[str]:
        """Reasons why attention cannot be trained on a device type in a compute dtype."""
        refusals = []
        for layer in self._attending:
            backend = ATTENTION_BACKENDS[_backend_on(layer, device, self.block_size)]
            refusals.append(backend.refusal(attention_needs(layer), device, dtype, training=True))
        return [refusal for refusal in dict.fromkeys(refusals) if refusal]

    # Naming, saving

    @cached_property
    def _values(self) -> dict[str, Any]:
        return {name: self._saved(key) for name, key in self._used.items()}

    def _saved(self, key: Key) -> Any:
        """The value of a key for saved configs; see `saved` in `option`."""
        if key.metadata["saved"] is None:
            return self.said(key.name)
        layers = self.layers if len(self.kinds) > 1 else self.kinds
        first = next(key.saved(layer) for layer in layers if key.name in layer)
        values = with_rest([key.saved(layer) if key.name in layer else first for layer in layers])
        return str(values) if isinstance(values, Pattern) else values

    def said(self, name: str) -> Any:
        """The value of a key; if layers differ, their pattern as text."""
        if name in vars(self):
            return vars(self)[name]
        meant = self._meant.get(name)
        derives = self._used[name].derive is not None
        if isinstance(meant, Pattern) and not (derives and None in meant.values):
            return str(meant)
        return str(with_rest([layer.get(name) for layer in self.layers]))

    def to_dict(self) -> dict[str, Any]:
        """All used keys and their values, including derived ones, with patterns as text. Options
        that declare `saved` have that value instead."""
        return dict(self._values)

    @property
    def derived(self) -> frozenset[str]:
        """The keys whose values are derived from others."""
        return frozenset(
            name
            for name, key in self._used.items()
            if key.derive is not None and self._meant.get(name) is None
        )

    @cached_property
    def architecture_name(self) -> str:
        """The one-line name of the architecture; see `architecture_names`."""
        layers = self.layers if len(self.kinds) > 1 else self.kinds
        return architecture_name(layers, self._used)

    def summary(self) -> str:
        """The name, followed by one line for each key and its value."""
        rows = (f"  {key:<26}{value}" for key, value in self.to_dict().items())
        return "\n".join([self.architecture_name, *rows])


KEYS.reserve(name for kind in (ModelArchitectureConfig, LayerConfig) for name in dir(kind))
KEYS.reserve((*PLACE, "prefix", "period"))


def _backend_on(layer: LayerConfig, device: str, length: int) -> str:
    """The attention backend that a layer uses on a device type for sequences of `length` tokens."""
    backend = ATTENTION_BACKENDS[layer.attention_backend](attention_needs(layer))
    return backend.name_on(device, length)


# Patterns


def _at(value: Any, layer: int) -> Any:
    return value.at(layer) if isinstance(value, Pattern) else value


def _named(key: Key, value: Any, given: Mapping[str, Any]) -> Any:
    """A value, or each value of a pattern, with aliases replaced by canonical names."""
    if isinstance(value, Pattern):
        return value.mapped(lambda one: canonical(key, one, given))
    return canonical(key, value, given)


def _over(value: Any, layers: int) -> Any:
    return value.over(layers) if isinstance(value, Pattern) else value


def _pattern_problems(key: str, given: Any, meant: Any, layers: int) -> Iterator[Problem]:
    """Yield problems with a pattern given by the user."""
    if not isinstance(meant, Pattern):
        return
    length = meant.length if meant.repeats else meant.length + 1
    if length > layers:
        yield Problem(
            (key, "n_layer"),
            f"{key}={quoted(given)} needs at least {length} layers, but n_layer={layers}; "
            "shorten it, or raise n_layer.",
        )
    elif len(meant.values) == 1:
        same = spelled(meant.values[0])
        message = f"{key}={quoted(given)} gives every layer {same}; write {key}={same}."
        yield Problem((key,), message)


def _problems_of_many(meant: Mapping[str, Any], layers: int) -> list[Problem]:
    """The problem if patterns are used with too many layers."""
    keys = [key for key, value in meant.items() if isinstance(value, Pattern)]
    if not keys or layers <= MOST_LAYERS_TO_DIFFER:
        return []
    message = (
        f"n_layer={layers} is more than the {MOST_LAYERS_TO_DIFFER:,} layers "
        f"that a pattern can cover; lower it, or drop the patterns of {', '.join(keys)}."
    )
    return [Problem(("n_layer", *keys), message)]
