"""How sublayers join the residual stream: `residual`. A part is made with (config, sites), the
config of its layer and the number of places in its block where sublayers join.

    stream = begin(x)                        once, before the first block
    stream = enter(stream, context)          at the start of a block
    stream = join(stream, site, branch)      at each site
    stream = leave(stream, context)          at the end of a block
    x = end(stream)                          once, after the last block

x is (B, T, C); the stream may have more dimensions before the last, which is C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from components.context import Context
from components.layer_config import LayerConfig
from components.norms import make_norm
from components.part import Part
from components.registry import Registry
from errors import Problem
from options import option

Branch = Callable[[Tensor], Tensor | tuple[Tensor, ...]]
"""A sublayer and its norms, a map of (B, T, C) to (B, T, C); several side by side give a tuple."""


class Residual(Part):
    """The residual stream between sublayers; by itself, a tensor (B, T, C)."""

    takes: tuple[str, ...] = ()
    """Names of the tensors of earlier layers that it reads by `context.take`."""
    gives: tuple[str, ...] = ()
    """Names of the tensors that it hands to later layers by `context.give`."""

    def __init__(self, config: LayerConfig, sites: int):
        super().__init__()

    def begin(self, x: Tensor) -> Tensor:
        """The stream of the embeddings x (B, T, C)."""
        return x

    def end(self, stream: Tensor) -> Tensor:
        """What the final norm and the LM head read of the stream: (B, T, C)."""
        return stream

    def enter(self, stream: Tensor, context: Context) -> Tensor:
        """The stream as a block receives it."""
        return stream

    def join(self, stream: Tensor, site: int, branch: Branch) -> Tensor:
        """The stream after a branch read from it and was added to it."""
        raise NotImplementedError

    def leave(self, stream: Tensor, context: Context) -> Tensor:
        """The stream as a block passes it on."""
        return stream


RESIDUALS = Registry(
    "residual", "Residual stream", variable="RESIDUALS", base=Residual, made_with="config, sites"
)


@RESIDUALS.register("plain", label="Plain", paper="He et al. 2015, arXiv 1512.03385")
class PlainResidual(Residual):
    """Add what each sublayer makes of the stream: x + f(x)."""

    def join(self, stream: Tensor, site: int, branch: Branch) -> Tensor:
        for y in _outputs(branch(stream)):
            stream = stream + y
        return stream


@RESIDUALS.register("unet", label="UNet", paper="Ronneberger et al. 2015, 1505.04597; Jordan 2024")
class UNetResidual(PlainResidual):
    """Add to each layer of the second half what its mirror in the first half passed on.

    Layer n - 1 - i reads x + w skip_i, where skip_i is the stream after layer i, and w is a learned
    number of the layer that starts at 1, as in modded-nanogpt (Jordan et al. 2024).
    """

    def __init__(self, config: LayerConfig, sites: int):
        super().__init__(config, sites)
        mirror = config.n_layer - 1 - config.index
        self.gives = (f"stream after layer {config.index}",) if config.index < mirror else ()
        self.takes = (f"stream after layer {mirror}",) if config.index > mirror else ()
        if self.takes:
            self.weight = nn.Parameter(torch.ones(()))

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        if config.n_layer < 2:
            yield Problem(
                ("residual", "n_layer"),
                f"residual='unet' has no effect with n_layer={config.n_layer}: there is no second "
                "half to connect to the first; raise n_layer, or use residual='plain'.",
            )

    def enter(self, stream: Tensor, context: Context) -> Tensor:
        for name in self.takes:
            stream = stream + self.weight.to(stream.dtype) * context.take(name)
        return stream

    def leave(self, stream: Tensor, context: Context) -> Tensor:
        for name in self.gives:
            context.give(name, stream)
        return stream


@RESIDUALS.register("hyper_connections", label="Hyper", paper="Zhu et al. 2024, arXiv 2409.19606")
class HyperConnections(Residual):
    """Keep n streams, of which each sublayer reads and writes a learned mixture.

    The stream is (B, T, n, C). All n start as the embedding; the head reads their sum.
    """

    class Options:
        hyper_streams: int = option(
            4, "hyper-connections: number of residual streams", at_least=1, tag="{}Streams"
        )
        hyper_dynamic: bool = option(
            True,
            "hyper-connections: mixing weights depend on the token, not only on the layer",
            tag=("StaticHyper", "DynamicHyper"),
        )

    def __init__(self, config: LayerConfig, sites: int):
        super().__init__(config, sites)
        self.streams = config.hyper_streams
        self.connections = nn.ModuleList(
            HyperConnection(config, config.index * sites + site) for site in range(sites)
        )

    def begin(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-2).expand(*x.shape[:-1], self.streams, x.shape[-1])

    def end(self, stream: Tensor) -> Tensor:
        return stream.sum(dim=-2)

    def join(self, stream: Tensor, site: int, branch: Branch) -> Tensor:
        x, mixed, shares = self.connections[site](stream)
        y = sum(_outputs(branch(x)))
        return mixed + shares.unsqueeze(-1) * y.unsqueeze(-2)


class HyperConnection(Part):
    """One site's mixtures of n streams h (..., n, C), in the notation of the paper's algorithm 1.

    [x; h'] = alpha^T h is what the sublayer reads and what the streams become, and beta the share
    of the sublayer's output that each stream gets. Both are learned; if dynamic, the tanh of a
    learned map of the normalised streams is added, scaled by a learned number that starts at 0.01.
    """

    undecayed = ("alpha",)

    def __init__(self, config: LayerConfig, index: int):
        super().__init__()
        self.streams, self.width = n, C = config.hyper_streams, config.n_embd
        keeps = torch.eye(n)
        reads = keeps[:, index % n, None]  # the sites read the streams by turns
        self.alpha = nn.Parameter(torch.cat((reads, keeps), dim=1))
        self.beta = nn.Parameter(torch.ones(n))
        self.dynamic = config.hyper_dynamic
        if self.dynamic:
            self.norm = make_norm(config)
            self.alpha_map = nn.Parameter(torch.zeros(C, n + 1))
            self.beta_map = nn.Parameter(torch.zeros(C, 1))
            self.alpha_scale = nn.Parameter(torch.tensor(0.01))
            self.beta_scale = nn.Parameter(torch.tensor(0.01))

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., C), h' (..., n, C), and beta (..., n) or (n,)."""
        alpha, beta = self.alpha, self.beta
        if self.dynamic:
            normed = self.norm(h)
            alpha = alpha + self.alpha_scale * torch.tanh(normed @ self.alpha_map)
            beta = beta + self.beta_scale * torch.tanh(normed @ self.beta_map).squeeze(-1)
        with torch.autocast(h.device.type, enabled=False):  # it would round the stream
            mixed = alpha.transpose(-2, -1).to(h.dtype) @ h
        return mixed[..., 0, :], mixed[..., 1:, :], beta.to(h.dtype)

    def forward_flops(self, seq_len: int, causal: bool = False) -> int:
        """Per token 2 n (n + 1) C to mix, and 2 n (n + 2) C for dynamic alpha and beta."""
        n = self.streams
        columns = n + 1 + (n + 2 if self.dynamic else 0)
        return 2 * n * columns * self.width * seq_len


def _outputs(made: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a branch made, one tensor or several."""
    return made if isinstance(made, tuple) else (made,)
