"""The GPT model, assembled from the components of a config: logits, loss, text, size and cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from components.backward_cost import backward_flops, pass_flops
from components.blocks import BLOCKS, Block
from components.context import LayerInputs, State
from components.ffns import FeedForward
from components.head import LMHead, cross_entropy
from components.layer_config import LayerConfig
from components.mixers import Mixer
from components.norms import make_norm
from components.parametrizations import Parametrization, parametrization_of
from components.part import Part, init_normal, own_stream
from components.positions import PositionEncoding
from components.sphere import on_sphere
from errors import UserError
from model_components import POSITIONS
from model_config import ModelArchitectureConfig

MIN_TEMPERATURE = 1e-6
"""Lowest temperature other than 0; dividing float32 logits by less could overflow."""


class Objective(Protocol):
    """A training objective; see `recipe.objectives`."""

    def __call__(
        self, x: Tensor, head: LMHead, targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss for inputs of the LM head (B, T, C), and its detached terms by name."""


class DecodingState:
    """The decoding state of a model: KV caches and recurrent states of the tokens seen so far.

    Attributes:
        layers: For each layer, the state of each part.
        batch: Number of sequences.
        length: Number of tokens seen: an int, or a tensor on the device for compiled models, so
            that the graph is the same for every token.
        capacity: Maximum number of tokens, unless all mixers are unbounded.
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
        """Whether the shapes never change."""
        return isinstance(self.length, Tensor)

    @property
    def bytes(self) -> int:
        """Size in memory, in bytes."""
        parts = (part for layer in self.layers for part in layer.values())
        return sum(tensor.nbytes for part in parts for tensor in part.values())


class TrainingOutput(NamedTuple):
    """The result of a forward pass with an objective.

    Attributes:
        loss: The total loss, a scalar.
        terms: The terms of the objective and the auxiliary losses of parts by name, detached; they
            add up to the loss.
        metrics: The metrics of each layer, by part and name.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    metrics: list[dict[str, dict[str, Tensor]]]


