"""RoPE scaling methods for longer sequences: `rope_scaling`. Used as classes, not instances."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from components.layer_config import LayerConfig
from components.registry import Registry
from errors import Problem
from options import option


def rotary_head(config: LayerConfig) -> tuple[str, int]:
    """Key and size of the part of a head that RoPE acts on: a separate part, as in multi-head
    latent attention, or the whole head."""
    key = "qk_rope_head_dim" if "qk_rope_head_dim" in config else "head_dim"
    return key, getattr(config, key)


def rotated_dimensions(config: LayerConfig) -> int:
    """Number of dimensions of each head that RoPE rotates."""
    _, dim = rotary_head(config)
    # A fraction such as 30/44 means 30 dimensions, although rounding makes the product smaller.
    return int(dim * config.rope_fraction + 1e-6)


def rope_frequencies(dim: int, theta: float) -> Tensor:
    """theta^(-2i/dim) for i < dim/2, in float64: (dim/2,)."""
    return theta ** -(torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)


class RopeScaling:
    """A method to extend RoPE beyond the length it was trained at.

    `apply(dim, config)` returns the dim/2 frequencies and the scale of rotated queries and keys.
    """

    @classmethod
    def apply(cls, dim: int, config: LayerConfig) -> tuple[Tensor, float]:
        raise NotImplementedError

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        """Yield problems with the layer's config, whose values are individually valid."""
        return iter(())


ROPE_SCALINGS = Registry(
    "rope_scaling", "RoPE scaling", variable="ROPE_SCALINGS", base=RopeScaling, made_with=None
)


@ROPE_SCALINGS.register("none", label="Unscaled")
class Unscaled(RopeScaling):
    """RoPE without scaling."""

    @classmethod
    def apply(cls, dim: int, config: LayerConfig) -> tuple[Tensor, float]:
        return rope_frequencies(dim, config.rope_theta), 1.0


class Stretched(RopeScaling):
    """Base class of scalings with a scaling factor."""

    class Options:
        rope_scaling_factor: float = option(
            1.0,
            "RoPE scaling: new length over original length",
            at_least=1,
            per_layer=True,
            tag="x{}",
        )

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        if config.rope_scaling_factor == 1:
            yield Problem(
                ("rope_scaling", "rope_scaling_factor"),
                f"rope_scaling={config.rope_scaling!r} has no effect with rope_scaling_factor=1; "
                "set it above 1, or drop rope_scaling.",
            )


class OriginalLength:
    """An option of scalings that depend on the original training length."""

    rope_original_block_size: int = option(
        1024,
        "RoPE scaling: original context length, in tokens",
        at_least=1,
        per_layer=True,
        tag="From{}",
    )


@ROPE_SCALINGS.register("linear", label="Linear", paper="Chen et al. 2023, arXiv 2306.15595")
class LinearScaling(Stretched):
    """Position interpolation: divide every position by the factor."""

    @classmethod
    def apply(cls, dim: int, config: LayerConfig) -> tuple[Tensor, float]:
        return rope_frequencies(dim, config.rope_theta) / config.rope_scaling_factor, 1.0


@ROPE_SCALINGS.register("ntk", label="NTK", paper="bloc97 2023; Peng et al. 2023, arXiv 2309.00071")
class NTKScaling(Stretched):
    """NTK-aware: a larger theta, which interpolates low frequencies and preserves high ones."""

    @classmethod
    def apply(cls, dim: int, config: LayerConfig) -> tuple[Tensor, float]:
        theta = config.rope_theta * config.rope_scaling_factor ** (dim / (dim - 2))
        return rope_frequencies(dim, theta), 1.0

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        yield from super().problems(config)
        key, dim = rotary_head(config)
        if rotated_dimensions(config) <= 2:
            yield Problem(
                ("rope_scaling", key, "rope_fraction"),
                f"rope_scaling='ntk' needs more than 2 rotated dimensions; {key}={dim} with "
                f"rope_fraction={config.rope_fraction:g} rotates {rotated_dimensions(config)}.",
            )


