"""How a family lays out the rows of a weight, against the layout here.

A layout maps a layer's tensor, a matrix (out, in) or a bias (out,), from theirs to ours and back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from components.attention import qkv_widths
from components.layer_config import LayerConfig
from components.positions import rotated_dimensions

Mapping = Callable[[Tensor, LayerConfig], Tensor]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The two directions."""

    ours: Mapping
    theirs: Mapping


def _as_it_is(x: Tensor, layer: LayerConfig) -> Tensor:
    return x


def _transposed(x: Tensor, layer: LayerConfig) -> Tensor:
    return x.mT if x.ndim == 2 else x


def _from_head_major(x: Tensor, layer: LayerConfig) -> Tensor:
    return x.unflatten(0, (layer.n_head, 3, -1)).transpose(0, 1).flatten(0, 2)


def _to_head_major(x: Tensor, layer: LayerConfig) -> Tensor:
    return x.unflatten(0, (3, layer.n_head, -1)).transpose(0, 1).flatten(0, 2)


def _from_neighbour_pairs(x: Tensor, layer: LayerConfig) -> Tensor:
    return _reordered(x, _pairs_order(layer), layer)


def _to_neighbour_pairs(x: Tensor, layer: LayerConfig) -> Tensor:
    return _reordered(x, _pairs_order(layer).argsort(), layer)


def _pairs_order(layer: LayerConfig) -> Tensor:
    """Their dimension for each of a head here: the first of every pair, their mates, the rest."""
    rotated = rotated_dimensions(layer)
    return torch.cat(
        (torch.arange(rotated).view(-1, 2).T.flatten(), torch.arange(rotated, layer.head_dim))
    )


def _reordered(x: Tensor, order: Tensor, layer: LayerConfig) -> Tensor:
    """qkv with the dimensions of each query and key head in another order."""
    queries, keys, values = x.split(qkv_widths(layer))
    heads = (part.unflatten(0, (-1, layer.head_dim))[:, order] for part in (queries, keys))
    return torch.cat((*(part.flatten(0, 1) for part in heads), values))


PLAIN = Layout(_as_it_is, _as_it_is)
CONV1D = Layout(_transposed, _transposed)
"""GPT-2's matrices are (in, out)."""
HEAD_MAJOR = Layout(_from_head_major, _to_head_major)
"""GPT-NeoX has a head's queries, keys and values together, ours has all queries first."""
NEIGHBOUR_PAIRS = Layout(_from_neighbour_pairs, _to_neighbour_pairs)
"""GPT-J rotates dimensions 2i and 2i + 1 together, ours i and i + rotated/2."""
