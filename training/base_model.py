"""The frozen base model of adapters, which checkpoints identify by a digest of its weights."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from components.quantized_linear import quantized_sha256
from errors import UserError
from model_builder import GPT
from recipe.adapters import adapt
from training.sharded_tensors import own_tensors
from training_config import TrainingConfig

LoadBase = Callable[[GPT, Path], None]
"""Copies the weights of a model folder into a model of its architecture."""


class Placement(Protocol):
    """Copies loaded weights into a model that may be distributed."""

    def load(self, network: GPT, load: Callable[[GPT], None]) -> None:
        """Load weights; `load` fills a whole model."""


def load_start(
    network: GPT,
    training: TrainingConfig,
    state: Mapping[str, Any],
    placement: Placement,
    load: LoadBase,
) -> str | None:
    """Load the weights of `init_from` into a model, unless a checkpoint contains all weights.

    Args:
        network: The model.
        training: The training config.
        state: The state of the checkpoint to resume from; empty for a new run.
        placement: How the model is distributed.
        load: Copies the weights of a folder.

    Returns:
        The digest of the weights that the run started from; None without `init_from`, or for runs
        of earlier versions.
    """
    found = [state.get("init_from_sha256")]
    if training.init_from == "none" or (state and training.adapter == "none"):
        return found[0]

    def loaded(whole: GPT) -> None:
        load(whole, Path(training.init_from))
        found.append(weights_sha256(whole))

    placement.load(network, loaded)
    return found[0] or found[-1]


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 of the names, shapes and values of a model's parameters and saved buffers, tied ones
    once."""
    digest = hashlib.sha256()
    for name, tensor in sorted(own_tensors(model).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class BaseDigests:
    """Digests of the frozen weights of a run; None if it has no such weights.

    Attributes:
        weights: SHA-256 of the weights in the folder of `init_from`.
        quantized: SHA-256 of the weights after quantization.
    """

    weights: str | None = None
    quantized: str | None = None

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> BaseDigests:
        """The digests in the state of a checkpoint, which is empty for a new run."""
        return cls(state.get("base_sha256"), state.get("quantized_base_sha256"))

    def to_state(self) -> dict[str, str | None]:
        """The digests, as entries of the state of a checkpoint."""
        return {"base_sha256": self.weights, "quantized_base_sha256": self.quantized}


def adapt_base(
    model: GPT,
    training: TrainingConfig,
    expected: BaseDigests = BaseDigests(),  # noqa: B008  (it is immutable)
    device: torch.device | None = None,
) -> BaseDigests:
    """Quantize the base of a run, if `quantize_base` is set, and add the adapters.

    Args:
        model: The base model, loaded from `init_from`.
        training: The training config.
        expected: The digests of the base that the adapters were trained on.
        device: Device to which a quantized model is moved. Defaults to its current device.

    Returns:
        The digests of the base.

    Raises:
        UserError: If it is another base than expected; or see `recipe.adapters.adapt`.
    """
    if training.adapter == "none":
        return BaseDigests()
    found = weights_sha256(model)
    if expected.weights not in (None, found):
        raise UserError(
            f"the adapters were trained on a model whose weights have the sha256 "
            f"{expected.weights[:12]}, but those in init_from={training.init_from!r} have "
            f"{found[:12]}; pass --init_from=FOLDER with the folder of the original model."
        )
    adapt(model, training)
    quantized = quantized_sha256(model)
    if expected.quantized not in (None, quantized):
        raise UserError(
            f"the adapters were trained on weights whose {training.quantize_base} values have the "
            f"sha256 {expected.quantized[:12]}, but here they have {quantized[:12]}; install the "
            "version of bitsandbytes that the run was trained with."
        )
    if quantized is not None and device is not None:
        model.to(device)
    return BaseDigests(found, quantized)
