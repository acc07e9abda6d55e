"""Start from the weights of a run of this project: its newest checkpoint, or a given one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from configurator import Settings
from errors import UserError
from model_builder import GPT
from recipe.adapters import merge
from training.base_model import BaseDigests, LoadBase
from training.checkpoint import load_model_weights, load_newest
from training.resume import load_settings
from training.run_state import load_run_state
from training.sharded_tensors import own_tensors
from training.trained_model import Base

Loaded = TypeVar("Loaded")

_ONLY_TRAINING = "mtp."
"""Prefix of the weights of multi-token prediction, which a run may add or drop."""


def is_run(folder: Path) -> bool:
    """Whether a folder is a run directory or a checkpoint, and not a model folder."""
    checkpoint = all((folder / name).is_file() for name in ("manifest.json", "state.json"))
    of_model = (folder / "config.json").is_file()
    return checkpoint or ((folder / "checkpoints").is_dir() and not of_model)


def settings_of_run(folder: Path, plugins: Mapping[str, str]) -> Settings:
    """The settings of a run; `plugins`: the sources of the registered plugins. Raises UserError if
    the run has no intact checkpoint, or uses custom parts that are not registered."""
    return _load_newest(folder, lambda path: load_settings(path, plugins))[0]


def tokenizer_of_run(folder: Path) -> tuple[dict[str, Any], Path]:
    """The description of the tokenizer of a run, and the checkpoint with its files."""
    state, path = _load_newest(folder, load_run_state)
    return state["tokenizer"], path


def load_run_weights(model: GPT, folder: Path, load_base: LoadBase) -> None:
    """Copy the weights of a run into a model of its architecture; adapters are merged.

    Args:
        model: The model.
        folder: A run directory or a checkpoint.
        load_base: Loads the base of a run with adapters.

    Raises:
        UserError: If there is no intact checkpoint, or its weights do not fit.
    """

    def load(path: Path) -> GPT:
        settings, state = load_settings(path), load_run_state(path)
        _refuse_circle(folder, settings)
        whole = GPT(settings.model)
        if settings.training.adapter != "none":
            Base(load_base).adapted(whole, settings.training, BaseDigests.of_state(state))
        load_model_weights(path, whole)
        merge(whole)
        return whole

    whole, path = _load_newest(folder, load)
    theirs = own_tensors(whole)
    with torch.no_grad():
        for name, own in own_tensors(model).items():
            if name in theirs and theirs[name].shape == own.shape:
                own.copy_(theirs[name])
            elif not name.startswith(_ONLY_TRAINING):
                found = tuple(theirs[name].shape) if name in theirs else "missing"
                raise UserError(
                    f"{path}: {name} is {found} here, but {tuple(own.shape)} in the model; drop "
                    "the architecture keys that differ from those of the run."
                )


def _refuse_circle(folder: Path, settings: Settings) -> None:
    """Raise UserError if the bases of a run with adapters lead back to one of them."""
    seen = [folder.resolve()]
    while settings.training.adapter != "none" and is_run(Path(settings.training.init_from)):
        base = Path(settings.training.init_from)
        if base.resolve() in seen:
            raise UserError(
                f"the adapters of {folder} have no base that is a whole model: init_from leads "
                f"back to {base}; use another run."
            )
        seen.append(base.resolve())
        settings, _ = _load_newest(base, load_settings)


def _load_newest(folder: Path, load: Callable[[Path], Loaded]) -> tuple[Loaded, Path]:
    """The result of loading from the newest intact checkpoint of a folder, and the checkpoint."""
    where = os.path.join(".", folder)  # a folder named `latest` is not the newest of all runs
    loaded, path, _ = load_newest(where, folder.parent, load)
    return loaded, path
