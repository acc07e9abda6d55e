"""The GPT model, assembled from the components of a config: logits, loss, text, size and cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from components.backward_cost import backward_flops, pass_flops
from components.blocks import BLOCKS, Block
from components.context import LARGEST, TOKEN_EMBEDDING, LayerInputs, LayerOutputs, State
from components.ffns import FeedForward
from components.head import LMHead, cross_entropy
from components.layer_config import LayerConfig
from components.mixers import Mixer
from components.multi_token import MTPS, ModuleInputs, later, later_targets
from components.norms import make_norm
from components.parametrizations import Parametrization, parametrization_of
from components.part import Part, init_normal, own_stream
from components.positions import PositionEncoding
from components.quantized_linear import quantized_parameters, quantized_tensors, storage_bytes
from components.sphere import on_sphere
from components.sublayer import Sublayer
from errors import UserError
from model_components import POSITIONS
from model_config import ModelArchitectureConfig

MIN_TEMPERATURE = 1e-6
"""Lowest temperature other than 0; dividing float32 logits by less could overflow."""


Metrics = dict[str, dict[str, Tensor]]
"""The metrics of a layer, by part and name."""


class Objective(Protocol):
    """A training objective; see `recipe.objectives`.

    If it has an attribute `trains` that is True, the loss of multi-token prediction is added.
    """

    def __call__(
        self, x: Tensor, head: LMHead, targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss for inputs of the LM head (B, T, C), and its detached terms by name."""


