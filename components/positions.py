"""Position encodings: `position_encoding`, and `rope_scaling` for RoPE.

A scheme acts through three hooks, each of which does nothing by default: add to the embedding,
rotate queries and keys, bias the attention scores. Positions are `start .. start + T - 1`; a
`start` above 0 occurs when a cache holds the earlier tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from components.part import Part
from components.registry import Registry
from errors import Problem

if TYPE_CHECKING:
    from model_config import ModelArchitectureConfig


class PositionEncoding(Part):
    """The three hooks. A part takes the config."""

    biases_scores: ClassVar[bool] = False
    """Whether `score_bias` gives a tensor, which not every attention backend can add."""

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()

    def embed(self, x: Tensor, start: int) -> Tensor:
        """Add to the token embeddings x (B, T, C)."""
        return x

    def rotate(self, q: Tensor, k: Tensor, start: int, layer: int = 0) -> tuple[Tensor, Tensor]:
        """Rotate a layer's queries (B, H, T, D) and keys (B, H_kv, T, D)."""
        return q, k

    def score_bias(self, start: int, length: int) -> Tensor | None:
        """What to add to the scores of `length` queries: (H, length, start + length), or None."""
        return None


POSITIONS = Registry(
    "position_encoding",
    "Position encoding",
    variable="POSITIONS",
    base=PositionEncoding,
    made_with="config",
)


@POSITIONS.register("none", label="NoPos", paper="Kazemnejad et al. 2023, arXiv 2305.19466")
class NoPosition(PositionEncoding):
    """No encoding: a causal mask alone tells positions apart."""


@POSITIONS.register(
    "learned",
    label="AbsPos",
    aliases=("learned_absolute",),
    paper="Gehring et al. 2017, arXiv 1705.03122; Radford et al. 2019",
)
class LearnedPosition(PositionEncoding):
    """A learned vector for each position, added to the embedding."""

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__(config)
        self.table = nn.Embedding(config.block_size, config.n_embd)

    def embed(self, x: Tensor, start: int) -> Tensor:
        return x + self.table.weight[start : start + x.shape[1]]


@POSITIONS.register("sinusoidal", label="Sin", paper="Vaswani et al. 2017, arXiv 1706.03762")
class SinusoidalPosition(PositionEncoding):
    """Fixed sines and cosines of geometric wavelengths, added to the embedding."""

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__(config)
        angles = _angles(config.block_size, _rope_frequencies(config.n_embd, 10_000.0))
        table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)  # (T, C), interleaved
        self.register_buffer("table", _placed(table), persistent=False)

    @classmethod
    def problems(cls, config: ModelArchitectureConfig) -> Iterator[Problem]:
        if config.n_embd % 2:
            yield Problem(
                ("n_embd", "position_encoding"),
                f"n_embd={config.n_embd} is odd; position_encoding='sinusoidal' pairs sines with "
                "cosines and needs it even.",
            )

    def embed(self, x: Tensor, start: int) -> Tensor:
        return x + self.table[start : start + x.shape[1]].to(x.dtype)


@POSITIONS.register("rope", label="RoPE", paper="Su et al. 2021 (RoFormer), arXiv 2104.09864")
class RotaryPosition(PositionEncoding):
    """Rotate pairs of query and key dimensions by angles that grow with the position.

    Dimension i pairs with i + rotated/2 (GPT-NeoX's and Hugging Face's layout). Of each head the
    first `rope_fraction` is rotated; the rest passes. Angles and rotation are float32.

    `rope_pattern` leaves layers out (NoPE; Yang et al. 2025, arXiv 2501.18795), and
    `rope_local_theta` gives windowed layers wavelengths of their own, never scaled (Gemma 3).
    """

    uses = ("rope_theta", "rope_fraction", "rope_scaling", "rope_pattern", "rope_local_theta")

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__(config)
        dim, scaling = rotated_dimensions(config), ROPE_SCALINGS[config.rope_scaling]
        self._tables = [self._table_of(config, layer) for layer in range(config.n_layer)]
        self._register("", config.block_size, *scaling.apply(dim, config))
        if config.rope_local_theta is not None:
            local = _rope_frequencies(dim, config.rope_local_theta)
            self._register("local_", config.block_size, local, 1.0)

    @staticmethod
    def _table_of(config: ModelArchitectureConfig, layer: int) -> str | None:
        """The prefix of the tables that turn a layer; None where nothing does."""
        if not config.rotates(layer):
            return None
        local = config.rope_local_theta is not None and config.windowed(layer)
        return "local_" if local else ""

    def _register(self, prefix: str, length: int, frequencies: Tensor, magnitude: float) -> None:
        """Tables of cosines and sines, (T, rotated/2): one angle serves both of a pair."""
        angles = _angles(length, frequencies)
        for name, table in (("cos", angles.cos()), ("sin", angles.sin())):
            self.register_buffer(prefix + name, _placed(table * magnitude), persistent=False)

    @classmethod
    def problems(cls, config: ModelArchitectureConfig) -> Iterator[Problem]:
        if config.rope_local_theta is not None and config.sliding_window is None:
            yield Problem(
                ("rope_local_theta", "sliding_window"),
                f"rope_local_theta={config.rope_local_theta:g} does nothing without windowed "
                "layers; set sliding_window, or drop it.",
            )
        rotated = rotated_dimensions(config)
        if rotated % 2 or rotated == 0:
            yield Problem(
                ("rope_fraction", "head_dim", "n_head", "n_embd"),
                f"rope_fraction={config.rope_fraction:g} of head_dim={config.head_dim} rotates "
                f"{rotated} dimensions; RoPE turns them in pairs and needs an even number above 0.",
            )

    def rotate(self, q: Tensor, k: Tensor, start: int, layer: int = 0) -> tuple[Tensor, Tensor]:
        prefix, end = self._tables[layer], start + q.shape[2]
        if prefix is None:
            return q, k
        cos, sin = (getattr(self, prefix + name)[start:end] for name in ("cos", "sin"))
        return self._turn(q, cos, sin), self._turn(k, cos, sin)

    @staticmethod
    def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = cos.shape[-1]
        first, second, passed = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        turned = (first * cos - second * sin, second * cos + first * sin)
        return torch.cat((*(part.to(x.dtype) for part in turned), passed), dim=-1)


