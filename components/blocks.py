"""Where a block normalises: `norm_position`. A part is made with the config of its layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from components.attention import Attention, KeyValueCache
from components.ffns import FFNS
from components.layer_config import LayerConfig
from components.norms import make_norm
from components.part import Part
from components.positions import PositionEncoding
from components.registry import Registry


class Block(Part):
    """Attention and a feed-forward network, each added to the residual stream."""

    norm_names: ClassVar[tuple[str, ...]]
    """The norms it makes, in order."""
    final_norm: ClassVar[bool] = True
    """Whether the stream it leaves wants a norm before the output head."""

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.attention = Attention(config)
        self.ffn = FFNS[config.ffn_type](config)
        for name in self.norm_names:
            self.add_module(name, make_norm(config))

    def forward(
        self,
        x: Tensor,
        positions: PositionEncoding,
        bias: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """x (B, T, C) to (B, T, C); see `Attention.forward`."""

        def attend(h: Tensor) -> Tensor:
            return self.attention(h, positions, bias, cache)

        return self.joined(x, attend)

    def joined(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """The stream x (B, T, C) with what the attention `attend` and `self.ffn` make of it."""
        raise NotImplementedError


BLOCKS = Registry("norm_position", "Norm position", variable="BLOCKS", base=Block)


@BLOCKS.register("pre", label="PreNorm", paper="Radford et al. 2019; Xiong et al. 2020, 2002.04745")
class PreNormBlock(Block):
    """Normalise what each sublayer reads: x + f(norm(x))."""

    norm_names = ("attention_norm", "ffn_norm")

    def joined(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        x = x + attend(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))


@BLOCKS.register("post", label="PostNorm", paper="Vaswani et al. 2017, arXiv 1706.03762")
class PostNormBlock(Block):
    """Normalise the stream after each addition: norm(x + f(x)); no norm before the head."""

    norm_names = ("attention_norm", "ffn_norm")
    final_norm = False

    def joined(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        x = self.attention_norm(x + attend(x))
        return self.ffn_norm(x + self.ffn(x))


@BLOCKS.register(
    "res_post", label="ResPostNorm", paper="Liu et al. 2021 (Swin V2), arXiv 2111.09883"
)
class ResidualPostNormBlock(Block):
    """Normalise what each sublayer adds, not what it reads: x + norm(f(x)), as OLMo 2."""

    norm_names = ("attention_norm", "ffn_norm")

    def joined(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        x = x + self.attention_norm(attend(x))
        return x + self.ffn_norm(self.ffn(x))


@BLOCKS.register("sandwich", label="Sandwich", paper="Ding et al. 2021 (CogView), arXiv 2105.13290")
class SandwichNormBlock(Block):
    """Normalise what each sublayer reads and what it adds: x + norm(f(norm(x))), as Gemma 2."""

    norm_names = ("attention_norm", "attention_out_norm", "ffn_norm", "ffn_out_norm")

    def joined(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        attended = attend(self.attention_norm(x))
        x = x + self.attention_out_norm(attended)
        return x + self.ffn_out_norm(self.ffn(self.ffn_norm(x)))


@BLOCKS.register(
    "parallel", label="Parallel", paper="Black et al. 2022 (GPT-NeoX-20B), arXiv 2204.06745"
)
class ParallelBlock(Block):
    """Attention and network side by side, a norm each: x + f(norm(x)) + g(norm(x)), as GPT-NeoX."""

    norm_names = ("attention_norm", "ffn_norm")

    def joined(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        attended = attend(self.attention_norm(x))
        return x + attended + self.ffn(self.ffn_norm(x))


@BLOCKS.register(
    "parallel_shared", label="ParallelShared", paper="Wang and Komatsuzaki 2021 (GPT-J)"
)
class SharedNormParallelBlock(Block):
    """Attention and network side by side behind one norm: x + f(norm(x)) + g(norm(x)), as GPT-J."""

    norm_names = ("norm",)

    def joined(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        normed = self.norm(x)
        return x + attend(normed) + self.ffn(normed)
