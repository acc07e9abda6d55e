"""Canon layers: residual short convolutions at up to four positions of a block: `canon`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from components.causal_conv import CausalConv
from components.context import Context, State
from components.layer_config import LayerConfig
from components.sublayer import Sublayer
from components.tensor_split import TensorSplit
from errors import Problem
from options import Role, Section

_canon = Section("Canon layers", Role.ARCHITECTURE)

CANON_SETS = ["".join(each) for n in range(1, 5) for each in itertools.combinations("abcd", n)]
"""The sets of positions, as `canon` spells them: a, b, ..., abcd."""


class CanonOptions:
    """Options of the blocks, mixers and FFNs that have Canon layers."""

    canon: str = _canon.option(
        "none",
        "positions of Canon layers; a: input of the mixer; b: queries, keys and values; c: input "
        "of the FFN; d: hidden units of the FFN before the activation",
        choices=("none", *CANON_SETS),
        per_layer=True,
        tag={"none": "NoCanon", **{each: f"Canon{each.upper()}" for each in CANON_SETS}},
    )
    canon_kernel: int = _canon.option(
        4, "kernel size of the Canon layers", at_least=1, per_layer=True, tag="CanonConv{}"
    )


class Canon(Sublayer):
    """A causal depthwise convolution that is added to its input: h + conv(h), without bias.

    With the default kernel of 4, h_t becomes h_t + w_0 h_t + w_1 h_{t-1} + w_2 h_{t-2} +
    w_3 h_{t-3} in each channel (Allen-Zhu 2025, arXiv 2512.17351, whose default is this form).
    Positions a and c are the inputs of mixer and FFN, after the norm if it precedes them. Position
    b is the queries, keys and values, after qk_norm and before rotation; d is the hidden units,
    gates included, before the activation.

    Like attention, it does not stop at the boundaries of documents in a sequence.
    """

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        self.conv = CausalConv(channels, kernel, bias=False)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map x (B, T, channels) to (B, T, channels)."""
        kept = None if context.state is None else context.state["canon"]
        return x + self.conv(x, kept)

    def new_state(
        self, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> State:
        return {"canon": self.conv.new_state(batch, device=device, dtype=dtype)}

    def divide(self, over: TensorSplit, sections: tuple[int, ...]) -> None:
        """Keep this worker's share of the channels of each section."""
        over.rows_of(self.conv, "weight", sections)


def canon_at(position: str, channels: int, config: LayerConfig) -> Canon | None:
    """The Canon layer at a position of a layer; None if `canon` does not include it."""
    return Canon(channels, config.canon_kernel) if position in _positions(config) else None


def _positions(config: LayerConfig) -> str:
    return "" if config.canon == "none" else config.canon


def canon_problems(
    config: LayerConfig, parts: Mapping[str, type[Sublayer] | None]
) -> Iterator[Problem]:
    """Yield the problem if a Canon layer belongs before or inside a part that does not allow it.

    Args:
        config: The config of the layer.
        parts: The classes of mixer and FFN, by the key that chooses them; None if absent.
    """
    for position, key in {"a": "mixer", "b": "mixer", "c": "ffn_type", "d": "ffn_type"}.items():
        part = parts[key]
        inside = None if part is None else part.canon_position
        allowed = part is not None and (position in "ac" or inside == position)
        if position in _positions(config) and not allowed:
            yield Problem(
                ("canon", key),
                f"canon={config.canon!r} has a Canon layer at position {position}, which "
                f"{key}={getattr(config, key)!r} does not have; drop {position} from canon, or "
                f"change {key}.",
            )


def idle_canon(config: LayerConfig) -> Iterator[Problem]:
    """Yield the problem if `canon_kernel` has no effect."""
    if config.canon == "none" and config.canon_kernel != CanonOptions.canon_kernel.default:
        yield Problem(
            ("canon_kernel", "canon"),
            f"canon_kernel={config.canon_kernel} has no effect with canon='none'; set canon, or "
            "drop canon_kernel.",
        )
