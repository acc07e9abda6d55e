"""What a run will need of memory, before it starts."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from model_builder import GPT
from model_config import ModelArchitectureConfig

COMPILED_SHARE = 0.25
"""torch.compile computes some activations anew instead of keeping them, how many is not known
beforehand: a compiled run is refused only where even this share of them does not fit."""

STATE_BYTES = 16
"""Per parameter in float32: the weight, its gradient, and AdamW's two moments."""


@dataclasses.dataclass(frozen=True)
class ExpectedMemory:
    """Bytes at the start of the backward pass, when most is held."""

    state: int
    """Weights, gradients and AdamW's moments."""
    activations: int
    """What the backward pass of one micro-batch needs kept, casts of weights included."""

    @property
    def total(self) -> int:
        return self.state + self.activations

    def least(self, compiled: bool) -> float:
        """What cannot be done without, bytes."""
        return self.state + self.activations * (COMPILED_SHARE if compiled else 1)


def expected_memory(
    config: ModelArchitectureConfig,
    batch_size: int,
    sequence_length: int,
    device: str,
    dtype: torch.dtype,
) -> ExpectedMemory:
    """Trace a forward pass without computing it, and add up the tensors that autograd keeps.

    Args:
        config: The architecture.
        batch_size: Sequences of a micro-batch.
        sequence_length: Tokens of a sequence.
        device: Device type.
        dtype: Compute type of the matmuls.
    """
    with FakeTensorMode(), torch.device(device):
        model = GPT(_traceable(config, device))
        owned = {p.untyped_storage()._cdata for p in model.parameters()}
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            if storage._cdata not in owned:
                kept[storage._cdata] = storage
            return tensor

        idx = torch.zeros(batch_size, sequence_length, dtype=torch.long)
        autocast = torch.autocast(device, dtype, enabled=dtype != torch.float32)
        with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(idx, idx)
        return ExpectedMemory(
            state=STATE_BYTES * model.num_parameters(),
            activations=sum(storage.nbytes() for storage in kept.values()),
        )


def _traceable(config: ModelArchitectureConfig, device: str) -> ModelArchitectureConfig:
    """The config with SDPA in place of the fused kernels that cannot be traced, and keep alike."""
    if set(config.attention_backends_on(device)) <= {"manual", "sdpa"}:
        return config
    return config.changed(attention_backend="sdpa", attention_softcap=None)
