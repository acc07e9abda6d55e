"""Resume from a checkpoint: find it, merge its settings, and refuse incompatible changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from configurator import Asked, Settings, resolve, saved_base, settings_from_dict
from errors import ConfigError, Problem, UserError
from options import KEYS, Role
from saved_configs import upgraded
from training.checkpoint import (
    find_checkpoint,
    load_plugins,
    newest_whole,
    runs_newest_first,
)
from training.run_directory import refuse_locked
from training.run_state import load_run_state, refuse_other_weights
from training.saved_plugins import NotAllowed, import_changes, plugin_changes
from training_components import ALL_REGISTRIES
from training_config import TrainingConfig
from training_logger import ResumePoint

FIXED_ROLES = {Role.ARCHITECTURE, Role.DATA, Role.SEED}
"""The roles of keys that define a run: a different value would make it a different run."""


@dataclasses.dataclass(frozen=True)
class Start:
    """The starting point of training.

    Attributes:
        settings: The settings to train with: those of the checkpoint, with changes from the command
            line.
        checkpoint: The checkpoint to resume from; None for a new run.
        state: The training-loop state saved in the checkpoint.
        notes: Messages for the user: damaged checkpoints skipped, settings changed.
    """

    settings: Settings
    checkpoint: Path | None = None
    state: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def resume_point(self) -> ResumePoint | None:
        """The point at which the log of the resumed run continues; None for a new run."""
        if self.checkpoint is None:
            return None
        state = self.state
        return ResumePoint(state["step"], state.get("log_records"), state.get("run_id"))

    @property
    def run_folder(self) -> Path | None:
        """The directory of the resumed run; None for a new run."""
        return None if self.checkpoint is None else self.checkpoint.parents[1]


Found = tuple[Path | None, tuple[str, ...]]
"""The checkpoint to resume from, None for a new run; and messages for the user."""


def find_start(asked: Asked, new: Callable[[Asked], Settings] = resolve) -> Start:
    """Find the starting point that `resume` asks for; see `find_resumed` and `start_from`."""
    return start_from(asked, find_resumed(asked), new)


def find_resumed(asked: Asked) -> Found:
    """Find the checkpoint that `resume` refers to.

    `none` starts a new run. `auto` resumes the run named by `run_name` if that is set, else the
    newest run under `out_dir` that matches the given fixed keys and is not being trained; if there
    is none, it starts a new run. Other values name a run or a checkpoint, as in `find_checkpoint`.

    Raises:
        UserError: If there is no such checkpoint, it is damaged, or its run is being trained.
    """
    where, out_dir = asked.value("resume"), Path(asked.value("out_dir") or "")
    if where in ("none", None):
        return None, ()
    if where == "auto":
        path, notes = _newest_fitting(asked, out_dir)
    else:
        path, notes = find_checkpoint(where, out_dir)
        path = _in_its_run(path)
        refuse_locked(path.parents[1])
    if path is None:
        notes = [*notes, f"No run to resume in {out_dir}; starting a new one."]
    return path, tuple(notes)


def start_from(asked: Asked, found: Found, new: Callable[[Asked], Settings] = resolve) -> Start:
    """Start from a checkpoint, or start a new run with the settings from `new`. A preset in `asked`
    counts as all of its keys.

    Raises:
        UserError: If the checkpoint is damaged.
        ConfigError: If a fixed key was given a value that differs from the run's.
    """
    path, notes = found
    if path is None:
        return Start(new(asked), notes=notes)
    state = load_run_state(path)
    resumed = _merged(asked, path, state)
    saved = _saved_values(state)  # all its parts are registered: _merged refuses others
    problems = [*_conflicts(asked, resumed, saved), *_changed_plugins(resumed, path)]
    if problems:
        raise ConfigError(problems)
    refuse_other_weights(path, resumed.model, resumed.training)
    notes = [*notes, _going_on(path, state, resumed.training), *_changes(resumed, saved)]
    if resumed.training.max_iters < state["step"]:
        raise UserError(
            f"max_iters={resumed.training.max_iters} is below {state['step']}, the step of "
            f"{path}; raise it, or resume from an earlier checkpoint."
        )
    return Start(resumed, path, state, tuple(notes))


def _in_its_run(path: Path) -> Path:
    """Return the checkpoint's path; raises UserError if it is not in a run directory."""
    path = path if len(path.parents) > 1 else path.absolute()
    if path.parent.name != "checkpoints":
        raise UserError(
            f"{path} is not in the `checkpoints` folder of a run, so there is no run to resume; "
            "move it back, or pass the run's name."
        )
    return path


def _going_on(path: Path, state: dict[str, Any], training: TrainingConfig) -> str:
    """A message that says which run continues, and from which step."""
    run, step, end = path.parents[1], state["step"], training.max_iters
    if step >= end and state["evaluated_at"] == step:
        return (
            f"{run} has completed its {end} steps; to train longer, resume with a larger "
            f"--max_iters."
        )
    return f"Resuming {run} at step {step} of {end}."


def load_settings(path: Path, registered: Mapping[str, str] | None = None) -> Settings:
    """Load the settings that a checkpoint was saved with. Runs no code from the checkpoint.

    Args:
        path: The checkpoint.
        registered: Sources of the plugins that the user gave; they are already registered.

    Raises:
        UserError: If the checkpoint is damaged, or was trained with custom parts that are not
            registered.
    """
    values = _loadable(load_run_state(path))
    _refuse_unknown_parts(path, values)
    settings = settings_from_dict(values, registered)
    refuse_other_weights(path, settings.model, settings.training)
    return settings