class GPT(Part):
    """A decoder-only transformer (Radford et al. 2018).

    Each initial weight is a function of torch's current seed and of the weight's name and shape, so
    architectures with the same seed start with the same values in all weights they share.

    Shapes: B batch, T time, C = n_embd, V = vocab_size.
    """

    Config = ModelArchitectureConfig

    adapted: bool = False
    """Whether the model has adapters, and only they are trained; see `recipe.adapters`."""

    def __init__(
        self, config: ModelArchitectureConfig, ready: Callable[[Block], None] | None = None
    ):
        """
        Args:
            config: The architecture.
            ready: Called with each block after its weights are initialized and before the next
                block is created. It may shard the block or move it to another device, so that only
                one whole block is held at a time.
        """
        super().__init__()
        self.config = config
        with own_stream("made"):  # isolates torch's own initialization, which is replaced below
            self._make_ends(config)
        given: set[str] = set()
        for index, layer in enumerate(config.layers):
            with own_stream(f"made.{index}"):
                block = BLOCKS[layer.norm_position](layer)
            given |= block.connect(given)
            self.blocks.append(block)
            self._initialize(f"blocks.{index}", block)
            self._to_sphere(block)
            if ready is not None:
                ready(block)
        for name, child in self.named_children():
            if child is not self.blocks:
                self._initialize(name, child)
        with own_stream(""):
            self.init_parameters(config)
        self._to_sphere(self.embedding, self.head)
        if config.weight_tying:
            self.head.weight = self.embedding.weight

    def _initialize(self, name: str, module: nn.Module) -> None:
        """Initialize the weights of a module and its submodules; `name` prefixes their names."""
        for below, part in module.named_modules(prefix=name):
            if isinstance(part, Part):
                with own_stream(self._stream_of(below)):
                    part.init_parameters(self._config_of(below))

    def init_parameters(self, config: ModelArchitectureConfig) -> None:
        """Initialize the embedding and the LM head with N(0, init_std) at every width."""
        for name in ("embedding", "head"):
            init_normal(getattr(self, name), name, config.init_std)

    @property
    def parametrization(self) -> Parametrization:
        """How settings of the optimizer depend on the width and the depth."""
        return parametrization_of(self.config)

    def _stream_of(self, name: str) -> str:
        """The name of a module's random stream: the module's name, with each `stream_name` in place
        of the attribute name."""
        module, words = self, []
        for word in name.split("."):
            module = module.get_submodule(word)
            words.append(getattr(module, "stream_name", None) or word)
        return ".".join(words)

    def _make_ends(self, config: ModelArchitectureConfig) -> None:
        """Create everything except the blocks."""
        last = config.layers[-1]
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions = self._make_positions(config)
        self.embedding_norm = (
            make_norm(config.layers[0]) if config.embedding_norm else nn.Identity()
        )
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList()
        self.final_norm = (
            make_norm(last) if BLOCKS[last.norm_position].final_norm else nn.Identity()
        )
        self.head = LMHead(config)

    def _make_positions(self, config: ModelArchitectureConfig) -> nn.Module:
        """Create the position encoding, or a list of them if layers differ."""
        self._position_configs = list(dict.fromkeys(config.positions))
        self._position_of_layer = [self._position_configs.index(own) for own in config.positions]
        made = [POSITIONS[own.position_encoding](own) for own in self._position_configs]
        return made[0] if len(made) == 1 else nn.ModuleList(made)

    def _config_of(self, module: str) -> LayerConfig | ModelArchitectureConfig:
        """The config of the layer that a module belongs to, by name, or that of the model."""
        owner, _, place = module.partition(".")
        index = int(place.split(".")[0]) if place.split(".")[0].isdigit() else 0
        if owner == "blocks":
            return self.config.layers[index]
        return self._position_configs[index] if owner == "positions" else self.config

    @property
    def position_encodings(self) -> list[PositionEncoding]:
        """The distinct position encodings of the layers; usually one."""
        many = isinstance(self.positions, nn.ModuleList)
        return list(self.positions) if many else [self.positions]

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        state: DecodingState | None = None,
        objective: Objective | None = None,
    ) -> Tensor | tuple[Tensor, Tensor] | TrainingOutput:
        """Compute the logits of the next token at every position, or the training loss.

        Args:
            idx: Tokens (B, T).
            targets: The next token at every position, (B, T); -1 is ignored in the loss.
            state: Decoding state of the tokens before idx (`new_state`); updated in place.
            objective: The training objective; requires targets.

        Returns:
            Logits (B, T, V); with targets, (logits, mean cross-entropy in nats per token); with an
            objective, a `TrainingOutput`, for which logits are computed in chunks (`LMHead.loss`).

        Raises:
            UserError: If there are more tokens than block_size, including those in the state, and
                the model is not `unbounded`; or if the state has another batch size.
        """
        x, losses, metrics = self._hidden(idx, state)
        if objective is not None:
            loss, terms = objective(x, self.head, targets)
            if terms.keys() & losses.keys():
                raise UserError(
                    f"the auxiliary loss {min(terms.keys() & losses.keys())!r} has the name of a "
                    "term of the objective; choose another name in context.add_loss."
                )
            terms = {**terms, **{name: own.detach() for name, own in losses.items()}}
            return TrainingOutput(sum(losses.values(), start=loss), terms, metrics)
        logits = self.head(x)
        return logits if targets is None else (logits, cross_entropy(logits, targets))

    def _hidden(
        self, idx: Tensor, state: DecodingState | None
    ) -> tuple[Tensor, dict[str, Tensor], list[dict[str, dict[str, Tensor]]]]:
        """The input of the LM head (B, T, C), and the auxiliary losses and metrics of the
        layers."""
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
        for encoding in encodings:  # at most one of them changes x
            x = encoding.embed(x, start)
        x = self.embedding_norm(x)
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
        """Number of positions that attention reads. Raises UserError if there are too many."""
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
        """Update the buffers of parts after an optimizer step; see `Sublayer.after_step`. Those of
        a model with adapters are frozen."""
        if self.adapted:
            return
        for block, own in zip(self.blocks, metrics, strict=True):
            block.after_step(own, good)
        self._to_sphere(*self.blocks, self.embedding, self.head, good=good)

    @torch.no_grad()
    def _to_sphere(self, *modules: nn.Module, good: Tensor | float = 1.0) -> None:
        """With `sphere_weights`, scale all vectors of the weights along the residual stream to
        length 1, unless `good` is 0."""
        if not self.config.sphere_weights:
            return
        for module in modules:
            for weight, dim in _stream_weights(module):
                if not weight.requires_grad:
                    continue
                change = good * (on_sphere(weight, dim) - weight)
                weight.add_(torch.where(change.isfinite(), change, 0.0))

    # Text

    @property
    def unbounded(self) -> bool:
        """Whether the model can decode beyond block_size in constant memory."""
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
        """Create an empty decoding state.

        Args:
            batch: Number of sequences.
            capacity: Maximum number of tokens per sequence. Defaults to block_size.
            static: Whether to keep all shapes constant, so that torch.compile does not recompile
                for every token. Attention then always reads the full capacity, and exceeding it is
                not detected.
            dtype: Dtype of keys, values and the like. Defaults to the model's compute dtype.
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
        """Sample a continuation of idx (B, T); returns tokens (B, T + max_new_tokens).

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
        """Yield sampled tokens (B, 1) one at a time, each given the last block_size tokens.

        Args:
            idx: The prompt (B, T), T >= 1.
            max_new_tokens: Number of tokens to sample.
            temperature: Divisor of the logits, at least MIN_TEMPERATURE; 0: greedy decoding.
            top_k: Sample from the k most likely tokens.
            top_p: Sample from the smallest set of most likely tokens with a total probability of at
                least p (Holtzman et al. 2019, arXiv 1904.09751).
            use_cache: Whether to use a decoding state. Beyond block_size, an `unbounded` model
                continues with it; for others the window slides, so every position changes and each
                step recomputes all tokens, as without a cache.
            generator: Random number generator. Defaults to torch's global one.
            vocab_size: Sample only from the first `vocab_size` tokens, for a model with more tokens
                than its tokenizer. Defaults to all.

        Raises:
            UserError: If an argument is out of range; or, when a token is requested, if logits are
                not finite.
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
        """Yield tokens (B, 1) one at a time; `choose` selects them, given logits (B, V)."""
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
        """Logits (B, V) of the token after idx, whose last tokens `new` are not in the state
        yet."""
        length = self.config.block_size
        if self.unbounded or idx.shape[1] <= length:
            return self(idx if state is None else new, state=state)[:, -1]
        return self(idx[:, -length:])[:, -1]

    # Size and cost

    def num_parameters(self, embeddings: bool = True) -> int:
        """Number of parameters, counting tied ones once; `embeddings`: include embedding tables."""
        total = sum(p.numel() for p in self.parameters())
        if embeddings:
            return total
        tables = {m.weight for m in self.modules() if isinstance(m, nn.Embedding)}
        return total - sum(table.numel() for table in tables)

    def active_parameters(self) -> int:
        """Number of parameters that a token uses: all except experts it is not routed to."""
        parts = (module for module in self.modules() if isinstance(module, Part))
        return self.num_parameters() - sum(part.unused_parameters() for part in parts)

    def trained_parameters(self) -> int:
        """Number of parameters that are trained: all, unless the model has adapters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def flops_per_token(self, seq_len: int | None = None, causal: bool = False) -> int | float:
        """Matmul FLOPs of training per token: 3 x forward; a multiply-add counts as 2. If only
        adapters are trained, the backward pass computes less; see `components.backward_cost`.

        Args:
            seq_len: Sequence length in tokens. Defaults to block_size.
            causal: Whether to count only pairs allowed by the causal mask and a window: token t
                attends to min(t + 1, window) positions. Otherwise the full square counts, as in
                PaLM's appendix B (Chowdhery et al. 2022, arXiv 2204.02311), on which MFU is based;
                a window limits it to min(seq_len, window) keys.

        Returns:
            An int, or a float if the mean over the sequence is not an integer.
        """
        seq_len = seq_len or self.config.block_size
        total = self.forward_flops(seq_len, causal) + backward_flops(self, seq_len, causal)
        return total // seq_len if total % seq_len == 0 else total / seq_len

    def cost_report(self, seq_len: int | None = None) -> dict[str, Any]:
        """Name, parameters and cost for sequences of `seq_len` tokens, as in a run's log."""
        return {
            "name": self.config.architecture_name,
            "parameters": self.num_parameters(),
            "active_parameters": self.active_parameters(),
            **self._cost_of_adapters(),
            "flops_per_token": self.flops_per_token(seq_len),
            "flops_per_token_causal": self.flops_per_token(seq_len, causal=True),
            "attention_ffn_ratio": self.attention_ffn_ratio(seq_len),
            "decoding_state_bytes": self.decoding_state_bytes(seq_len),
        }

    def _cost_of_adapters(self) -> dict[str, int]:
        """How many parameters are trained, if not all; and FLOPs that do not depend on tokens."""
        if not self.adapted:
            return {}
        added, flops = {"trained_parameters": self.trained_parameters()}, pass_flops(self)
        return added | ({"adapter_flops_per_pass": flops} if flops else {})

    def decoding_state_bytes(self, seq_len: int | None = None) -> int:
        """Bytes of decoding state for one sequence of `seq_len` tokens, with keys and values in
        half precision."""
        seq_len = seq_len or self.config.block_size
        parts = (part for block in self.blocks for part in block.sublayers.values())
        return sum(part.state_bytes(seq_len, torch.bfloat16) for part in parts)

    def attention_ffn_ratio(self, seq_len: int | None = None) -> float:
        """Forward FLOPs of the mixers divided by those of the feed-forward networks."""
        seq_len = seq_len or self.config.block_size

        def flops(kind: type[Part]) -> int:
            parts = (part for block in self.blocks for part in block.sublayers.values())
            return sum(part.forward_flops(seq_len) for part in parts if isinstance(part, kind))

        return flops(Mixer) / flops(FeedForward)


def _stream_weights(module: nn.Module) -> Iterator[tuple[nn.Parameter, int]]:
    """Yield the weights of Linear and Embedding layers, with their dimension along the residual
    stream: the outputs of residual projections, and the inputs of others."""
    if isinstance(module, nn.Linear | nn.Embedding):
        yield module.weight, 1
    for part in module.modules():
        for name, child in part.named_children() if isinstance(part, Part) else ():
            if isinstance(child, nn.Linear):
                yield child.weight, 0 if name in part.residual_projections else 1


def check_sampling(
    max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    """Raise UserError if an argument of `GPT.stream` is out of range or NaN."""
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
    """Sample tokens (B, 1) from logits (B, V). See `GPT.stream` for the arguments and errors."""
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
        before = ordered.cumsum(dim=-1) - ordered  # total probability of more likely tokens
        ordered = ordered.masked_fill(before >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(1, order, ordered)
    return torch.multinomial(probabilities, 1, generator=generator)