@ROPE_SCALINGS.register("yarn", label="YaRN", paper="Peng et al. 2023, arXiv 2309.00071")
class YaRN(Stretched):
    """Interpolate frequencies with few rotations in the original length, and keep the others.

    Also scales rotated queries and keys by `rope_attention_factor`, by default 0.1 ln(factor) + 1,
    which sharpens the attention. The bounds of the interpolated dimensions are rounded outward to
    whole pairs unless `rope_truncate` is off (gpt-oss).
    """

    class Options(OriginalLength):
        rope_beta_fast: float = option(
            32.0,
            "YaRN: dimensions with more rotations are unchanged",
            above=0,
            per_layer=True,
            tag="BetaFast{}",
        )
        rope_beta_slow: float = option(
            1.0,
            "YaRN: dimensions with fewer rotations are interpolated",
            above=0,
            per_layer=True,
            tag="BetaSlow{}",
        )
        rope_attention_factor: float | None = option(
            None,
            "YaRN: scale of rotated queries and keys; none: 0.1 ln(rope_scaling_factor) + 1",
            above=0,
            per_layer=True,
            derive=lambda config: 0.1 * math.log(config.rope_scaling_factor) + 1.0,
            tag="YaRNScale{}",
        )
        rope_truncate: bool = option(
            True,
            "YaRN: round the bounds of the interpolated dimensions outward to whole pairs",
            per_layer=True,
            tag=("ExactYaRN", "RoundYaRN"),
        )

    @classmethod
    def apply(cls, dim: int, config: LayerConfig) -> tuple[Tensor, float]:
        frequencies = rope_frequencies(dim, config.rope_theta)
        betas = (config.rope_beta_fast, config.rope_beta_slow)
        low, high = (cls._dimension(beta, dim, config) for beta in betas)
        if config.rope_truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        pair = torch.arange(dim // 2, dtype=torch.float64, device="cpu")
        interpolated = ((pair - low) / ((high - low) or 1e-3)).clamp(0, 1)
        factor = config.rope_scaling_factor
        mixed = frequencies / factor * interpolated + frequencies * (1 - interpolated)
        return mixed, config.rope_attention_factor

    @staticmethod
    def _dimension(turns: float, dim: int, config: LayerConfig) -> float:
        """The index of the pair that makes `turns` full rotations within the original length."""
        wavelengths = config.rope_original_block_size / (turns * 2 * math.pi)
        return dim * math.log(wavelengths) / (2 * math.log(config.rope_theta))

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        yield from super().problems(config)
        if config.rope_beta_slow >= config.rope_beta_fast:
            yield Problem(
                ("rope_beta_slow", "rope_beta_fast"),
                f"rope_beta_slow={config.rope_beta_slow:g} must be below "
                f"rope_beta_fast={config.rope_beta_fast:g}.",
            )


@ROPE_SCALINGS.register("llama3", label="Llama3", paper="Grattafiori et al. 2024, arXiv 2407.21783")
class Llama3Scaling(Stretched):
    """Interpolate long wavelengths, keep short ones, and blend in between."""

    class Options(OriginalLength):
        rope_low_freq_factor: float = option(
            1.0,
            "llama3 scaling: dimensions with fewer rotations are interpolated",
            above=0,
            per_layer=True,
            tag="LowFreq{}",
        )
        rope_high_freq_factor: float = option(
            4.0,
            "llama3 scaling: dimensions with more rotations are unchanged",
            above=0,
            per_layer=True,
            tag="HighFreq{}",
        )

    @classmethod
    def apply(cls, dim: int, config: LayerConfig) -> tuple[Tensor, float]:
        frequencies = rope_frequencies(dim, config.rope_theta)
        low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
        turns = config.rope_original_block_size * frequencies / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return frequencies / config.rope_scaling_factor * (1 - kept) + frequencies * kept, 1.0

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        yield from super().problems(config)
        if config.rope_low_freq_factor >= config.rope_high_freq_factor:
            yield Problem(
                ("rope_low_freq_factor", "rope_high_freq_factor"),
                f"rope_low_freq_factor={config.rope_low_freq_factor:g} must be below "
                f"rope_high_freq_factor={config.rope_high_freq_factor:g}.",
            )
