"""The Python API of nanoarch: train models, run sweeps, load the logs of runs, compare runs.

    import nanoarch

    run = nanoarch.train("config/arch_llama.py", max_iters=100)
    table = pandas.DataFrame(nanoarch.load_runs("out"))
    folder = nanoarch.sweep("config/arch_gpt2.py", vary={"qk_norm": True}, seeds=3)
    result = nanoarch.compare(folder)
    result["groups"][1]["verdict"]

The commands `nanoarch train`, `sweep`, `compare`, `sample` and `export` are those of train.py,
sweep.py, compare_architectures.py, sample.py and interop.huggingface.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["compare", "load_runs", "sweep", "train"]

ROOT = Path(__file__).resolve().parents[1]


def train(*config_files: str | Path, quiet: bool = False, **keys: Any) -> Path:
    """Train as `python train.py` does, in this process.

    Args:
        config_files: Config files, applied from left to right.
        quiet: Whether to print nothing; the log is written as always.
        keys: Values of config keys, such as `max_iters=100`; they override the files.

    Returns:
        The run directory, with `run.json` and `checkpoints/`.

    Raises:
        UserError: the config is invalid, or the run failed for a reason that the user can fix.
    """
    train_run = own_module("train").train_run
    return train_run([*map(str, config_files), *_flags(keys)], quiet)


def sweep(
    *config_files: str | Path,
    vary: Mapping[str, Any] | None = None,
    arms: Sequence[str | Path] = (),
    tune: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path | None:
    """Plan and run a sweep as `python sweep.py` does; every run is a separate process.

    Example::

        folder = nanoarch.sweep("config/arch_gpt2.py", vary={"bias": [True, False]}, seeds=3)
        result = nanoarch.compare(folder)

    Args:
        config_files: Config files of every arm, applied from left to right.
        vary: Config keys with a list of values, each of which adds an arm. A tuple is a single
            value that differs between layers.
        arms: Config files that define one arm each.
        tune: Keys with a list of values that every arm tries before its final runs.
        options: Other options of sweep.py, such as `seeds=3`, `budget="tokens=20M"` or
            `name="mine"` (None: the default), and values of config keys, which apply to every arm.

    Returns:
        The folder of the sweep (with `ladder` or `baselines`, of the series); None with `dry_run`.
        Calling again with the same arguments continues a sweep that has not finished.

    Raises:
        UserError: the request is invalid, or a run failed or was interrupted.
    """
    from errors import UserError

    own = own_module("sweep")
    lists = [
        f"--{option}={key}={_listed(key, values)}"
        for option, keys in (("vary", vary), ("tune", tune))
        for key, values in (keys or {}).items()
    ]
    defaults = vars(own.parser().parse_args([]))
    switches = [key for key, value in defaults.items() if value is False]
    flags = [f"--{key}" for key in switches if options.get(key)]
    others = {
        key: value
        for key, value in {**options, "arms": arms or None}.items()
        if key not in switches and not (value is None and key in defaults)
    }
    try:
        folder, status = own.sweep_run([*map(str, config_files), *lists, *flags, *_flags(others)])
    except SystemExit as stop:  # argparse has printed why
        raise UserError("invalid option of sweep.py; the message above says which.") from stop
    if status:
        raise UserError(f"not all runs of {folder} have ended; see the output, and call again.")
    return None if options.get("dry_run") else folder


def own_module(name: str) -> Any:
    """Import a top-level module of the project.

    Raises:
        ImportError: another file of the same name, such as the user's train.py, shadows it.
    """
    spec = importlib.util.find_spec(name)
    origin = Path(spec.origin if spec and spec.origin else "").resolve()
    if ROOT not in origin.parents:
        raise ImportError(f"{origin} shadows nanoarch's module {name!r}; rename that file.")
    return importlib.import_module(name)


def _flags(keys: Mapping[str, Any]) -> list[str]:
    return [f"--{key}={_text(key, value)}" for key, value in keys.items()]


def _listed(key: str, values: Any) -> str:
    """The values of a key to vary or to tune, as a flag spells them; a single value is a list of
    one."""
    from errors import UserError

    texts = [_text(key, value) for value in (values if isinstance(values, list) else [values])]
    for text in texts:
        if "," in text or not text:
            raise UserError(
                f"{key}={text!r} cannot be varied or tuned, because it is empty or has a comma; "
                "set it in a config file, and pass the file in `arms`."
            )
    return ",".join(texts)


def _text(key: str, value: Any) -> str:
    """A value as a flag spells it; a list is a pattern over the layers, or several choices."""
    from options import KEYS
    from patterns import spelled

    if isinstance(value, list | tuple):
        separator = "+" if key in KEYS and KEYS[key].per_layer else ","
        return separator.join(map(spelled, value))
    return spelled(value)


def load_runs(*paths: str | Path) -> list[dict[str, Any]]:
    """Read the logs of runs as flat records, one for each run, ready for `pandas.DataFrame`.

    Args:
        paths: Run directories, run.json files, sweeps, folders that hold some, or globs.

    Returns:
        For each run `path`, `run_name`, `status`, `start_time`, every key of its config as
        `config.KEY`, and the entries of `architecture` and `summary` as `architecture.NAME` and
        `summary.NAME`.

    Raises:
        UserError: there is no such path, or a log is damaged.
    """
    return [
        {
            "path": str(run.path.parent),
            "run_name": run.run_name,
            "status": run.status,
            "start_time": run.start_time,
            **{f"config.{key}": value for key, value in run.config.items()},
            **{f"architecture.{key}": value for key, value in run.architecture.items()},
            **{f"summary.{key}": value for key, value in run.summary.items()},
        }
        for run in _selected(paths).runs
    ]


def compare(
    *paths: str | Path, baseline: str | None = None, margin: float | None = None
) -> dict[str, Any]:
    """Compare runs as `python compare_architectures.py` does.

    Args:
        paths: As for `load_runs`.
        baseline: The arm to compare with; None: that of the sweep, else the group of the oldest
            run.
        margin: Differences up to this many nats per token count as equal; None: 0.01, or as the
            sweep declared.

    Returns:
        What `--format=json` prints.

    Raises:
        UserError: there is no such path, a log is damaged, or there is no such baseline.
    """
    from comparison.exports import document

    chosen = _selected(paths, baseline_given=baseline is not None)
    return document(chosen.findings(baseline, margin))


def _selected(paths: tuple[str | Path, ...], *, baseline_given: bool = False) -> Any:
    from errors import UserError
    from experiment.selection import select

    if not paths:
        raise UserError("name at least one path, such as 'out'.")
    words = [str(path) for path in paths]
    chosen = select(words, None, Path("out"), baseline_given=baseline_given)
    if chosen.problems:
        raise UserError("\n".join(chosen.problems))
    if not chosen.runs:
        raise UserError(f"no run found in {', '.join(words)}.")
    return chosen
