"""A GPT assembled from the parts that a config names: logits, loss, text, size and cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.attention import Attention, KeyValueCache
from components.blocks import BLOCKS
from components.ffns import FeedForward
from components.layer_config import LayerConfig
from components.norms import make_norm
from components.part import Part, own_stream
from components.positions import PositionEncoding
from errors import UserError
from model_components import POSITIONS
from model_config import ModelArchitectureConfig

IGNORED = -1
"""A target that the loss leaves out."""

MIN_TEMPERATURE = 1e-6
"""The lowest but 0: by less, float32 logits could overflow when divided."""


class GPT(Part):
    """A decoder-only transformer (Radford et al. 2018).

    Its weights are a function of the seed that torch was last given, and of each one's name and
    shape: architectures of one seed start from the same numbers in all that they share.

    Shapes: B batch, T time, C = n_embd, V = vocab_size.
    """

    Config = ModelArchitectureConfig

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()
        self.config = config
        with own_stream("made"):  # what torch's layers draw when made is drawn anew below
            self._make_parts(config)
        for name, module in self.named_modules():
            if isinstance(module, Part):
                with own_stream(name):
                    module.init_parameters(self._config_of(name))
        if config.weight_tying:
            self.head.weight = self.embedding.weight

    def _make_parts(self, config: ModelArchitectureConfig) -> None:
        last = config.layers[-1]
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions = self._make_positions(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(BLOCKS[layer.norm_position](layer) for layer in config.layers)
        self.final_norm = (
            make_norm(last) if BLOCKS[last.norm_position].final_norm else nn.Identity()
        )
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)

    def _make_positions(self, config: ModelArchitectureConfig) -> nn.Module:
        """The position encoding; a list of them where layers differ in it."""
        self._position_configs = list(dict.fromkeys(config.positions))
        self._position_of_layer = [self._position_configs.index(own) for own in config.positions]
        made = [POSITIONS[own.position_encoding](own) for own in self._position_configs]
        return made[0] if len(made) == 1 else nn.ModuleList(made)

    def _config_of(self, module: str) -> LayerConfig | ModelArchitectureConfig:
        """The config of a module's layer, by the module's name; else that of the model."""
        owner, _, place = module.partition(".")
        index = int(place.split(".")[0]) if place.split(".")[0].isdigit() else 0
        if owner == "blocks":
            return self.config.layers[index]
        return self._position_configs[index] if owner == "positions" else self.config

    @property
    def position_encodings(self) -> list[PositionEncoding]:
        """The different position encodings of the layers; mostly one."""
        many = isinstance(self.positions, nn.ModuleList)
        return list(self.positions) if many else [self.positions]

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        cache: list[KeyValueCache] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of the next token at every position, and the loss where targets are given.

        Args:
            idx: Tokens (B, T).
            targets: The token that follows each, (B, T); -1 is left out of the loss.
            cache: One per layer (`new_cache`), holding the tokens before idx; grows by T.

        Returns:
            Logits (B, T, V); with targets (logits, mean cross-entropy in nats per token).

        Raises:
            UserError: for more tokens than block_size, those in the cache included.
        """
        start = 0 if cache is None else cache[0].length
        length = idx.shape[1]
        positions = self.position_encodings
        if start + length > self.config.block_size:
            raise UserError(
                f"{start + length} tokens do not fit block_size={self.config.block_size}; crop "
                "the sequence or build the model with a larger block_size."
            )
        x = self.embedding(idx)
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        x = self.dropout(positions[0].embed(x, start))  # one that embeds is that of all layers
        biases = [encoding.score_bias(start, length) for encoding in positions]
        for layer, block in enumerate(self.blocks):
            own = self._position_of_layer[layer]
            x = block(x, positions[own], biases[own], None if cache is None else cache[layer])
        logits = self._softcapped(self.head(self.final_norm(x)))
        if targets is None:
            return logits
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))  # float32 at least
        loss = F.cross_entropy(wide.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        return logits, loss

    def _softcapped(self, logits: Tensor) -> Tensor:
        cap = self.config.output_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    # Text

    def new_cache(self, capacity: int | None = None) -> list[KeyValueCache]:
        """An empty cache per layer for `capacity` tokens (default: block_size)."""
        return [KeyValueCache(capacity or self.config.block_size) for _ in self.blocks]

    @torch.no_grad()
    def generate(
        self,
        idx: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        use_cache: bool = True,
        generator: torch.Generator | None = None,
        vocab_size: int | None = None,
    ) -> Tensor:
        """idx (B, T) continued by `max_new_tokens` sampled tokens: (B, T + max_new_tokens).

        See `stream` for the arguments.
        """
        steps = self.stream(
            idx, max_new_tokens, temperature, top_k, top_p, use_cache, generator, vocab_size
        )
        return torch.cat((idx, *steps), dim=1)

    def stream(
        self,
        idx: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        use_cache: bool = True,
        generator: torch.Generator | None = None,
        vocab_size: int | None = None,
    ) -> Iterator[Tensor]:
        """Sampled tokens (B, 1), one at a time as asked for, each given the last block_size tokens.

        Args:
            idx: The prompt (B, T), T >= 1.
            temperature: Divides the logits, MIN_TEMPERATURE or more; 0 takes the likeliest token.
            top_k: Sample among the k likeliest tokens.
            top_p: Sample among the likeliest tokens whose probabilities first add up to p
                (Holtzman et al. 2019, arXiv 1904.09751).
            use_cache: Keep keys and values of earlier tokens. Beyond block_size the window
                slides, every position changes, and each step computes all anew, as without.
            generator: Source of randomness; None: torch's global one.
            vocab_size: Sample among the first so many tokens, where the model has more of them
                than its tokenizer; None: among all.

        Raises:
            UserError: for an argument out of its range, naming it; for logits that are not finite,
                once a token is asked for.
        """
        if idx.ndim != 2 or idx.shape[1] == 0:
            raise UserError(f"the prompt must be (B, T) with T >= 1, not {tuple(idx.shape)}.")
        check_sampling(max_new_tokens, temperature, top_k, top_p)
        cache = self.new_cache() if use_cache else None

        def choose(logits: Tensor) -> Tensor:
            return sample(logits[:, :vocab_size], temperature, top_k, top_p, generator)

        return self._continue(idx, max_new_tokens, cache, choose)

    @torch.no_grad()
    def _continue(
        self,
        idx: Tensor,
        max_new_tokens: int,
        cache: list[KeyValueCache] | None,
        choose: Callable[[Tensor], Tensor],
    ) -> Iterator[Tensor]:
        """Yield the tokens (B, 1) that `choose` takes by the logits (B, V), one after the other."""
        was_training = self.training
        self.eval()
        try:
            for _ in range(max_new_tokens):
                token = choose(self._next_logits(idx, cache))
                idx = torch.cat((idx, token), dim=1)
                yield token
        finally:
            self.train(was_training)

    def _next_logits(self, idx: Tensor, cache: list[KeyValueCache] | None) -> Tensor:
        """Logits (B, V) of the token after idx; the cache, if any, holds a prefix of idx."""
        if cache is not None and idx.shape[1] <= self.config.block_size:
            return self(idx[:, cache[0].length :], cache=cache)[:, -1]
        return self(idx[:, -self.config.block_size :])[:, -1]

    # Size and cost

    def num_parameters(self, embeddings: bool = True) -> int:
        """Parameters, a tied one once; without `embeddings`, those of tables are left out."""
        total = sum(p.numel() for p in self.parameters())
        if embeddings:
            return total
        tables = {m.weight for m in self.modules() if isinstance(m, nn.Embedding)}
        return total - sum(table.numel() for table in tables)

    def flops_per_token(self, seq_len: int | None = None, causal: bool = False) -> int | float:
        """Matmul FLOPs of a training step per token: 3 x forward, a multiply-add being 2.

        Args:
            seq_len: Tokens of a sequence (default: block_size).
            causal: Count the pairs that a causal mask and a window leave, token t attending to
                min(t + 1, window) positions. Otherwise the full square of PaLM's appendix B
                (Chowdhery et al. 2022, arXiv 2204.02311), on which MFU is based, a window
                capping it at min(seq_len, window).

        Returns:
            An int, or a float where the mean over the sequence is not whole.
        """
        seq_len = seq_len or self.config.block_size
        total = 3 * self.forward_flops(seq_len, causal)
        return total // seq_len if total % seq_len == 0 else total / seq_len

    def cost_report(self, seq_len: int | None = None) -> dict[str, Any]:
        """Name, parameters and cost at sequences of `seq_len` tokens, as a run's log has them."""
        return {
            "name": self.config.architecture_name,
            "parameters": self.num_parameters(),
            "flops_per_token": self.flops_per_token(seq_len),
            "flops_per_token_causal": self.flops_per_token(seq_len, causal=True),
            "attention_ffn_ratio": self.attention_ffn_ratio(seq_len),
        }

    def attention_ffn_ratio(self, seq_len: int | None = None) -> float:
        """Forward FLOPs of the attention layers over those of the feed-forward networks."""
        seq_len = seq_len or self.config.block_size

        def flops(kind: type[Part]) -> int:
            parts = (m for m in self.modules() if isinstance(m, kind))
            return sum(part.forward_flops(seq_len) for part in parts)

        return flops(Attention) / flops(FeedForward)


def check_sampling(
    max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    """Raise UserError for an argument of `GPT.stream` that is out of its range, or NaN."""
    if max_new_tokens < 0:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 0.")
    _check_draw(temperature, top_k, top_p)


def _check_draw(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not (temperature == 0 or MIN_TEMPERATURE <= temperature < math.inf):
        raise UserError(
            f"temperature={temperature} must be 0 (the likeliest token), or finite and at least "
            f"{MIN_TEMPERATURE:g}."
        )
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k={top_k} must be at least 1.")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p} must be above 0 and at most 1.")


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Tokens (B, 1) drawn from logits (B, V). See `GPT.stream` for the arguments and errors."""
    _check_draw(temperature, top_k, top_p)
    if not torch.isfinite(logits.amax(dim=-1)).all():  # a token may be excluded by -inf
        raise UserError(
            "the model's logits are not finite, so no token can be sampled; use a checkpoint from "
            "before the run diverged."
        )
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    probabilities = logits.softmax(dim=-1)
    if top_p is not None and top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered  # mass of the likelier tokens
        ordered = ordered.masked_fill(before >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(1, order, ordered)
    return torch.multinomial(probabilities, 1, generator=generator)
