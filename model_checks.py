"""Check the combination of individually valid values in a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from components.layer_config import LayerConfig
from components.parametrizations import PARAMETRIZATIONS
from components.part import Part
from errors import Problem, quoted
from model_components import POSITIONS, RESIDUALS
from options import KEYS, Key
from part_keys import parts_of, problems_of_parts, registry_of
from patterns import Pattern, spelled

UNSCALED = (
    *("canon", "token_shift", "forget_gate", "differential_attention"),
    *("engram", "per_layer_embedding"),
)
"""Options that are not defined for parametrizations that depend on the width, nor for
`sphere_weights`."""

SCALED_BY_WIDTH = ("qk_sphere", "hidden_gain", "logit_gain", "sphere_weights")
"""Keys of nGPT, whose scales and learning rates have a dependence on the width of their own."""


def _not_defined(layer: LayerConfig, key: str) -> Problem:
    """The problem that a parametrization is not defined for the value of a key."""
    message = (
        f"parametrization={layer.parametrization!r} is not defined for {key}={layer.get(key)!r}; "
        f"use parametrization='standard', or another {key}."
    )
    return Problem(("parametrization", key), message)


@dataclasses.dataclass(frozen=True)
class Combination:
    """The values of a model, to be checked together.

    Attributes:
        layers: The config of each layer.
        kinds: The configs of the first layers until they repeat.
        meant: The value or pattern of each key from the base or the user.
        given: The values given by the user, as given.
        keys: The keys that any layer uses.
    """

    layers: Sequence[LayerConfig]
    kinds: Sequence[LayerConfig]
    meant: Mapping[str, Any]
    given: Mapping[str, Any]
    keys: Mapping[str, Key]

    def problems(self) -> Iterator[Problem]:
        """Yield all problems. A problem of several layers is reported for the first one."""
        yield from self._head_problems()
        yield from self._unused_problems()
        yield from self._idle_problems()
        yield from self._position_problems()
        yield from self._window_problems()
        yield from self._parametrization_problems()
        yield from self._sphere_problems()
        yield from self._loop_problems()
        yield from self._rounding_problems()
        yield from self._part_problems()

    @cached_property
    def _choosers(self) -> dict[str, Key]:
        """The keys that choose components."""
        return {name: key for name, key in self.keys.items() if registry_of(key) is not None}

    def _head_problems(self) -> Iterator[Problem]:
        """Yield the problem if n_embd is not divisible by n_head and head_dim is derived."""
        head_dim = self.meant.get("head_dim")
        derived = None in (head_dim.values if isinstance(head_dim, Pattern) else [head_dim])
        layer = next((layer for layer in self.kinds if "head_dim" in layer), None)
        if derived and layer is not None and layer.n_embd % layer.n_head:
            yield Problem(
                ("n_embd", "n_head"),
                f"n_embd={layer.n_embd} is not a multiple of n_head={layer.n_head}; change one, or "
                "set head_dim.",
            )

    def _located(self, problems: Callable[[LayerConfig], Iterable[Problem]]) -> Iterator[Problem]:
        """Yield the distinct problems of the layers, each with the first layer that has it."""
        found: dict[Problem, LayerConfig] = {}
        for layer in self.kinds:
            for problem in problems(layer):
                found.setdefault(problem, layer)
        for problem, layer in found.items():
            yield Problem(problem.keys, self._where(problem.keys, layer) + problem.message)

    def _part_problems(self) -> Iterator[Problem]:
        """Yield problems reported by the components of the layers."""

        def of(layer: LayerConfig) -> Iterator[Problem]:
            yield from problems_of_parts("problems", layer, self._choosers)
            yield from problems_of_parts("problems_among", layer, self._choosers, self.layers)

        yield from self._located(of)

    def _rounding_problems(self) -> Iterator[Problem]:
        """Yield the problems that components report for derived values that are rounded."""

        def of(layer: LayerConfig) -> Iterator[Problem]:
            derived = [name for name in self.keys if name in layer and self._derives(name, layer)]
            yield from problems_of_parts("rounding", layer, self._choosers, derived)

        yield from self._located(of)

    def _derives(self, name: str, layer: LayerConfig) -> bool:
        """Whether the value of a key in a layer is derived from others."""
        value = self.meant.get(name)
        own = value.at(layer.index) if isinstance(value, Pattern) else value
        return own is None and self.keys[name].derive is not None

    def _parametrization_problems(self) -> Iterator[Problem]:
        """Yield problems for components that are not defined for the parametrization."""

        def of(layer: LayerConfig) -> Iterator[Problem]:
            if not PARAMETRIZATIONS[layer.parametrization].scales_with_width:
                return
            for key, part in parts_of(layer, self._choosers):
                if issubclass(part, Part) and not part.scales_with_width:
                    yield _not_defined(layer, key)
            for key in (*UNSCALED, *SCALED_BY_WIDTH):
                if key in layer and layer.get(key) != KEYS[key].default:
                    yield _not_defined(layer, key)

        yield from self._located(of)

    def _sphere_problems(self) -> Iterator[Problem]:
        """Yield problems for what `sphere_weights` is not defined for."""

        def of(layer: LayerConfig) -> Iterator[Problem]:
            if not layer.sphere_weights:
                return
            biases = ("bias", "attention_bias", "attention_out_bias", "head_bias")
            others = {key: getattr(layer, key) for key in biases if layer.get(key)}
            for key in (*UNSCALED, "value_embedding", "zero_init"):
                if key in layer and layer.get(key) != KEYS[key].default:
                    others[key] = layer.get(key)
            parts = dict(parts_of(layer, self._choosers))
            for key in ("mixer", "ffn_type", "position_encoding"):
                if key in parts and not parts[key].takes_sphere:
                    others[key] = getattr(layer, key)
            for key, value in others.items():
                message = f"sphere_weights=True is not defined for {key}={value!r}; change one."
                yield Problem(("sphere_weights", key), message)

        yield from self._located(of)

    def _loop_problems(self) -> Iterator[Problem]:
        """Yield problems with looped layers."""
        first = self.kinds[0]
        count, ends = first.loop_count, ("loop_prelude", "loop_coda")
        if count == 1:
            for key in ends:
                if self.given.get(key):
                    yield Problem(
                        (key, "loop_count"),
                        f"{key}={self.given[key]} has no effect with loop_count=1; raise "
                        f"loop_count, or drop {key}.",
                    )
            return
        outside = first.loop_prelude + first.loop_coda
        if outside >= first.n_layer:
            yield Problem(
                (*ends, "n_layer"),
                f"loop_prelude={first.loop_prelude} and loop_coda={first.loop_coda} leave none of "
                f"n_layer={first.n_layer} layers for loop_count={count}; lower them, or raise "
                "n_layer.",
            )
        chosen = {
            "residual": RESIDUALS[first.residual],
            "parametrization": PARAMETRIZATIONS[first.parametrization],
        }
        for key, part in chosen.items():
            if not part.allows_loops:
                yield Problem(
                    ("loop_count", key),
                    f"loop_count={count} is not defined for {key}={getattr(first, key)!r}, in "
                    f"which each layer has one depth; use loop_count=1, or another {key}.",
                )
        if any(layer.get("layer_norm_scaling") for layer in self.kinds):
            yield Problem(
                ("loop_count", "layer_norm_scaling"),
                f"loop_count={count} is not defined for layer_norm_scaling=True, which scales the "
                "norms of a layer by its single depth; change one.",
            )

    def _where(self, keys: Iterable[str], layer: LayerConfig) -> str:
        """The prefix of a message about keys of one layer: `a='1+2', layer 1: ` if layers differ in
        `a`, empty if all layers are alike."""
        if len(self.kinds) == 1:
            return ""
        patterns = [key for key in keys if isinstance(self.meant.get(key), Pattern)]
        return "".join(f"{key}={self._asked(key)}, " for key in patterns) + f"layer {layer.index}: "

    def _asked(self, key: str) -> str:
        """The value or pattern of a key as given, for messages."""
        return quoted(self.given[key] if key in self.given else str(self.meant.get(key)))

    def _idle_problems(self) -> Iterator[Problem]:
        """Yield problems for keys given by the user, or values in their patterns, that have no
        effect in any layer."""
        idle = [
            {problem.keys[0]: problem for problem in self._idle_in(layer)} for layer in self.kinds
        ]
        for key in self.given:
            having = [i for i, layer in enumerate(self.kinds) if key in layer]
            effective = [i for i in having if key not in idle[i]]
            if having and not effective:
                yield idle[having[0]][key]
            elif effective and isinstance(self.meant[key], Pattern):
                yield from self._idle_values(key, effective, idle)

    def _idle_in(self, layer: LayerConfig) -> Iterator[Problem]:
        yield from problems_of_parts("idle", layer, self._choosers)
        yield from problems_of_parts("idle_among", layer, self._choosers, self.layers)

    def _idle_values(
        self, key: str, effective: Iterable[int], idle: Sequence[Mapping[str, Problem]]
    ) -> Iterator[Problem]:
        """Yield problems for values of a pattern that have no effect in any layer. `effective`:
        layers where the key has an effect. The values none and False are allowed in layers without
        the component."""
        pattern = self.meant[key]
        known = {"none", "false", *(spelled(pattern.at(layer)) for layer in effective)}
        for layer in self.kinds:
            value = spelled(pattern.at(layer.index))
            if value not in known:
                message = (
                    idle[layer.index][key].message
                    if key in layer
                    else f"{key}={value} has no effect: no layer with this value uses "
                    f"{KEYS.owned_by(key)}; remove it, or select that component there."
                )
                yield Problem((key,), self._where((key,), layer) + message)
            known.add(value)

    def _unused_problems(self) -> Iterator[Problem]:
        for key in self.given:
            if key not in self.keys:
                yield Problem(
                    (key,),
                    f"{key}={quoted(self.given[key])} belongs to {KEYS.owned_by(key)}, which no "
                    "layer uses; drop it, or select that component.",
                )

    def _position_problems(self) -> Iterator[Problem]:
        using = [layer for layer in self.kinds if "position_encoding" in layer]
        chosen = list(dict.fromkeys(layer.position_encoding for layer in using))
        for name in chosen:
            if not POSITIONS[name].of_whole_model:
                continue
            others = [other for other in chosen if other != name]
            if others:
                yield Problem(
                    ("position_encoding",),
                    f"position_encoding={name!r} acts on the embedding, so every layer must use "
                    f"it, but other layers use {', '.join(others)}.",
                )
            for key in POSITIONS.entry(name).keys:
                if len({layer.get(key) for layer in using}) > 1:
                    yield Problem(
                        (key, "position_encoding"),
                        f"{key}={self._asked(key)} differs from layer to layer, but "
                        f"position_encoding={name!r} acts on the embedding, once for all layers; "
                        f"set {key} to a single value.",
                    )

    def _window_problems(self) -> Iterator[Problem]:
        """Yield problems for windows given by the user that hide nothing. Those of a base may,
        because block_size can be lowered."""
        if "sliding_window" not in self.given:
            return
        first: dict[int | None, LayerConfig] = {}
        for layer in self.kinds:
            first.setdefault(layer.get("sliding_window"), layer)
        patterned = isinstance(self.meant["sliding_window"], Pattern)
        for window, layer in first.items():
            if window is not None and window >= layer.block_size:
                where = self._where(("sliding_window",), layer) if patterned else ""
                yield Problem(
                    ("sliding_window", "block_size"),
                    f"{where}sliding_window={window} has no effect: it covers the whole "
                    f"block_size={layer.block_size}; lower it, or set it to none.",
                )
