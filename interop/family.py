"""A model family of Hugging Face transformers: a table, no second model.

A family says how its `config.json` reads as an architecture (`aspects` of it, `fixed` keys, fields
that must have a value) and which of its weights is which of ours. The same table serves both
directions. What a family cannot express needs no list: an architecture is written as fields and
read again, and the keys that come back changed in some layer are those that got lost.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from components.attention import qkv_widths
from components.attention_backends import window_of
from components.layer_config import LayerConfig
from components.rope_scalings import rotary_head, rotated_dimensions
from errors import ConfigError, Problem, UserError
from interop.fields import Aspect, Fields, Keys
from interop.file_forms import FileForm, Tensors
from interop.layouts import PLAIN, Layout
from model_config import ModelArchitectureConfig
from options import KEYS, Role
from patterns import Pattern, by_layer

OF_A_RUN = (
    "dropout",
    "attention_backend",
    "balance_loss_coef",
    "router_z_loss_coef",
    "mtp",
    "mtp_depth",
    "mtp_weight",
)
"""Keys that are no part of what a model computes: neither read nor written."""
BIASES = (
    "bias",
    "attention_bias",
    "attention_out_bias",
    "head_bias",
    "router_logit_bias",
    "router_bias_rate",
)
_OF_EVERY_FAMILY: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "is_causal": (True,),
    "per_layer_config": (None, {}),
    "kv_sharing_modes": (None,),
}
"""Fields that transformers reads in every family, with the values that can be expressed here."""
_OF_PARAMETRIZATIONS = ("parametrization", "mup_base_width", "completep_base_depth")
_MADE_UP_FOR = (*OF_A_RUN, *_OF_PARAMETRIZATIONS, "zero_init", "ffn_multiplier", "ffn_multiple_of")
"""Keys that are not compared, since others have what follows from them: ffn_hidden, and the scales
of logits, residuals and attention."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of one of our modules, or one tensor, in a family: several are stacked by rows in
    ours."""

    theirs: tuple[str, ...]
    layout: Layout = PLAIN

    def names(self, layer: int, kind: str) -> list[str]:
        """Their names for the parts of ours; `kind` is `weight` or `bias`, or empty if they are
        whole names."""
        suffix = f".{kind}" if kind else ""
        return [name.format(layer) + suffix for name in self.theirs]

    def ours_of(self, parts: list[Tensor], layer: LayerConfig) -> Tensor:
        """Our tensor of theirs."""
        return self.layout.ours(torch.cat(parts), layer)

    def theirs_of(self, x: Tensor, layer: LayerConfig) -> tuple[Tensor, ...]:
        """Their tensors of ours."""
        x = self.layout.theirs(x, layer)
        if len(self.theirs) == 1:
            return (x,)
        return x.split(qkv_widths(layer)) if len(self.theirs) == 3 else x.chunk(len(self.theirs))


WeightTable = dict[str, Weights]


def _none(layer: LayerConfig) -> WeightTable:
    return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A table of a family.

    Attributes:
        model_type: What config.json calls it.
        architecture: The class in transformers that makes text with it.
        prefix: What the names of its weights begin with, the output head's excepted. Files that
            were saved from the model without its head leave it out.
        fixed: Keys that are the same in every model of the family.
        aspects: Keys that its config.json says.
        defaults: Values of fields that config.json may leave out.
        aliases: Other names of fields (transformers' attribute_map), which come before their own.
        required: Fields that change what is computed, with the values that can be expressed here.
        mixers: The mixers that its layers may have.
        weights: Our modules or tensors, `{}` standing for the layer, and their weights.
        weights_of: Weights of a layer that depend on its keys; they replace those of `weights`.
        file_forms: How its files name or divide weights otherwise than `weights` does, in the
            order of reading.
        needs_bos: Whether config.json must name a beginning-of-text token.
    """

    model_type: str
    architecture: str
    prefix: str = "model."
    fixed: Keys
    aspects: tuple[Aspect, ...]
    defaults: Fields = dataclasses.field(default_factory=dict)
    aliases: dict[str, str] = dataclasses.field(default_factory=dict)
    required: dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    mixers: tuple[str, ...] = ("attention",)
    weights: WeightTable
    weights_of: Callable[[LayerConfig], WeightTable] = _none
    file_forms: tuple[FileForm, ...] = ()
    needs_bos: bool = False

    # config.json

    def read(self, fields: Fields) -> Keys:
        """The keys of an architecture that a config.json describes.

        Raises:
            UserError: a field is missing, or says what cannot be expressed here; naming it.
        """
        renamed = {name: fields[alias] for alias, name in self.aliases.items() if alias in fields}
        fields = {**self.defaults, **fields, **renamed}
        for name, allowed in (_OF_EVERY_FAMILY | self.required).items():
            if name in fields and fields[name] not in allowed:
                raise UserError(
                    f"{name}={fields[name]!r} cannot be expressed here; only "
                    f"{' or '.join(map(repr, allowed))} can."
                )
        keys = dict(self.fixed)
        try:
            for aspect in self.aspects:
                keys |= aspect.read(fields)
        except KeyError as error:
            raise UserError(f"config.json of a {self.model_type} has no {error}.") from error
        except UserError:
            raise
        except (TypeError, AttributeError, ArithmeticError, ValueError) as error:
            message = f"config.json of a {self.model_type} has a value of the wrong type: {error}."
            raise UserError(message) from error
        return keys

    def write(self, config: ModelArchitectureConfig) -> Fields:
        """The fields of config.json; those that transformers need to know it by included."""
        fields: Fields = {"architectures": [self.architecture], "model_type": self.model_type}
        for aspect in self.aspects:
            fields |= aspect.write(config)
        return fields | {name: values[0] for name, values in self.required.items()}

    def completed(self, config: ModelArchitectureConfig) -> ModelArchitectureConfig:
        """The architecture with the biases that the family always has, which may hold zeros."""
        return _with_biases(config, self._read_back(config))

    def _read_back(self, config: ModelArchitectureConfig) -> ModelArchitectureConfig:
        return ModelArchitectureConfig.from_dict(self.read(self.write(config)))

    def misfits(self, config: ModelArchitectureConfig) -> list[Problem]:
        """What of an architecture the family cannot express: a problem for each key.

        One without keys says why the family has no such architecture at all.
        """
        others = {layer.mixer for layer in config.kinds} - set(self.mixers)
        if others:
            names, allowed = " or ".join(sorted(others)), " or ".join(self.mixers)
            return [
                Problem(
                    ("mixer",),
                    f"{self.model_type} has no mixer={names}; only models whose layers all use "
                    f"mixer={allowed} can be exported.",
                )
            ]
        try:
            back = self._read_back(config)
            wanted = _with_biases(config, back)
        except ConfigError as error:
            return [Problem((), f"{self.model_type}: {one.message}") for one in error.problems]
        except UserError as error:
            return [Problem((), f"{self.model_type}: {error}")]
        return [
            Problem(
                (key,),
                f"{key}={_shown(ours)} cannot be expressed by {self.model_type}, which would make "
                f"it {_shown(theirs)}.",
            )
            for key, (ours, theirs) in _differences(wanted, back).items()
        ]

    def token_fields(self, end_of_text: int | None) -> Fields:
        """The special tokens of config.json, given the one that ends a text."""
        start = 0 if end_of_text is None and self.needs_bos else end_of_text
        return {"bos_token_id": start, "eos_token_id": end_of_text, "pad_token_id": None}

    # Weights

    def _entry(self, ours: str, config: ModelArchitectureConfig) -> tuple[Weights, int, str]:
        """The weights of our parameter; its layer, 0 for one outside, whose layout reads none; and
        its kind, empty if the table has the whole name."""
        found = re.search(r"\.(\d+)\.", ours)
        layer = int(found[1]) if found else 0
        name = ours.replace(found[0], ".{}.", 1) if found else ours
        table = self.weights | self.weights_of(config.layers[layer])
        if name in table:
            return table[name], layer, ""
        module, _, kind = name.rpartition(".")
        return table[module], layer, {"offset": "weight"}.get(kind, kind)

    def names(self, ours: str, config: ModelArchitectureConfig) -> list[str]:
        """Their names for the parts of our parameter."""
        weights, layer, kind = self._entry(ours, config)
        return weights.names(layer, kind)

    def to_ours(self, ours: str, parts: list[Tensor], config: ModelArchitectureConfig) -> Tensor:
        """Our parameter of the tensors that `names` lists."""
        weights, layer, _ = self._entry(ours, config)
        return weights.ours_of(parts, config.layers[layer])

    def to_theirs(
        self, ours: str, tensor: Tensor, config: ModelArchitectureConfig
    ) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of the family for our parameter."""
        weights, layer, kind = self._entry(ours, config)
        tensors = weights.theirs_of(tensor, config.layers[layer])
        return zip(weights.names(layer, kind), tensors, strict=True)

    def from_files(self, tensors: Tensors, config: ModelArchitectureConfig) -> Tensors:
        """Tensors as `weights` names them, of those of a file or of a model in memory."""
        for form in self.file_forms:
            tensors = form.read(tensors, config)
        return tensors

    def to_files(self, tensors: Tensors, config: ModelArchitectureConfig) -> Tensors:
        """Tensors as files have them, of those that `weights` names."""
        for form in reversed(self.file_forms):
            tensors = form.write(tensors, config)
        return tensors


def _with_biases(
    config: ModelArchitectureConfig, wanted: ModelArchitectureConfig
) -> ModelArchitectureConfig:
    """An architecture with the biases, a LayerNorm's too, that another one has besides."""
    layers = list(zip(config.layers, wanted.layers, strict=True))
    added: Keys = {
        key: by_layer([_either(key, own, other) for own, other in layers]) for key in BIASES
    }
    added["normalization"] = by_layer(
        [_biased_norm(own.normalization, other.normalization) for own, other in layers]
    )
    return ModelArchitectureConfig.from_dict(config.to_dict() | added)


