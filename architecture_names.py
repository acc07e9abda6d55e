"""Names of architectures: sizes and components, then a tag for each key with a non-default
value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from components.layer_config import LayerConfig
from model_components import ACTIVATIONS, BLOCKS, FFNS, MIXERS, NORMS, POSITIONS
from model_keys import MODEL_KEYS
from options import SPELLED_BY_KEY, Key, Role
from part_keys import registry_of
from patterns import Pattern, by_layer, spelled


def architecture_name(layers: Sequence[LayerConfig], keys: Mapping[str, Key]) -> str:
    """The one-line name of an architecture; different architectures have different names.

    The name consists of sizes and components, then a tag for each key that differs from its default
    or derived value. Values that differ between layers are written as `(3xRoPE+NoPos)`.

    Args:
        layers: The configs of the layers.
        keys: The keys that any layer uses.
    """
    first = layers[0]
    heads = [f"{layer.n_head}H" for layer in layers if "n_head" in layer]
    sizes = (f"{first.n_layer}L", *heads[:1], f"{first.n_embd}D")
    parts = (_by_layer(layers, label) for label in (_norm, _ffn, _block))
    return "-".join([*sizes, *_mixers(layers), *parts, *_tags(layers, keys)])


def _mixers(layers: Sequence[LayerConfig]) -> Iterator[str]:
    """Yield the mixers, unless all layers use attention; then the position encoding of the layers
    that have one, or of every layer if they differ."""
    if {layer.mixer for layer in layers} != {MODEL_KEYS["mixer"].default}:
        yield _by_layer(layers, _mixer)
    used = {layer.position_encoding for layer in layers if "position_encoding" in layer}
    if len(used) == 1:
        yield POSITIONS.entry(used.pop()).label
    elif used:
        yield _by_layer(layers, _position)


def _by_layer(layers: Sequence[LayerConfig], label: Callable[[LayerConfig], str]) -> str:
    """The labels of the layers, as a pattern if they differ."""
    labels = by_layer([label(layer) for layer in layers])
    return f"({_counted(labels)})" if isinstance(labels, Pattern) else labels


def _position(layer: LayerConfig) -> str:
    return POSITIONS.entry(layer.get("position_encoding", "none")).label


def _mixer(layer: LayerConfig) -> str:
    return "NoMixer" if layer.mixer == "none" else MIXERS.entry(layer.mixer).label


def _norm(layer: LayerConfig) -> str:
    return NORMS.entry(layer.normalization).label


def _block(layer: LayerConfig) -> str:
    return BLOCKS.entry(layer.norm_position).label


def _ffn(layer: LayerConfig) -> str:
    """The activation of a standard FFN; for other FFNs the label, with a non-default activation in
    parentheses."""
    if layer.ffn_type == "none":
        return "NoFFN"
    entry, activation = FFNS.entry(layer.ffn_type), layer.get("activation")
    if activation is None:
        return entry.label
    label = ACTIVATIONS.entry(activation).label
    if layer.ffn_type == MODEL_KEYS["ffn_type"].default:
        return label
    return entry.label if activation == entry.part.default_activation else f"{entry.label}({label})"


def _tags(layers: Sequence[LayerConfig], keys: Mapping[str, Key]) -> Iterator[str]:
    for key in keys.values():
        if key.metadata["tag"] is None or key.role is not Role.ARCHITECTURE:
            continue
        having = [layer for layer in layers if key.name in layer]
        if any(getattr(layer, key.name) != key.plain(layer) for layer in having):
            alike = len({getattr(layer, key.name) for layer in having}) == 1
            shown = having if alike else layers  # if alike, the components show who has the key
            yield _tag(key, by_layer([layer.get(key.name) for layer in shown]))


def _tag(key: Key, values: Any) -> str:
    """The tag for the value, or the pattern of values, of a key."""
    tag, registry = key.metadata["tag"], registry_of(key)
    if registry is not None and tag == SPELLED_BY_KEY:
        tag = {name: registry.entry(name).label for name in registry.names}
    if isinstance(tag, tuple):  # the words for False and True
        tag = dict(zip((False, True), tag, strict=True))
    if isinstance(tag, dict):
        return _words(tag, values)
    if tag == SPELLED_BY_KEY:
        tag = "".join(word.capitalize() for word in key.name.split("_")) + "{}"
    return tag.format(f"({_counted(values)})" if isinstance(values, Pattern) else spelled(values))


def _words(words: Mapping[Any, str], values: Any) -> str:
    if not isinstance(values, Pattern):
        return words[values]
    return f"({_counted(values.mapped(lambda value: words.get(value, value)))})"


def _counted(words: Pattern) -> str:
    """A pattern in a name, written without `*`: `3xRoPE+NoPos`."""
    return "+".join(
        spelled(word) if count == 1 else f"{count}x{spelled(word)}" for word, count in words.runs
    )
