"""Value embeddings: a vector per token of the vocabulary, added to the values of attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.layer_config import LayerConfig
from components.part import Part, own_stream

GATE_CHANNELS = 32
"""Number of input channels that the gate reads."""


class ValueEmbedding(Part):
    """An embedding table whose rows, as wide as all values, are added to the values of the tokens.

    `mixed`: a v + b E[token] with learned scalars a and b, initialized to 1/2 (modded-nanogpt).
    `gated`: v + 2 sigmoid(W x) E[token], with one gate per key head, initially 1; W reads the first
    GATE_CHANNELS channels of the layer's input and is initialized to 0 (nanochat).
    """

    def __init__(self, config: LayerConfig):
        super().__init__()
        width = config.n_kv_head * config.head_dim
        self.table = nn.Embedding(config.vocab_size, width)
        self.gated = config.value_embedding == "gated"
        self.channels = min(GATE_CHANNELS, config.n_embd)
        if self.gated:
            self.gate = nn.Linear(self.channels, config.n_kv_head, bias=False)
        else:
            self.shares = nn.Parameter(torch.full((2,), 0.5))

    def init_parameters(self, config: LayerConfig) -> None:
        """Initialize the table with N(0, init_std) and the gate with 0."""
        with own_stream("table"):
            nn.init.normal_(self.table.weight, std=config.init_std)
        if self.gated:
            nn.init.zeros_(self.gate.weight)

    def forward(self, v: Tensor, x: Tensor, tokens: Tensor) -> Tensor:
        """Add the embeddings of the tokens to the values.

        Args:
            v: Values (B, H_kv, T, D).
            x: The layer's input (B, T, C).
            tokens: The tokens (B, T).

        Returns:
            Values (B, H_kv, T, D).
        """
        added = self.table(tokens).unflatten(-1, (v.shape[1], -1)).transpose(1, 2).to(v.dtype)
        if self.gated:
            gate = 2 * self.gate(x[..., : self.channels]).sigmoid()  # (B, T, H_kv)
            return v + gate.transpose(1, 2).unsqueeze(-1).to(v.dtype) * added
        own, share = self.shares.to(v.dtype)
        return own * v + share * added
