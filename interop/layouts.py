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


def _from_vectors(x: Tensor, layer: LayerConfig) -> Tensor:
    return x.unflatten(0, (4, -1))


def _to_vectors(x: Tensor, layer: LayerConfig) -> Tensor:
    return x.flatten()


def _from_head_major(x: Tensor, layer: LayerConfig) -> Tensor:
    heads = x.unflatten(0, (layer.n_kv_head, -1, layer.head_dim))
    queries, keys, values = heads[:, :-2].flatten(0, 1), heads[:, -2], heads[:, -1]
    return torch.cat((queries, keys, values)).flatten(0, 1)


def _to_head_major(x: Tensor, layer: LayerConfig) -> Tensor:
    parts = x.split(qkv_widths(layer))
    heads = [part.unflatten(0, (layer.n_kv_head, -1, layer.head_dim)) for part in parts]
    return torch.cat(heads, dim=1).flatten(0, 2)


def _from_neighbour_pairs(x: Tensor, layer: LayerConfig) -> Tensor:
    return _reordered(x, _pairs_order(layer), layer)


def _to_neighbour_pairs(x: Tensor, layer: LayerConfig) -> Tensor:
    return _reordered(x, _pairs_order(layer).argsort(), layer)


def _swapped_halves(x: Tensor, layer: LayerConfig) -> Tensor:
    half = rotated_dimensions(layer) // 2
    first, second = torch.arange(half), torch.arange(half, 2 * half)
    return _reordered(x, torch.cat((second, first, torch.arange(2 * half, layer.head_dim))), layer)


def _from_groups(x: Tensor, layer: LayerConfig) -> Tensor:
    queries, values, keys = x.unflatten(0, (_GROUPS, 3, -1)).unbind(1)
    x = torch.cat([part.flatten(0, 1) for part in (queries, keys, values)])
    return _from_neighbour_pairs(x, layer)


def _to_groups(x: Tensor, layer: LayerConfig) -> Tensor:
    queries, keys, values = _to_neighbour_pairs(x, layer).split(qkv_widths(layer))
    parts = (part.unflatten(0, (_GROUPS, -1)) for part in (queries, values, keys))
    return torch.stack(tuple(parts), dim=1).flatten(0, 2)


def _without_offset(x: Tensor, layer: LayerConfig) -> Tensor:
    return x[_OFFSET:]


def _with_offset(x: Tensor, layer: LayerConfig) -> Tensor:
    return torch.cat((x.new_zeros(_OFFSET, x.shape[1]), x))


def _pairs_order(layer: LayerConfig) -> Tensor:
    """Their dimension for each of a head here: the first of every pair, their mates, the rest."""
    rotated = rotated_dimensions(layer) if "rope_fraction" in layer else 0
    return torch.cat(
        (torch.arange(rotated).view(-1, 2).T.flatten(), torch.arange(rotated, layer.head_dim))
    )


def _reordered(x: Tensor, order: Tensor, layer: LayerConfig) -> Tensor:
    """qkv with the dimensions of each query and key head in another order."""
    queries, keys, values = x.split(qkv_widths(layer))
    heads = (part.unflatten(0, (-1, layer.head_dim))[:, order] for part in (queries, keys))
    return torch.cat((*(part.flatten(0, 1) for part in heads), values))


# Latent attention


def _latent_pairs(layer: LayerConfig, before: int) -> Tensor:
    """Their dimension for each of `before` plain ones and the rotated ones of latent attention."""
    rotated = torch.arange(layer.qk_rope_head_dim).view(-1, 2).T.flatten()
    return torch.cat((torch.arange(before), before + rotated))


def _from_paired_queries(x: Tensor, layer: LayerConfig) -> Tensor:
    order = _latent_pairs(layer, layer.qk_nope_head_dim)
    return x.unflatten(0, (layer.n_head, -1))[:, order].flatten(0, 1)


def _to_paired_queries(x: Tensor, layer: LayerConfig) -> Tensor:
    order = _latent_pairs(layer, layer.qk_nope_head_dim).argsort()
    return x.unflatten(0, (layer.n_head, -1))[:, order].flatten(0, 1)


def _from_paired_latent(x: Tensor, layer: LayerConfig) -> Tensor:
    return x[_latent_pairs(layer, layer.kv_lora_rank)]


def _to_paired_latent(x: Tensor, layer: LayerConfig) -> Tensor:
    return x[_latent_pairs(layer, layer.kv_lora_rank).argsort()]


# The gated delta rule


def _of_key_heads(x: Tensor, layer: LayerConfig, widths: tuple[int, ...]) -> Tensor:
    """Sections of all heads in turn, of rows that have the sections of each key head together."""
    parts = x.unflatten(0, (layer.linear_n_head, -1)).split(widths, dim=1)
    return torch.cat([part.flatten(0, 1) for part in parts])


