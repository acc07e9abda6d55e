"""The frozen base model of adapters, which checkpoints identify by a digest of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from torch import nn

from errors import UserError
from model_builder import GPT
from recipe.adapters import adapt
from training.sharded_tensors import own_tensors
from training_config import TrainingConfig

LoadBase = Callable[[GPT, Path], None]
"""Copies the weights of a model folder into a model of its architecture."""


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 of the names, shapes and values of a model's parameters and saved buffers, tied ones
    once."""
    digest = hashlib.sha256()
    for name, tensor in sorted(own_tensors(model).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()


def adapt_base(model: GPT, training: TrainingConfig, expected: str | None = None) -> str | None:
    """Add the adapters of a run to a model with the weights of its base.

    Args:
        model: The base model, loaded from `init_from`.
        training: The training config.
        expected: The digest of the base that the adapters were trained on; None for new ones.

    Returns:
        The digest of the base; None if the run has no adapters.

    Raises:
        UserError: If it is another base than expected; or see `recipe.adapters.adapt`.
    """
    if training.adapter == "none":
        return None
    found = weights_sha256(model)
    if expected not in (None, found):
        raise UserError(
            f"the adapters were trained on a model whose weights have the sha256 {expected[:12]}, "
            f"but those in init_from={training.init_from!r} have {found[:12]}; pass "
            "--init_from=FOLDER with the folder of the original model."
        )
    adapt(model, training)
    return found
