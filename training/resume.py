"""Going on from a checkpoint: which one, with which settings, and what may not change."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from configurator import Settings, settings_from_dict
from model_config import ModelArchitectureConfig
from options import ConfigError, Problem
from training.checkpoint import (
    find_checkpoint,
    load_plugins,
    load_state,
    newest_whole,
    runs_newest_first,
)

ARCHITECTURE_KEYS = {field.name for field in dataclasses.fields(ModelArchitectureConfig)}

FIXED_KEYS = ARCHITECTURE_KEYS | {
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

    `none` is a new run. `auto` is the run of run_name, where that is set, else the newest run under
    out_dir that agrees with the fixed keys given; where there is none, a new run. Else a run or a
    checkpoint, as `find_checkpoint` takes it. A preset that is given stands for all of its keys.

    Raises:
        ValueError: there is no such checkpoint, or it is damaged.
        ConfigError: a fixed key was given another value than the run has.
    """
    where, out_dir = settings.training.resume, Path(settings.training.out_dir)
    if where == "none":
        return Start(settings)
    if where == "auto":
        path, notes = _newest_fitting(settings, out_dir)
    else:
        path, notes = find_checkpoint(where, out_dir)
    if path is None:
        return Start(settings, notes=(*notes, f"No run to resume in {out_dir}: a new one starts."))
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


def _newest_fitting(settings: Settings, out_dir: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint that `auto` means, and why others were passed by."""
    wanted, notes = settings.training.run_name, []
    for folder in runs_newest_first(out_dir):
        if wanted not in ("auto", folder.name):
            continue
        try:
            path, damaged = newest_whole(folder / "checkpoints")
            saved = load_state(path)["config"]
        except ValueError as error:
            if wanted != "auto":
                raise
            notes.append(f"Passed by the run {folder.name}: {error}")
            continue
        if wanted != "auto" or not _conflicts(settings, saved):
            return path, [*notes, *damaged]
    return None, notes


def _given(settings: Settings) -> dict[str, Any]:
    """The keys that the user speaks of: an architecture's, too, where its preset is named."""
    values = settings.to_dict()
    implied = ARCHITECTURE_KEYS - {"vocab_size"} if "arch_preset" in settings.explicit else set()
    keys = (settings.explicit | implied) - OF_THE_COMMAND  # a vocabulary is the data's
    return {key: value for key, value in values.items() if key in keys}


def _conflicts(settings: Settings, saved: dict[str, Any]) -> list[Problem]:
    return [
        Problem(
            (key,),
            f"{_origin(settings, key)}: {key}={value!r}, but the run to resume has "
            f"{key}={saved.get(key)!r}; drop it, or start a new run without --resume.",
        )
        for key, value in _given(settings).items()
        if key in FIXED_KEYS and value != saved.get(key)
    ]


def _origin(settings: Settings, key: str) -> str:
    if key in settings.explicit:
        return settings.origins[key]
    return f"{settings.origins['arch_preset']} (arch_preset={settings.arch_preset!r})"


def _merged(
    settings: Settings, path: Path, saved: dict[str, Any]
) -> tuple[Settings, tuple[str, ...]]:
    given = {key: value for key, value in _given(settings).items() if value != saved.get(key)}
    here = {key: settings.to_dict()[key] for key in OF_THE_COMMAND}
    here["run_name"] = path.parents[1].name
    merged = _settings(path, {**saved, **given, **here}, dict(settings.plugins))
    notes = (f"{key}={value!r} from here on; it was {saved[key]!r}" for key, value in given.items())
    return merged, tuple(notes)