def _either(key: str, own: LayerConfig, other: LayerConfig) -> Any:
    """The first value of two layers that adds a bias; the default if no part has the key."""
    value = own.get(key) or other.get(key)
    return KEYS[key].default if value is None else value


def _biased_norm(own: str, wanted: str) -> str:
    return wanted if (own, wanted) == ("layernorm_nobias", "layernorm") else own


def _differences(
    config: ModelArchitectureConfig, other: ModelArchitectureConfig
) -> dict[str, tuple[Any, Any]]:
    """The keys in which some layer differs, with the values of both, or their patterns."""
    both = zip(config.layers, other.layers, strict=True)
    layers = [(_compared(own), _compared(others)) for own, others in both]
    # A key that one of them lacks is of a part that it has not chosen: that choice differs as well.
    keys = dict.fromkeys(
        key
        for own, others in layers
        for key in own
        if key in others and not _alike(key, own[key], others[key])
    )
    return {
        key: tuple(by_layer([one.get(key) for one in side]) for side in zip(*layers, strict=True))
        for key in keys
    }


def _alike(key: str, one: Any, other: Any) -> bool:
    """Whether two values compute the same. Only whether a router has biases is of the model."""
    return bool(one) == bool(other) if key == "router_bias_rate" else one == other


def _compared(layer: LayerConfig) -> Keys:
    """What a layer computes: its keys, without those that others make up for."""
    keys = {
        key: value
        for key, value in layer.values().items()
        if key not in _MADE_UP_FOR and KEYS[key].role is not Role.EXECUTION
    }
    if "sliding_window" in keys:
        keys["sliding_window"] = window_of(layer)
    if "rope_fraction" in keys:
        keys["rope_fraction"] = rotated_dimensions(layer) / rotary_head(layer)[1]
    return keys


def _shown(value: Any) -> str:
    return repr(str(value) if isinstance(value, Pattern) else value)
