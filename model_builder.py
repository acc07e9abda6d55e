"""A GPT assembled from the parts that a config names: logits, loss, text, size and cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from components.blocks import BLOCKS, Block
from components.context import LayerInputs, State
from components.ffns import FeedForward
from components.head import LMHead, cross_entropy
from components.layer_config import LayerConfig
from components.mixers import Mixer
from components.norms import make_norm
from components.part import Part, own_stream
from components.positions import PositionEncoding
from errors import UserError
from model_components import POSITIONS
from model_config import ModelArchitectureConfig

MIN_TEMPERATURE = 1e-6
"""The lowest but 0: by less, float32 logits could overflow when divided."""


class Objective(Protocol):
    """What training minimises; see `training.objectives`."""

    def __call__(
        self, x: Tensor, head: LMHead, targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, of what the LM head reads (B, T, C), and its terms by name, detached."""


class DecodingState:
    """What a model remembers of the tokens it has seen, so that it need not read them again.

    Attributes:
        layers: For each layer, the state of each of its parts.
        batch: Sequences that it belongs to.
        length: Tokens seen. An int; or, for a compiled model, a tensor on the device, so that its
            graph is the same for every token.
        capacity: Tokens that fit, if some mixer is not unbounded.
    """

    def __init__(
        self, layers: list[dict[str, State]], batch: int, length: int | Tensor, capacity: int
    ):
        self.layers = layers
        self.batch = batch
        self.length = length
        self.capacity = capacity

    @property
    def static(self) -> bool:
        """Whether its shapes never change."""
        return isinstance(self.length, Tensor)

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        parts = (part for layer in self.layers for part in layer.values())
        return sum(tensor.nbytes for part in parts for tensor in part.values())


