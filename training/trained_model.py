"""Load the model and tokenizer of a checkpoint, for sampling and export."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from data.tokenizer_json import TOKENIZER_FILE
from data.tokenizers import Tokenizer, tokenizer_from_meta
from errors import UserError
from model_builder import GPT
from safe_files import refuse_irregular
from training.checkpoint import load_model_weights, load_newest
from training.resume import load_settings
from training.run_state import load_run_state
from training.saved_plugins import plugin_changes


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A model and its tokenizer, loaded from a checkpoint.

    Attributes:
        model: The model in evaluation mode, on the requested device.
        tokenizer: The tokenizer of the training data.
        checkpoint: The checkpoint they were loaded from.
        notes: Messages for the user: damaged checkpoints that were skipped, plugins that have
            changed.
    """

    model: GPT
    tokenizer: Tokenizer
    checkpoint: Path
    notes: tuple[str, ...]


def load_trained(
    where: str,
    out_dir: Path,
    plugins: Mapping[str, str],
    *,
    device: torch.device | str = "cpu",
    download: bool = False,
    **changes: Any,
) -> TrainedModel:
    """Load from a run's newest intact checkpoint, or from a given checkpoint.

    Runs no code from the checkpoint, and needs no network unless `download` is set.

    Args:
        where: A checkpoint, as in `find_checkpoint`; its run may still be training.
        out_dir: The folder that contains the runs.
        plugins: Sources of the plugins that the user gave; they are already registered.
        device: The device for the model.
        download: Whether to download the tokenizer's vocabulary if it is not cached.
        changes: Architecture keys to change if a layer has them, such as `attention_backend`.

    Raises:
        UserError: If there is no such checkpoint, it is damaged, or its tokenizer is not available.
    """

    def load(path: Path) -> tuple[GPT, Tokenizer]:
        described = load_run_state(path)["tokenizer"]
        refuse_irregular(path / TOKENIZER_FILE, follow_links=False)
        tokenizer = tokenizer_from_meta(described, path, download=download)
        config = load_settings(path, plugins).model.adapted(**changes)
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"{path} is damaged: its tokenizer {tokenizer.name!r} has {tokenizer.vocab_size} "
                f"tokens, but its model has {config.vocab_size}; use another checkpoint."
            )
        model = GPT(config).to(device).eval()
        load_model_weights(path, model)
        return model, tokenizer

    (model, tokenizer), path, notes = load_newest(where, out_dir, load)
    return TrainedModel(model, tokenizer, path, (*notes, *plugin_changes(plugins, path)))
