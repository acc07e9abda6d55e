"""Going on from a checkpoint: which one, with which settings, and what may not change."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configurator import Settings, settings_from_dict
from errors import ConfigError, Problem, UserError
from model_components import REGISTRIES
from model_config import ModelArchitectureConfig
from training.checkpoint import (
    find_checkpoint,
    load_plugins,
    newest_whole,
    runs_newest_first,
)
from training.claim import refuse_claimed
from training.config import TrainingConfig
from training.run_state import load_run_state, refuse_other_weights
from training_logger import ResumePoint

ARCHITECTURE_KEYS = {field.name for field in dataclasses.fields(ModelArchitectureConfig)}

FIXED_KEYS = ARCHITECTURE_KEYS - {"attention_backend"} | {
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

OF_THE_COMMAND = {
    "out_dir",
    "run_name",
    "resume",
    "plugins",
    "allow_changed_plugins",
    "log_to",
}
"""Keys that say where things are, what is trusted and where the log is sent: a saved run, which may
be somebody else's, does not decide them."""


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
    def resume_point(self) -> ResumePoint | None:
        """Where the log of the run that goes on is taken up."""
        if self.checkpoint is None:
            return None
        state = self.state
        return ResumePoint(state["step"], state.get("log_records"), state.get("run_id"))

    @property
    def run_folder(self) -> Path | None:
        """The folder of the run that goes on."""
        return None if self.checkpoint is None else self.checkpoint.parents[1]


def find_start(settings: Settings) -> Start:
    """Where the settings' `resume` says to begin.

    `none` is a new run. `auto` is the run of run_name, where that is set, else the newest run under
    out_dir that agrees with the fixed keys given and that no process trains; where there is none, a
    new run. Else a run or a checkpoint, as `find_checkpoint` takes it. A preset that is given
    stands for all of its keys.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or its run is being trained.
        ConfigError: a fixed key was given another value than the run has.
    """
    where, out_dir = settings.training.resume, Path(settings.training.out_dir)
    if where == "none":
        return Start(settings)
    if where == "auto":
        path, notes = _newest_fitting(settings, out_dir)
    else:
        path, notes = find_checkpoint(where, out_dir)
        path = _in_its_run(path)
        refuse_claimed(path.parents[1])
    if path is None:
        return Start(settings, notes=(*notes, f"No run to resume in {out_dir}: a new one starts."))
    state = load_run_state(path)
    problems = [*_conflicts(settings, state["config"]), *_changed_plugins(settings, path)]
    if problems:
        raise ConfigError(problems)
    resumed, changes = _merged(settings, path, state)
    refuse_other_weights(path, resumed.model)
    notes = [*notes, _going_on(path, state, resumed.training)]
    if resumed.training.max_iters < state["step"]:
        raise UserError(
            f"max_iters={resumed.training.max_iters} is below the {state['step']} steps that "
            f"{path} has done; raise it, or resume from an earlier checkpoint."
        )
    return Start(resumed, path, state, (*notes, *changes))


def _in_its_run(path: Path) -> Path:
    """The checkpoint; UserError where it does not lie in the folder of a run."""
    path = path if len(path.parents) > 1 else path.absolute()
    if path.parent.name != "checkpoints":
        raise UserError(
            f"{path} is not in the folder `checkpoints` of a run, which a resume goes on with; "
            "put it back there, or name its run."
        )
    return path


def _going_on(path: Path, state: dict[str, Any], training: TrainingConfig) -> str:
    """A line that says which run continues, from which step."""
    run, step, end = path.parents[1], state["step"], training.max_iters
    if step >= end and state["evaluated_at"] == step:
        return (
            f"{run} has completed its {end} steps; to train it further, resume it with a larger "
            f"--max_iters."
        )
    return f"Resuming {run} at step {step} of {end}."