class DecodingState:
    """The decoding state of a model: KV caches and recurrent states of the tokens seen so far.

    Attributes:
        layers: For each application of a layer, in order, the state of each part.
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
        metrics: The metrics of each layer, by part and name; then those of the blocks for
            multi-token prediction.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    metrics: list[Metrics]


class Hidden(NamedTuple):
    """The result of the blocks.

    Attributes:
        x: The input of the LM head (B, T, C).
        trunk: The residual stream before the last block.
        inputs: The inputs of the last block besides the stream.
        losses: Auxiliary losses of parts, by name.
        metrics: The metrics of each layer, by part and name.
    """

    x: Tensor
    trunk: Tensor
    inputs: LayerInputs
    losses: dict[str, Tensor]
    metrics: list[Metrics]

    def add(self, outputs: LayerOutputs) -> None:
        """Add the losses and metrics of a block."""
        _add_losses(self.losses, outputs.losses)
        self.metrics.append(outputs.metrics)


class GPT(Part):
    """A decoder-only transformer (Radford et al. 2018).

    Each initial weight is a function of torch's current seed and of the weight's name and shape, so
    architectures with the same seed start with the same values in all weights they share.

    Shapes: B batch, T time, C = n_embd, V = vocab_size.
    """

    Config = ModelArchitectureConfig

    adapted: bool = False
    """Whether the model has adapters, and only they are trained; see `recipe.adapters`."""
    unquantized_bytes: int | None = None
    """Size of the weights in bytes before quantization; None if they are not quantized."""

    def __init__(
        self, config: ModelArchitectureConfig, ready: Callable[[str, Block], None] | None = None
    ):
        """
        Args:
            config: The architecture.
            ready: Called with the name of each block and the block, after its weights are
                initialized and before the next block is created. It may shard the block or move it
                to another device, so that only one whole block is held at a time.
        """
        super().__init__()
        self.config = config
        with own_stream("made"):  # isolates torch's own initialization, which is replaced below
            self._make_ends(config)
        given: set[str] = {TOKEN_EMBEDDING}
        earlier: set[str] = set()
        sites = 0
        self._order = config.applied_layers
        times = Counter(self._order)
        for index, layer in enumerate(config.layers):
            with own_stream(f"made.{index}"):
                block = BLOCKS[layer.norm_position](layer)
            earlier = set(given)
            given |= block.connect(given, sites)
            sites += block.own_sites
            self.blocks.append(block)
            block.applications = times[index]
            self._initialize(f"blocks.{index}", block)
            self._to_sphere(block)
            if ready is not None:
                ready(f"blocks.{index}", block)
        self._make_multi_token(config, earlier, ready)
        for name, child in self.named_children():
            if child not in (self.blocks, self.mtp):
                self._initialize(name, child)
        with own_stream(""):
            self.init_parameters(config)
        self._to_sphere(self.embedding, self.head)
        if config.weight_tying:
            self.head.weight = self.embedding.weight

    def _make_multi_token(
        self,
        config: ModelArchitectureConfig,
        given: set[str],
        ready: Callable[[str, Block], None] | None,
    ) -> None:
        """Create the modules for multi-token prediction; `given`: what the last layer may read."""
        self.mtp = nn.ModuleList()
        last = config.layers[-1]
        for index in range(last.get("mtp_depth", 0)):
            name = f"mtp.{index}"
            with own_stream(f"made.{name}"):
                module = MTPS[config.mtp](last)
            module.block.connect(given)
            self.mtp.append(module)
            self._initialize(name, module)
            if ready is not None:
                ready(f"{name}.block", module.block)

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
        of the attribute name. If there are several position encodings, each has the stream that a
        single one would have."""
        module, words = self, []
        for word in name.split("."):
            owner, module = module, module.get_submodule(word)
            if owner is not self.positions or not isinstance(owner, nn.ModuleList):
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
        if owner in ("blocks", "mtp"):
            return self.config.layers[index if owner == "blocks" else -1]
        return self._position_configs[index] if owner == "positions" else self.config

    @property
    def all_blocks(self) -> list[Block]:
        """The blocks, then those of the modules for multi-token prediction."""
        return [*self.blocks, *(module.block for module in self.mtp)]

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
        measures: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor] | TrainingOutput:
        """Compute the logits of the next token at every position, or the training loss.

        Args:
            idx: Tokens (B, T).
            targets: The next token at every position, (B, T); -1 is ignored in the loss.
            state: Decoding state of the tokens before idx (`new_state`); updated in place.
            objective: The training objective; requires targets.
            measures: Whether the metrics include the largest attention logits; see
                `components.attention_logits`.

        Returns:
            Logits (B, T, V); with targets, (logits, mean cross-entropy in nats per token); with an
            objective, a `TrainingOutput`, for which logits are computed in chunks (`LMHead.loss`).

        Raises:
            UserError: If there are more tokens than block_size, including those in the state, and
                the model is not `unbounded`; or if the state has another batch size.
        """
        hidden = self._hidden(idx, state, measures)
        x, losses = hidden.x, hidden.losses
        if objective is not None:
            loss, terms = objective(x, self.head, targets)
            if self.mtp and getattr(objective, "trains", False):
                self._predict_later(idx, targets, hidden)
            if terms.keys() & losses.keys():
                raise UserError(
                    f"the auxiliary loss {min(terms.keys() & losses.keys())!r} has the name of a "
                    "term of the objective; choose another name in context.add_loss."
                )
            terms = {**terms, **{name: own.detach() for name, own in losses.items()}}
            return TrainingOutput(sum(losses.values(), start=loss), terms, hidden.metrics)
        logits = self.head(x)
        return logits if targets is None else (logits, cross_entropy(logits, targets))

    def _predict_later(self, idx: Tensor, targets: Tensor, hidden: Hidden) -> None:
        """Add the loss of multi-token prediction to `hidden.losses`, and the losses and metrics of
        its blocks.

        Tokens whose target lies beyond the end of the sequence do not count.
        """
        depth, length = len(self.mtp), idx.shape[1]
        if length <= depth:
            raise UserError(
                f"sequences of {length} tokens leave no token to predict with mtp_depth={depth}; "
                f"use at least {depth + 1} tokens, or lower mtp_depth."
            )
        x, losses = hidden.x, []
        for by, module in enumerate(self.mtp, start=1):
            inputs, embedded = hidden.inputs, None
            if module.reads_later_tokens:
                tokens = later(idx, by)
                embedded = self._embedded(tokens)
                taken = {**inputs.taken, TOKEN_EMBEDDING: embedded}
                inputs = inputs._replace(tokens=tokens, taken=taken)
            x, outputs = module(ModuleInputs(x, embedded, hidden.trunk), inputs)
            losses.append(self.head.loss(x, later_targets(targets, by)).total)
            hidden.add(outputs)
        hidden.losses["mtp_loss"] = self.config.mtp_weight / depth * sum(losses)

    def _embedded(self, idx: Tensor) -> Tensor:
        """The embeddings of tokens (B, T), scaled: (B, T, C)."""
        x = self.embedding(idx)
        return x if self.config.embedding_scale == 1 else x * self.config.embedding_scale

    def _hidden(self, idx: Tensor, state: DecodingState | None, measures: bool) -> Hidden:
        """The input of the LM head, and the other outputs of the layers."""
        if state is not None and state.batch != idx.shape[0]:
            raise UserError(
                f"idx has batch size {idx.shape[0]}, but the decoding state has batch size "
                f"{state.batch}; create the state with new_state({idx.shape[0]})."
            )
        start = 0 if state is None else state.length
        keys = self._keys(start, idx.shape[1], state)
        x = embedded = self._embedded(idx)
        encodings = self.position_encodings
        for encoding in encodings:  # at most one of them changes x
            x = encoding.embed(x, start)
        x = self.embedding_norm(x)
        biases = [encoding.score_bias(start, idx.shape[1], keys) for encoding in encodings]
        stream = self.blocks[0].residual.begin(self.dropout(x))
        given: dict[str, Tensor] = {TOKEN_EMBEDDING: embedded}
        losses: dict[str, Tensor] = {}
        metrics: list[list[Metrics]] = [[] for _ in self.blocks]
        for place, layer in enumerate(self._order):
            block, own = self.blocks[layer], self._position_of_layer[layer]
            inputs = LayerInputs(
                idx,
                encodings[own],
                biases[own],
                start,
                None if state is None else state.layers[place],
                {name: given[name] for name in block.takes},
                measures,
            )
            trunk = stream
            stream, outputs = block(stream, inputs)
            given |= outputs.given
            _add_losses(losses, outputs.losses)
            metrics[layer].append(outputs.metrics)
        if state is not None:
            state.length += idx.shape[1]
        x = self.final_norm(self.blocks[-1].residual.end(stream))
        return Hidden(x, trunk, inputs, losses, list(map(_combined, metrics)))

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
        for block, own in zip(self.all_blocks, metrics, strict=True):
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
            self.blocks[layer].new_states(batch, capacity, device=weight.device, dtype=dtype)
            for layer in self._order
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
        """Number of parameters, counting tied ones once, without those of multi-token prediction;
        `embeddings`: include embedding tables."""
        stored = sum(p.numel() for p in self.parameters()) + quantized_parameters(self)
        total = stored - self.mtp_parameters()
        if embeddings:
            return total
        tables = {m.weight for m in self._main_modules() if isinstance(m, nn.Embedding)}
        return total - sum(table.numel() for table in tables)

    def mtp_parameters(self) -> int:
        """Number of parameters of the modules for multi-token prediction, without the embedding and
        the LM head, which they share with the main model. Only training uses them."""
        return sum(p.numel() for p in self.mtp.parameters())

    def active_parameters(self) -> int:
        """Number of parameters that a token uses: all except experts it is not routed to, without
        those of multi-token prediction."""
        parts = (module for module in self._main_modules() if isinstance(module, Part))
        return self.num_parameters() - sum(part.unused_parameters() for part in parts)

    def _main_modules(self) -> Iterator[nn.Module]:
        """Yield all modules except those for multi-token prediction."""
        extra = set(self.mtp.modules())
        return (module for module in self.modules() if module not in extra)

    def trained_parameters(self) -> int:
        """Number of parameters that are trained: all, unless the model has adapters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def forward_flops(self, seq_len: int, causal: bool = False) -> int:
        """See `Part.forward_flops`; without multi-token prediction, which only training uses."""
        return self.children_flops(seq_len, causal) - self._mtp_flops(seq_len, causal)

    def _mtp_flops(self, seq_len: int, causal: bool) -> int:
        """Forward FLOPs of multi-token prediction for one sequence."""
        return sum(module.forward_flops(seq_len, causal) for module in self.mtp)

    def flops_per_token(self, seq_len: int | None = None, causal: bool = False) -> int | float:
        """Matmul FLOPs of training per token: 3 x forward, with multi-token prediction; a
        multiply-add counts as 2. If only adapters are trained, the backward pass computes less; see
        `components.backward_cost`.

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
        total += 3 * self._mtp_flops(seq_len, causal)
        return total // seq_len if total % seq_len == 0 else total / seq_len

    def cost_report(self, seq_len: int | None = None) -> dict[str, Any]:
        """Name, parameters and cost for sequences of `seq_len` tokens, as in a run's log."""
        return {
            "name": self.config.architecture_name,
            "parameters": self.num_parameters(),
            "active_parameters": self.active_parameters(),
            **({"mtp_parameters": self.mtp_parameters()} if self.mtp else {}),
            **self._cost_of_adapters(),
            "flops_per_token": self.flops_per_token(seq_len),
            "flops_per_token_causal": self.flops_per_token(seq_len, causal=True),
            "attention_ffn_ratio": self.attention_ffn_ratio(seq_len),
            "decoding_state_bytes": self.decoding_state_bytes(seq_len),
        }

    def _cost_of_adapters(self) -> dict[str, int]:
        """How many parameters are trained, if not all; FLOPs that do not depend on tokens; and the
        bytes of a quantized base."""
        if not self.adapted:
            return {}
        added, flops = {"trained_parameters": self.trained_parameters()}, pass_flops(self)
        if flops:
            added["adapter_flops_per_pass"] = flops
        if self.unquantized_bytes is not None:
            added["base_bytes"] = self.base_bytes()
            added["unquantized_base_bytes"] = self.unquantized_bytes
        return added

    def base_bytes(self) -> int:
        """Size of the frozen weights in bytes, as stored."""
        frozen = (parameter for parameter in self.parameters() if not parameter.requires_grad)
        return storage_bytes((*frozen, *quantized_tensors(self).values()))

    def decoding_state_bytes(self, seq_len: int | None = None) -> int:
        """Bytes of decoding state for one sequence of `seq_len` tokens, with keys and values in
        half precision."""
        seq_len = seq_len or self.config.block_size
        return sum(part.state_bytes(seq_len, torch.bfloat16) for part in self._applied())

    def _applied(self) -> Iterator[Sublayer]:
        """The sublayers of the blocks; those of looped blocks, once for each application."""
        return (part for layer in self._order for part in self.blocks[layer].sublayers.values())

    def attention_ffn_ratio(self, seq_len: int | None = None) -> float | None:
        """Forward FLOPs of the mixers divided by those of the feed-forward networks; None if the
        latter have none."""
        seq_len = seq_len or self.config.block_size

        def flops(kind: type[Part]) -> int:
            parts = (part for part in self._applied() if isinstance(part, kind))
            return sum(part.forward_flops(seq_len) for part in parts)

        networks = flops(FeedForward)
        return flops(Mixer) / networks if networks else None


def _add_losses(total: dict[str, Tensor], losses: dict[str, Tensor]) -> None:
    """Add losses to the totals of the same names."""
    for name, loss in losses.items():
        total[name] = total[name] + loss if name in total else loss


def _combined(metrics: list[Metrics]) -> Metrics:
    """The metrics of a layer over its applications: the mean, or the maximum if the name starts
    with `LARGEST`."""
    if len(metrics) == 1:
        return metrics[0]

    def over(name: str, values: list[Tensor]) -> Tensor:
        stacked = torch.stack(values)
        return stacked.amax(dim=0) if name.startswith(LARGEST) else stacked.mean(dim=0)

    return {
        part: {name: over(name, [own[part][name] for own in metrics]) for name in named}
        for part, named in metrics[0].items()
    }


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
