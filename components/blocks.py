"""Blocks by placement of the norms: `norm_position`. A part is created from its layer's config."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from components.canon import CanonOptions, canon_at, canon_problems, idle_canon
from components.context import Context, LayerInputs, LayerOutputs, State
from components.engram import EngramOptions, engram, engram_problems, idle_engram
from components.ffns import FFNS
from components.layer_config import LayerConfig
from components.mixers import MIXERS
from components.norms import make_norm
from components.part import Part
from components.per_layer_embedding import (
    PerLayerEmbeddingOptions,
    idle_per_layer_embedding,
    per_layer_embedding,
    per_layer_embedding_problems,
)
from components.registry import Registry, is_users_own
from components.residuals import RESIDUALS, Branch, Stream
from components.sublayer import Sublayer
from components.tensor_split import TensorSplit, split_of
from components.token_shift import TokenShiftOptions, shift_before
from errors import Problem, UserError
from options import option


class Block(Part):
    """A mixer and a feed-forward network, each added to the residual stream.

    Each of them may be preceded by other sublayers, which are not added: a token shift, then a
    Canon layer. A layer with `mixer=none` or `ffn_type=none` lacks that sublayer and its norms.
    N-gram embeddings may be added before the sublayers, and a per-layer token embedding after them.
    """

    class Options(CanonOptions, TokenShiftOptions, EngramOptions, PerLayerEmbeddingOptions):
        pass

    norm_names: ClassVar[tuple[str, ...]]
    """Names of the norms to create, in order. Those that start with `mixer` or `ffn` belong to that
    sublayer: without it, they are identities."""
    sites: ClassVar[int] = 2
    """Number of places at which sublayers are added to the stream, if the layer has both."""
    final_norm: ClassVar[bool] = True
    """Whether the output needs a norm before the LM head."""
    normalizes_stream: ClassVar[bool] = False
    """Whether norms are applied to the residual stream, not only to inputs and outputs."""
    scales_with_width = True

    def __init__(self, config: LayerConfig):
        super().__init__()
        chosen = _chosen(config)
        self.present = tuple(name for name, part in chosen.items() if part is not None)
        self.first = _existing(engram=engram(config))
        self.last = _existing(per_layer_embedding=per_layer_embedding(config))
        sites = min(self.sites, len(self.present))
        # Sites are numbered in the order in which the stream passes them.
        self.first_site = len(self.first)
        after = self.first_site + sites
        self.own_sites = after + len(self.last)
        firsts, lasts = enumerate(self.first), enumerate(self.last, start=after)
        self.added_at = {name: site for site, name in (*firsts, *lasts)}
        self.residual = RESIDUALS[config.residual](config, self.own_sites)
        self.mixer = None if chosen["mixer"] is None else chosen["mixer"](config)
        self.ffn = None if chosen["ffn"] is None else chosen["ffn"](config)
        self.before_mixer = _existing(
            shift_mixer=shift_before("mixer", config),
            canon_a=canon_at("a", config.n_embd, config),
        )
        self.before_ffn = _existing(
            shift_ffn=shift_before("ffn", config),
            canon_c=canon_at("c", config.n_embd, config),
        )
        for name in self.norm_names:
            lacking = name.startswith(tuple(_KEYS)) and not name.startswith(self.present)
            self.add_module(name, nn.Identity() if lacking else make_norm(config))

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        parts = _chosen(config)
        absent = [name for name, part in parts.items() if part is None]
        if len(absent) == len(parts):
            yield Problem(
                ("mixer", "ffn_type"),
                "mixer='none' with ffn_type='none' leaves the layer without any sublayer; use "
                "another mixer or ffn_type.",
            )
        for name in absent:
            if config.token_shift in (name, "both"):
                yield Problem(
                    ("token_shift", _KEYS[name]),
                    f"token_shift={config.token_shift!r} shifts the input of the {name}, but "
                    f"{_KEYS[name]}='none'; use another token_shift, or another {_KEYS[name]}.",
                )
        yield from engram_problems(config)
        if config.engram and is_users_own(cls) and config.residual != "plain":
            yield Problem(
                ("engram", "norm_position", "residual"),
                f"engram=True with residual={config.residual!r} changes the places at which "
                f"sublayers are added, which norm_position={config.norm_position!r} may number "
                "itself; use residual='plain', or a built-in norm_position.",
            )
        yield from per_layer_embedding_problems(config, cls.final_norm)
        yield from canon_problems(config, {_KEYS[name]: part for name, part in parts.items()})
        if cls.normalizes_stream and not RESIDUALS[config.residual].normalized:
            others = (name for name in BLOCKS.names if not BLOCKS[name].normalizes_stream)
            yield Problem(
                ("residual", "norm_position"),
                f"norm_position={config.norm_position!r} normalizes the residual stream, which "
                f"residual={config.residual!r} does not have; use "
                f"norm_position={' or '.join(map(repr, others))}.",
            )

    @classmethod
    def idle(cls, config: LayerConfig) -> Iterator[Problem]:
        absent = next((key for key in _KEYS.values() if getattr(config, key) == "none"), None)
        if absent is not None and cls.sites == 1:
            yield Problem(
                ("norm_position", absent),
                f"norm_position={config.norm_position!r} has no effect with {absent}='none': only "
                "a mixer and an FFN can be parallel; use norm_position='pre'.",
            )
        alone = cls.sites == 1 or config.norm_position == "pre" or is_users_own(cls)
        if config.normalization == "none" and not alone:
            yield Problem(
                ("norm_position", "normalization"),
                f"norm_position={config.norm_position!r} has no effect with "
                "normalization='none', which leaves no norms to place; use norm_position='pre'.",
            )
        yield from idle_canon(config)
        yield from idle_engram(config)
        yield from idle_per_layer_embedding(config)

    @classmethod
    def idle_among(cls, config: LayerConfig, layers: Sequence[LayerConfig]) -> Iterator[Problem]:
        if config.embedding_norm and layers[0].normalization == "none":
            yield Problem(
                ("embedding_norm", "normalization"),
                "embedding_norm=True has no effect: it is a norm of the first layer, which has "
                "normalization='none'; drop it, or use another normalization there.",
            )

    def forward(self, stream: Stream, inputs: LayerInputs) -> tuple[Stream, LayerOutputs]:
        """The residual stream after this layer, and the layer's other outputs."""
        context = Context(inputs)
        stream = self.residual.enter(stream, context)
        stream = self._with(self.first, stream, context)
        stream = self.joined(stream, context)
        stream = self._with(self.last, stream, context)
        stream = self.residual.leave(stream, context)
        return stream, context.outputs

    def joined(self, stream: Stream, context: Context) -> Stream:
        """The stream after adding the outputs of `mix` and `feed`."""
        raise NotImplementedError

    def _with(self, parts: nn.ModuleDict, stream: Stream, context: Context) -> Stream:
        """The stream after adding the outputs of parts that have no norm in the block."""
        for name, part in parts.items():
            branch = partial(part, context=context.of(name))
            stream = self.residual.join(stream, self.added_at[name], branch)
        return stream

    def add(self, name: str, stream: Stream, branch: Branch) -> Stream:
        """The stream after adding the output of a branch with the sublayer `mixer` or `ffn`;
        unchanged if the layer lacks it."""
        if name not in self.present:
            return stream
        return self.residual.join(stream, self.first_site + self.present.index(name), branch)

    def mix(self, x: Tensor, context: Context) -> Tensor:
        """Apply the mixer, and what precedes it, to x (B, T, C)."""
        for name, part in self.before_mixer.items():
            x = part(x, context.of(name))
        return self._own("mixer")(x, context.of("mixer"))

    def feed(self, x: Tensor, context: Context) -> Tensor:
        """Apply the feed-forward network, and what precedes it, to x (B, T, C)."""
        for name, part in self.before_ffn.items():
            x = part(x, context.of(name))
        return self._own("ffn")(x, context.of("ffn"))

    def _own(self, name: str) -> Sublayer:
        part = getattr(self, name)
        if part is None:
            raise UserError(
                f"{type(self).__name__} runs the {name} of a layer with {_KEYS[name]}='none'; use "
                f"self.add({name!r}, stream, branch) in its `joined`, not self.residual.join."
            )
        return part

    def outputs(self, mixed: Tensor, fed: Tensor, context: Context) -> tuple[Tensor, ...]:
        """The outputs of mixer and FFN, given the input of each (B, T, C); only of those that the
        layer has."""
        own = (self.mix, mixed), (self.feed, fed)
        both = zip(_KEYS, own, strict=True)
        return tuple(apply(x, context) for name, (apply, x) in both if name in self.present)

    @property
    def sublayers(self) -> dict[str, Sublayer]:
        """The mixer, the feed-forward network, what precedes them, and what else is added to the
        stream, by name."""
        own = {name: getattr(self, name) for name in self.present}
        return {**own, **self.before_mixer, **self.before_ffn, **self.first, **self.last}

    @property
    def takes(self) -> set[str]:
        """Names of the tensors of earlier layers that the block's parts read."""
        return {name for part in (self.residual, *self.sublayers.values()) for name in part.takes}

    def connect(self, given: Collection[str], sites: int = 0) -> set[str]:
        """Tell the parts which names earlier layers give, and how many sites they have; returns the
        names that this one gives."""
        self.residual.connect(sites)
        for part in self.sublayers.values():
            part.connect(given)
        return {name for part in (self.residual, *self.sublayers.values()) for name in part.gives}

    def split(self, over: TensorSplit) -> set[str]:
        """Split the sublayers over workers; see `Sublayer.split`.

        Returns:
            The class names of the sublayers that cannot be split.
        """
        return {
            type(part).__name__
            for part in self.sublayers.values()
            if not (split := split_of(part)) or not split(over)
        }

    def new_states(
        self, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> dict[str, State]:
        """The decoding state of each sublayer; see `Sublayer.new_state`."""
        return {
            name: part.new_state(batch, capacity, device=device, dtype=dtype)
            for name, part in self.sublayers.items()
        }

    def after_step(self, metrics: Mapping[str, Mapping[str, Tensor]], good: Tensor) -> None:
        """Pass the metrics to the sublayers; see `Sublayer.after_step`."""
        for name, part in self.sublayers.items():
            part.after_step(metrics.get(name, {}), good)


_KEYS = {"mixer": "mixer", "ffn": "ffn_type"}
"""The keys that choose the sublayers."""


def _chosen(config: LayerConfig) -> dict[str, type[Sublayer] | None]:
    """The classes of a layer's mixer and FFN, by name; None for one that it lacks."""
    return {
        "mixer": None if config.mixer == "none" else MIXERS[config.mixer],
        "ffn": None if config.ffn_type == "none" else FFNS[config.ffn_type],
    }


def _existing(**parts: Sublayer | None) -> nn.ModuleDict:
    """The sublayers that are not None, by name."""
    return nn.ModuleDict({name: part for name, part in parts.items() if part is not None})


BLOCKS = Registry("norm_position", "Norm position", variable="BLOCKS", base=Block)


@BLOCKS.register(
    "pre", label="PreNorm", paper="Radford et al. 2019; Xiong et al. 2020, arXiv 2002.04745"
)
class PreNormBlock(Block):
    """Normalize the input of each sublayer: x + f(norm(x)).

    `layer_norm_scaling` divides the norms of layer l = 1, 2, ... by sqrt(l), so that the variance
    of the stream grows less with depth (Sun et al. 2025, arXiv 2502.05795).
    """

    norm_names = ("mixer_norm", "ffn_norm")

    class Options:
        layer_norm_scaling: bool = option(
            False,
            "divide the norms of layer l = 1, 2, ... by sqrt(l)",
            tag=("NoLNS", "LNS"),
        )

    @classmethod
    def idle(cls, config: LayerConfig) -> Iterator[Problem]:
        yield from super().idle(config)
        if config.layer_norm_scaling and config.n_layer == 1:
            yield Problem(
                ("layer_norm_scaling", "n_layer"),
                "layer_norm_scaling=True has no effect with n_layer=1: it divides the norms of the "
                "first layer by 1; raise n_layer, or drop it.",
            )

    def __init__(self, config: LayerConfig):
        super().__init__(config)
        self.norm_scale = (config.index + 1) ** -0.5 if config.layer_norm_scaling else 1.0

    def joined(self, stream: Stream, context: Context) -> Stream:
        def mix(x: Tensor) -> Tensor:
            return self.mix(self._scaled(self.mixer_norm(x)), context)

        def feed(x: Tensor) -> Tensor:
            return self.feed(self._scaled(self.ffn_norm(x)), context)

        return self.add("ffn", self.add("mixer", stream, mix), feed)

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.norm_scale == 1 else x * self.norm_scale


@BLOCKS.register("post", label="PostNorm", paper="Vaswani et al. 2017, arXiv 1706.03762")
class PostNormBlock(Block):
    """Normalize the stream after each addition: norm(x + f(x)); no norm before the LM head."""

    norm_names = ("mixer_norm", "ffn_norm")
    final_norm = False
    normalizes_stream = True

    def joined(self, stream: Stream, context: Context) -> Stream:
        stream = self.add("mixer", stream, lambda x: self.mix(x, context))
        stream = self.mixer_norm(stream)
        stream = self.add("ffn", stream, lambda x: self.feed(x, context))
        return self.ffn_norm(stream)


@BLOCKS.register(
    "res_post", label="ResPostNorm", paper="Liu et al. 2021 (Swin V2), arXiv 2111.09883"
)
class ResidualPostNormBlock(Block):
    """Normalize the output of each sublayer, not its input: x + norm(f(x)), as in OLMo 2."""

    norm_names = ("mixer_norm", "ffn_norm")

    def joined(self, stream: Stream, context: Context) -> Stream:
        stream = self.add("mixer", stream, lambda x: self.mixer_norm(self.mix(x, context)))
        return self.add("ffn", stream, lambda x: self.ffn_norm(self.feed(x, context)))


@BLOCKS.register("sandwich", label="Sandwich", paper="Ding et al. 2021 (CogView), arXiv 2105.13290")
class SandwichNormBlock(Block):
    """Normalize the input and output of each sublayer: x + norm(f(norm(x))), as in Gemma 2."""

    norm_names = ("mixer_norm", "mixer_out_norm", "ffn_norm", "ffn_out_norm")

    def joined(self, stream: Stream, context: Context) -> Stream:
        stream = self.add(
            "mixer", stream, lambda x: self.mixer_out_norm(self.mix(self.mixer_norm(x), context))
        )
        return self.add(
            "ffn", stream, lambda x: self.ffn_out_norm(self.feed(self.ffn_norm(x), context))
        )


@BLOCKS.register(
    "parallel", label="Parallel", paper="Black et al. 2022 (GPT-NeoX-20B), arXiv 2204.06745"
)
class ParallelBlock(Block):
    """Mixer and FFN in parallel, each with a norm: x + f(norm(x)) + g(norm(x)), as in GPT-NeoX."""

    norm_names = ("mixer_norm", "ffn_norm")
    sites = 1

    def joined(self, stream: Stream, context: Context) -> Stream:
        def both(x: Tensor) -> tuple[Tensor, ...]:
            return self.outputs(self.mixer_norm(x), self.ffn_norm(x), context)

        return self.residual.join(stream, self.first_site, both)


@BLOCKS.register(
    "parallel_shared", label="ParallelShared", paper="Wang and Komatsuzaki 2021 (GPT-J)"
)
class SharedNormParallelBlock(Block):
    """Mixer and FFN in parallel with a shared norm: x + f(norm(x)) + g(norm(x)), as in GPT-J."""

    norm_names = ("norm",)
    sites = 1

    def joined(self, stream: Stream, context: Context) -> Stream:
        def both(x: Tensor) -> tuple[Tensor, ...]:
            x = self.norm(x)
            return self.outputs(x, x, context)

        return self.residual.join(stream, self.first_site, both)
