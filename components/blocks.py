"""Blocks by placement of the norms: `norm_position`. A part is created from its layer's config."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from components.canon import CanonOptions, canon_at, canon_problems, idle_canon
from components.context import Context, LayerInputs, LayerOutputs, State
from components.ffns import FFNS
from components.layer_config import LayerConfig
from components.mixers import MIXERS
from components.norms import make_norm
from components.part import Part
from components.registry import Registry
from components.residuals import RESIDUALS
from components.sublayer import Sublayer
from components.tensor_split import TensorSplit, split_of
from components.token_shift import TokenShiftOptions, shift_before
from errors import Problem
from options import option


class Block(Part):
    """A mixer and a feed-forward network, each added to the residual stream.

    Each of them may be preceded by other sublayers, which are not added: a token shift, then a
    Canon layer.
    """

    class Options(CanonOptions, TokenShiftOptions):
        pass

    norm_names: ClassVar[tuple[str, ...]]
    """Names of the norms to create, in order."""
    sites: ClassVar[int] = 2
    """Number of places at which sublayers are added to the stream."""
    final_norm: ClassVar[bool] = True
    """Whether the output needs a norm before the LM head."""
    scales_with_width = True

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.residual = RESIDUALS[config.residual](config, self.sites)
        self.mixer = MIXERS[config.mixer](config)
        self.ffn = FFNS[config.ffn_type](config)
        self.before_mixer = _existing(
            shift_mixer=shift_before("mixer", config),
            canon_a=canon_at("a", config.n_embd, config),
        )
        self.before_ffn = _existing(
            shift_ffn=shift_before("ffn", config),
            canon_c=canon_at("c", config.n_embd, config),
        )
        for name in self.norm_names:
            self.add_module(name, make_norm(config))

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        parts = {"mixer": MIXERS[config.mixer], "ffn_type": FFNS[config.ffn_type]}
        yield from canon_problems(config, parts)

    @classmethod
    def idle(cls, config: LayerConfig) -> Iterator[Problem]:
        yield from idle_canon(config)

    def forward(self, stream: Tensor, inputs: LayerInputs) -> tuple[Tensor, LayerOutputs]:
        """The residual stream after this layer, and the layer's other outputs."""
        context = Context(inputs)
        stream = self.residual.enter(stream, context)
        stream = self.joined(stream, context)
        stream = self.residual.leave(stream, context)
        return stream, context.outputs

    def joined(self, stream: Tensor, context: Context) -> Tensor:
        """The stream after adding the outputs of `mix` and `feed`."""
        raise NotImplementedError

    def mix(self, x: Tensor, context: Context) -> Tensor:
        """Apply the mixer, and what precedes it, to x (B, T, C)."""
        for name, part in self.before_mixer.items():
            x = part(x, context.of(name))
        return self.mixer(x, context.of("mixer"))

    def feed(self, x: Tensor, context: Context) -> Tensor:
        """Apply the feed-forward network, and what precedes it, to x (B, T, C)."""
        for name, part in self.before_ffn.items():
            x = part(x, context.of(name))
        return self.ffn(x, context.of("ffn"))

    @property
    def sublayers(self) -> dict[str, Sublayer]:
        """The mixer, the feed-forward network, and what precedes them, by name."""
        return {"mixer": self.mixer, "ffn": self.ffn, **self.before_mixer, **self.before_ffn}

    @property
    def takes(self) -> set[str]:
        """Names of the tensors of earlier layers that the block's parts read."""
        return {name for part in (self.residual, *self.sublayers.values()) for name in part.takes}

    def connect(self, given: Collection[str]) -> set[str]:
        """Tell the parts which names earlier layers give; returns the names that this one gives."""
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

    def __init__(self, config: LayerConfig):
        super().__init__(config)
        self.norm_scale = (config.index + 1) ** -0.5 if config.layer_norm_scaling else 1.0

    def joined(self, stream: Tensor, context: Context) -> Tensor:
        def mix(x: Tensor) -> Tensor:
            return self.mix(self._scaled(self.mixer_norm(x)), context)

        def feed(x: Tensor) -> Tensor:
            return self.feed(self._scaled(self.ffn_norm(x)), context)

        return self.residual.join(self.residual.join(stream, 0, mix), 1, feed)

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.norm_scale == 1 else x * self.norm_scale


@BLOCKS.register("post", label="PostNorm", paper="Vaswani et al. 2017, arXiv 1706.03762")
class PostNormBlock(Block):
    """Normalize the stream after each addition: norm(x + f(x)); no norm before the LM head."""

    norm_names = ("mixer_norm", "ffn_norm")
    final_norm = False

    def joined(self, stream: Tensor, context: Context) -> Tensor:
        stream = self.residual.join(stream, 0, lambda x: self.mix(x, context))
        stream = self.mixer_norm(stream)
        stream = self.residual.join(stream, 1, lambda x: self.feed(x, context))
        return self.ffn_norm(stream)


@BLOCKS.register(
    "res_post", label="ResPostNorm", paper="Liu et al. 2021 (Swin V2), arXiv 2111.09883"
)
class ResidualPostNormBlock(Block):
    """Normalize the output of each sublayer, not its input: x + norm(f(x)), as in OLMo 2."""

    norm_names = ("mixer_norm", "ffn_norm")

    def joined(self, stream: Tensor, context: Context) -> Tensor:
        stream = self.residual.join(stream, 0, lambda x: self.mixer_norm(self.mix(x, context)))
        return self.residual.join(stream, 1, lambda x: self.ffn_norm(self.feed(x, context)))


@BLOCKS.register("sandwich", label="Sandwich", paper="Ding et al. 2021 (CogView), arXiv 2105.13290")
class SandwichNormBlock(Block):
    """Normalize the input and output of each sublayer: x + norm(f(norm(x))), as in Gemma 2."""

    norm_names = ("mixer_norm", "mixer_out_norm", "ffn_norm", "ffn_out_norm")

    def joined(self, stream: Tensor, context: Context) -> Tensor:
        stream = self.residual.join(
            stream, 0, lambda x: self.mixer_out_norm(self.mix(self.mixer_norm(x), context))
        )
        return self.residual.join(
            stream, 1, lambda x: self.ffn_out_norm(self.feed(self.ffn_norm(x), context))
        )


@BLOCKS.register(
    "parallel", label="Parallel", paper="Black et al. 2022 (GPT-NeoX-20B), arXiv 2204.06745"
)
class ParallelBlock(Block):
    """Mixer and FFN in parallel, each with a norm: x + f(norm(x)) + g(norm(x)), as in GPT-NeoX."""

    norm_names = ("mixer_norm", "ffn_norm")
    sites = 1

    def joined(self, stream: Tensor, context: Context) -> Tensor:
        def both(x: Tensor) -> tuple[Tensor, Tensor]:
            return self.mix(self.mixer_norm(x), context), self.feed(self.ffn_norm(x), context)

        return self.residual.join(stream, 0, both)


@BLOCKS.register(
    "parallel_shared", label="ParallelShared", paper="Wang and Komatsuzaki 2021 (GPT-J)"
)
class SharedNormParallelBlock(Block):
    """Mixer and FFN in parallel with a shared norm: x + f(norm(x)) + g(norm(x)), as in GPT-J."""

    norm_names = ("norm",)
    sites = 1

    def joined(self, stream: Tensor, context: Context) -> Tensor:
        def both(x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.norm(x)
            return self.mix(x, context), self.feed(x, context)

        return self.residual.join(stream, 0, both)
