"""What every part of a model can do: initialise what it owns, and say what it costs."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import nn

from components.layer_config import LayerConfig
from errors import Problem


@contextlib.contextmanager
def own_stream(name: str) -> Iterator[None]:
    """Draw from a stream of random numbers that torch's seed and a name alone decide.

    The stream outside goes on as if nothing had been drawn. So what one tensor draws moves no
    other, and models of one seed start from the same numbers wherever names and shapes agree.
    Streams nest, a name within a name. They are torch's on the CPU, where models are made.
    """
    stream = torch.default_generator
    outside = stream.get_state()
    digest = hashlib.sha256(f"{stream.initial_seed()} {name}".encode()).digest()
    stream.manual_seed(int.from_bytes(digest[:8]))
    try:
        yield
    finally:
        stream.set_state(outside)


class Part(nn.Module):
    """A module with a cost and an initialisation of its own.

    A nested class `Options` declares config keys that belong to the part; see `options`.
    """

    stream_name: ClassVar[str | None] = None
    """What its stream of initial numbers is called, if not by its name in the module above."""
    residual_projections: ClassVar[tuple[str, ...]] = ()
    """The Linear children whose output is added to the residual stream."""
    undecayed: ClassVar[tuple[str, ...]] = ()
    """Its own parameters that have no weight decay though they are no vectors."""

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        """What of its layer's config, the values sound one by one, this part cannot work with."""
        return iter(())

    @classmethod
    def idle(cls, config: LayerConfig) -> Iterator[Problem]:
        """Keys that have no effect in this layer, the key first: a config error for a key that the
        user gave and that has no effect in any layer."""
        return iter(())

    @classmethod
    def idle_among(cls, config: LayerConfig, layers: Sequence[LayerConfig]) -> Iterator[Problem]:
        """As `idle`, for keys whose effect depends on the other layers; `layers` are all layers of
        the model, this one included."""
        return iter(())

    @property
    def matrix_rows(self) -> Mapping[str, tuple[int, ...]]:
        """Rows of each matrix that a weight stacks, by the name of a Linear child or a parameter.

        It matters to optimizers that treat a matrix as a whole, such as Muon. A Linear child that
        is not named is one matrix. A parameter that is not named is no matrix; one of three
        dimensions that is named, as of experts, holds such matrices for each index of the first.
        """
        return {}

    def init_parameters(self, config: LayerConfig) -> None:
        """Initialise the Linear and Embedding children; norms initialise themselves.

        Weights are N(0, init_std), as in GPT-2; those of residual projections are scaled by
        1/sqrt(2 n_layer), so that the residual stream's variance does not grow with depth
        (Radford et al. 2019, section 2.3). Biases are zero. Each child draws from a stream of its
        own; what an override draws is from the part's.
        """
        for name, child in self.named_children():
            if isinstance(child, nn.Linear | nn.Embedding):
                scale = (2 * config.n_layer) ** -0.5 if name in self.residual_projections else 1.0
                with own_stream(name):
                    nn.init.normal_(child.weight, std=config.init_std * scale)
            if isinstance(child, nn.Linear) and child.bias is not None:
                nn.init.zeros_(child.bias)

    def forward_flops(self, seq_len: int, causal: bool = False) -> int:
        """FLOPs of the forward matmuls over one sequence of `seq_len` tokens.

        A multiply-add is 2. By default 2 x the weights of the Linear layers below, per token;
        a part overrides this where it multiplies activations, or uses weights otherwise.

        Args:
            seq_len: Tokens of the sequence.
            causal: Count what a causal mask leaves of the attention square, not all of it.
        """
        return _children_flops(self, seq_len, causal)

    def unused_parameters(self) -> int:
        """How many of its own parameters a token does not use, as of experts that were not chosen.

        Those of parts below are left to them.
        """
        return 0


def _children_flops(module: nn.Module, seq_len: int, causal: bool) -> int:
    total = 0
    for child in module.children():
        if isinstance(child, Part):
            total += child.forward_flops(seq_len, causal)
        elif isinstance(child, nn.Linear):
            total += 2 * child.weight.numel() * seq_len
        else:
            total += _children_flops(child, seq_len, causal)
    return total
