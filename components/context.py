"""Data that flows through the layers besides the residual stream.

A block is called with `LayerInputs` and returns `LayerOutputs`, both plain pytrees of tensors, so
that it can be compiled, checkpointed and sharded separately. Inside the block, its parts share a
`Context` to read the inputs and to add to the outputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from components.positions import PositionEncoding

LARGEST = "largest_"
"""Name prefix of the metrics that a step combines by their maximum instead of their mean."""

State = dict[str, Tensor]
"""The decoding state of one part of one layer: tensors that it updates in place."""


TOKEN_EMBEDDING = "token embedding"
"""The name under which the model gives the scaled token embeddings (B, T, C) to its layers."""


class LayerInputs(NamedTuple):
    """The inputs of a block besides the residual stream.

    Attributes:
        tokens: The tokens (B, T).
        positions: The layer's position encoding.
        score_bias: Bias of the attention scores from the position encoding, (H, T, T_k), or None.
        start: Position of the first token, which is the number of tokens before it. An int, or a
            tensor when decoding with a static state, whose shapes never change.
        states: The decoding state of each part, by its name in the block; None without decoding.
        taken: Tensors given by earlier layers, or by the model (TOKEN_EMBEDDING), that the block's
            parts request, by name.
        measures: Whether mixers report their largest attention logits.
    """

    tokens: Tensor
    positions: PositionEncoding
    score_bias: Tensor | None
    start: int | Tensor
    states: dict[str, State] | None
    taken: dict[str, Tensor]
    measures: bool = False


class LayerOutputs(NamedTuple):
    """The outputs of a block besides the residual stream.

    Attributes:
        given: Tensors for later layers, by name.
        losses: Auxiliary losses by name, scalars that are added to the training loss.
        metrics: Metrics to log, by the part's name in the block and the metric's name.
    """

    given: dict[str, Tensor]
    losses: dict[str, Tensor]
    metrics: dict[str, dict[str, Tensor]]


class Context:
    """The context of one layer in a forward pass, shared by its sublayers.

    Every block creates its own in each call, and nothing in it outlives the call.
    """

    def __init__(self, inputs: LayerInputs):
        self._inputs = inputs
        self._part = ""
        self.outputs = LayerOutputs({}, {}, {})

    def of(self, part: str) -> Context:
        """A view of the context for the part with this name, with its own state and metrics."""
        view = Context(self._inputs)
        view._part, view.outputs = part, self.outputs
        return view

    # Inputs

    @property
    def tokens(self) -> Tensor:
        """The tokens (B, T)."""
        return self._inputs.tokens

    @property
    def positions(self) -> PositionEncoding:
        """The layer's position encoding, which rotates queries and keys."""
        return self._inputs.positions

    @property
    def score_bias(self) -> Tensor | None:
        """Bias of the attention scores from the position encoding, (H, T, T_k), or None."""
        return self._inputs.score_bias

    @property
    def start(self) -> int | Tensor:
        """Position of the first token; see `LayerInputs`."""
        return self._inputs.start

    @property
    def state(self) -> State | None:
        """The part's decoding state, to be updated in place; None without decoding."""
        return None if self._inputs.states is None else self._inputs.states[self._part]

    @property
    def measures(self) -> bool:
        """Whether to report the largest attention logits; see `components.attention_logits`."""
        return self._inputs.measures

    def take(self, name: str) -> Tensor | None:
        """The tensor that an earlier layer gave under this name; None if none did.

        The part must list the name in its `takes`.
        """
        return self._inputs.taken.get(name)

    # Outputs

    def give(self, name: str, value: Tensor) -> None:
        """Give a tensor to later layers. If several layers give the same name, a layer takes the
        one from the nearest layer before it."""
        self.outputs.given[name] = value

    def add_loss(self, name: str, value: Tensor) -> None:
        """Add a scalar, already multiplied by its coefficient, to the training loss.

        Losses with the same name are summed over the layers and logged. Validation excludes them.
        """
        losses = self.outputs.losses
        losses[name] = losses[name] + value if name in losses else value

    def add_metric(self, name: str, value: Tensor) -> None:
        """Report a tensor of any shape. It is averaged over the micro-batches of a step, logged,
        and passed to the part's `after_step`. If the name starts with `LARGEST`, the step takes the
        maximum of each element instead of the mean."""
        self.outputs.metrics.setdefault(self._part, {})[name] = value.detach()


def appended(state: State, start: int | Tensor, **new: Tensor) -> list[Tensor]:
    """Store entries (B, H_kv, T, D) in the state from position `start`; returns all stored so far.

    If `start` is a tensor, the results have the full capacity of the state, so that their shapes
    never change; positions not reached yet are zero.
    """
    return [_appended(state[name], start, values) for name, values in new.items()]


def _appended(kept: Tensor, start: int | Tensor, new: Tensor) -> Tensor:
    length = new.shape[2]
    if isinstance(start, int):
        kept[:, :, start : start + length] = new
        return kept[:, :, : start + length].to(new.dtype)
    positions = start + torch.arange(length, device=new.device)
    kept.index_copy_(2, positions, new.to(kept.dtype))
    return kept.to(new.dtype)
