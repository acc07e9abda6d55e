"""Position encodings: `position_encoding`.

A position encoding has hooks, which do nothing by default: add to the embedding, rotate queries and
keys, bias the attention scores, or compute them (`pair_scores`). Positions are
`start .. start + T - 1`. When decoding, `start` is the number of previous tokens, as an int, or as
a tensor if the shapes of the decoding state are static.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.layer_config import LayerConfig
from components.part import GradientFlow, Part
from components.registry import Registry
from components.rope_scalings import (
    ROPE_SCALINGS,
    rope_frequencies,
    rotary_head,
    rotated_dimensions,
)
from errors import Problem
from options import option


class PositionEncoding(Part):
    """Base class of position encodings.

    Layers with the same position-encoding options and the same shape of heads share one part. Its
    config has those keys and the keys of every model.
    """

    of_whole_model: ClassVar[bool] = False
    """Whether it acts on the embedding, so that all layers must use it."""
    biases_scores: ClassVar[bool] = False
    """Whether `score_bias` returns a tensor, which not all attention backends support."""
    computes_scores: ClassVar[bool] = False
    """Whether `scoring` returns a part, which not all attention backends and mixers support."""
    learns_scores: ClassVar[bool] = False
    """Whether its parameters affect only the scores, so that it needs several keys per query."""
    changes_keys: ClassVar[bool] = False
    """Whether tokens change the keys of earlier ones: `scoring` then stores the keys itself."""
    unbounded: ClassVar[bool] = False
    """Whether it supports positions beyond block_size."""
    scales_with_width = takes_sphere = True

    def __init__(self, config: LayerConfig):
        super().__init__()

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        alone = config.get("sliding_window") == 1 and not config.get("attention_sinks")
        if cls.learns_scores and alone:
            yield Problem(
                ("sliding_window", "position_encoding"),
                f"position_encoding={config.position_encoding!r} has no effect with "
                "sliding_window=1, where queries attend only to their own token; raise "
                "sliding_window, or use another position encoding there.",
            )

    def embed(self, x: Tensor, start: int | Tensor) -> Tensor:
        """Add to the token embeddings x (B, T, C)."""
        return x

    def rotate(self, q: Tensor, k: Tensor, start: int | Tensor) -> tuple[Tensor, Tensor]:
        """Rotate queries (B, H, T, D) and keys (B, H_kv, T, D)."""
        return q, k

    def score_bias(self, start: int | Tensor, length: int, keys: int) -> Tensor | None:
        """The bias of the scores of `length` queries and `keys` keys, (H, length, keys), or None.
        The first key is at position 0."""
        return None

    @classmethod
    def scoring(cls, config: LayerConfig) -> Part | None:
        """The part that computes the scores of one attention layer from its queries, keys and
        input, a `PairScores`; None: the attention backend computes them."""
        return None


POSITIONS = Registry(
    "position_encoding", "Position encoding", variable="POSITIONS", base=PositionEncoding
)


@POSITIONS.register("none", label="NoPos", paper="Kazemnejad et al. 2023, arXiv 2305.19466")
class NoPosition(PositionEncoding):
    """No encoding: only the causal mask distinguishes positions."""

    unbounded = True


@POSITIONS.register(
    "learned",
    label="AbsPos",
    aliases=("learned_absolute",),
    paper="Gehring et al. 2017, arXiv 1705.03122; Radford et al. 2019",
)
class LearnedPosition(PositionEncoding):
    """A learned vector for each position, added to the embedding."""

    of_whole_model = True

    def __init__(self, config: LayerConfig):
        super().__init__(config)
        self.table = nn.Embedding(config.block_size, config.n_embd)

    def embed(self, x: Tensor, start: int | Tensor) -> Tensor:
        return x + _rows(self.table.weight, start, x.shape[1])


@POSITIONS.register("sinusoidal", label="Sin", paper="Vaswani et al. 2017, arXiv 1706.03762")
class SinusoidalPosition(PositionEncoding):
    """Fixed sines and cosines with geometrically spaced wavelengths, added to the embedding."""

    of_whole_model = True

    def __init__(self, config: LayerConfig):
        super().__init__(config)
        angles = _angles(config.block_size, rope_frequencies(config.n_embd, 10_000.0))
        table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)  # (T, C), interleaved
        self.register_buffer("table", _placed(table), persistent=False)

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        if config.n_embd % 2:
            yield Problem(
                ("n_embd", "position_encoding"),
                f"n_embd={config.n_embd} is odd, but position_encoding='sinusoidal' pairs sines "
                "with cosines; use an even n_embd.",
            )

    def embed(self, x: Tensor, start: int | Tensor) -> Tensor:
        return x + _rows(self.table, start, x.shape[1]).to(x.dtype)


@POSITIONS.register("rope", label="RoPE", paper="Su et al. 2021 (RoFormer), arXiv 2104.09864")
class RotaryPosition(PositionEncoding):
    """Rotate pairs of query and key dimensions by angles proportional to the position.

    Dimension i is paired with i + rotated/2 (the layout of GPT-NeoX and Hugging Face). The first
    `rope_fraction` of each head is rotated; the rest is unchanged. Angles and rotations are
    computed in float32.
    """

    class Options:
        rope_theta: float = option(
            10000.0,
            "RoPE: base of the rotation frequencies",
            above=1,
            per_layer=True,
            tag="Theta{}",
        )
        rope_fraction: float = option(
            1.0,
            "RoPE: fraction of each head that is rotated",
            above=0,
            at_most=1,
            per_layer=True,
            tag="Rot{}",
        )
        rope_scaling: str = option(
            "none",
            "RoPE: scaling method for longer sequences",
            choices=ROPE_SCALINGS,
            per_layer=True,
        )

    def __init__(self, config: LayerConfig):
        super().__init__(config)
        scaling = ROPE_SCALINGS[config.rope_scaling]
        frequencies, magnitude = scaling.apply(rotated_dimensions(config), config)
        angles = _angles(config.block_size, frequencies)  # (T, rotated/2): one for each pair
        self.register_buffer("cos", _placed(angles.cos() * magnitude), persistent=False)
        self.register_buffer("sin", _placed(angles.sin() * magnitude), persistent=False)

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        rotated, (key, dim) = rotated_dimensions(config), rotary_head(config)
        if rotated % 2 or rotated == 0:
            yield Problem(
                ("rope_fraction", key, "n_head", "n_embd"),
                f"rope_fraction={config.rope_fraction:g} of {key}={dim} rotates "
                f"{rotated} dimensions, but RoPE rotates pairs and needs an even number above 0.",
            )

    def rotate(self, q: Tensor, k: Tensor, start: int | Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = (_rows(table, start, q.shape[2]) for table in (self.cos, self.sin))
        return self.turned(q, cos, sin), self.turned(k, cos, sin)

    @staticmethod
    def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = cos.shape[-1]
        first, second, passed = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        turned = (first * cos - second * sin, second * cos + first * sin)
        return torch.cat((*(part.to(x.dtype) for part in turned), passed), dim=-1)


@POSITIONS.register("alibi", label="ALiBi", paper="Press et al. 2021, arXiv 2108.12409")
class ALiBi(PositionEncoding):
    """Subtract the distance times a head-specific slope from each attention score."""

    biases_scores = True

    def __init__(self, config: LayerConfig):
        super().__init__(config)
        self.register_buffer("slopes", torch.tensor(alibi_slopes(config.n_head)), persistent=False)

    def score_bias(self, start: int | Tensor, length: int, keys: int) -> Tensor:
        q = start + torch.arange(length, device=self.slopes.device)
        k = torch.arange(keys, device=self.slopes.device)
        distance = (q[:, None] - k[None, :]).clamp(min=0)
        return -self.slopes[:, None, None] * distance


@POSITIONS.register("fire", label="FIRE", paper="Li et al. 2023, arXiv 2310.04418")
class FIRE(PositionEncoding):
    """Bias the scores by a learned function of the distance relative to the query's position.

    The score of the query at position i = 0, 1, ... and the key at position j has the bias
    f(psi(i - j) / psi(max(L, i))), where psi(x) = log(|c| x + 1) and f is a network from a number
    to a bias per head: f(r) = W relu(a r + b) with `fire_width` hidden units. c and L are learned,
    L as a multiple of its initial value. As i grows, a larger range of distances is mapped to
    [0, 1], so that a model can read more tokens than it was trained with. f has no output bias,
    which the softmax would cancel.

    Layers with the same options share f, c and L (the paper's FIRE-S). The biases are computed
    once, in float32, for all of them and for all sequences of a batch. f is applied to every pair
    of positions, including those that a window hides: 2 w (1 + H) FLOPs each for w hidden units,
    which count for every sequence.
    """

    biases_scores = learns_scores = True
    scales_with_width = False

    class Options:
        fire_width: int = option(
            32, "FIRE: hidden units of the network", at_least=1, per_layer=True, tag="FIREWidth{}"
        )
        fire_scale: float = option(
            0.1, "FIRE: initial c, the scale of distances", above=0, per_layer=True, tag="FIREC{}"
        )
        fire_threshold: float = option(
            512.0,
            "FIRE: initial L; distances are relative to max(L, position of the query)",
            above=0,
            per_layer=True,
            tag="FIREL{}",
        )

    def __init__(self, config: LayerConfig):
        super().__init__(config)
        width = config.fire_width
        self.first_threshold = config.fire_threshold
        self.scale = nn.Parameter(torch.tensor(config.fire_scale))
        self.threshold = nn.Parameter(torch.tensor(1.0))  # times first_threshold
        self.slopes = nn.Parameter(torch.empty(width))
        self.offsets = nn.Parameter(torch.empty(width))
        self.mixing = nn.Parameter(torch.empty(config.n_head, width))

    def init_parameters(self, config: LayerConfig) -> None:
        """Initialize the network uniformly within 1/sqrt(inputs), as torch does for Linear."""
        bound = self.mixing.shape[1] ** -0.5
        for parameter, most in ((self.slopes, 1), (self.offsets, 1), (self.mixing, bound)):
            nn.init.uniform_(parameter, -most, most)

    def score_bias(self, start: int | Tensor, length: int, keys: int) -> Tensor:
        device = self.scale.device
        dtype = torch.promote_types(self.scale.dtype, torch.float32)
        i = start + torch.arange(length, device=device).to(dtype)
        distance = (i[:, None] - torch.arange(keys, device=device)).clamp(min=0)
        scale = self.scale.to(dtype).abs()
        least = self.threshold.to(dtype).abs() * self.first_threshold
        whole = torch.log1p(scale * torch.maximum(i, least)) + 1e-6
        relative = torch.log1p(scale * distance) / whole[:, None]
        a, b, W = (each.to(dtype) for each in (self.slopes, self.offsets, self.mixing))
        with torch.autocast(device.type, enabled=False):
            hidden = F.linear(relative.unsqueeze(-1), a.unsqueeze(-1), b).relu()
            return F.linear(hidden, W).movedim(-1, 0)

    def forward_flops(self, seq_len: int, causal: bool = False) -> int:
        """FLOPs of the network for every pair of positions; with `causal`, every visible pair."""
        pairs = seq_len * (seq_len + 1) // 2 if causal else seq_len**2
        heads, width = self.mixing.shape
        return 2 * width * (1 + heads) * pairs

    def own_backward_flops(self, own: int, flow: GradientFlow) -> int:
        """Zero: nothing but its own weights has a gradient."""
        return 0


def alibi_slopes(n_head: int) -> list[float]:
    """The slope of each head: 2^(-8/n), 2^(-16/n), ... if the number of heads n is a power of two.

    Otherwise the slopes of the next lower power of two, then every other one of the next higher, as
    in the authors' code.
    """
    power = 2 ** int(math.log2(n_head))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    if power < n_head:
        slopes += alibi_slopes(2 * power)[0::2][: n_head - power]
    return slopes


def _rows(table: Tensor, start: int | Tensor, length: int) -> Tensor:
    """The rows of a table for positions start .. start + length - 1."""
    if isinstance(start, int):
        return table[start : start + length]
    return table[start + torch.arange(length, device=table.device)]


def _placed(table: Tensor) -> Tensor:
    """Convert a float64 table, computed on the CPU, to float32 on the default device."""
    return table.to(torch.get_default_device(), torch.float32)


def _angles(length: int, frequencies: Tensor) -> Tensor:
    """position x frequency: (length, len(frequencies)), float64."""
    positions = torch.arange(length, dtype=torch.float64, device="cpu")
    return positions[:, None] * frequencies[None, :]