def _to_key_heads(x: Tensor, layer: LayerConfig, widths: tuple[int, ...]) -> Tensor:
    parts = x.split([layer.linear_n_head * width for width in widths])
    grouped = [part.unflatten(0, (layer.linear_n_head, -1)) for part in parts]
    return torch.cat(grouped, dim=1).flatten(0, 1)


def _qkvz_widths(layer: LayerConfig) -> tuple[int, ...]:
    values = layer.linear_n_value_head // layer.linear_n_head * layer.linear_value_dim
    return (layer.linear_key_dim, layer.linear_key_dim, values, values)


def _gate_widths(layer: LayerConfig) -> tuple[int, ...]:
    return 2 * (layer.linear_n_value_head // layer.linear_n_head,)


# Experts


def _from_interleaved(x: Tensor, layer: LayerConfig) -> Tensor:
    gate, up = x[..., ::2], x[..., 1::2]
    both = torch.cat((gate, up), dim=-1)
    return both.mT if x.ndim == 3 else both.flatten()


def _to_interleaved(x: Tensor, layer: LayerConfig) -> Tensor:
    both = x.mT if x.ndim == 3 else x.unflatten(0, (layer.n_experts, -1))
    return torch.stack(both.chunk(2, dim=-1), dim=-1).flatten(-2)


def _from_rows(x: Tensor, layer: LayerConfig) -> Tensor:
    return x.mT if x.ndim == 3 else x.flatten()


def _to_rows(x: Tensor, layer: LayerConfig) -> Tensor:
    return x.mT if x.ndim == 3 else x.unflatten(0, (layer.n_experts, -1))


def _first_row(x: Tensor, layer: LayerConfig) -> Tensor:
    return x.flatten()


def _as_row(x: Tensor, layer: LayerConfig) -> Tensor:
    return x.unsqueeze(0)


_GROUPS = 4
"""CodeGen's number of groups of heads, one for each core that it was trained on."""
_OFFSET = 2
"""Rows of OPT's table of positions that belong to padding."""

PLAIN = Layout(_as_it_is, _as_it_is)
CONV1D = Layout(_transposed, _transposed)
"""GPT-2's matrices are (in, out)."""
FOUR_VECTORS = Layout(_from_vectors, _to_vectors)
"""DiffLlama stores four vectors for each layer; here they are the rows of one matrix."""
HEAD_MAJOR = Layout(_from_head_major, _to_head_major)
"""GPT-NeoX has a head's queries, keys and values together, ours has all queries first; Falcon has
those of each key head together."""
NEIGHBOUR_PAIRS = Layout(_from_neighbour_pairs, _to_neighbour_pairs)
"""GPT-J rotates dimensions 2i and 2i + 1 together, ours i and i + rotated/2."""
CODEGEN = Layout(_from_groups, _to_groups)
"""CodeGen has the queries, values and keys of each group of heads together, and GPT-J's pairs."""
SWAPPED_HALVES = Layout(_swapped_halves, _swapped_halves)
"""nanochat rotates the other way round, which is ours with the halves of each head swapped."""
POSITIONS_AFTER_PADDING = Layout(_without_offset, _with_offset)
"""OPT's table of positions begins with two rows for padding."""
PAIRED_QUERIES = Layout(_from_paired_queries, _to_paired_queries)
"""DeepSeek rotates neighbouring dimensions of the rotated part of each query."""
PAIRED_LATENT = Layout(_from_paired_latent, _to_paired_latent)
"""The same for the rotated part of the keys, below the latent."""
INTERLEAVED_EXPERTS = Layout(_from_interleaved, _to_interleaved)
"""gpt-oss has (experts, in, out), gate and up in turn; biases are (experts, out)."""
TRANSPOSED_EXPERTS = Layout(_from_rows, _to_rows)
"""The same without pairs of rows."""
ONE_ROW = Layout(_first_row, _as_row)
"""ERNIE 4.5 has a router's biases as (1, experts)."""
KEY_HEAD_MAJOR = Layout(
    lambda x, layer: _of_key_heads(x, layer, _qkvz_widths(layer)),
    lambda x, layer: _to_key_heads(x, layer, _qkvz_widths(layer)),
)
"""Qwen3-Next has the queries, keys, values and output gates of each key head together."""
KEY_HEAD_MAJOR_GATES = Layout(
    lambda x, layer: _of_key_heads(x, layer, _gate_widths(layer)),
    lambda x, layer: _to_key_heads(x, layer, _gate_widths(layer)),
)
"""The same for the gates of its memory."""
