"""Engram: embeddings of hashed n-grams, added to the stream through a gate: `engram`."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.causal_conv import CausalConv
from components.context import Context, State
from components.layer_config import LayerConfig
from components.norms import make_norm
from components.sublayer import Sublayer
from errors import Problem
from options import LARGEST_INT, Role, Section

_section = Section("Engram", Role.ARCHITECTURE)

LEAST_SCORE = 1e-6
"""Lower bound on the absolute scores of the gates, whose square root is taken."""


class EngramOptions:
    """Options of the blocks that look up n-grams."""

    engram: bool = _section.option(
        False,
        "add embeddings of the last n-grams before the mixer, through a gate",
        per_layer=True,
        tag=("NoEngram", "Engram"),
    )
    engram_order: int = _section.option(
        3, "length of the longest n-grams; the shortest have 2 tokens", at_least=2, tag="{}Grams"
    )
    engram_heads: int = _section.option(
        8, "hash tables for the n-grams of each length", at_least=1, tag="{}Hashes"
    )
    engram_table_size: int | None = _section.option(
        None,
        "minimum number of rows of a hash table, which has the next unused prime number of rows; "
        "none: vocab_size",
        at_least=1,
        tag="{}Rows",
    )
    engram_width: int | None = _section.option(
        None,
        "width of an n-gram embedding, all its tables together; none: n_embd, rounded down to a "
        "multiple of engram_heads",
        at_least=1,
        tag="GramWidth{}",
    )
    engram_kernel: int = _section.option(
        4, "kernel size of the convolution of the added vectors", at_least=1, tag="GramConv{}"
    )


OWN_OPTIONS = tuple(
    f"engram_{name}" for name in ("order", "heads", "table_size", "width", "kernel")
)
"""Options that need `engram`."""


class Engram(Sublayer):
    """Add y + SiLU(conv(norm(y))) with y_t = a_t W_v e_t, where e_t embeds the last n-grams.

    e_t has one embedding for each n = 2, ..., N = `engram_order` and each of `engram_heads` tables.
    The row of a table with p rows, a prime, is

        (t_0 m_0 xor t_1 m_1 xor ... xor t_{n-1} m_{n-1}) mod p

    for the token t_0 of the position and the tokens t_1, ... before it. The gate compares e_t with
    the layer's input x_t: with s = norm(W_k e_t).norm(x_t)/sqrt(C), a_t = sigmoid(sign(s)
    sqrt(|s|)). conv is causal and depthwise, without bias; its taps are N tokens apart, and it
    starts at 0 (Cheng et al. 2026, "Conditional Memory via Scalable Lookup", arXiv 2601.07372).

    The multipliers m are odd and depend only on the layer and the vocabulary size: m_k = 2 (h mod
    L) + 1, where h is the number in the first 8 bytes of the SHA-256 of "engram {layer} {k}", and L
    the largest number for which no product exceeds 63 bits. Positions before the first token count
    as the token vocab_size.

    It differs from the authors' demo (`engram_demo_v1.py`) in these respects:

    - Tokens are hashed as they are; the demo first maps those with the same normalized text to one.
    - Its multipliers are those of a NumPy generator, and it pads with a token of the vocabulary.
    - No two of its tables have the same size; here those of different layers may.
    - `residual=hyper_connections` and `mhc` add one result to their streams; the demo has a gate
      and a W_k for each stream.
    - Norms are those of the layer; the demo has RMSNorm. Biases of W_k and W_v follow `bias`; the
      demo always has them.
    - In the paper, tables have a learning rate of their own and no weight decay; here they are
      trained like other embeddings.

    Look-ups cost no FLOPs; the cost is that of W_k, W_v and conv. A token uses one row of each
    table, so only these count as active parameters. The decoding state holds the last N - 1 tokens
    and (K - 1) N inputs of conv for a kernel size of K.
    """

    residual_projections = ("value",)

    def __init__(self, config: LayerConfig):
        super().__init__()
        C, self.order, self.heads = config.n_embd, config.engram_order, config.engram_heads
        self.start_token = config.vocab_size
        least = config.engram_table_size or config.vocab_size
        of_tables = table_sizes(least, self.order - 1, self.heads)
        sizes = torch.tensor(of_tables, device="cpu")
        self._register("sizes", sizes)
        self._register("offsets", sizes.flatten().cumsum(0).view_as(sizes) - sizes)
        factors = multipliers(config.index, self.order, config.vocab_size)
        self._register("multipliers", torch.tensor(factors, device="cpu"))
        rows, width = sum(map(sum, of_tables)), _width(config)
        self.table = nn.Embedding(rows, width // self.heads)
        memory = (self.order - 1) * width
        self.key = nn.Linear(memory, C, bias=config.bias)
        self.value = nn.Linear(memory, C, bias=config.bias)
        self.key_norm, self.query_norm, self.conv_norm = (make_norm(config) for _ in range(3))
        self.conv = CausalConv(
            C, config.engram_kernel, bias=False, dilation=self.order, starts_at_zero=True
        )

    def _register(self, name: str, values: Tensor) -> None:
        self.register_buffer(name, values.to(torch.get_default_device()), persistent=False)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        state = context.state
        rows = self.rows(context.tokens, None if state is None else state["tokens"])
        memory = self.table(rows).flatten(2)  # (B, T, (N - 1) * width)
        products = self.key_norm(self.key(memory)) * self.query_norm(x)
        scores = products.sum(dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        gates = (scores.sign() * scores.abs().clamp(min=LEAST_SCORE).sqrt()).sigmoid()
        values = self.value(memory)
        values = gates.to(values.dtype) * values
        kept = None if state is None else state["inputs"]
        smoothed = self.conv(self.conv_norm(values).to(values.dtype), kept)
        return values + F.silu(smoothed)

    def rows(self, tokens: Tensor, kept: Tensor | None = None) -> Tensor:
        """The rows of the tables for each token (B, T): (B, T, N - 1, heads).

        `kept` contains the N - 1 tokens before them (B, N - 1), and is updated to the last N - 1.
        """
        B, T = tokens.shape
        if kept is None:
            kept = tokens.new_full((B, self.order - 1), self.start_token)
            tokens = torch.cat((kept, tokens), dim=1)
        else:
            tokens = torch.cat((kept, tokens), dim=1)
            kept.copy_(tokens[:, T:])
        mixed, found = 0, []
        for back, multiplier in enumerate(self.multipliers.unbind()):
            first = self.order - 1 - back
            mixed = mixed ^ (tokens[:, first : first + T] * multiplier)
            found.append(mixed)
        hashes = torch.stack(found[1:], dim=-1).unsqueeze(-1)
        return hashes % self.sizes + self.offsets

    def new_state(
        self, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> State:
        shape = (batch, self.order - 1)
        tokens = torch.full(shape, self.start_token, dtype=torch.long, device=device)
        return {
            "tokens": tokens,
            "inputs": self.conv.new_state(batch, device=device, dtype=dtype),
        }

    def unused_parameters(self) -> int:
        tables = self.sizes.numel()
        return (self.table.num_embeddings - tables) * self.table.embedding_dim


def _width(config: LayerConfig) -> int:
    """The width of the embedding of an n-gram."""
    heads = config.engram_heads
    return config.engram_width or max(config.n_embd // heads, 1) * heads


@functools.cache
def table_sizes(least: int, lengths: int, heads: int) -> tuple[tuple[int, ...], ...]:
    """The sizes of the tables for each length of n-grams: distinct primes of at least `least`, each
    the next one that no table before it has."""
    found: list[int] = []
    for _ in range(lengths):
        unused = (n for n in itertools.count(max(least, 2)) if n not in found and _is_prime(n))
        found += list(itertools.islice(unused, heads))
    return tuple(tuple(found[i : i + heads]) for i in range(0, len(found), heads))


def _is_prime(number: int) -> bool:
    return all(number % factor for factor in range(2, int(number**0.5) + 1))


def multipliers(layer: int, count: int, vocab_size: int) -> list[int]:
    """The odd multipliers of a layer for the token of a position and those before it; see
    `Engram`. Tokens are at most vocab_size."""
    most = (LARGEST_INT // vocab_size + 1) // 2
    digests = (hashlib.sha256(f"engram {layer} {back}".encode()).digest() for back in range(count))
    return [2 * (int.from_bytes(digest[:8]) % most) + 1 for digest in digests]


def engram(config: LayerConfig) -> Engram | None:
    """The n-gram embeddings of a layer, or None."""
    return Engram(config) if config.engram else None


def engram_problems(config: LayerConfig) -> Iterator[Problem]:
    """Yield the problem if the tables cannot have equal widths."""
    if config.engram and _width(config) % config.engram_heads:
        yield Problem(
            ("engram_width", "engram_heads"),
            f"engram_width={config.engram_width} is not a multiple of engram_heads="
            f"{config.engram_heads}, which share it; change one.",
        )


def idle_engram(config: LayerConfig) -> Iterator[Problem]:
    """Yield problems for options without effect."""
    for name in OWN_OPTIONS if not config.engram else ():
        if getattr(config, name) != getattr(EngramOptions, name).default:
            yield Problem(
                (name, "engram"),
                f"{name}={getattr(config, name)} has no effect with engram=False; set engram=True "
                f"in some layers, or drop {name}.",
            )