@POSITIONS.register("alibi", label="ALiBi", paper="Press et al. 2021, arXiv 2108.12409")
class ALiBi(PositionEncoding):
    """Subtract from each score the distance times a slope of the head's own."""

    biases_scores = True

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__(config)
        self.register_buffer("slopes", torch.tensor(alibi_slopes(config.n_head)), persistent=False)

    def score_bias(self, start: int, length: int) -> Tensor:
        end = start + length
        queries = torch.arange(start, end, device=self.slopes.device)
        keys = torch.arange(end, device=self.slopes.device)
        distance = (queries[:, None] - keys[None, :]).clamp(min=0)
        return -self.slopes[:, None, None] * distance


def alibi_slopes(n_head: int) -> list[float]:
    """The slope of each head: 2^(-8/n), 2^(-16/n), ... for n heads, n a power of two.

    For another number, those of the next lower power of two, then every other one of the next
    higher, as the authors' code does.
    """
    power = 2 ** int(math.log2(n_head))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    if power < n_head:
        slopes += alibi_slopes(2 * power)[0::2][: n_head - power]
    return slopes


def rotated_dimensions(config: ModelArchitectureConfig) -> int:
    """Dimensions of each head that RoPE turns."""
    assert config.head_dim is not None
    # A share such as 30/44 stands for 30 dimensions, though their product falls short of it.
    return int(config.head_dim * config.rope_fraction + 1e-6)


def _rope_frequencies(dim: int, theta: float) -> Tensor:
    """theta^(-2i/dim) for i < dim/2, in float64: (dim/2,)."""
    return theta ** -(torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)


def _placed(table: Tensor) -> Tensor:
    """A float64 table, computed on the CPU, as float32 where new parameters are put."""
    return table.to(torch.get_default_device(), torch.float32)


def _angles(length: int, frequencies: Tensor) -> Tensor:
    """position x frequency: (length, len(frequencies)), float64."""
    positions = torch.arange(length, dtype=torch.float64, device="cpu")
    return positions[:, None] * frequencies[None, :]


class RopeScaling:
    """How RoPE reaches beyond the length it was trained at; this one does not.

    `apply(dim, config)` gives the dim/2 frequencies and the factor on rotated queries and keys.
    """

    uses: ClassVar[tuple[str, ...]] = ("rope_scaling_factor",)

    @classmethod
    def apply(cls, dim: int, config: ModelArchitectureConfig) -> tuple[Tensor, float]:
        raise NotImplementedError

    @classmethod
    def problems(cls, config: ModelArchitectureConfig) -> Iterator[Problem]:
        if config.rope_scaling_factor == 1:
            yield Problem(
                ("rope_scaling", "rope_scaling_factor"),
                f"rope_scaling={config.rope_scaling!r} does nothing with rope_scaling_factor=1; "
                "set it above 1, or drop rope_scaling.",
            )


ROPE_SCALINGS = Registry(
    "rope_scaling", "RoPE scaling", variable="ROPE_SCALINGS", base=RopeScaling, made_with=None
)


@ROPE_SCALINGS.register("none", label="Unscaled")
class Unscaled(RopeScaling):
    """RoPE as published."""

    uses = ()

    @classmethod
    def problems(cls, config: ModelArchitectureConfig) -> Iterator[Problem]:
        return iter(())

    @classmethod
    def apply(cls, dim: int, config: ModelArchitectureConfig) -> tuple[Tensor, float]:
        return _rope_frequencies(dim, config.rope_theta), 1.0


