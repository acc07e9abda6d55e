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
from recipe.adapters import merge
from safe_files import refuse_irregular
from training.base_model import BaseDigests, LoadBase, adapt_base
from training.checkpoint import load_model_weights, load_newest
from training.resume import load_settings
from training.run_state import load_run_state
from training.saved_plugins import plugin_changes
from training_config import TrainingConfig

RUN_HELP = (
    "latest (the run that saved last, runs of sweeps included), a run name, a run directory or a "
    "checkpoint directory"
)
BASE_HELP = "folder of the model that the run's adapters were trained on, if it has been moved"


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A model and its tokenizer, loaded from a checkpoint.

    Attributes:
        model: The model in evaluation mode, on the requested device.
        tokenizer: The tokenizer of the training data.
        checkpoint: The checkpoint they were loaded from.
        notes: Messages for the user: damaged checkpoints that were skipped, plugins that have
            changed.
        training: The training config of its run; `init_from` is where the base was found.
    """

    model: GPT
    tokenizer: Tokenizer
    checkpoint: Path
    notes: tuple[str, ...]
    training: TrainingConfig


@dataclasses.dataclass(frozen=True)
class Base:
    """Where the base of adapters is.

    Attributes:
        load: Copies the weights of a folder into a model.
        folder: Its folder, if it is no longer where it was in training.
    """

    load: LoadBase
    folder: Path | None = None

    def adapted(
        self, model: GPT, training: TrainingConfig, expected: BaseDigests
    ) -> TrainingConfig:
        """Load the base into a model and add the adapters of a run to it. Raises UserError if it
        is another base than expected; returns the config with the folder of the base."""
        if self.folder is not None:
            training = training.changed(init_from=str(self.folder))
        self.load(model, Path(training.init_from))
        adapt_base(model, training, expected)
        return training


def load_trained(
    where: str,
    out_dir: Path,
    plugins: Mapping[str, str],
    *,
    device: torch.device | str = "cpu",
    download: bool = False,
    base: Base | None = None,
    merges: bool = True,
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
        base: How to load the base of a run with adapters.
        merges: Whether to merge the adapters into the weights.
        changes: Architecture keys to change if a layer has them, such as `attention_backend`.

    Raises:
        UserError: If there is no such checkpoint, it is damaged, or its tokenizer is not available.
    """

    def load(path: Path) -> tuple[GPT, Tokenizer, TrainingConfig]:
        state = load_run_state(path)
        described = state["tokenizer"]
        refuse_irregular(path / TOKENIZER_FILE, follow_links=False)
        tokenizer = tokenizer_from_meta(described, path, download=download)
        settings = load_settings(path, plugins)
        training = settings.training
        config = settings.model.adapted(**changes)
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"{path} is damaged: its tokenizer {tokenizer.name!r} has {tokenizer.vocab_size} "
                f"tokens, but its model has {config.vocab_size}; use another checkpoint."
            )
        model = GPT(config)
        if training.adapter == "none" and base is not None and base.folder is not None:
            raise UserError(
                f"{path} has no adapters, so --base={base.folder} has no effect; drop it."
            )
        if training.adapter != "none":
            assert base is not None
            training = base.adapted(model, training, BaseDigests.of_state(state))
        load_model_weights(path, model)
        if merges:
            merge(model)
        return model.to(device).eval(), tokenizer, training

    (model, tokenizer, training), path, notes = load_newest(where, out_dir, load)
    notes = (*notes, *plugin_changes(plugins, path))
    return TrainedModel(model, tokenizer, path, notes, training)