def _refuse_unknown_parts(path: Path, values: dict[str, Any]) -> None:
    """Raise UserError if a checkpoint uses unregistered parts whose plugins it contains."""
    saved = [str(path / "plugins" / name) for name in load_plugins(path)]
    unknown = [
        f"{key}={values[key]!r}"
        for key in ALL_REGISTRIES
        if key in KEYS and values.get(key) is not None and KEYS[key].problem(values[key])
    ]
    if saved and unknown:
        raise NotAllowed(
            f"{path} was trained with custom parts, whose code is not run automatically: "
            f"{', '.join(unknown)}. Review {', '.join(saved)}, then allow it with "
            f"{NotAllowed.missing_flag}."
        )


def _newest_fitting(asked: Asked, out_dir: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint that `auto` refers to, None if there is none, and why others were skipped."""
    wanted, notes = asked.value("run_name"), []
    for folder in runs_newest_first(out_dir):
        if wanted not in ("auto", folder.name):
            continue
        try:
            refuse_locked(folder)
            path, damaged = newest_whole(folder / "checkpoints")
            state = load_run_state(path)
        except UserError as error:
            if wanted != "auto":
                raise
            notes.append(f"Skipped the run {folder.name}: {error}")
            continue
        if wanted != "auto" or _fits(asked, path, state):
            return path, [*notes, *damaged]
    return None, notes


def _fits(asked: Asked, path: Path, state: dict[str, Any]) -> bool:
    """Whether a run can be resumed with the requested keys; other errors are reported later."""
    try:
        return not _conflicts(asked, _merged(asked, path, state), _saved_values(state))
    except ConfigError as error:
        return not any(set(problem.keys) & asked.given.keys() for problem in error.problems)


def _merged(asked: Asked, path: Path, state: dict[str, Any]) -> Settings:
    """The saved settings, overridden by the requested ones.

    Derived values are recomputed, unless they are fixed for the run. Paths, trust in plugins and
    log outputs come from the command line, never from the saved run.
    """
    saved = _loadable(state)
    given = {
        key: item for key, item in asked.given.items() if key not in ("run_name", "arch_preset")
    }
    _refuse_unknown_parts(path, {**saved, **{key: item.value for key, item in given.items()}})
    anew = {key for key in state.get("derived", ()) if not _is_fixed(key)}
    kept = {key: v for key, v in saved.items() if is_restored(key) and key not in anew}
    run = path.parents[1].name
    base = saved_base({**kept, "run_name": run}, f"the run {run}")
    return resolve(dataclasses.replace(asked, given=given), base)


def _loadable(state: dict[str, Any]) -> dict[str, Any]:
    """The saved config in current keys."""
    return upgraded(state["config"])


def _saved_values(state: dict[str, Any]) -> dict[str, Any]:
    """Every current key with the value that the run was saved with, or its default."""
    return settings_from_dict(_loadable(state)).to_dict()


def _is_fixed(key: str) -> bool:
    """Whether a different value of a key would make it a different run."""
    if key not in KEYS:
        return False
    fixed = KEYS[key].metadata["fixed"]
    return KEYS[key].role in FIXED_ROLES if fixed is None else fixed


def _may_move(key: str, saved: Mapping[str, Any]) -> bool:
    """Whether a key is the folder of the base of adapters, which is identified by its digest."""
    return key == "init_from" and saved.get("adapter", "none") != "none"


def is_restored(key: str) -> bool:
    """Whether a resumed run gets the saved value of a key."""
    return key not in KEYS or KEYS[key].metadata["restored"]


def _conflicts(asked: Asked, settings: Settings, saved: Mapping[str, Any]) -> list[Problem]:
    """Problems with the keys that would make it a different run: given keys, and those that a given
    preset implies."""
    now = settings.to_dict()
    wanted = {key: (now.get(key), asked.given[key].origin) for key in asked.given if key in KEYS}
    if "arch_preset" in asked.given:
        wanted |= _implied_by_preset(asked)
    return [
        Problem(
            (key,),
            f"{origin}: {key}={value!r}, but the run to resume has {key}={saved.get(key)!r}; "
            "drop it, or start a new run without --resume.",
        )
        for key, (value, origin) in wanted.items()
        if _is_fixed(key) and value != saved.get(key) and not _may_move(key, saved)
    ]


def _implied_by_preset(asked: Asked) -> dict[str, tuple[Any, str]]:
    """The architecture that a preset and the requested keys imply, and the origin of each value.
    The vocabulary size comes from the data unless it is given."""
    settings = resolve(asked)
    return {
        key: (value, _origin(settings, key))
        for key, value in settings.model.to_dict().items()
        if key != "vocab_size" or key in settings.explicit
    }


def _changed_plugins(settings: Settings, path: Path) -> list[Problem]:
    """Problems with plugins whose source has changed since the run was trained."""
    if settings.training.allow_changed_plugins:
        return []
    changes = (
        *plugin_changes(settings.plugins, path),
        *import_changes(settings.plugins, path.parents[1]),
    )
    return [
        Problem(
            ("plugins",),
            f"{change} Restore it, or resume with the changed one using "
            "--allow_changed_plugins=True.",
        )
        for change in changes
    ]


def _origin(settings: Settings, key: str) -> str:
    if key in settings.explicit:
        return settings.origins[key]
    return f"{settings.origins['arch_preset']} (arch_preset={settings.arch_preset!r})"


def _changes(settings: Settings, saved: Mapping[str, Any]) -> list[str]:
    """A message for each value that differs from the saved one."""
    notes = [
        f"{key}: {saved.get(key)!r} -> {value!r}"
        for key, value in settings.to_dict().items()
        if is_restored(key) and value != saved.get(key)
    ]
    log_to, now = saved.get("log_to"), settings.training.log_to
    if log_to and log_to != now:
        notes.append(f"log_to: {log_to!r} -> {now!r}; pass --log_to={log_to} to keep it.")
    return notes
