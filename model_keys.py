"""The keys of a model: those that all have, and the options of the parts that its layers choose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from components.layer_config import LayerConfig
from components.registry import Choices, Registry
from errors import unknown_name
from model_components import BLOCKS, FFNS, MIXERS, NORMS, RESIDUALS
from options import KEYS, Key, Role, Section, keys_of

_sizes = Section("Sizes", Role.ARCHITECTURE)
_parts = Section("Parts", Role.ARCHITECTURE)
_whole = Section("Whole model", Role.ARCHITECTURE)


class ModelOptions:
    """The keys that every model has, whatever its parts."""

    n_layer: int = _sizes.option(12, "number of blocks", at_least=1, tag=None)
    n_embd: int = _sizes.option(768, "width of the residual stream", at_least=1, tag=None)
    block_size: int = _sizes.option(1024, "longest sequence, in tokens", at_least=1, tag="T{}")
    vocab_size: int = _sizes.option(
        50304,
        "vocabulary size; train.py takes it from the dataset unless it is set",
        at_least=1,
        tag=None,
    )

    mixer: str = _parts.option(
        "attention",
        "how positions exchange information",
        choices=MIXERS,
        per_layer=True,
        tag=None,
    )
    normalization: str = _parts.option(
        "layernorm",
        "norm of the residual stream; auto: LayerNorm, its bias following bias",
        choices=NORMS.plus("auto"),
        per_layer=True,
        tag=None,
    )
    norm_position: str = _parts.option(
        "pre", "placement of the norms in a block", choices=BLOCKS, per_layer=True, tag=None
    )
    ffn_type: str = _parts.option(
        "standard", "feed-forward network", choices=FFNS, per_layer=True, tag=None
    )
    residual: str = _parts.option(
        "plain",
        "how sublayers join the residual stream",
        choices=RESIDUALS,
    )

    bias: bool = _whole.option(True, "biases in the Linear layers", tag=("NoBias", "Bias"))
    head_bias: bool = _whole.option(False, "bias in the LM head", tag=("NoHeadBias", "HeadBias"))
    weight_tying: bool = _whole.option(
        True, "the LM head shares the token embedding", tag=("Untied", "Tied")
    )
    dropout: float = _whole.option(0.0, "dropout probability", at_least=0, below=1, tag="Drop{}")
    output_softcap: float | None = _whole.option(
        None, "c in logits = c tanh(logits/c); none: no cap", above=0, tag="Cap{}"
    )
    embedding_scale: float = _whole.option(1.0, "factor on token embeddings", above=0, tag="Emb{}")
    init_std: float = _whole.option(
        0.02, "standard deviation of initial weights", above=0, tag="Init{}"
    )


MODEL_KEYS = keys_of(ModelOptions)
KEYS.declare("", MODEL_KEYS)

REPLACED = {
    "window_pattern": "write the pattern in sliding_window: sliding_window='128*5+none' "
    "repeats five layers with a window and one without",
    "rope_pattern": "write the pattern in position_encoding: position_encoding='rope*3+none' "
    "repeats three layers with RoPE and one without",
    "rope_local_theta": "write a pattern for rope_theta, and for rope_scaling if it is set: "
    "rope_theta='1e4*5+1e6' beside sliding_window='512*5+none'",
}
"""Keys of earlier versions, and what to write instead."""


def unknown_key_message(key: str) -> str:
    """What to write instead of a name that is no key of a model."""
    if key in REPLACED:
        return f"the key {key!r} was removed; {REPLACED[key]}."
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


def canonical(key: Key, value: Any, given: Mapping[str, Any]) -> Any:
    """The name of a part that a sound value stands for: an alias's, or that of `auto`.

    Args:
        key: Whose value it is; one that chooses no part has its values as they are.
        value: The value.
        given: The keys given beside it.
    """
    registry = registry_of(key)
    if registry is None or value is None:
        return value
    if (key.name, value) == ("normalization", "auto"):
        biased = given.get("bias", MODEL_KEYS["bias"].default)
        return "layernorm" if biased else "layernorm_nobias"
    return registry.canonical(value)


class Draft:
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
        return canonical(key, value, self._given)

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


def chosen_through(key: Key, layer: LayerConfig) -> set[str]:
    """The key, and the options of the part that it chooses, and of those that they choose."""
    found, registry = {key.name}, registry_of(key)
    if registry is None or layer.get(key.name) is None:
        return found
    own = registry.entry(getattr(layer, key.name)).keys.values()
    return found.union(*(chosen_through(option, layer) for option in own))