def load_settings(path: Path, registered: Mapping[str, str] | None = None) -> Settings:
    """The settings that a checkpoint was saved with. Runs no code of the checkpoint's.

    Args:
        path: The checkpoint.
        registered: Sources of plugins that the user gave and that are registered by now.

    Raises:
        UserError: it is damaged, or was trained with parts of the user's own that are not
            registered.
    """
    values = load_run_state(path)["config"]
    _refuse_unknown_parts(path, values)
    settings = settings_from_dict(values)
    refuse_other_weights(path, settings.model)
    return dataclasses.replace(settings, plugins=registered or {})


def _refuse_unknown_parts(path: Path, values: dict[str, Any]) -> None:
    """Raise UserError where a checkpoint names parts that are not registered, and has them."""
    saved = [str(path / "plugins" / name) for name in load_plugins(path)]
    unknown = [
        f"{key}={values[key]!r}"
        for key, registry in REGISTRIES.items()
        if values.get(key) is not None and values[key] not in registry
    ]
    if saved and unknown:
        raise UserError(
            f"{path} was trained with parts of its own, which are not run unasked: "
            f"{', '.join(unknown)}. Read {', '.join(saved)}, then pass --plugins={','.join(saved)}."
        )


def _newest_fitting(settings: Settings, out_dir: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint that `auto` means, and why others were passed by."""
    wanted, notes = settings.training.run_name, []
    for folder in runs_newest_first(out_dir):
        if wanted not in ("auto", folder.name):
            continue
        try:
            refuse_claimed(folder)
            path, damaged = newest_whole(folder / "checkpoints")
            saved = load_run_state(path)["config"]
        except UserError as error:
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


def _changed_plugins(settings: Settings, path: Path) -> list[Problem]:
    """Plugins whose source is no longer what the run was trained with."""
    if settings.training.allow_changed_plugins:
        return []
    saved = load_plugins(path)
    return [
        Problem(
            ("plugins",),
            f"{given} differs from the {Path(given).name} that the run was trained with "
            f"({path / 'plugins' / Path(given).name}); restore it, or resume with the changed one "
            "by --allow_changed_plugins=True.",
        )
        for given, source in settings.plugins.items()
        if saved.get(Path(given).name, source) != source
    ]


def _origin(settings: Settings, key: str) -> str:
    if key in settings.explicit:
        return settings.origins[key]
    return f"{settings.origins['arch_preset']} (arch_preset={settings.arch_preset!r})"


def _merged(
    settings: Settings, path: Path, state: dict[str, Any]
) -> tuple[Settings, tuple[str, ...]]:
    """The settings to go on with, and a line for each value that is no longer what it was.

    What was derived is derived anew from the values as they are now; what makes a run what it is
    stays, and so does what was given.
    """
    saved, asked = state["config"], settings.to_dict()
    given = {key: value for key, value in _given(settings).items() if value != saved.get(key)}
    here = {key: asked[key] for key in OF_THE_COMMAND} | {"run_name": path.parents[1].name}
    free = set(state.get("derived", ())) - FIXED_KEYS - settings.explicit
    asked_anew = settings.explicit.intersection(settings.derived) - FIXED_KEYS  # `--min_lr=none`
    values = {**saved, **given, **here, **dict.fromkeys(free | asked_anew)}
    _refuse_unknown_parts(path, values)
    origins = {key: settings.origins[key] for key in settings.explicit | OF_THE_COMMAND}
    merged = settings_from_dict(values, origins)
    notes = [
        f"{key}={value!r} from here on; it was {saved.get(key)!r}"
        for key, value in merged.to_dict().items()
        if key not in OF_THE_COMMAND and value != saved.get(key)
    ]
    log_to, now = saved.get("log_to"), merged.training.log_to
    if log_to and log_to != now:
        notes.append(f"log_to={now!r}; it was {log_to!r}: pass --log_to={log_to} to go on with it.")
    return dataclasses.replace(merged, plugins=dict(settings.plugins)), tuple(notes)
