"""The activation of a feed-forward network, or its gate, in a `config.json`."""

from __future__ import annotations

from collections.abc import Mapping

from errors import UserError
from interop.fields import Aspect, Fields, Keys, value_of
from model_config import ModelArchitectureConfig

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu2",
    "leaky_relu": "leaky_relu",
    "sigmoid": "sigmoid",
}
_GATED = {"silu": "swiglu", "gelu": "geglu", "gelu_tanh": "geglu", "relu": "reglu"}
_THEIR_SLOPE = {"leaky_relu_slope": 0.01}
"""That of transformers' leaky_relu; other activations have no use for it."""


def _activation(given: Fields, field: str, learned: tuple[str, ...] = ()) -> Keys:
    name, known = given[field], _ACTIVATIONS | {own: own for own in learned}
    if name not in known:
        raise UserError(
            f"{field}={name!r} is not a supported activation; supported: {', '.join(known)}."
        )
    return {"activation": known[name], **_THEIR_SLOPE}


def _activation_field(config: ModelArchitectureConfig, field: str) -> Fields:
    activation = value_of(config, "activation")
    return {field: {"gelu_tanh": "gelu_pytorch_tanh"}.get(activation, activation)}


def activation(field: str, learned: tuple[str, ...] = ()) -> Aspect:
    """The activation of a plain network; `learned` are those with weights that a family has."""
    return Aspect(
        lambda given: _activation(given, field, learned),
        lambda config: _activation_field(config, field),
    )


def gate(field: str, also: Mapping[str, str] | None = None) -> Aspect:
    """The gate of a gated network; `also` renames what a family calls by another's name."""

    def read(given: Fields) -> Keys:
        name = (also or {}).get(given[field], given[field])
        keys = _activation({field: name}, field)
        return {"ffn_type": _GATED.get(keys["activation"], "glu"), **keys}

    return Aspect(read, lambda config: _activation_field(config, field))
