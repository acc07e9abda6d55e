"""Residual streams, to which sublayers are added: `residual`. A part is created with (config,
sites): the config of its layer, and the number of places in its block where sublayers are added.

    stream = begin(x)                        once, before the first block
    stream = enter(stream, context)          at the start of a block
    stream = join(stream, site, branch)      at each site
    stream = leave(stream, context)          at the end of a block
    x = end(stream)                          once, after the last block

x is (B, T, C). The stream is a tensor, which may have additional dimensions before the last one, C,
or a tuple of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.context import Context
from components.depth_attention import DepthAttention
from components.layer_config import LayerConfig
from components.norms import make_norm
from components.parametrizations import parametrization_of
from components.part import GradientFlow, Part
from components.registry import Registry
from components.sphere import Gain, on_sphere
from errors import Problem
from options import option

Stream = Tensor | tuple[Tensor, ...]
"""The residual stream."""

Branch = Callable[[Tensor], Tensor | tuple[Tensor, ...]]
"""A sublayer with its norms, from (B, T, C) to (B, T, C); parallel sublayers return a tuple."""


SINKHORN_EPS = 1e-6
"""Added to the sums that Sinkhorn-Knopp steps divide by, as in DeepSeek-V4."""

FIRST_MIXING_LOGIT = -8.0
"""Logit with which a stream first reads another one."""


class Residual(Part):
    """The residual stream between sublayers; by default a tensor (B, T, C)."""

    normalized: ClassVar[bool] = True
    """Whether norms can be applied to the stream, as post-norm blocks do."""
    allows_loops: ClassVar[bool] = True
    """Whether it is defined for layers that are applied several times (`loop_count`)."""

    takes: tuple[str, ...] = ()
    """Names of the tensors of earlier layers that it reads with `context.take`."""
    gives: tuple[str, ...] = ()
    """Names of the tensors that it gives to later layers with `context.give`."""

    def __init__(self, config: LayerConfig, sites: int):
        super().__init__()

    def connect(self, sites: int) -> None:
        """Receive the number of sites in earlier blocks; called once, when the model is created."""

    def begin(self, x: Tensor) -> Stream:
        """The initial stream, given the embeddings x (B, T, C)."""
        return x

    def end(self, stream: Stream) -> Tensor:
        """The input of the final norm and the LM head, (B, T, C)."""
        return stream

    def enter(self, stream: Stream, context: Context) -> Stream:
        """The stream at the start of a block."""
        return stream

    def join(self, stream: Stream, site: int, branch: Branch) -> Stream:
        """The stream after adding the output of a branch."""
        raise NotImplementedError

    def leave(self, stream: Stream, context: Context) -> Stream:
        """The stream at the end of a block."""
        return stream


RESIDUALS = Registry(
    "residual", "Residual stream", variable="RESIDUALS", base=Residual, made_with="config, sites"
)


@RESIDUALS.register("plain", label="Plain", paper="He et al. 2015, arXiv 1512.03385")
class PlainResidual(Residual):
    """Add the output of each sublayer: x + f(x), or x + s f(x) with `residual_scale` s."""

    class Options:
        residual_scale: float | None = option(
            None,
            "scale of what sublayers add to the residual stream; none: that of parametrization, "
            "which is 1 unless it depends on the depth",
            above=0,
            derive=lambda config: parametrization_of(config).residual_scale,
            tag="Res{}",
        )

    scales_with_width = True

    def __init__(self, config: LayerConfig, sites: int):
        super().__init__(config, sites)
        self.scale = config.residual_scale

    def join(self, stream: Tensor, site: int, branch: Branch) -> Tensor:
        for y in _outputs(branch(stream)):
            stream = stream + (y if self.scale == 1 else y * self.scale)
        return stream


@RESIDUALS.register(
    "unet", label="UNet", paper="Ronneberger et al. 2015, arXiv 1505.04597; Jordan 2024"
)
class UNetResidual(PlainResidual):
    """Add skip connections from each layer of the first half to its mirror in the second half.

    The input of layer n - 1 - i is x + w skip_i, where skip_i is the stream after layer i, and w is
    a learned scalar of the layer that is initialized to 1, as in modded-nanogpt (Jordan et al.
    2024).
    """

    scales_with_width = False
    allows_loops = False

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


@RESIDUALS.register("ngpt", label="nGPT", paper="Loshchilov et al. 2024, arXiv 2410.01131")
class SphereResidual(Residual):
    """Move on the unit sphere towards the output of each sublayer: u(h + a (u(f(h)) - u(h))).

    u scales to length 1, and a is the absolute value of a learned vector per sublayer, with one
    element per channel: the paper's eigen learning rates. The paper's nGPT also has
    `normalization=none`, `qk_sphere`, `hidden_gain`, `logit_gain`, `sphere_weights`, RoPE, SwiGLU
    and untied weights without biases, and is trained without weight decay and warm-up.
    """

    class Options:
        ngpt_rate: float = option(
            0.05,
            "ngpt: initial step of the residual stream towards the output of a sublayer",
            above=0,
            tag="Step{}",
        )

    def __init__(self, config: LayerConfig, sites: int):
        super().__init__(config, sites)
        C = config.n_embd
        self.rates = nn.ModuleList(Gain(C, config.ngpt_rate, C**-0.5) for _ in range(sites))

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        if config.zero_init:
            yield Problem(
                ("residual", "zero_init"),
                "residual='ngpt' divides the outputs of sublayers by their length, which "
                "zero_init=True makes 0; drop one.",
            )
        wanted = {"normalization": "none", "norm_position": "pre"}
        for key, value in wanted.items():
            if getattr(config, key) != value:
                yield Problem(
                    ("residual", key),
                    f"residual='ngpt' normalizes the stream itself and cannot be combined with "
                    f"{key}={getattr(config, key)!r}; use {key}={value!r}.",
                )

    @classmethod
    def idle(cls, config: LayerConfig) -> Iterator[Problem]:
        """Scales of what is scaled to length 1."""
        scales = {"glu_out_scale": config.get("glu_out_scale", 1.0)}
        if config.per_layer_embedding is None:  # which reads the scaled embedding, too
            scales["embedding_scale"] = config.embedding_scale
        for key, scale in scales.items():
            if scale != 1:
                yield Problem(
                    (key, "residual"),
                    f"{key}={scale:g} has no effect with residual='ngpt', which scales the stream "
                    f"and the outputs of sublayers to length 1; drop {key}.",
                )

    def join(self, stream: Tensor, site: int, branch: Branch) -> Tensor:
        h, y = on_sphere(stream), on_sphere(sum(_outputs(branch(stream))))
        return on_sphere(h + self.rates[site]().abs() * (y - h)).to(stream.dtype)


class StreamOptions:
    """The number of streams, for residuals with several."""

    hyper_streams: int = option(
        4, "hyper-connections: number of residual streams", at_least=1, tag="{}Streams"
    )


class SeveralStreams(Residual):
    """Base class of residuals with n streams, mixtures of which each sublayer reads and writes.

    The stream is (B, T, n, C). All n streams start as the embedding; the LM head reads their sum.
    """

    connection: ClassVar[type[Part]]
    """The mixtures of one site, created from the config and the index of the site in the model.
    Called on the streams h (..., n, C), it returns the input of the sublayer (..., C), the mixed
    streams (..., n, C), and the weights of the sublayer's output, (..., n) or (n,)."""

    def __init__(self, config: LayerConfig, sites: int):
        super().__init__(config, sites)
        self.streams = config.hyper_streams
        self.connections = nn.ModuleList(
            self.connection(config, config.index * sites + site) for site in range(sites)
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
    """The mixtures of n streams h (..., n, C) at one site, as in algorithm 1 of the paper.

    [x; h'] = alpha^T h gives the input x of the sublayer and the new streams h'; beta weights the
    sublayer's output for each stream. Both are learned; if dynamic, the tanh of a learned map of
    the normalized streams is added, scaled by a learned scalar that is initialized to 0.01.
    """

    undecayed = ("alpha",)

    def __init__(self, config: LayerConfig, index: int):
        super().__init__()
        self.streams, self.width = n, C = config.hyper_streams, config.n_embd
        keeps = torch.eye(n)
        reads = keeps[:, index % n, None]  # sites cycle through the streams
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
        """Compute x (..., C), h' (..., n, C), and beta (..., n) or (n,)."""
        alpha, beta = self.alpha, self.beta
        if self.dynamic:
            normed = self.norm(h)
            alpha = alpha + self.alpha_scale * torch.tanh(normed @ self.alpha_map)
            beta = beta + self.beta_scale * torch.tanh(normed @ self.beta_map).squeeze(-1)
        x, mixed = _mixtures(alpha, h)
        return x, mixed, beta.to(h.dtype)

    def forward_flops(self, seq_len: int, causal: bool = False) -> int:
        """FLOPs: per token 2 n (n + 1) C for mixing, and 2 n (n + 2) C for dynamic alpha and
        beta."""
        n = self.streams
        columns = n + 1 + (n + 2 if self.dynamic else 0)
        return 2 * n * columns * self.width * seq_len

    def own_backward_flops(self, own: int, flow: GradientFlow) -> int:
        """Dynamic alpha has a gradient besides the streams; learned maps have none."""
        n = self.streams
        mixing = own * (n + 1) // (2 * n + 3) if self.dynamic else 0
        return (own + mixing) * flow.into(self)


@RESIDUALS.register("hyper_connections", label="Hyper", paper="Zhu et al. 2024, arXiv 2409.19606")
class HyperConnections(SeveralStreams):
    """Use n residual streams; each sublayer reads and writes learned mixtures of them."""

    class Options(StreamOptions):
        hyper_dynamic: bool = option(
            True,
            "hyper-connections: mixing weights depend on the token, not only on the layer",
            tag=("StaticHyper", "DynamicHyper"),
        )

    connection = HyperConnection


class ManifoldConnection(Part):
    """The mixtures of n streams h (..., n, C) at one site, limited to those that keep their size.

    With x' = RMSNorm of all n C numbers of a token, without a gain, and learned maps W, scalars a
    and offsets b:

        input of the sublayer   p^T h         p = sigmoid(a_p W_p x' + b_p)
        mixed streams           M^T h         M = Sinkhorn(exp(a_m W_m x' + b_m))
        weights of its output   q             q = 2 sigmoid(a_q W_q x' + b_q)

    The Sinkhorn-Knopp iteration divides rows and columns by their sums in turn, so that M is nearly
    doubly stochastic: mixing can neither amplify nor attenuate the mean of the streams.

    W starts at 0 and a at 0.01. The first offsets are those of mHC-lite (arXiv 2601.05732): M is
    nearly the identity, and p and q are larger for one stream, which cycles over the sites.
    """

    def __init__(self, config: LayerConfig, index: int):
        super().__init__()
        self.streams, self.width = n, C = config.hyper_streams, config.n_embd
        self.steps = config.mhc_steps
        self.sizes = (n, n, n * n)  # of p, q and M
        one = torch.full((n,), -1.0)
        one[index % n] = 1.0
        mixes = (FIRST_MIXING_LOGIT * (1 - torch.eye(n))).flatten()
        self.map = nn.Parameter(torch.zeros(n * (n + 2), n * C))
        self.offset = nn.Parameter(torch.cat((one, one, mixes)))
        self.scale = nn.Parameter(torch.full((3,), 0.01))

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the sublayer's input (..., C), the mixed streams (..., n, C), and q (..., n)."""
        wide = torch.promote_types(h.dtype, self.map.dtype)
        with torch.autocast(h.device.type, enabled=False):
            flat = h.flatten(-2).to(wide)
            made = F.rms_norm(flat, flat.shape[-1:], eps=SINKHORN_EPS) @ self.map.to(wide).T
        made, offsets = made.split(self.sizes, dim=-1), self.offset.split(self.sizes)
        p, q, mixes = (self.scale[i] * made[i] + offsets[i] for i in range(3))
        mixing = doubly_stochastic(mixes.unflatten(-1, (self.streams, -1)), self.steps)
        x, mixed = _mixtures(torch.cat((p.sigmoid().unsqueeze(-1), mixing), dim=-1), h)
        return x, mixed, 2 * q.sigmoid().to(h.dtype)

    def forward_flops(self, seq_len: int, causal: bool = False) -> int:
        """FLOPs: per token 2 n (n + 1) C for mixing, and 2 n^2 (n + 2) C for its weights."""
        n = self.streams
        return 2 * n * (n + 1 + n * (n + 2)) * self.width * seq_len

    def own_backward_flops(self, own: int, flow: GradientFlow) -> int:
        """The mixing weights have a gradient besides the streams; the learned map has none."""
        n = self.streams
        mixing = own * (n + 1) // (n + 1 + n * (n + 2))
        return (own + mixing) * flow.into(self)


def doubly_stochastic(logits: Tensor, steps: int) -> Tensor:
    """Apply Sinkhorn-Knopp steps to exp(logits), (..., n, n): divide rows, then columns by their
    sums. Columns sum to 1, and rows nearly so."""
    matrix = logits.softmax(dim=-1) + SINKHORN_EPS
    for step in range(steps):
        if step:
            matrix = matrix / (matrix.sum(dim=-1, keepdim=True) + SINKHORN_EPS)
        matrix = matrix / (matrix.sum(dim=-2, keepdim=True) + SINKHORN_EPS)
    return matrix


@RESIDUALS.register("mhc", label="mHC", paper="Xie et al. 2025, arXiv 2512.24880")
class ManifoldHyperConnections(SeveralStreams):
    """Hyper-connections whose matrices that mix the streams are doubly stochastic."""

    class Options(StreamOptions):
        mhc_steps: int = option(
            20,
            "mhc: Sinkhorn-Knopp steps that make the mixing matrices doubly stochastic",
            at_least=1,
            at_most=1000,
            tag="Sinkhorn{}",
        )

    connection = ManifoldConnection


@RESIDUALS.register("attention", label="AttnRes", paper="Kimi Team 2026, arXiv 2603.15031")
class AttentionResidual(Residual):
    """Replace sums over depth with softmax attention over the outputs of all earlier sublayers.

    Each sublayer, and the final norm, reads a learned mixture of them and of the embedding. With
    `attn_res_block`, the outputs of that many layers are summed, and a mixture is over the
    embedding, the sums of earlier blocks and the sum so far (the paper's Block AttnRes). Parallel
    sublayers count as one. The first sublayer reads the embedding and needs no query.

    The stream is a tuple of the sources, (B, T, C) each. See `DepthAttention` for the weights.
    """

    class Options:
        attn_res_block: int | None = option(
            None,
            "attention residuals: layers per block, whose outputs are summed; none: every output "
            "is attended to separately",
            at_least=1,
            tag="ResBlock{}",
        )

    normalized = False
    allows_loops = False

    def __init__(self, config: LayerConfig, sites: int):
        super().__init__(config, sites)
        self.width, self.index, self.sites = config.n_embd, config.index, sites
        self.block = config.attn_res_block
        self.starts_block = self.block is not None and config.index % self.block == 0
        first = 1 if config.index == 0 else 0
        self.queries = nn.ModuleDict(
            {str(site): DepthAttention(self.width, 0) for site in range(first, sites)}
        )
        last = config.index == config.n_layer - 1
        self.output = DepthAttention(self.width, 0) if last else None
        self.connect(config.index * sites)

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        if config.get("layer_norm_scaling"):
            yield Problem(
                ("residual", "layer_norm_scaling"),
                "layer_norm_scaling=True compensates for sums that grow with depth, but "
                "residual='attention' computes means; set layer_norm_scaling=False, or use "
                "residual='plain'.",
            )
        if config.mtp != "none":
            yield Problem(
                ("residual", "mtp"),
                f"mtp={config.mtp!r} is not defined for residual='attention', whose last layer "
                "reads the outputs of all layers before it; use mtp='none', or another residual.",
            )

    @classmethod
    def idle(cls, config: LayerConfig) -> Iterator[Problem]:
        block = config.attn_res_block
        if block is not None and block > config.n_layer:
            yield Problem(
                ("attn_res_block", "n_layer"),
                f"attn_res_block={block} is more than n_layer={config.n_layer}, so that all layers "
                f"are one block, as with attn_res_block={config.n_layer}; lower it.",
            )

    def connect(self, sites: int) -> None:
        for name, query in self.queries.items():
            query.sources = self._sources(sites, int(name))
        if self.output is not None:
            self.output.sources = self._sources(sites, self.sites)

    def _sources(self, sites: int, site: int) -> int:
        """The number of sources after this many sites in earlier blocks and in this one."""
        if self.block is None:
            return 1 + sites + site
        started = self.index + (1 if site else 0)
        return 1 + -(-started // self.block)

    def begin(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x,)

    def end(self, stream: tuple[Tensor, ...]) -> Tensor:
        return stream[-1]

    def join(self, stream: tuple[Tensor, ...], site: int, branch: Branch) -> tuple[Tensor, ...]:
        name = str(site)
        x = self.queries[name](*stream) if name in self.queries else stream[0]
        y = sum(_outputs(branch(x))).to(x.dtype)
        if self.block is None or (self.starts_block and site == 0):
            return *stream, y
        return *stream[:-1], stream[-1] + y

    def leave(self, stream: tuple[Tensor, ...], context: Context) -> tuple[Tensor, ...]:
        return stream if self.output is None else (self.output(*stream),)


def _mixtures(alpha: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """alpha^T h for alpha (..., n, n + 1) and h (..., n, C): its first row (..., C), and the others
    (..., n, C)."""
    with torch.autocast(h.device.type, enabled=False):  # autocast would round the stream
        mixed = alpha.transpose(-2, -1).to(h.dtype) @ h
    return mixed[..., 0, :], mixed[..., 1:, :]


def _outputs(made: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The outputs of a branch as a tuple."""
    return made if isinstance(made, tuple) else (made,)
