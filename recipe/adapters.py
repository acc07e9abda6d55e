"""Adapters: `adapter`. Linear layers of a loaded model are frozen and get a few trained parameters.

An adapter is created from the weight of a section of a Linear layer and the training config.
"""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.adapted_linear import (
    ADAPTER_SECTION,
    AdaptedLinear,
    Adapter,
    add_adapters,
    merge_adapters,
    section_names,
)
from components.part import Part, own_stream
from components.quantized_linear import (
    dequantize_linear,
    quantize_linear,
    quantized_linears,
    storage_bytes,
)
from components.registry import Registry
from errors import ConfigError, Problem
from model_builder import GPT
from options import Role

ADAPTERS = Registry(
    "adapter",
    "Adapter",
    variable="ADAPTERS",
    base=Adapter,
    made_with="weight, config",
    called_with="x, y, weight, bias",
    role=Role.RECIPE,
)


@ADAPTERS.register("lora", label="LoRA", paper="Hu et al. 2021, arXiv 2106.09685")
class LoRA(Adapter):
    """Add a product of two matrices of a low rank r: (W + alpha/r B A) x, B initialized to 0."""

    reads_weight = False

    class Options:
        adapter_rank: int = ADAPTER_SECTION.option(
            8, "rank of the product that an adapter adds", at_least=1, fixed=True
        )
        adapter_alpha: float = ADAPTER_SECTION.option(
            16.0, "scale of the adapters, which is divided by the rank", above=0, fixed=True
        )
        adapter_dropout: float = ADAPTER_SECTION.option(
            0.0, "dropout of the adapters' input", at_least=0, below=1
        )

    def __init__(self, weight: Tensor, config: Any):
        super().__init__()
        rank = config.adapter_rank
        self.scale = self.scale_of(config.adapter_alpha, rank)
        uniform = functools.partial(nn.init.kaiming_uniform_, a=math.sqrt(5))
        self.a = nn.Parameter(_matrix(weight, rank, weight.shape[1], uniform))
        self.b = nn.Parameter(_matrix(weight, weight.shape[0], rank, nn.init.zeros_))
        self.dropout = nn.Dropout(config.adapter_dropout)

    @staticmethod
    def scale_of(alpha: float, rank: int) -> float:
        """The factor of the product of a and b."""
        return alpha / rank

    @property
    def matrix_rows(self) -> Mapping[str, tuple[int, ...]]:
        return {"a": (self.a.shape[0],), "b": (self.b.shape[0],)}

    def forward(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return y + self._added(self.dropout(x))

    def _added(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.linear(x, self.a), self.b)

    def merged(self, weight: Tensor) -> Tensor:
        return self._sum(weight)

    def _sum(self, weight: Tensor) -> Tensor:
        """W + scale B A."""
        return weight + self.scale * (self.b @ self.a)

    def forward_flops(self, seq_len: int, causal: bool = False) -> int:
        return 2 * (self.a.numel() + self.b.numel()) * seq_len

    def backward_flops(self, seq_len: int, into_input: bool) -> int:
        through_b = 2 * self.b.numel() * seq_len
        through_a = 2 * self.a.numel() * seq_len if into_input else 0
        return self.forward_flops(seq_len) + through_b + through_a


@ADAPTERS.register("rslora", label="rsLoRA", paper="Kalajdzievski 2023, arXiv 2312.03732")
class RsLoRA(LoRA):
    """LoRA with the scale alpha/sqrt(r), so that outputs do not shrink as the rank grows."""

    @staticmethod
    def scale_of(alpha: float, rank: int) -> float:
        return alpha / math.sqrt(rank)


@ADAPTERS.register("dora", label="DoRA", paper="Liu et al. 2024, arXiv 2402.09353")
class DoRA(LoRA):
    """LoRA of the direction of each row V = W + alpha/r B A, and its learned length: m V/|V|.

    |V| is a constant in the backward pass (section 4.3). As in the paper's code, dropout also
    applies to the input of W, except in the part of W x that the frozen model computes. A row of
    zeros has no direction, and stays 0.
    """

    reads_weight = True

    def __init__(self, weight: Tensor, config: Any):
        super().__init__(weight, config)
        self.m = nn.Parameter(weight.detach().norm(dim=1))

    def forward(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        gain = self._gain(weight)
        x = self.dropout(x)
        base = F.linear(x, weight) if self._drops else y - (0 if bias is None else bias)
        return (y + (gain - 1) * base + gain * self._added(x)).to(y.dtype)

    @property
    def _drops(self) -> bool:
        return self.training and self.dropout.p > 0

    def _gain(self, weight: Tensor) -> Tensor:
        """The factor of each row of V, (out,)."""
        device = "cpu" if weight.is_meta else weight.device.type  # autocast has no meta device
        with torch.no_grad(), torch.autocast(device, enabled=False):
            length = self._sum(weight).norm(dim=1)
        return self.m / length.masked_fill(length == 0, 1.0)

    def merged(self, weight: Tensor) -> Tensor:
        return self._gain(weight)[:, None] * self._sum(weight)

    def forward_flops(self, seq_len: int, causal: bool = False) -> int:
        """FLOPs of training; with dropout, W is multiplied a second time."""
        return super().forward_flops(seq_len) + self._dropped_flops(seq_len)

    def backward_flops(self, seq_len: int, into_input: bool) -> int:
        again = self._dropped_flops(seq_len)
        without = super().backward_flops(seq_len, into_input) - again
        return without + (again if into_input else 0)

    def _dropped_flops(self, seq_len: int) -> int:
        weight = self.m.numel() * self.a.shape[1]
        return 2 * weight * seq_len if self.dropout.p > 0 else 0

    def pass_flops(self) -> int:
        """FLOPs of B A, which the lengths need."""
        return 2 * self.b.numel() * self.a.shape[1]


def _matrix(like: Tensor, rows: int, columns: int, initialize: Callable[[Tensor], Any]) -> Tensor:
    """A matrix whose values are drawn on the CPU, as all initial values, with dtype and device of
    another tensor."""
    device = "meta" if like.is_meta else "cpu"
    matrix = torch.empty(rows, columns, dtype=like.dtype, device=device)
    initialize(matrix)
    return matrix.to(like.device)


# The adapters of a model


def adapt(model: GPT, config: Any) -> None:
    """Freeze a model, quantize it and add the adapters of a training config, if it has any.

    Each adapter is a function of torch's current seed and of the name of its section. The loaded
    weights must be in the model.

    Raises:
        ConfigError: If a name in `adapter_pattern` is that of no Linear layer that can be adapted.
        UserError: If `quantize_base` needs bitsandbytes, which is not installed.
    """
    if config.adapter == "none":
        return
    sections = adaptable(model)
    chosen = _chosen(sections, config.adapter_pattern)
    model.requires_grad_(False)
    model.adapted = True
    if config.quantize_base != "none":
        model.unquantized_bytes = storage_bytes(model.parameters())
    for name, rows in sections.items():
        linear = model.get_submodule(name)
        if config.quantize_base != "none":
            quantize_linear(linear, rows, config.quantize_base)
        parts = zip(rows, linear.weight.detach().split(list(rows.values())), strict=True)
        made = {
            section: _made(config, full_name(name, section), weight)
            for section, weight in parts
            if full_name(name, section) in chosen
        }
        if made:
            add_adapters(linear, rows, made)


def _made(config: Any, name: str, weight: Tensor) -> Adapter:
    with own_stream(f"adapter of {name}"):
        return ADAPTERS[config.adapter](weight, config)


def merge(model: GPT) -> None:
    """Merge the adapters of a model, if it has any, into its weights, which makes it a plain model
    again. Weights of a quantized base are dequantized."""
    if not model.adapted:
        return
    for module in [m for m in model.modules() if isinstance(m, AdaptedLinear)]:
        merge_adapters(module)
    for _, linear in [*quantized_linears(model)]:
        dequantize_linear(linear)
    model.requires_grad_(True)
    model.unquantized_bytes = None
    model.adapted = False


def adapted_model(architecture: Any, config: Any) -> GPT:
    """A model with the adapters of a training config and initial weights, for estimates."""
    model = GPT(architecture)
    adapt(model, config)
    return model


# Names


def full_name(linear: str, section: str) -> str:
    """The name of a section: `blocks.0.mixer.qkv.q`; that of the Linear if it is all of it."""
    return linear if linear.rpartition(".")[2] == section else f"{linear}.{section}"


def adaptable(model: GPT) -> dict[str, dict[str, int]]:
    """The sections of each Linear layer of the blocks that can have an adapter, and their rows.

    Not among them are other classes, such as routers, and the LM head, whose loss is computed in
    chunks from its weight.
    """
    found: dict[str, dict[str, int]] = {}
    for owner_name, owner in model.blocks.named_modules(prefix="blocks"):
        declared = owner.matrix_rows if isinstance(owner, Part) else {}
        for name, child in owner.named_children():
            if type(child) is nn.Linear:
                rows = declared.get(name, (child.out_features,))
                names = section_names(name, rows)
                found[f"{owner_name}.{name}"] = dict(zip(names, rows, strict=True))
    return found


def _chosen(sections: Mapping[str, Mapping[str, int]], pattern: str) -> set[str]:
    """The full names of the sections that a pattern names."""
    linears = {full_name(name, part): name for name, own in sections.items() for part in own}
    chosen: set[str] = set()
    for wanted in map(str.strip, pattern.split(",")):
        matching = {
            section
            for section, linear in linears.items()
            if _matches(section, wanted) or _matches(linear, wanted)
        }
        if not matching:
            raise ConfigError([Problem(("adapter_pattern",), _unmatched(wanted, linears))])
        chosen |= matching
    return chosen


def _matches(name: str, wanted: str) -> bool:
    """Whether a name, or its end after a dot, has a form such as `q` or `blocks.3.*`."""
    return any(fnmatch.fnmatchcase(name, form) for form in (wanted, f"*.{wanted}"))


def _unmatched(wanted: str, linears: Mapping[str, str]) -> str:
    ends = sorted({section.split(".", 2)[2] for section in linears})
    return (
        f"adapter_pattern names {wanted!r}, which is no Linear layer of the blocks (the embedding "
        f"and the LM head cannot be adapted); the layers of a block are {', '.join(ends)}."
    )
