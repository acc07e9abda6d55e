"""Parametrizations: how initial weights, multipliers and optimizer settings depend on the width and
the depth of a model: `parametrization`.

The width multiplier is m = n_embd / mup_base_width, the depth multiplier l = n_layer /
completep_base_depth. Hyperparameters tuned at the base sizes then apply to other sizes whose heads
and hidden units grow in proportion to n_embd. "Hidden" weights map hidden states to hidden states:
those of Linear layers, except the LM head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

from components.registry import Registry
from errors import Problem
from options import option


def effective_depth(config: Any) -> int:
    """Number of layers that a token passes through: `n_layer`, with the looped layers counted
    `loop_count` times."""
    looped = config.n_layer - config.loop_prelude - config.loop_coda
    return config.n_layer + (config.loop_count - 1) * looped


class ParameterScales(NamedTuple):
    """Factors on the optimizer settings of a parameter."""

    rate: float = 1.0
    decay: float = 1.0
    eps: float = 1.0


class Parametrization:
    """Base class of parametrizations, created from a config. By default, nothing depends on the
    width, and residual projections start smaller in deeper models."""

    scales_with_width: ClassVar[bool] = False
    """Whether settings depend on the width; then all parts must declare `scales_with_width`, and
    the optimizer `takes_scales`."""
    allows_loops: ClassVar[bool] = True
    """Whether it is defined for layers that are applied several times (`loop_count`)."""

    def __init__(self, config: Any):
        self.config = config

    @classmethod
    def problems(cls, config: Any) -> Iterator[Problem]:
        """Yield problems with a layer's config, whose values are individually valid."""
        return iter(())

    @property
    def hidden_std(self) -> float:
        """Standard deviation of initial hidden weights."""
        return self.config.init_std

    @property
    def residual_projection_scale(self) -> float:
        """Factor on the standard deviation of residual projections: 1/sqrt(2 n_layer), so that the
        variance of the residual stream does not grow with depth (Radford et al. 2019, section
        2.3). In layers with one sublayer, it is 1/sqrt(n_layer). Looped layers count `loop_count`
        times, as in Huginn (Geiping et al. 2025, arXiv 2502.05171). With `zero_init`, it is 0."""
        if self.config.zero_init:
            return 0.0
        sublayers = 1 if "none" in (self.config.mixer, self.config.ffn_type) else 2
        return (sublayers * effective_depth(self.config)) ** -0.5

    @property
    def logit_scale(self) -> float:
        """Scale of the logits."""
        return 1.0

    @property
    def residual_scale(self) -> float:
        """Scale of what a sublayer adds to the residual stream."""
        return 1.0

    def attention_scale(self, dim: int) -> float:
        """Scale of the products of queries and keys of dimension `dim`."""
        return dim**-0.5

    def scales(self, *, hidden: bool, in_block: bool) -> ParameterScales:
        """Factors on the optimizer settings of a parameter: whether it is a hidden weight, and
        whether it belongs to a block."""
        return ParameterScales()


PARAMETRIZATIONS = Registry(
    "parametrization",
    "Parametrization",
    variable="PARAMETRIZATIONS",
    base=Parametrization,
)


@PARAMETRIZATIONS.register("standard", label="Standard", paper="Radford et al. 2019")
class Standard(Parametrization):
    """Initial weights and learning rates that do not depend on the width, as in GPT-2."""


@PARAMETRIZATIONS.register("mup", label="muP", paper="Yang et al. 2022, arXiv 2203.03466")
class MuP(Parametrization):
    """muP for Adam: the best learning rate of the base width is also the best of other widths.

    Relative to `standard`, hidden weights start with 1/sqrt(m) of the standard deviation and have
    1/m of the learning rate and m times the weight decay; logits are multiplied by 1/m; products of
    queries and keys by 1/d instead of 1/sqrt(d). All else does not depend on the width: embeddings,
    LM head, norms and biases (table 8 of the paper; the weight decay is that of its package `mup`).
    Adapters, which the paper does not cover, are not scaled either.
    """

    scales_with_width = True

    class Options:
        mup_base_width: int = option(
            256, "n_embd of the model whose settings apply to all widths", at_least=1, tag="Base{}"
        )

    @property
    def width(self) -> float:
        """The width multiplier m."""
        return self.config.n_embd / self.config.mup_base_width

    @property
    def hidden_std(self) -> float:
        return self.config.init_std * self.width**-0.5

    @property
    def logit_scale(self) -> float:
        return 1 / self.width

    def attention_scale(self, dim: int) -> float:
        return 1 / dim

    def scales(self, *, hidden: bool, in_block: bool) -> ParameterScales:
        if not hidden:
            return ParameterScales()
        return ParameterScales(rate=1 / self.width, decay=self.width)


@PARAMETRIZATIONS.register(
    "completep", label="CompleteP", paper="Dey et al. 2025, arXiv 2505.01618"
)
class CompleteP(MuP):
    """muP whose settings also apply to other depths, with sublayer outputs scaled by 1/depth.

    Relative to `mup`, the outputs of sublayers are multiplied by 1/l, residual projections start
    like other hidden weights, and the epsilon of Adam is multiplied by 1/(m l) in blocks and by 1/m
    elsewhere (table 1 of the paper with alpha = 1): it shrinks with the gradients, which depend on
    the depth only in blocks. The authors' sample code multiplies it by 1/(m l) everywhere.
    """

    class Options(MuP.Options):
        completep_base_depth: int = option(
            2,
            "n_layer of the model whose settings apply to all depths",
            at_least=1,
            tag="BaseDepth{}",
        )

    allows_loops = False
    blocks: ClassVar[tuple[str, ...]] = ("pre", "parallel", "parallel_shared")
    """The blocks it is defined for: those that normalize only the inputs of sublayers."""

    @classmethod
    def problems(cls, config: Any) -> Iterator[Problem]:
        if config.norm_position not in cls.blocks:
            yield Problem(
                ("parametrization", "norm_position"),
                f"parametrization='completep' is not defined for norm_position="
                f"{config.norm_position!r}, which normalizes what sublayers add; use "
                f"norm_position={' or '.join(map(repr, cls.blocks))}, or parametrization='mup'.",
            )

    @property
    def depth(self) -> float:
        """The depth multiplier l."""
        return self.config.n_layer / self.config.completep_base_depth

    @property
    def residual_projection_scale(self) -> float:
        return 0.0 if self.config.zero_init else 1.0

    @property
    def residual_scale(self) -> float:
        return 1 / self.depth

    def scales(self, *, hidden: bool, in_block: bool) -> ParameterScales:
        eps = 1 / (self.width * self.depth) if in_block else 1 / self.width
        return super().scales(hidden=hidden, in_block=in_block)._replace(eps=eps)


def parametrization_of(config: Any) -> Parametrization:
    """The parametrization that the config of a model or a layer chooses."""
    return PARAMETRIZATIONS[config.parametrization](config)
