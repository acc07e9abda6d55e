"""Linear layers with adapters: the weight is frozen, and a few added parameters are trained.

A weight that stacks several matrices, such as queries, keys and values, has one adapter for each of
these sections, as models have in which they are separate layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from components.part import Part
from components.quantized_linear import DOUBLE, QuantizedLinear, dequantize_linear
from errors import Problem, quoted
from options import Role, Section

ADAPTER_SECTION = Section("Adapter", Role.RECIPE)


class Adapter(Part):
    """Base class of adapters: the trained change of one section (out, in) of a frozen Linear."""

    class Options:
        adapter_pattern: str = ADAPTER_SECTION.option(
            "*",
            "comma-separated names of the Linear layers to adapt, with wildcards, such as "
            "q,v or blocks.3.*",
            fixed=True,
        )
        quantize_base: str = ADAPTER_SECTION.option(
            "none",
            "store the Linear layers of the frozen blocks in 4 bits; nf4-dq: with 8-bit scales; "
            "none: float32",
            choices=("none", *DOUBLE),
            fixed=True,
        )

    reads_weight: ClassVar[bool] = True
    """Whether `forward` uses the weight. If it does not, it receives None in place of a quantized
    weight."""

    @classmethod
    def problems(cls, config: Any) -> Iterator[Problem]:
        """Yield problems with the training config."""
        start = f"adapter={quoted(config.adapter)}"
        if config.init_from == "none":
            yield Problem(
                ("adapter", "init_from"),
                f"{start} adapts a trained model, but init_from='none'; set init_from to the "
                "folder of one, or drop adapter.",
            )
        if config.parallelism not in ("auto", "none", "ddp"):
            yield Problem(
                ("adapter", "parallelism"),
                f"{start} cannot be combined with parallelism={quoted(config.parallelism)}; use "
                "parallelism='ddp', or drop adapter.",
            )
        if config.tensor_parallel > 1:
            yield Problem(
                ("adapter", "tensor_parallel"),
                f"{start} cannot be combined with tensor_parallel={config.tensor_parallel}; use "
                "tensor_parallel=1, or drop adapter.",
            )

    def forward(self, x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The adapted output.

        Args:
            x: The input of the layer, (..., in).
            y: Its output without the adapter, (..., out).
            weight: The frozen weight of the section, (out, in); see `reads_weight`.
            bias: The frozen bias of the section, (out,).
        """
        raise NotImplementedError

    def merged(self, weight: Tensor) -> Tensor:
        """The weight (out, in) that computes without the adapter what `weight` does with it."""
        raise NotImplementedError

    def backward_flops(self, seq_len: int, into_input: bool) -> int:
        """FLOPs of the backward matmuls for one sequence.

        Args:
            seq_len: Sequence length in tokens.
            into_input: Whether the gradient of the input is computed.
        """
        raise NotImplementedError

    def pass_flops(self) -> int:
        """FLOPs of matmuls of weights with each other, once per forward pass at any batch size."""
        return 0


class AdaptedLinear(nn.Linear, Part):
    """A frozen Linear with an adapter for some of its sections.

    Attributes:
        rows: Number of rows of each section, by name.
        adapters: The adapters, by section.
    """

    rows: dict[str, int]
    adapters: nn.ModuleDict

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        rows = list(self.rows.values())
        biases = [None] * len(rows) if self.bias is None else self.bias.split(rows)
        parts = (self.rows, y.split(rows, dim=-1), self._weights_read(), biases)
        adapted = [
            self.adapters[name](x, own_y, weight, bias) if name in self.adapters else own_y
            for name, own_y, weight, bias in zip(*parts, strict=True)
        ]
        return torch.cat(adapted, dim=-1) if len(adapted) > 1 else adapted[0]

    def _weights_read(self) -> Sequence[Tensor | None]:
        """The weight of each section, for its adapter."""
        return self.weight.split([*self.rows.values()])

    def merged_weight(self) -> Tensor:
        """The weight (out, in) with the adapters merged into it."""
        sections = zip(self.rows, self.weight.split(list(self.rows.values())), strict=True)
        return torch.cat(
            [
                self.adapters[name].merged(weight) if name in self.adapters else weight
                for name, weight in sections
            ]
        )

    def forward_flops(self, seq_len: int, causal: bool = False) -> int:
        added = (adapter.forward_flops(seq_len) for adapter in self.adapters.values())
        return 2 * self.in_features * self.out_features * seq_len + sum(added)

    def backward_flops(self, seq_len: int, into_input: bool) -> int:
        """FLOPs of the backward matmuls; the frozen weight has no gradient."""
        base = 2 * self.in_features * self.out_features * seq_len if into_input else 0
        added = (own.backward_flops(seq_len, into_input) for own in self.adapters.values())
        return base + sum(added)


class AdaptedQuantizedLinear(AdaptedLinear, QuantizedLinear):
    """A frozen Linear in 4 bits with an adapter for some of its sections."""

    def _weights_read(self) -> Sequence[Tensor | None]:
        reading = {name for name, adapter in self.adapters.items() if adapter.reads_weight}
        return [self.section(name) if name in reading else None for name in self.quantized]


def add_adapters(
    linear: nn.Linear, rows: Mapping[str, int], adapters: Mapping[str, Adapter]
) -> None:
    """Make a Linear an `AdaptedLinear`; `rows` are those of its sections, `adapters` of some."""
    quantized = isinstance(linear, QuantizedLinear)
    linear.__class__ = AdaptedQuantizedLinear if quantized else AdaptedLinear
    linear.rows = dict(rows)
    linear.adapters = nn.ModuleDict(adapters).train(linear.training)


@torch.no_grad()
def merge_adapters(linear: AdaptedLinear) -> None:
    """Merge the adapters of a Linear into its weight, and make it a plain one again. A quantized
    weight is dequantized first, and not quantized again."""
    merged = linear.merged_weight()
    del linear.adapters
    del linear.rows
    if isinstance(linear, QuantizedLinear):
        dequantize_linear(linear, merged)
        return
    linear.weight.copy_(merged)
    linear.__class__ = nn.Linear


def merged_weight(linear: nn.Linear) -> Tensor:
    """The weight that a Linear computes with, for parts that multiply it with something else."""
    return linear.merged_weight() if isinstance(linear, AdaptedLinear) else linear.weight


def section_names(linear: str, rows: Sequence[int]) -> tuple[str, ...]:
    """The names of the sections of a Linear, from its own name: `qkv` has q, k and v, `gate_up` has
    gate and up; those of others are numbered from 0. A Linear of one section lends it its name."""
    if len(rows) == 1:
        return (linear,)
    for names in (tuple(linear.split("_")), tuple(linear)):
        if len(names) == len(rows):
            return names
    return tuple(str(index) for index in range(len(rows)))