class TrainingOutput(NamedTuple):
    """What a forward pass with an objective returns.

    Attributes:
        loss: What is minimised, a scalar.
        terms: The objective's terms and the auxiliary losses of parts, by name, detached; they
            add up to the loss.
        metrics: What parts reported, for each layer by part and name.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    metrics: list[dict[str, dict[str, Tensor]]]


class GPT(Part):
    """A decoder-only transformer (Radford et al. 2018).

    Its weights are a function of the seed that torch was last given, and of each one's name and
    shape: architectures of one seed start from the same numbers in all that they share.

    Shapes: B batch, T time, C = n_embd, V = vocab_size.
    """

    Config = ModelArchitectureConfig

    def __init__(
        self, config: ModelArchitectureConfig, ready: Callable[[Block], None] | None = None
    ):
        """
        Args:
            config: The architecture.
            ready: Called with each block once it has its initial weights, before the next is made:
                a block that it shards or moves to another device is never held whole with others.
        """
        super().__init__()
        self.config = config
        with own_stream("made"):  # what torch's layers draw when made is drawn anew below
            self._make_ends(config)
        given: set[str] = set()
        for index, layer in enumerate(config.layers):
            with own_stream(f"made.{index}"):
                block = BLOCKS[layer.norm_position](layer)
            given |= block.connect(given)
            self.blocks.append(block)
            self._initialise(f"blocks.{index}", block)
            if ready is not None:
                ready(block)
        for name, child in self.named_children():
            if child is not self.blocks:
                self._initialise(name, child)
        with own_stream(""):
            self.init_parameters(config)
        if config.weight_tying:
            self.head.weight = self.embedding.weight

    def _initialise(self, name: str, module: nn.Module) -> None:
        """Give a module and those below it, the name of which starts with its own, their initial
        weights."""
        for below, part in module.named_modules(prefix=name):
            if isinstance(part, Part):
                with own_stream(self._stream_of(below)):
                    part.init_parameters(self._config_of(below))

    def _stream_of(self, name: str) -> str:
        """The name of a module's stream of initial numbers: its own, with `stream_name`s in it."""
        module, words = self, []
        for word in name.split("."):
            module = module.get_submodule(word)
            words.append(getattr(module, "stream_name", None) or word)
        return ".".join(words)

    def _make_ends(self, config: ModelArchitectureConfig) -> None:
        """All but the blocks."""
        last = config.layers[-1]
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions = self._make_positions(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList()
        self.final_norm = (
            make_norm(last) if BLOCKS[last.norm_position].final_norm else nn.Identity()
        )
        self.head = LMHead(config)

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
        state: DecodingState | None = None,
        objective: Objective | None = None,
    ) -> Tensor | tuple[Tensor, Tensor] | TrainingOutput:
        """Logits of the next token at every position; or the loss that training minimises.

        Args:
            idx: Tokens (B, T).
            targets: The token that follows each, (B, T); -1 is left out of the loss.
            state: What is remembered of the tokens before idx (`new_state`); updated in place.
            objective: What to minimise; needs targets.

        Returns:
            Logits (B, T, V); with targets (logits, mean cross-entropy in nats per token); with an
            objective its `TrainingOutput`, the logits being computed in chunks (`LMHead.loss`).

        Raises:
            UserError: for more tokens than block_size, those in the state included, unless the
                model is `unbounded`; or for a state of another batch size.
        """
        x, losses, metrics = self._hidden(idx, state)
        if objective is not None:
            loss, terms = objective(x, self.head, targets)
            if terms.keys() & losses.keys():
                raise UserError(
                    f"the auxiliary loss {min(terms.keys() & losses.keys())!r} has the name of a "
                    "term of the objective; choose another in context.add_loss."
                )
            terms = {**terms, **{name: own.detach() for name, own in losses.items()}}
            return TrainingOutput(sum(losses.values(), start=loss), terms, metrics)
        logits = self.head(x)
        return logits if targets is None else (logits, cross_entropy(logits, targets))

    def _hidden(
        self, idx: Tensor, state: DecodingState | None
    ) -> tuple[Tensor, dict[str, Tensor], list[dict[str, dict[str, Tensor]]]]:
        """What the LM head reads (B, T, C), and the auxiliary losses and metrics of the layers."""
        if state is not None and state.batch != idx.shape[0]:
            raise UserError(
                f"idx has batch size {idx.shape[0]}, but the decoding state has batch size "
                f"{state.batch}; create the state with new_state({idx.shape[0]})."
            )
        start = 0 if state is None else state.length
        keys = self._keys(start, idx.shape[1], state)
        x = self.embedding(idx)
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        encodings = self.position_encodings
        for encoding in encodings:  # at most one does anything here
            x = encoding.embed(x, start)
        biases = [encoding.score_bias(start, idx.shape[1], keys) for encoding in encodings]
        stream = self.blocks[0].residual.begin(self.dropout(x))
        given: dict[str, Tensor] = {}
        losses: dict[str, Tensor] = {}
        metrics = []
        for layer, block in enumerate(self.blocks):
            own = self._position_of_layer[layer]
            inputs = LayerInputs(
                idx,
                encodings[own],
                biases[own],
                start,
                None if state is None else state.layers[layer],
                {name: given[name] for name in block.takes},
            )
            stream, outputs = block(stream, inputs)
            given |= {k: v for k, v in outputs.given.items() if k not in given}
            for name, loss in outputs.losses.items():
                losses[name] = losses[name] + loss if name in losses else loss
            metrics.append(outputs.metrics)
        if state is not None:
            state.length += idx.shape[1]
        return self.final_norm(self.blocks[-1].residual.end(stream)), losses, metrics

    def _keys(self, start: int | Tensor, length: int, state: DecodingState | None) -> int:
        """Positions that attention looks at. Raises UserError if they are too many."""
        if isinstance(start, Tensor):
            return state.capacity
        if start + length > self.config.block_size and not self.unbounded:
            raise UserError(
                f"{start + length} tokens do not fit block_size={self.config.block_size}; crop "
                "the sequence or build the model with a larger block_size."
            )
        if state is not None and start + length > state.capacity and not self.unbounded:
            raise UserError(
                f"{start + length} tokens do not fit in a decoding state for {state.capacity}; "
                "create one with a larger capacity."
            )
        return start + length

    def after_step(
        self, metrics: list[dict[str, dict[str, Tensor]]], good: Tensor | float = 1.0
    ) -> None:
        """Let parts update their buffers after an optimizer step; see `Sublayer.after_step`."""
        for block, own in zip(self.blocks, metrics, strict=True):
            block.after_step(own, good)

    # Text

    @property
    def unbounded(self) -> bool:
        """Whether it can go on decoding beyond block_size in constant memory."""
        parts = [part for block in self.blocks for part in block.sublayers.values()]
        return all(part.unbounded for part in (*parts, *self.position_encodings))

    def new_state(
        self,
        batch: int = 1,
        capacity: int | None = None,
        *,
        static: bool = False,
        dtype: torch.dtype | None = None,
    ) -> DecodingState:
        """The decoding state before the first token.

        Args:
            batch: Sequences that are decoded at a time.
            capacity: Tokens of the longest; None: block_size.
            static: Keep all shapes the same from token to token, as torch.compile needs in order
                not to compile anew for each. Attention then always reads the whole capacity, and
                nothing checks that it is not exceeded.
            dtype: What keys, values and the like are kept in; None: what the model computes in.
        """
        weight = self.embedding.weight
        kind = weight.device.type
        if dtype is None:
            autocast = torch.is_autocast_enabled(kind)
            dtype = torch.get_autocast_dtype(kind) if autocast else weight.dtype
        capacity = self.config.block_size if capacity is None else capacity
        layers = [
            block.new_states(batch, capacity, device=weight.device, dtype=dtype)
            for block in self.blocks
        ]
        length = torch.zeros((), dtype=torch.long, device=weight.device) if static else 0
        return DecodingState(layers, batch, length, capacity)

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
            use_cache: Keep the decoding state of earlier tokens. Beyond block_size an `unbounded`
                model goes on; for others the window slides, every position changes, and each step
                reads all tokens again, as without.
            generator: Source of randomness; None: torch's global one.
            vocab_size: Sample among the first so many tokens, where the model has more of them
                than its tokenizer; None: among all.

        Raises:
            UserError: for an argument out of its range, naming it; for logits that are not finite,
                once a token is asked for.
        """
        if idx.ndim != 2 or idx.shape[1] == 0:
            raise UserError(
                f"the prompt must have the shape (B, T) with T >= 1, not {tuple(idx.shape)}."
            )
        check_sampling(max_new_tokens, temperature, top_k, top_p)
        compiled = self._compiled_call_impl is not None
        state = self.new_state(idx.shape[0], static=compiled) if use_cache else None

        def choose(logits: Tensor) -> Tensor:
            return sample(logits[:, :vocab_size], temperature, top_k, top_p, generator)

        return self._continue(idx, max_new_tokens, state, choose)

    @torch.no_grad()
    def _continue(
        self,
        idx: Tensor,
        max_new_tokens: int,
        state: DecodingState | None,
        choose: Callable[[Tensor], Tensor],
    ) -> Iterator[Tensor]:
        """Yield the tokens (B, 1) that `choose` takes by the logits (B, V), one after the other."""
        was_training = self.training
        self.eval()
        try:
            new = idx
            for _ in range(max_new_tokens):
                new = choose(self._next_logits(idx, new, state))
                idx = torch.cat((idx, new), dim=1)
                yield new
        finally:
            self.train(was_training)

    def _next_logits(self, idx: Tensor, new: Tensor, state: DecodingState | None) -> Tensor:
        """Logits (B, V) of the token after idx; its last tokens `new` are not in the state yet."""
        length = self.config.block_size
        if self.unbounded or idx.shape[1] <= length:
            return self(idx if state is None else new, state=state)[:, -1]
        return self(idx[:, -length:])[:, -1]

    # Size and cost

    def num_parameters(self, embeddings: bool = True) -> int:
        """Parameters, a tied one once; without `embeddings`, those of tables are left out."""
        total = sum(p.numel() for p in self.parameters())
        if embeddings:
            return total
        tables = {m.weight for m in self.modules() if isinstance(m, nn.Embedding)}
        return total - sum(table.numel() for table in tables)

    def active_parameters(self) -> int:
        """Parameters that a token uses: all but those of experts that it is not routed to."""
        parts = (module for module in self.modules() if isinstance(module, Part))
        return self.num_parameters() - sum(part.unused_parameters() for part in parts)

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
            "active_parameters": self.active_parameters(),
            "flops_per_token": self.flops_per_token(seq_len),
            "flops_per_token_causal": self.flops_per_token(seq_len, causal=True),
            "attention_ffn_ratio": self.attention_ffn_ratio(seq_len),
            "decoding_state_bytes": self.decoding_state_bytes(seq_len),
        }

    def decoding_state_bytes(self, seq_len: int | None = None) -> int:
        """Bytes that decoding keeps of one sequence of `seq_len` tokens, keys and values in half
        precision."""
        seq_len = seq_len or self.config.block_size
        parts = (part for block in self.blocks for part in block.sublayers.values())
        return sum(part.state_bytes(seq_len, torch.bfloat16) for part in parts)

    def attention_ffn_ratio(self, seq_len: int | None = None) -> float:
        """Forward FLOPs of the mixers over those of the feed-forward networks."""
        seq_len = seq_len or self.config.block_size

        def flops(kind: type[Part]) -> int:
            parts = (part for block in self.blocks for part in block.sublayers.values())
            return sum(part.forward_flops(seq_len) for part in parts if isinstance(part, kind))

        return flops(Mixer) / flops(FeedForward)


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
            f"temperature={temperature} must be 0 (greedy decoding), or finite and at least "
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
