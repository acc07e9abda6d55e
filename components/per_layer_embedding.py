"""Per-layer embeddings: a small embedding of the token, added in each layer through a gate."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.context import TOKEN_EMBEDDING, Context
from components.layer_config import LayerConfig
from components.norms import NORMS, make_norm
from components.sublayer import Sublayer
from errors import Problem
from options import Role, Section

_section = Section("Embeddings in the layers", Role.ARCHITECTURE)


class PerLayerEmbeddingOptions:
    """Options of the blocks that add an embedding of the token."""

    per_layer_embedding: int | None = _section.option(
        None,
        "width of the layer's own token embedding, added after its sublayers; none: no such "
        "embedding",
        at_least=1,
        per_layer=True,
        tag="PLE{}",
    )
    per_layer_vocab_size: int | None = _section.option(
        None,
        "number of tokens with a per-layer embedding of their own; others use that of token 0; "
        "none: vocab_size",
        at_least=1,
        tag="PLEVocab{}",
    )


class PerLayerEmbedding(Sublayer):
    """Add norm(W_o (gelu(W_g x) * e)), with an embedding e of the token that the layer owns.

    With the token embedding x_0 of the model, e = (norm(W_p x_0 / sqrt(C)) + sqrt(P) E[token]) /
    sqrt(2), where the table E has P = `per_layer_embedding` columns (Gemma 4's layer; Gemma 3n adds
    the same to the other streams of AltUp). gelu is the tanh approximation. The norms are those of
    the layer. In Gemma, all layers share the gain of the norm in e; here each has its own. Biases
    follow `bias`; Gemma has none.

    A look-up costs no FLOPs; the projections cost 6 C P per token.
    """

    takes = (TOKEN_EMBEDDING,)
    residual_projections = ("out",)

    def __init__(self, config: LayerConfig):
        super().__init__()
        C, P = config.n_embd, config.per_layer_embedding
        self.table = nn.Embedding(config.per_layer_vocab_size or config.vocab_size, P)
        self.projection = nn.Linear(C, P, bias=config.bias)
        self.projection_norm = NORMS[config.normalization](P, config)
        self.gate = nn.Linear(C, P, bias=config.bias)
        self.out = nn.Linear(P, C, bias=config.bias)
        self.out_norm = make_norm(config)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        hidden = F.gelu(self.gate(x), approximate="tanh")
        return self.out_norm(self.out(hidden * self.embedding(context).to(hidden.dtype)))

    def embedding(self, context: Context) -> Tensor:
        """The embeddings e (B, T, P) of the tokens."""
        tokens = context.tokens
        known = torch.where(tokens < self.table.num_embeddings, tokens, 0)
        first = context.take(TOKEN_EMBEDDING)
        projected = self.projection_norm(self.projection(first) * first.shape[-1] ** -0.5)
        looked_up = self.table(known) * self.table.embedding_dim**0.5
        return (projected + looked_up) * 2**-0.5


def per_layer_embedding(config: LayerConfig) -> PerLayerEmbedding | None:
    """The per-layer embedding of a layer, or None."""
    return PerLayerEmbedding(config) if config.per_layer_embedding else None


def per_layer_embedding_problems(config: LayerConfig, final_norm: bool) -> Iterator[Problem]:
    """Yield problems with a layer's embedding; `final_norm`: whether the stream is normalized after
    the last block."""
    if (config.per_layer_vocab_size or 0) > config.vocab_size:
        yield Problem(
            ("per_layer_vocab_size", "vocab_size"),
            f"per_layer_vocab_size={config.per_layer_vocab_size} is more than "
            f"vocab_size={config.vocab_size}; lower it, or drop it.",
        )
    if config.per_layer_embedding and not final_norm:
        yield Problem(
            ("per_layer_embedding", "norm_position"),
            f"norm_position={config.norm_position!r} ends a layer with the norm of the stream, "
            f"after which per_layer_embedding={config.per_layer_embedding} would be added; use "
            "another norm_position, or drop per_layer_embedding.",
        )


def idle_per_layer_embedding(config: LayerConfig) -> Iterator[Problem]:
    """Yield the problem if `per_layer_vocab_size` has no effect."""
    if config.per_layer_embedding is None and config.per_layer_vocab_size is not None:
        yield Problem(
            ("per_layer_vocab_size", "per_layer_embedding"),
            f"per_layer_vocab_size={config.per_layer_vocab_size} has no effect without "
            "per_layer_embedding; set it, or drop per_layer_vocab_size.",
        )