@ROPE_SCALINGS.register("linear", label="Linear", paper="Chen et al. 2023, arXiv 2306.15595")
class LinearScaling(RopeScaling):
    """Position interpolation: every position divided by the factor."""

    @classmethod
    def apply(cls, dim: int, config: ModelArchitectureConfig) -> tuple[Tensor, float]:
        return _rope_frequencies(dim, config.rope_theta) / config.rope_scaling_factor, 1.0


@ROPE_SCALINGS.register("ntk", label="NTK", paper="bloc97 2023; Peng et al. 2023, arXiv 2309.00071")
class NTKScaling(RopeScaling):
    """NTK-aware: a larger theta, so that low frequencies stretch by the factor, high ones not."""

    @classmethod
    def apply(cls, dim: int, config: ModelArchitectureConfig) -> tuple[Tensor, float]:
        theta = config.rope_theta * config.rope_scaling_factor ** (dim / (dim - 2))
        return _rope_frequencies(dim, theta), 1.0

    @classmethod
    def problems(cls, config: ModelArchitectureConfig) -> Iterator[Problem]:
        yield from super().problems(config)
        if rotated_dimensions(config) <= 2:
            yield Problem(
                ("rope_scaling", "head_dim", "rope_fraction"),
                f"rope_scaling='ntk' needs more than 2 rotated dimensions; head_dim="
                f"{config.head_dim} with rope_fraction={config.rope_fraction:g} rotates "
                f"{rotated_dimensions(config)}.",
            )


@ROPE_SCALINGS.register("yarn", label="YaRN", paper="Peng et al. 2023, arXiv 2309.00071")
class YaRN(RopeScaling):
    """Interpolate the frequencies that turn rarely within the original length, keep the others.

    Also scales queries and keys by 0.1 ln(factor) + 1, which sharpens the attention.
    """

    uses = (
        "rope_scaling_factor",
        "rope_original_block_size",
        "rope_beta_fast",
        "rope_beta_slow",
    )

    @classmethod
    def apply(cls, dim: int, config: ModelArchitectureConfig) -> tuple[Tensor, float]:
        frequencies = _rope_frequencies(dim, config.rope_theta)
        low = max(math.floor(cls._dimension(config.rope_beta_fast, dim, config)), 0)
        high = min(math.ceil(cls._dimension(config.rope_beta_slow, dim, config)), dim - 1)
        pair = torch.arange(dim // 2, dtype=torch.float64, device="cpu")
        interpolated = ((pair - low) / ((high - low) or 1e-3)).clamp(0, 1)
        factor = config.rope_scaling_factor
        mixed = frequencies / factor * interpolated + frequencies * (1 - interpolated)
        return mixed, 0.1 * math.log(factor) + 1.0

    @staticmethod
    def _dimension(turns: float, dim: int, config: ModelArchitectureConfig) -> float:
        """The pair that makes `turns` full turns within the original length."""
        wavelengths = config.rope_original_block_size / (turns * 2 * math.pi)
        return dim * math.log(wavelengths) / (2 * math.log(config.rope_theta))

    @classmethod
    def problems(cls, config: ModelArchitectureConfig) -> Iterator[Problem]:
        yield from super().problems(config)
        if config.rope_beta_slow >= config.rope_beta_fast:
            yield Problem(
                ("rope_beta_slow", "rope_beta_fast"),
                f"rope_beta_slow={config.rope_beta_slow:g} must be below "
                f"rope_beta_fast={config.rope_beta_fast:g}.",
            )


@ROPE_SCALINGS.register("llama3", label="Llama3", paper="Grattafiori et al. 2024, arXiv 2407.21783")
class Llama3Scaling(RopeScaling):
    """Interpolate wavelengths beyond the original length, keep the short, blend between."""

    uses = (
        "rope_scaling_factor",
        "rope_original_block_size",
        "rope_low_freq_factor",
        "rope_high_freq_factor",
    )

    @classmethod
    def apply(cls, dim: int, config: ModelArchitectureConfig) -> tuple[Tensor, float]:
        frequencies = _rope_frequencies(dim, config.rope_theta)
        low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
        turns = config.rope_original_block_size * frequencies / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return frequencies / config.rope_scaling_factor * (1 - kept) + frequencies * kept, 1.0

    @classmethod
    def problems(cls, config: ModelArchitectureConfig) -> Iterator[Problem]:
        yield from super().problems(config)
        if config.rope_low_freq_factor >= config.rope_high_freq_factor:
            yield Problem(
                ("rope_low_freq_factor", "rope_high_freq_factor"),
                f"rope_low_freq_factor={config.rope_low_freq_factor:g} must be below "
                f"rope_high_freq_factor={config.rope_high_freq_factor:g}.",
            )
