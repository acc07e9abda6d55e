"""`--plugins=saved`: run the plugins that a run was trained with, at the user's request."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from configurator import split_arguments
from errors import ConfigError, UserError
from options import KEYS
from training.checkpoint import find_checkpoint, load_plugins, newest_whole, runs_newest_first
from training.log_files import RUN_FILE, read_run
from training.provenance import import_key, imported_by, plugin_digests, source_sha256
from training.run_state import load_run_state
from user_files import located, read_source

SAVED = "saved"
"""The word for the saved plugins among the files of `--plugins`."""

PLUGINS_HELP = (
    "comma-separated .py files that register custom components; saved: those that the run was "
    "trained with, which runs their code"
)


class NotAllowed(UserError):
    """A run needs plugins, and the user has not allowed them."""

    missing_flag: ClassVar[str] = f"--plugins={SAVED}"


def named_plugins(plugins: str, where: str, out_dir: Path, config_files: Sequence[str] = ()) -> str:
    """Replace `saved` in a value of `plugins` by the plugin files of a run.

    If a file still exists at its original path with the same code, that file is used; otherwise its
    copy in the checkpoint. No code is run here.

    Args:
        plugins: Comma-separated files, optionally including `saved`.
        where: The run, as in `find_checkpoint`.
        out_dir: The folder that contains the runs.
        config_files: Files that are run anyway.

    Raises:
        UserError: If there is no such run, or a file exists but has changed.
    """
    names = [name for name in map(str.strip, plugins.split(",")) if name]
    if SAVED not in names:
        return plugins
    named = [name for name in names if name != SAVED]
    others = {os.path.realpath(located(file)) for file in (*named, *config_files)}
    saved = plugin_files(find_checkpoint(where, out_dir)[0])
    return ",".join([*(file for file in saved if os.path.realpath(file) not in others), *named])


def resumed_plugins(argv: Sequence[str]) -> list[str]:
    """Replace `--plugins=saved` in the arguments of train.py by the files of the run to resume.

    Raises:
        UserError: If no run is resumed; otherwise as in `named_plugins`.
    """
    arguments = split_arguments(argv)
    flags = arguments.flags
    text = flags.get("plugins", "")
    if SAVED not in map(str.strip, text.split(",")):
        return list(argv)
    where = flags.get("resume", "none")
    if where == "none":
        raise UserError(
            f"--plugins={SAVED} means the plugins of the run to resume; add --resume=RUN, or name "
            "the files."
        )
    out_dir = Path(flags.get("out_dir", KEYS["out_dir"].default))
    if where == "auto":
        where = str(_newest(out_dir, flags.get("run_name", "auto")))
    named = named_plugins(text, where, out_dir, arguments.files)
    place = next(i for i, word in enumerate(argv) if word.partition("=")[0] == "--plugins")
    spelled = 1 if "=" in argv[place] else 2
    return [*argv[:place], f"--plugins={named}", *argv[place + spelled :]]


def _newest(out_dir: Path, run_name: str) -> Path:
    """The newest checkpoint of the run with that name, or of any run for `auto`."""
    for folder in runs_newest_first(out_dir):
        if run_name in ("auto", folder.name):
            return newest_whole(folder / "checkpoints")[0]
    raise UserError(
        f"--plugins={SAVED}, but there is no run to resume in {out_dir} yet; name the files."
    )


def plugin_files(path: Path) -> list[str]:
    """The plugin files of a checkpoint. Raises UserError if one of them has changed."""
    places = load_run_state(path).get("plugin_paths") or {}
    files = []
    for name, source in load_plugins(path).items():
        copy, original = path / "plugins" / name, places.get(name, "")
        if not Path(original).is_file():
            files.append(str(copy))
            continue
        try:
            now = read_source(original)
        except ConfigError as error:
            raise UserError(error.problems[0].message) from error
        if now != source:
            raise UserError(
                f"{_changed(original, now, source)}; restore it, use the code that the run was "
                f"trained with (--plugins={copy}), or the changed code (--plugins={original})."
            )
        files.append(original)
    return files


def _changed(file: str, now: str, then: str) -> str:
    """The message that a plugin has changed since a run was trained, with both digests."""
    return (
        f"{file} has changed since the run was trained: its sha256 is {source_sha256(now)}, but "
        f"it was {source_sha256(then)}"
    )


def plugin_changes(plugins: Mapping[str, str], path: Path) -> list[str]:
    """A message for each given plugin (path -> source) whose code differs from a checkpoint's."""
    saved = load_plugins(path)
    return [
        f"{_changed(given, source, saved[Path(given).name])}; the code that it was trained with is "
        f"{path / 'plugins' / Path(given).name}."
        for given, source in plugins.items()
        if saved.get(Path(given).name, source) != source
    ]


def import_changes(plugins: Mapping[str, str], run: Path) -> list[str]:
    """Of given plugins (path -> source), a line on each module that they import whose digest is not
    that in the log of a run."""
    try:
        logged = dict(read_run(run / RUN_FILE)["plugins"])
    except (OSError, ValueError, TypeError, KeyError):  # reported where the log is continued
        return []
    now = plugin_digests(plugins)
    return [
        f"{file} has changed since the run was trained: its sha256 is {now[key]}, then it was "
        f"{logged[key]}."
        for key, file in ((import_key(m), file) for m, file in imported_by(plugins).items())
        if logged.get(key, now[key]) != now[key]
    ]
