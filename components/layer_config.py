"""The config of one layer, in which every key has a single value."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any

PLACE = ("index", "kv_source", "kv_readers")
"""Attributes of a layer that are not keys: its place among the layers."""


class LayerConfig:
    """The keys of one layer, read as attributes: `config.n_embd`, `config.my_option`.

    It contains only the keys of every model and the options of the layer's parts. For a pattern
    over the layers, it has the value of this layer.

    Attributes:
        index: Index of the layer, from 0; None for a part shared by several layers.
        kv_source: Index of the layer whose keys and values this one attends to, if `kv_sharing`.
        kv_readers: Indices of the later layers that attend to the keys and values of this one.
    """

    index: int | None
    kv_source: int | None
    kv_readers: tuple[int, ...]

    def __init__(
        self,
        values: Mapping[str, Any],
        index: int | None = None,
        kv_source: int | None = None,
        kv_readers: tuple[int, ...] = (),
    ):
        vars(self).update(values)
        vars(self).update(index=index, kv_source=kv_source, kv_readers=kv_readers)

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError(f"{key}: a config is immutable")

    def __getattr__(self, key: str) -> Any:
        raise AttributeError(
            f"no part of this layer has the option {key!r}; a part can read the keys of every "
            "model and those declared in its own Options class"
        )

    def __contains__(self, key: str) -> bool:
        return key in vars(self) and key not in PLACE

    def __iter__(self) -> Iterator[str]:
        return iter(self.values())

    def values(self) -> Mapping[str, Any]:
        """All keys and values."""
        return MappingProxyType({key: v for key, v in vars(self).items() if key not in PLACE})

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or `default` if no part of the layer has it."""
        return vars(self).get(key, default)

    def only(self, keys: Collection[str]) -> LayerConfig:
        """A config with some of the keys, for a part shared by layers that agree in them."""
        return LayerConfig({key: v for key, v in self.values().items() if key in keys})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LayerConfig) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).items()))

    def __repr__(self) -> str:
        values = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"LayerConfig({values})"
