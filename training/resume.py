"""Going on from a checkpoint: which one, with which settings, and what may not change."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from configurator import Settings, settings_from_dict
from model_config import ModelArchitectureConfig
from options import ConfigError, Problem
from training.checkpoint import find_checkpoint, load_plugins, load_state, runs_newest_first

FIXED_KEYS = {field.name for field in dataclasses.fields(ModelArchitectureConfig)} | {
    "arch_preset",
    "init_from",
    "dataset",
    "sequence_length",
    "batch_size",
    "gradient_accumulation_steps",
    "data_seed",
    "seed",
}
"""What a run is: changing one of these makes another run, not a continuation."""

OF_THE_COMMAND = {"out_dir", "run_name", "resume", "plugins"}
"""Keys that say where things are; a saved run does not decide them."""


@dataclasses.dataclass(frozen=True)
class Start:
    """Where training begins.

    Attributes:
        settings: What to train with: the checkpoint's, with what the command line changed.
        checkpoint: The checkpoint to go on from; None for a new run.
        state: What the loop saved in it.
        notes: Lines for the user: damaged checkpoints passed by, settings changed.
    """

    settings: Settings
    checkpoint: Path | None = None
    state: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def run_folder(self) -> Path | None:
        """The folder of the run that goes on."""
        return None if self.checkpoint is None else self.checkpoint.parents[1]


def find_start(settings: Settings) -> Start:
    """Where the settings' `resume` says to begin.

    `none` is a new run. `auto` is the newest run under out_dir (that of run_name, where it is set)
    that agrees with the fixed keys given, or a new run where there is none. Else a run or a
    checkpoint, as `find_checkpoint` takes it.

    Raises:
        ValueError: there is no such checkpoint, or it is damaged.
        ConfigError: a fixed key was given another value than the run has.
    """
    where, out_dir = settings.training.resume, Path(settings.training.out_dir)
    if where == "none":
        return Start(settings)
    if where == "auto":
        folder = _newest_fitting_run(settings, out_dir)
        if folder is None:
            return Start(settings, notes=(f"No run to resume under {out_dir}: a new one starts.",))
        where = str(folder)
    path, notes = find_checkpoint(where, out_dir)
    state = load_state(path)
    problems = _conflicts(settings, state["config"])
    if problems:
        raise ConfigError(problems)
    resumed, changes = _merged(settings, path, state["config"])
    return Start(resumed, path, state, (*notes, *changes))


def load_settings(path: Path, registered: dict[str, str] | None = None) -> Settings:
    """The settings that a checkpoint was saved with. Runs no code of the checkpoint's.

    Args:
        path: The checkpoint.
        registered: Sources of plugins that the user gave and that are registered by now.

    Raises:
        ValueError: it was trained with parts of the user's own that are not registered.
    """
    return _settings(path, load_state(path)["config"], registered or {})


def _settings(path: Path, values: dict[str, Any], plugins: dict[str, str]) -> Settings:
    try:
        settings = settings_from_dict(values)
    except ConfigError as error:
        saved = [str(path / "plugins" / name) for name in load_plugins(path)]
        if not saved:
            raise
        raise ValueError(
            f"{path} was trained with parts of its own, which are not run unasked. Read "
            f"{', '.join(saved)}, then pass --plugins={','.join(saved)}.\n{error}"
        ) from error
    return dataclasses.replace(settings, plugins=plugins)


def _newest_fitting_run(settings: Settings, out_dir: Path) -> Path | None:
    wanted = settings.training.run_name
    for folder in runs_newest_first(out_dir):
        if wanted not in ("auto", folder.name):
            continue
        path, _ = find_checkpoint(str(folder), out_dir)
        if not _conflicts(settings, load_state(path)["config"]):
            return folder
    return None


def _given(settings: Settings) -> dict[str, Any]:
    values = settings.to_dict()
    return {key: values[key] for key in settings.explicit if key not in OF_THE_COMMAND}


def _conflicts(settings: Settings, saved: dict[str, Any]) -> list[Problem]:
    return [
        Problem(
            (key,),
            f"{settings.origins[key]}: {key}={value!r}, but the run to resume has "
            f"{key}={saved.get(key)!r}; drop it, or start a new run without --resume.",
        )
        for key, value in _given(settings).items()
        if key in FIXED_KEYS and value != saved.get(key)
    ]


def _merged(
    settings: Settings, path: Path, saved: dict[str, Any]
) -> tuple[Settings, tuple[str, ...]]:
    given = {key: value for key, value in _given(settings).items() if value != saved.get(key)}
    here = {key: settings.to_dict()[key] for key in OF_THE_COMMAND}
    here["run_name"] = path.parents[1].name
    merged = _settings(path, {**saved, **given, **here}, dict(settings.plugins))
    notes = (f"{key}={value!r} from here on; it was {saved[key]!r}" for key, value in given.items())
    return merged, tuple(notes)
