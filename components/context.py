"""What flows through the layers beside the residual stream.

A block is called with `LayerInputs` and returns `LayerOutputs`, both plain pytrees of tensors, so
that it can be compiled, checkpointed and sharded by itself. Inside the block its parts share a
`Context`, from which they read the one and with which they fill the other.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from components.positions import PositionEncoding

State = dict[str, Tensor]
"""What one part of one layer remembers of the tokens before: tensors that it updates in place."""


class LayerInputs(NamedTuple):
    """What a block is given beside the residual stream.

    Attributes:
        tokens: The tokens (B, T).
        positions: The layer's position encoding.
        score_bias: What it adds to attention scores, (H, T, T_k), or None.
        start: Position of the first token: the number of tokens before it. An int, or a tensor in
            decoding with a static state, whose shapes never change.
        states: The decoding state of each part by its name in the block; None without decoding.
        taken: Tensors that earlier layers gave, by name: those that the block's parts ask for.
    """

    tokens: Tensor
    positions: PositionEncoding
    score_bias: Tensor | None
    start: int | Tensor
    states: dict[str, State] | None
    taken: dict[str, Tensor]


class LayerOutputs(NamedTuple):
    """What a block returns beside the residual stream.

    Attributes:
        given: Tensors for later layers, by name.
        losses: Auxiliary losses, scalars that the objective adds, by name.
        metrics: Numbers to log, by the name of the part in the block, then by their own.
    """

    given: dict[str, Tensor]
    losses: dict[str, Tensor]
    metrics: dict[str, dict[str, Tensor]]


class Context:
    """One layer's part in a forward pass, as its sublayers see it.

    Every block makes its own when it is called, and nothing in it outlives the call.
    """

    def __init__(self, inputs: LayerInputs):
        self._inputs = inputs
        self._part = ""
        self.outputs = LayerOutputs({}, {}, {})

    def of(self, part: str) -> Context:
        """The same context as the part of this name sees it: with its own state and metrics."""
        view = Context(self._inputs)
        view._part, view.outputs = part, self.outputs
        return view

    # What a part reads

    @property
    def tokens(self) -> Tensor:
        """The tokens (B, T)."""
        return self._inputs.tokens

    @property
    def positions(self) -> PositionEncoding:
        """The layer's position encoding, to rotate queries and keys by."""
        return self._inputs.positions

    @property
    def score_bias(self) -> Tensor | None:
        """What the position encoding adds to attention scores, (H, T, T_k), or None."""
        return self._inputs.score_bias

    @property
    def start(self) -> int | Tensor:
        """Position of the first token; see `LayerInputs`."""
        return self._inputs.start

    @property
    def state(self) -> State | None:
        """The part's decoding state, to be updated in place; None if nothing is to be kept."""
        return None if self._inputs.states is None else self._inputs.states[self._part]

    def take(self, name: str) -> Tensor | None:
        """What an earlier layer gave under this name; None if none did.

        The part must list the name in its `takes`.
        """
        return self._inputs.taken.get(name)

    # What a part leaves

    def give(self, name: str, value: Tensor) -> None:
        """Hand a tensor to later layers. If several layers give one name, the first counts."""
        self.outputs.given[name] = value

    def add_loss(self, name: str, value: Tensor) -> None:
        """Add a scalar, times its coefficient, to the training loss.

        Losses of one name are summed over the layers and logged. Validation leaves them out.
        """
        losses = self.outputs.losses
        losses[name] = losses[name] + value if name in losses else value

    def add_metric(self, name: str, value: Tensor) -> None:
        """Report a tensor of any shape. It is logged, averaged over the micro-batches of a step,
        and passed to the part's `after_step`."""
        self.outputs.metrics.setdefault(self._part, {})[name] = value.detach()
