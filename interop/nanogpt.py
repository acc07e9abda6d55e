"""Models that nanoGPT (https://github.com/karpathy/nanoGPT) trained, from their ckpt.pt."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from errors import UserError
from interop.families import FAMILIES
from interop.family import Weights
from interop.weights import copy_weights
from model_builder import GPT
from model_config import ModelArchitectureConfig

_GPT2 = FAMILIES["gpt2"]
NANOGPT = dataclasses.replace(
    _GPT2,
    model_type="nanogpt",
    weights={module: Weights(weights.theirs) for module, weights in _GPT2.weights.items()},
)
"""GPT-2's names; its matrices are those of nn.Linear, (out, in), and not transposed."""

_SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias")
_COMPILED = "_orig_mod."
"""What torch.compile puts before the names."""


def load(path: str | Path, **changes: Any) -> GPT:
    """The model of a ckpt.pt as `arch_preset='legacy'`, in evaluation mode.

    Only tensors and plain values are read: a file that wants to run code is refused.

    Args:
        path: The file.
        changes: Keys of the architecture to change, such as `dropout`, which is 0 otherwise.

    Raises:
        UserError: the file cannot be read, is no checkpoint of nanoGPT, or its weights do not
            fit its sizes; naming what is wrong.
    """
    checkpoint = _read(Path(path))
    sizes = {key: checkpoint["model_args"][key] for key in _SIZES}
    model = GPT(ModelArchitectureConfig.from_preset("legacy", **sizes | changes))
    tensors = {name.removeprefix(_COMPILED): x for name, x in checkpoint["model"].items()}
    copy_weights(model, NANOGPT, tensors)
    return model.eval()


def _read(path: Path) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # a damaged file can raise anything
        reason = f"{error!r:.200}"
        raise UserError(f"{path} is not a file of tensors and plain values: {reason}") from error
    found = checkpoint if isinstance(checkpoint, dict) else {}
    arguments = found.get("model_args") or {}
    missing = [name for name in ("model", "model_args") if name not in found]
    missing += [f"model_args[{key!r}]" for key in _SIZES if arguments and key not in arguments]
    if missing:
        raise UserError(f"{path} is not a nanoGPT checkpoint: it has no {', '.join(missing)}.")
    return found
