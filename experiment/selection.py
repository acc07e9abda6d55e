"""Which runs a comparison is of, and what a sweep knows of them beyond their logs."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from comparison.design import Design, Promise
from comparison.findings import Findings, compare
from comparison.runs import (
    RUN_FILE,
    SWEEP_FILE,
    LoggedRun,
    expand,
    find,
    load_runs,
    logs_below,
    newest,
    sweeps_below,
)
from errors import UserError, printable
from experiment.jobs import output_file
from experiment.manifest import Sweep, read_sweep
from experiment.series_file import SERIES_FILE
from inference.verdicts import MARGIN

DEFAULT_LATEST = 3


@dataclasses.dataclass(frozen=True)
class Selection:
    """What is to be compared.

    Attributes:
        runs: Those that could be read.
        problems: What is wrong with each other run, or the manifest of a sweep.
        baseline: A run of the group to compare with; None where no sweep says which it is.
        design: What the sweeps declared.
    """

    runs: list[LoggedRun]
    problems: list[str]
    baseline: LoggedRun | None = None
    design: Design = dataclasses.field(default_factory=Design)

    def findings(
        self,
        baseline: str | None = None,
        margin: float | None = None,
        tuned: Sequence[str] = (),
    ) -> Findings:
        """What the runs show; see `comparison.findings.compare`.

        Args:
            baseline: What to compare with; None: that of the sweep.
            margin: Differences up to this count as equal; None: as declared.
            tuned: Keys that every arm was given the same trials to choose.
        """
        design = dataclasses.replace(
            self.design,
            tuned=tuple(tuned),
            margin=self.design.margin if margin is None else margin,
        )
        return compare(self.runs, baseline or self.baseline, design)


def select(
    words: Sequence[str], latest: int | None, out_dir: Path, *, baseline_given: bool = False
) -> Selection:
    """The runs that command-line words mean; without any, the newest that are in no sweep: a run
    of a sweep is one seed of an arm, and its sweep is compared as a whole.

    Args:
        words: Runs, sweeps, folders that hold some, globs, or names under `out_dir`.
        latest: How many of the newest, where there are no words.
        out_dir: The folder searched.
        baseline_given: Whether somebody has said what to compare with.

    Raises:
        UserError: none of the runs of a sweep's baseline can be read while others can, and no
            other baseline is given.
    """
    if not words:
        return _newest_alone(out_dir, latest or DEFAULT_LATEST)
    words = list(expand(where_named(word, out_dir) for word in words))
    folders = [folder for folder in map(sweep_folder, words) if folder]
    others = find([word for word in words if not sweep_folder(word)])
    # A part of a sweep, or a sweep beside other runs, is bound by what the sweep declared.
    around = {log: list(_sweeps_around(log)) for log in others}
    sweeps, unread = _read_sweeps([*folders, *chain.from_iterable(around.values())])
    unbound = [log for log, own in around.items() if unread.keys() & {f.resolve() for f in own}]
    problems = list(unread.values())
    problems += [f"{log.parent}: the manifest of its sweep cannot be read" for log in unbound]
    others = [log for log in around if log not in unbound]
    named = [sweep for sweep in sweeps if sweep.folder in folders]
    logs = [run / RUN_FILE for sweep in named for run in sweep.runs]
    runs, damaged = load_runs(dict.fromkeys([*filter(_is_file, logs), *others]))
    places = _places(sweeps)
    runs = [dataclasses.replace(run, **places.get(run.path.parent.resolve(), {})) for run in runs]
    problems += [*damaged, *(problem for sweep in named for problem in _without_log(sweep))]
    return Selection(
        runs,
        problems,
        baseline=None if baseline_given else _baseline_of(sweeps, named, runs),
        design=_design(sweeps, {run.sweep for run in runs}),
    )


def _sweeps_around(log: Path) -> Iterator[Path]:
    """The folder of the sweep that a run belongs to, by its path and by that without links."""
    for path in dict.fromkeys((log, log.resolve())):
        if len(path.parents) > 2 and _is_file(path.parents[2] / SWEEP_FILE):
            yield path.parents[2]


def _design(sweeps: Sequence[Sweep], having: Collection[str | None]) -> Design:
    """What sweeps declared.

    Args:
        sweeps: Those that runs belong to.
        having: Of the runs, the sweeps that they belong to; None for a run of none.
    """
    found = Design(
        arms=max((len(sweep.arms) - 1 for sweep in sweeps), default=None),
        baselines=frozenset(
            (str(sweep.folder), printable(next(iter(sweep.arms)))) for sweep in sweeps
        ),
        margin=min((sweep.margin for sweep in sweeps), default=MARGIN),
        declared_margin=min((sweep.margin for sweep in sweeps), default=None),
        studied={str(sweep.folder): sweep.studied for sweep in sweeps},
        allowances={
            (str(sweep.folder), printable(arm)): allowed
            for sweep in sweeps
            for arm, allowed in sweep.allowances.items()
        },
        at_edge=frozenset(
            (str(sweep.folder), printable(arm)) for sweep in sweeps for arm in sweep.at_edge
        ),
        varied=tuple(key for sweep in sweeps for key in sweep.varied),
    )
    if len(sweeps) != 1 or None in having:
        promises = {
            str(sweep.folder): Promise(None if sweep.schedule else sweep.seeds, sweep.looks)
            for sweep in sweeps
        }
        return dataclasses.replace(found, promises=promises)
    [sweep] = sweeps
    return dataclasses.replace(
        found,
        seeds=None if sweep.schedule else sweep.seeds,
        schedule=sweep.schedule,
        seed_order=sweep.seed_order,
        looks=sweep.looks,
        factors=sweep.factors,
        declared=sweep.declared,
    )


def where_named(word: str, out_dir: Path) -> str:
    """The folder under `out_dir` for a run's or a sweep's name; anything else as it is."""
    named = [out_dir / word, out_dir / "sweeps" / word]
    found = [] if os.path.exists(word) else [path for path in named if os.path.exists(path)]
    return str(found[0]) if found else word


def series_named(words: Sequence[str], out_dir: Path) -> Path | None:
    """The folder of the series of sweeps that the only word names; None if it names none."""
    if len(words) != 1:
        return None
    folder = Path(where_named(words[0], out_dir))
    return folder if _is_file(folder / SERIES_FILE) else None


def sweep_folder(word: str) -> Path | None:
    """The folder of the sweep that a word names, by itself or by its manifest."""
    folder = Path(word).parent if Path(word).name == SWEEP_FILE else Path(word)
    return folder if _is_file(folder / SWEEP_FILE) else None


def _is_file(path: Path) -> bool:
    """Whether there is a file; no path is an error, however long or odd."""
    return os.path.isfile(path)


def _newest_alone(out_dir: Path, count: int) -> Selection:
    """The newest runs that are in no sweep."""
    sweeps = set(sweeps_below(out_dir))
    logs = logs_below(out_dir)
    alone = [path for path in logs if sweeps.isdisjoint(path.parents)]
    runs, problems = load_runs(alone)
    if len(alone) < len(logs):
        problems.append(_in_sweeps(len(logs) - len(alone), sweeps))
    return Selection(newest(runs, count), problems)


def _in_sweeps(count: int, sweeps: Collection[Path]) -> str:
    newest_sweep = max(sweeps, key=lambda folder: os.path.getmtime(folder / SWEEP_FILE))
    command = f"python compare_architectures.py {shlex.quote(str(newest_sweep))}"
    return f"{_runs(count)} of sweeps; compare the newest sweep with: {command}"


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"


def _read_sweeps(folders: Iterable[Path]) -> tuple[list[Sweep], dict[Path, str]]:
    """The sweeps whose manifests can be read, each once; and by its resolved folder, what is wrong
    with each other."""
    sweeps: dict[Path, Sweep] = {}
    problems: dict[Path, str] = {}
    for folder in folders:
        place = folder.resolve()
        if place in sweeps or place in problems:
            continue
        try:
            sweeps[place] = read_sweep(folder)
        except UserError as error:
            problems[place] = str(error)
    return list(sweeps.values()), problems


def _places(sweeps: Sequence[Sweep]) -> dict[Path, dict[str, Any]]:
    """Of each run's folder, what the first sweep that lists it says of the run: the sweep, what it
    calls the arm, and whether it is a trial."""
    found: dict[Path, dict[str, Any]] = {}
    for sweep in reversed(sweeps):
        own = {"sweep": str(sweep.folder)}
        found |= {folder.resolve(): {**own, "trial": True} for folder in sweep.trials}
        for name, folders in sweep.arms.items():
            found |= {folder.resolve(): {**own, "arm": printable(name)} for folder in folders}
    return found


def _without_log(sweep: Sweep) -> Iterator[str]:
    """What is to be said of the runs of a sweep that have no log: those that have printed something
    by name, the others by number."""
    missing = [run for run in sweep.runs if not _is_file(run / RUN_FILE)]
    failed = [run for run in missing if _is_file(output_file(run))]
    for run in failed:
        why = "it failed before it logged anything, or has just begun"
        yield f"{run}: {why}; see {output_file(run)}"
    waiting = len(missing) - len(failed)
    if waiting:
        verb = "have" if waiting > 1 else "has"
        yield f"{_runs(waiting)} of {sweep.folder} that {verb} not begun"


def _baseline_of(
    sweeps: Sequence[Sweep], named: Sequence[Sweep], runs: Sequence[LoggedRun]
) -> LoggedRun | None:
    """A run of the baseline of the first sweep; None if there is no sweep, or only a part of one
    was asked for, without its baseline."""
    for run in runs:
        if sweeps and run.path.parent in sweeps[0].baseline:
            return run
    if not named or not runs:
        return None
    raise UserError(
        f"no run of the baseline of {sweeps[0].folder} can be read, so there is nothing to compare "
        "with; train it with the command of the sweep, or name another group with --baseline."
    )
