"""Weights that files of a family name or divide otherwise than its table of weights does.

A form applies to all tensors of a model and undoes itself when writing. Reading leaves tensors
alone that have the other form already, as those of a model in memory.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Protocol

import torch
from torch import Tensor

from errors import UserError
from model_config import ModelArchitectureConfig

Tensors = dict[str, Tensor]


class FileForm(Protocol):
    """The two directions."""

    def read(self, tensors: Tensors, config: ModelArchitectureConfig) -> Tensors:
        """Tensors as the table has them."""

    def write(self, tensors: Tensors, config: ModelArchitectureConfig) -> Tensors:
        """Tensors as files have them."""


@dataclasses.dataclass(frozen=True)
class Renamed:
    """A part of names that is another in files."""

    in_files: str
    in_table: str

    def read(self, tensors: Tensors, config: ModelArchitectureConfig) -> Tensors:
        return {name.replace(self.in_files, self.in_table): x for name, x in tensors.items()}

    def write(self, tensors: Tensors, config: ModelArchitectureConfig) -> Tensors:
        return {name.replace(self.in_table, self.in_files): x for name, x in tensors.items()}


@dataclasses.dataclass(frozen=True)
class StackedExperts:
    """One tensor for all experts in the table, one for each matrix of each expert in files.

    `experts.0.gate.weight`, `experts.0.up.weight`, ... become `experts.gate_up` (experts, rows,
    columns), with the rows of the second matrix below those of the first.

    Attributes:
        table: The end of the name in the table, such as `experts.gate_up_proj`.
        matrices: The matrices of an expert in files, such as `gate_proj` and `up_proj`.
    """

    table: str
    matrices: tuple[str, ...]

    def read(self, tensors: Tensors, config: ModelArchitectureConfig) -> Tensors:
        prefix, _, _ = self.table.rpartition(".")
        one = re.compile(rf"(.*{re.escape(prefix)})\.(\d+)\.({'|'.join(self.matrices)})\.weight")
        found: dict[str, dict[tuple[int, str], Tensor]] = {}
        left: Tensors = {}
        for name, x in tensors.items():
            if match := one.fullmatch(name):
                found.setdefault(match[1], {})[int(match[2]), match[3]] = x
            else:
                left[name] = x
        stacked = {
            start.removesuffix(prefix) + self.table: self._stacked(start, parts)
            for start, parts in found.items()
        }
        return left | stacked

    def _stacked(self, start: str, parts: dict[tuple[int, str], Tensor]) -> Tensor:
        """The matrices of all experts in one tensor."""
        experts = range(1 + max(expert for expert, _ in parts))
        for expert in experts:
            for matrix in self.matrices:
                if (expert, matrix) not in parts:
                    raise UserError(
                        f"the weights do not fit the architecture: {start}.{expert}.{matrix}.weight"
                        " is missing."
                    )
        try:
            rows = (torch.cat([parts[expert, one] for one in self.matrices]) for expert in experts)
            return torch.stack(list(rows))
        except RuntimeError as error:
            raise UserError(f"the experts in {start} differ in shape: {error}.") from error

    def write(self, tensors: Tensors, config: ModelArchitectureConfig) -> Tensors:
        prefix, _, _ = self.table.rpartition(".")
        written: Tensors = {}
        for name, x in tensors.items():
            if not name.endswith(self.table):
                written[name] = x
                continue
            start = name.removesuffix(self.table) + prefix
            for expert, both in enumerate(x):
                for matrix, part in zip(self.matrices, both.chunk(len(self.matrices)), strict=True):
                    written[f"{start}.{expert}.{matrix}.weight"] = part
        return written


@dataclasses.dataclass(frozen=True)
class LaterLayers:
    """Layers behind the last one, for predicting several tokens, which transformers ignores."""

    prefix: str = "model.layers."

    def read(self, tensors: Tensors, config: ModelArchitectureConfig) -> Tensors:
        layer = re.compile(rf"{re.escape(self.prefix)}(\d+)\.")
        found = {name: layer.match(name) for name in tensors}
        return {
            name: x
            for name, x in tensors.items()
            if not (match := found[name]) or int(match[1]) < config.n_layer
        }

    def write(self, tensors: Tensors, config: ModelArchitectureConfig) -> Tensors:
        return tensors
