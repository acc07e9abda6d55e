"""The base class of a model's parts, which initialize their weights and report their cost."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import ClassVar, Protocol

import torch
from torch import nn

from components.layer_config import LayerConfig
from components.parametrizations import parametrization_of
from errors import Problem


@contextlib.contextmanager
def own_stream(name: str) -> Iterator[None]:
    """A context with a random stream that depends only on torch's seed and a name.

    The outer stream is restored on exit, as if nothing had been drawn. Drawing for one tensor
    therefore does not affect others, and models with the same seed start with the same values
    wherever names and shapes match. Streams can be nested. They use torch's CPU generator, since
    models are created on the CPU.
    """
    stream = torch.default_generator
    outside = stream.get_state()
    digest = hashlib.sha256(f"{stream.initial_seed()} {name}".encode()).digest()
    stream.manual_seed(int.from_bytes(digest[:8]))
    try:
        yield
    finally:
        stream.set_state(outside)


class GradientFlow(Protocol):
    """Which modules have an input or output with a gradient."""

    def into(self, module: nn.Module) -> bool:
        """Whether the input of a module has a gradient."""

    def out_of(self, module: nn.Module) -> bool:
        """Whether the output of a module has a gradient."""


class Part(nn.Module):
    """A module with its own cost and initialization.

    A nested class `Options` declares the config keys of the part; see `options`.
    """

    stream_name: ClassVar[str | None] = None
    """Name of the random stream for initial weights. None: the attribute name in the parent."""
    residual_projections: ClassVar[tuple[str, ...]] = ()
    """Names of the Linear children whose output is added to the residual stream."""
    undecayed: ClassVar[tuple[str, ...]] = ()
    """Names of parameters without weight decay although they are not vectors."""
    output_gates: ClassVar[tuple[str, ...]] = ()
    """Names of the Linear children that scale the result of the part's own matmuls."""
    multiplies_weights: ClassVar[bool] = False
    """Whether the matmuls outside Linear layers multiply activations with weights."""
    applications: int = 1
    """How often it runs in a forward pass; `forward_flops` are those of one application."""
    takes_sphere: ClassVar[bool] = False
    """Whether `sphere_weights` is defined: every Linear layer reads the residual stream, or writes
    to it and is listed in `residual_projections`."""
    scales_with_width: ClassVar[bool] = False
    """Whether the part is defined for a `parametrization` that depends on the width: all its Linear
    layers map hidden states to hidden states, of dimensions that grow with n_embd."""

    @classmethod
    def problems(cls, config: LayerConfig) -> Iterator[Problem]:
        """Yield problems with the layer's config, whose values are individually valid."""
        return iter(())

    @classmethod
    def rounding(cls, config: LayerConfig, derived: Collection[str]) -> Iterator[Problem]:
        """Yield problems with values that were derived by rounding; `derived` contains the names of
        all keys of the layer whose values were derived."""
        return iter(())

    @classmethod
    def problems_among(
        cls, config: LayerConfig, layers: Sequence[LayerConfig]
    ) -> Iterator[Problem]:
        """Like `problems`, for what depends on other layers; `layers` are all layers of the model,
        including this one."""
        return iter(())

    @classmethod
    def idle(cls, config: LayerConfig) -> Iterator[Problem]:
        """Yield problems for keys without effect in this layer, with that key first in `keys`. They
        are config errors if the user gave the key and it has no effect in any layer."""
        return iter(())

    @classmethod
    def idle_among(cls, config: LayerConfig, layers: Sequence[LayerConfig]) -> Iterator[Problem]:
        """Like `idle`, for keys whose effect depends on other layers; `layers` are all layers of
        the model, including this one."""
        return iter(())

    @property
    def matrix_rows(self) -> Mapping[str, tuple[int, ...]]:
        """Rows of each matrix stacked in a weight, by the name of a Linear child or a parameter.

        Used by optimizers that operate on whole matrices, such as Muon. Linear children that are
        not listed are single matrices. Parameters that are not listed are not matrices. A listed
        parameter with three dimensions, such as experts, has these matrices for each index of the
        first dimension.
        """
        return {}

    def init_parameters(self, config: LayerConfig) -> None:
        """Initialize the Linear and Embedding children; norms initialize themselves.

        Embeddings are N(0, init_std), as in GPT-2; the standard deviation of Linear weights, and a
        factor for residual projections, depend on `parametrization`. Biases are zero. Each child
        uses its own random stream; overrides of this method draw from the part's stream.
        """
        parametrization = parametrization_of(config)
        for name, child in self.named_children():
            if isinstance(child, nn.Embedding):
                init_normal(child, name, config.init_std)
            elif isinstance(child, nn.Linear):
                residual = name in self.residual_projections
                scale = parametrization.residual_projection_scale if residual else 1.0
                init_normal(child, name, parametrization.hidden_std * scale)

    def forward_flops(self, seq_len: int, causal: bool = False) -> int:
        """FLOPs of the forward matmuls for one sequence of `seq_len` tokens.

        A multiply-add counts as 2. The default is 2 x the weights of all Linear submodules per
        token. Override this in parts that multiply activations or use weights differently.

        Args:
            seq_len: Sequence length in tokens.
            causal: Whether to count only the attention pairs allowed by the causal mask.
        """
        return self.children_flops(seq_len, causal)

    def children_flops(self, seq_len: int, causal: bool = False) -> int:
        """`forward_flops` of the Linear layers and parts below this part."""
        return _children_flops(self, seq_len, causal)

    def own_backward_flops(self, own: int, flow: GradientFlow) -> int:
        """FLOPs of the backward matmuls that belong to no Linear layer or part below this part, if
        its weights are frozen (see `components.backward_cost`).

        By default, these matmuls multiply the input or outputs of Linear layers with each other, or
        with weights if `multiplies_weights`. Override this in parts that do both, or whose factors
        have gradients independently.

        Args:
            own: FLOPs of these matmuls in the forward pass.
            flow: Which modules have an input or output with a gradient.
        """
        late = (*self.residual_projections, *self.output_gates)
        early = (child for name, child in self.named_children() if name not in late)
        made = (child for child in early if isinstance(child, nn.Linear))
        differentiated = flow.into(self) or any(map(flow.out_of, made))
        return own * differentiated * (1 if self.multiplies_weights else 2)

    def unused_parameters(self) -> int:
        """Number of own parameters that a token does not use, such as those of unselected experts.

        Excludes parameters of submodules that are parts.
        """
        return 0


def init_normal(layer: nn.Linear | nn.Embedding, name: str, std: float) -> None:
    """Initialize a layer: weights N(0, std) from the stream of this name, and zero biases."""
    with own_stream(name):
        nn.init.normal_(layer.weight, std=std)
    if isinstance(layer, nn.Linear) and layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _children_flops(module: nn.Module, seq_len: int, causal: bool) -> int:
    total = 0
    for child in module.children():
        if isinstance(child, Part):
            total += child.applications * child.forward_flops(seq_len, causal)
        elif isinstance(child, nn.Linear):
            total += 2 * child.weight.numel() * seq_len
        else:
            total += _children_flops(child, seq_len, causal)
    return total
