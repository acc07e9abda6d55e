"""Activation checkpointing: discard a block's activations after the forward pass and recompute them
in the backward pass (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv
1604.06174)."""

from __future__ import annotations

from functools import partial, wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

MODES = ("none", "block", "selective")

_aten = torch.ops.aten
_KEPT = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten.convolution.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_attention_math.default,
}
"""Operations whose outputs selective checkpointing keeps, because recomputing them is expensive."""


def checkpoint_block(block: nn.Module, mode: str) -> None:
    """Recompute a block's activations in the backward pass. Module names do not change.

    Args:
        block: A block of a model.
        mode: `none`; `block`: keep only the block's inputs; `selective`: also keep the outputs of
            matmuls and attention.
    """
    if mode == "none":
        return
    forward = block.forward
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)

    @wraps(forward)
    def checkpointed(*args: Any) -> Any:
        if torch.is_grad_enabled() and block.training:
            return checkpoint(forward, *args, **options)
        return forward(*args)

    block.forward = checkpointed


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operation in _KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
