"""Weights that files of a family name or divide otherwise than its table of weights does.

A form applies to all tensors of a model and undoes itself when writing. Reading leaves tensors
alone that have the other form already, as those of a model in memory.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from components.layer_config import LayerConfig
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
class FixedNumbers:
    """Numbers that files have for each layer besides its weights, the same in every model.

    Attributes:
        of_layer: The numbers of a layer, by the ends of their names.
        prefix: What their names begin with, `{}` standing for the layer.
    """

    of_layer: Callable[[LayerConfig], dict[str, float]]
    prefix: str = "model.layers.{}."

    def _numbers(self, config: ModelArchitectureConfig) -> dict[str, float]:
        return {
            self.prefix.format(layer.index) + name: number
            for layer in config.layers
            for name, number in self.of_layer(layer).items()
        }

    def read(self, tensors: Tensors, config: ModelArchitectureConfig) -> Tensors:
        numbers = self._numbers(config)
        for name in numbers.keys() & tensors.keys():
            wanted = torch.full_like(tensors[name], numbers[name])
            if not torch.allclose(tensors[name], wanted, rtol=0.01):  # files may be in bfloat16
                raise UserError(
                    f"{name} is {tensors[name].tolist()}, which cannot be expressed here; only "
                    f"{numbers[name]:g} can."
                )
        return {name: x for name, x in tensors.items() if name not in numbers}

    def write(self, tensors: Tensors, config: ModelArchitectureConfig) -> Tensors:
        dtype = next(iter(tensors.values())).dtype
        numbers = self._numbers(config).items()
        return tensors | {name: torch.tensor(x, dtype=dtype) for name, x in numbers}


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


class LaterLayers:
    """Layers behind the last one, for predicting several tokens, which transformers ignores."""

    def read(self, tensors: Tensors, config: ModelArchitectureConfig) -> Tensors:
        def beyond(name: str) -> bool:
            layer = re.match(r"model\.layers\.(\d+)\.", name)
            return layer is not None and int(layer[1]) >= config.n_layer

        return {name: x for name, x in tensors.items() if not beyond(name)}

    def write(self, tensors: Tensors, config: ModelArchitectureConfig) -> Tensors:
        return tensors


@dataclasses.dataclass(frozen=True)
class Ignored:
    """Tensors whose names begin so, which transformers ignores."""

    start: str

    def read(self, tensors: Tensors, config: ModelArchitectureConfig) -> Tensors:
        return {name: x for name, x in tensors.items() if not name.startswith(self.start)}

    def write(self, tensors: Tensors, config: ModelArchitectureConfig) -> Tensors:
        return tensors


class QueryGates:
    """Each head's queries and output gate in turn, in one matrix (Qwen3-Next).

    The table has the queries under its name, `q_proj`, and the gates as `q_proj_gate`.
    """

    _queries = re.compile(r"(model\.layers\.(\d+)\.self_attn\.q_proj)\.(weight|bias)")

    def read(self, tensors: Tensors, config: ModelArchitectureConfig) -> Tensors:
        divided: Tensors = {}
        for name, x in tensors.items():
            match = self._queries.fullmatch(name)
            if match is None or x.shape[0] % (2 * config.n_head):
                divided[name] = x
                continue
            queries, gates = x.unflatten(0, (config.n_head, 2, -1)).unbind(1)
            divided[name] = queries.flatten(0, 1)
            divided[f"{match[1]}_gate.{match[3]}"] = gates.flatten(0, 1)
        return divided

    def write(self, tensors: Tensors, config: ModelArchitectureConfig) -> Tensors:
        joined: Tensors = {}
        for name, x in tensors.items():
            if match := self._queries.fullmatch(name):
                gates = tensors[f"{match[1]}_gate.{match[3]}"]
                parts = (part.unflatten(0, (config.n_head, -1)) for part in (x, gates))
                joined[name] = torch.stack(list(parts), dim=1).flatten(0, 2)
            elif "q_proj_gate" not in name:
                joined[name] = x
        return joined
