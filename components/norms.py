"""Norms of the residual stream: `normalization`. A part is created with (dim, config)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.layer_config import LayerConfig
from components.registry import Registry
from errors import Problem
from options import Role, Section

NORMS = Registry(
    "normalization", "Normalization", variable="NORMS", base=nn.Module, made_with="dim, config"
)


_norms = Section("Normalization", Role.ARCHITECTURE)


class NormOptions:
    """The options of norms with an epsilon."""

    norm_eps: float = _norms.option(
        1e-5, "epsilon of the norms", above=0, per_layer=True, tag="Eps{}"
    )


def idle_epsilon(config: LayerConfig, without: str) -> Iterator[Problem]:
    """Yield the problem if `norm_eps` has no effect in a layer whose mixer has no norm; `without`
    says why it has none."""
    normed = "norm_eps" in NORMS.entry(config.normalization).keys
    if not normed and config.norm_eps != NormOptions.norm_eps.default:
        yield Problem(
            ("norm_eps", "normalization"),
            f"norm_eps={config.norm_eps:g} has no effect with "
            f"normalization={config.normalization!r} and {without}; drop it.",
        )


@NORMS.register("layernorm", label="LN", paper="Ba et al. 2016, arXiv 1607.06450")
class LayerNorm(nn.LayerNorm):
    """Subtract the mean, divide by the standard deviation, then apply a learned scale and bias."""

    Options = NormOptions

    def __init__(self, dim: int, config: LayerConfig):
        super().__init__(dim, eps=config.norm_eps)


@NORMS.register("layernorm_nobias", label="LN-NB", paper="Ba et al. 2016, arXiv 1607.06450")
class LayerNormWithoutBias(nn.LayerNorm):
    """LayerNorm with a learned scale and no bias."""

    Options = NormOptions

    def __init__(self, dim: int, config: LayerConfig):
        super().__init__(dim, eps=config.norm_eps, bias=False)


@NORMS.register("rmsnorm", label="RMS", paper="Zhang and Sennrich 2019, arXiv 1910.07467")
class RMSNorm(nn.RMSNorm):
    """Divide by the root mean square, then apply a learned scale; no centering, no bias."""

    Options = NormOptions

    def __init__(self, dim: int, config: LayerConfig):
        super().__init__(dim, eps=config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self._normed(x, self.weight)

    def _normed(self, x: Tensor, scale: Tensor) -> Tensor:
        """RMSNorm in the dtype of `scale`, as autocast does for LayerNorm, since half precision is
        too inaccurate."""
        return F.rms_norm(x.to(scale.dtype), self.normalized_shape, scale, self.eps)


@NORMS.register("rmsnorm_unit_offset", label="RMS1p", paper="Gemma Team 2024, arXiv 2403.08295")
class UnitOffsetRMSNorm(RMSNorm):
    """RMSNorm with scale 1 + a learned offset, so that half precision keeps small offsets."""

    def __init__(self, dim: int, config: LayerConfig):
        super().__init__(dim, config)
        del self.weight
        self.offset = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self._normed(x, 1 + self.offset)


@NORMS.register(
    "layernorm_unit_offset", label="LN1p", paper="Parmar et al. 2024 (Nemotron), arXiv 2402.16819"
)
class UnitOffsetLayerNorm(nn.LayerNorm):
    """LayerNorm with scale 1 + a learned offset, so that half precision keeps small offsets."""

    Options = NormOptions

    def __init__(self, dim: int, config: LayerConfig):
        super().__init__(dim, eps=config.norm_eps)
        del self.weight
        self.offset = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, 1 + self.offset, self.bias, self.eps)


@NORMS.register(
    "layernorm_nogain", label="LN-NG", paper="Groeneveld et al. 2024 (OLMo), arXiv 2402.00838"
)
class LayerNormWithoutGain(nn.LayerNorm):
    """LayerNorm without learned parameters."""

    Options = NormOptions

    def __init__(self, dim: int, config: LayerConfig):
        super().__init__(dim, eps=config.norm_eps, elementwise_affine=False)


@NORMS.register("rmsnorm_nogain", label="RMS-NG", paper="Zhang and Sennrich 2019, arXiv 1910.07467")
class RMSNormWithoutGain(RMSNorm):
    """RMSNorm without a learned scale, as in nanochat and modded-nanogpt."""

    def __init__(self, dim: int, config: LayerConfig):
        nn.RMSNorm.__init__(self, dim, eps=config.norm_eps, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        precise = torch.promote_types(x.dtype, torch.float32)
        y = F.rms_norm(x.to(precise), self.normalized_shape, None, self.eps)
        return y if torch.is_autocast_enabled(x.device.type) else y.to(x.dtype)


class PointwiseOptions:
    """The option of functions that replace a norm."""

    norm_alpha: float = _norms.option(
        0.5,
        "initial value of the scale inside dyt and derf",
        above=0,
        per_layer=True,
        tag="Alpha{}",
    )


@NORMS.register("dyt", label="DyT", paper="Zhu et al. 2025, arXiv 2503.10622")
class DyT(nn.Module):
    """tanh(a x) with a learned scalar a, then a learned scale and bias; uses no statistics of x."""

    Options = PointwiseOptions

    def __init__(self, dim: int, config: LayerConfig):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(config.norm_alpha))
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.squashed(x.to(self.weight.dtype)) * self.weight + self.bias

    def squashed(self, x: Tensor) -> Tensor:
        """Squash x to the range (-1, 1)."""
        return torch.tanh(self.alpha * x)


@NORMS.register("derf", label="Derf", paper="Chen et al. 2025, arXiv 2512.10938")
class Derf(DyT):
    """Like DyT, with erf(a x + s) and a learned scalar shift s that is initialized to 0."""

    def __init__(self, dim: int, config: LayerConfig):
        super().__init__(dim, config)
        self.shift = nn.Parameter(torch.tensor(0.0))

    def squashed(self, x: Tensor) -> Tensor:
        return torch.erf(self.alpha * x + self.shift)


@NORMS.register("none", label="NoNorm")
class NoNorm(nn.Module):
    """Identity: no normalization."""

    def __init__(self, dim: int, config: LayerConfig):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


def make_norm(config: LayerConfig) -> nn.Module:
    """Create a norm of the residual stream for a layer."""
    return NORMS[config.normalization](config.n_embd, config)


def make_qk_norm(dim: int, config: LayerConfig) -> RMSNorm | LayerNorm:
    """Create a norm of queries or keys: the layer's norm if it is an RMSNorm, else RMSNorm; or
    LayerNorm, by `qk_norm_type`."""
    if config.qk_norm_type == "layernorm":
        return LayerNorm(dim, config)
    kind = NORMS[config.normalization]
    return (kind if issubclass(kind, RMSNorm) else RMSNorm)(dim, config)
