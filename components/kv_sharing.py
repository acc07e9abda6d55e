"""Layers that attend to the keys and values of an earlier layer: `kv_sharing`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from components.attention_backends import window_of
from components.layer_config import LayerConfig
from components.positions import POSITIONS
from components.registry import Registry
from errors import Problem
from patterns import spelled

Kind = tuple[Any, ...]
"""Window, number and dimension of the key heads, and position encoding of a layer."""

WITHOUT_MEANING = {
    "value_residual": "none",
    "value_embedding": "none",
    "exclusive_attention": "none",
    "qk_sphere": False,
}
"""Options that need a layer's own keys and values, and the value that turns each of them off."""


def sharing_kind(config: LayerConfig) -> Kind:
    """What layers that share keys and values have in common."""
    encoding = _options(POSITIONS, config.position_encoding, config)
    return (window_of(config), config.n_kv_head, config.head_dim, *encoding)


def _options(registry: Registry, name: str, config: LayerConfig) -> Iterator[Any]:
    """A part's name and the values of its options, including those of parts that they choose."""
    yield name
    for key in registry.entry(name).keys.values():
        value = config.get(key.name)
        if isinstance(key.choices, Registry):
            yield from _options(key.choices, value, config)
        else:
            yield value


def sources(layers: Sequence[LayerConfig]) -> list[int | None]:
    """For each layer, the layer whose keys and values it attends to, if that is another one.

    It is the last earlier layer of the same kind that computes its own; None if there is none.
    """
    last: dict[Kind, int] = {}
    found: list[int | None] = []
    for index, layer in enumerate(layers):
        shares = layer.get("kv_sharing", False)
        found.append(last.get(sharing_kind(layer)) if shares else None)
        if "kv_sharing" in layer and not shares:
            last[sharing_kind(layer)] = index
    return found


def shared_names(config: LayerConfig) -> tuple[str, ...]:
    """The names under which a layer gives, or takes, keys and values; empty if it does neither."""
    if config.kv_source is None and not config.kv_readers:
        return ()
    source = config.index if config.kv_source is None else config.kv_source
    return f"keys of layer {source}", f"values of layer {source}"


def sharing_problems(config: LayerConfig) -> Iterator[Problem]:
    """Yield problems with the options of a layer without keys and values of its own."""
    for key, without in WITHOUT_MEANING.items() if config.kv_sharing else ():
        if getattr(config, key) != without:
            yield Problem(
                (key, "kv_sharing"),
                f"{key}={getattr(config, key)!r} changes keys or values, but a layer with "
                f"kv_sharing=True has none of its own; use {key}={without!r} there.",
            )


def unsourced(config: LayerConfig, layers: Sequence[LayerConfig]) -> Iterator[Problem]:
    """Yield the problem if no earlier layer has the keys and values that a layer needs."""
    if not config.kv_sharing or config.kv_source is not None:
        return
    earlier = (layers[index] for index in reversed(range(config.index)))
    own = next((e for e in earlier if "kv_sharing" in e and not e.kv_sharing), None)
    if own is None:
        message = (
            "kv_sharing=True needs an earlier attention layer that computes keys and values; use "
            "kv_sharing=False in the first one, for example kv_sharing='false+true'."
        )
        yield Problem(("kv_sharing",), message)
        return
    sizes = ("sliding_window", "n_kv_head", "head_dim", "position_encoding")
    keys = [key for key in sizes if getattr(own, key) != getattr(config, key)]
    if keys:
        differs = " and ".join(
            f"{key}={spelled(getattr(config, key))} instead of {spelled(getattr(own, key))}"
            for key in keys
        )
    else:
        differs = "other options of its position encoding"
    yield Problem(
        ("kv_sharing", *keys),
        f"kv_sharing=True cannot use the keys and values of layer {own.index}, because this layer "
        f"has {differs}, and no earlier layer with kv_sharing=False matches; make them equal, "
        "or use kv_sharing=False here.",
    )
