"""Multi-token prediction: modules that predict tokens after the next one during training, `mtp`.

Module k = 1, ..., D predicts token i + k + 1 at position i. Its loss is the mean cross-entropy over
the positions that have such a token, and the training loss increases by mtp_weight/D times the sum
of these losses. Only training computes the modules; validation and decoding use the main model
alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from components.blocks import BLOCKS
from components.context import LayerInputs, LayerOutputs
from components.head import IGNORED
from components.layer_config import LayerConfig
from components.norms import make_norm
from components.part import Part
from components.registry import Registry
from errors import Problem
from options import option


class ModuleInputs(NamedTuple):
    """What a module may read.

    Attributes:
        hidden: What the LM head reads of the previous module, or of the main model for the first
            one, (B, T, C).
        embedded: Embeddings of the tokens k positions later (B, T, C), if it reads them.
        trunk: The residual stream before the last layer of the main model.
    """

    hidden: Tensor
    embedded: Tensor | None
    trunk: Tensor


class MultiTokenModule(Part):
    """Base class of the modules that predict one more token, created from the config of the last
    layer: a transformer block with the parts of that layer, and a norm before the LM head.

    The block reads the same tensors of earlier layers as the last layer, such as shared keys and
    values. The LM head is that of the main model.
    """

    class Options:
        mtp_depth: int = option(
            1, "number of tokens predicted after the next one", at_least=1, tag="Depth{}"
        )
        mtp_weight: float = option(
            0.3,
            "weight of the mean loss of these tokens in the training loss",
            above=0,
            tag="MTPWeight{}",
        )

    reads_later_tokens: ClassVar[bool] = False
    """Whether module k reads token i + k at position i."""

    def __init__(self, config: LayerConfig):
        super().__init__()
        kind = BLOCKS[config.norm_position]
        self.block = kind(config)
        self.norm = make_norm(config) if kind.final_norm else nn.Identity()
        self.head_flops = 2 * config.n_embd * config.vocab_size

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        if config.mtp_depth >= config.block_size:
            yield Problem(
                ("mtp_depth", "block_size"),
                f"mtp_depth={config.mtp_depth} leaves no token to predict in sequences of "
                f"block_size={config.block_size}; lower mtp_depth, or raise block_size.",
            )
        if config.sphere_weights:
            yield Problem(
                ("sphere_weights", "mtp"),
                f"sphere_weights=True is not defined for mtp={config.mtp!r}; change one.",
            )

    def forward(self, given: ModuleInputs, inputs: LayerInputs) -> tuple[Tensor, LayerOutputs]:
        """The input of the LM head, (B, T, C), and the other outputs of the block.

        Args:
            given: What the module may read.
            inputs: The inputs of the block besides the stream.
        """
        stream, outputs = self.block(self.begin(given), inputs)
        return self.norm(self.block.residual.end(stream)), outputs

    def begin(self, given: ModuleInputs) -> Tensor:
        """The residual stream before the block."""
        raise NotImplementedError

    def forward_flops(self, seq_len: int, causal: bool = False) -> int:
        """Includes the LM head."""
        return self.children_flops(seq_len, causal) + self.head_flops * seq_len


MTPS = Registry("mtp", "Multi-token prediction", variable="MTPS", base=MultiTokenModule)


@MTPS.register("sequential", label="MTP", paper="DeepSeek-AI 2024 (DeepSeek-V3), arXiv 2412.19437")
class SequentialModule(MultiTokenModule):
    """Predict each further token from the previous module's output and the token before it.

    With h^0 of the main model, module k = 1, ..., D computes at position i

        h^k_i = norm(block(M_k [norm(h^{k-1})_i; norm(E[t_{i+k}])]))

    with norms of its own, a projection M_k from 2C to C, and the embedding E of the main model
    (section 2.2 of the paper). h is what the LM head reads, after the norm.

    Each module costs 4 C^2 + 2 C V forward FLOPs per token plus those of a block. Parts of the
    block may add losses of their own, such as a balance loss.
    """

    reads_later_tokens = True

    def __init__(self, config: LayerConfig):
        super().__init__(config)
        self.hidden_norm = make_norm(config)
        self.embedding_norm = make_norm(config)
        self.projection = nn.Linear(2 * config.n_embd, config.n_embd, bias=False)

    def begin(self, given: ModuleInputs) -> Tensor:
        both = self.hidden_norm(given.hidden), self.embedding_norm(given.embedded)
        return self.block.residual.begin(self.projection(torch.cat(both, dim=-1)))


@MTPS.register("parallel", label="ParallelMTP", paper="Gloeckle et al. 2024, arXiv 2404.19737")
class ParallelModule(MultiTokenModule):
    """Predict each further token from the input of the last layer, independently of the others.

    Module k computes norm(block(z)), where z is the residual stream before the last layer; the
    paper calls that layer the head for the next token. The paper gives all D + 1 tokens the same
    weight, which corresponds to mtp_weight = D, and removes D layers to keep the number of
    parameters constant.

    Each module costs 2 C V forward FLOPs per token plus those of a block.
    """

    def begin(self, given: ModuleInputs) -> Tensor:
        return given.trunk


def later(tokens: Tensor, by: int) -> Tensor:
    """The token `by` positions later for each of the tokens (B, T); the last token is repeated."""
    return torch.cat((tokens[:, by:], tokens[:, -1:].expand(-1, by)), dim=1)


def later_targets(targets: Tensor, by: int) -> Tensor:
    """Like `later` for targets (B, T); those beyond the sequence are IGNORED."""
    return torch.cat((targets[:, by:], torch.full_like(targets[:, :by], IGNORED)), dim=1)
