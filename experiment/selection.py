"""Select the runs of a comparison, and add what their sweeps declare beyond the logs."""

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
    """The runs to compare.

    Attributes:
        runs: The runs that could be read.
        problems: The problems of the other runs and of manifests.
        baseline: A run of the group to compare with; None if no sweep declares one.
        design: The declarations of the sweeps.
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
        """Compare the runs; see `comparison.findings.compare`.

        Args:
            baseline: The group to compare with. Defaults to the baseline of the sweep.
            margin: Differences up to this count as equal. Defaults to the declared margin.
            tuned: Keys that were tuned with the same number of trials for every arm.
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
    """Select the runs that command-line words refer to.

    Without words, select the newest runs outside of sweeps: a run of a sweep is only one seed of an
    arm, and its sweep should be compared as a whole.

    Args:
        words: Runs, sweeps, folders that contain them, globs, or names under `out_dir`.
        latest: Number of newest runs to select if there are no words.
        out_dir: The folder to search.
        baseline_given: Whether the user specified a baseline.

    Raises:
        UserError: If no baseline run of a sweep can be read, although others can, and no other
            baseline is given.
    """
    if not words:
        return _newest_alone(out_dir, latest or DEFAULT_LATEST)
    words = list(expand(where_named(word, out_dir) for word in words))
    folders = [folder for folder in map(sweep_folder, words) if folder]
    others = find([word for word in words if not sweep_folder(word)])
    # The declarations of a sweep also apply to parts of it, and to a sweep next to other runs.
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
    """Yield the folder of the sweep that a run belongs to, by its path and its resolved path."""
    for path in dict.fromkeys((log, log.resolve())):
        if len(path.parents) > 2 and _is_file(path.parents[2] / SWEEP_FILE):
            yield path.parents[2]


def _design(sweeps: Sequence[Sweep], having: Collection[str | None]) -> Design:
    """The combined declarations of sweeps.

    Args:
        sweeps: The sweeps that runs belong to.
        having: The sweep of each run; None for runs without a sweep.
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
    """The folder under `out_dir` for the name of a run or sweep; other words are unchanged."""
    named = [out_dir / word, out_dir / "sweeps" / word]
    found = [] if os.path.exists(word) else [path for path in named if os.path.exists(path)]
    return str(found[0]) if found else word


def series_named(words: Sequence[str], out_dir: Path) -> Path | None:
    """The folder of a series of sweeps, if the only word names one; else None."""
    if len(words) != 1:
        return None
    folder = Path(where_named(words[0], out_dir))
    return folder if _is_file(folder / SERIES_FILE) else None


def sweep_folder(word: str) -> Path | None:
    """The folder of the sweep that a word refers to, as its folder or its manifest; else None."""
    folder = Path(word).parent if Path(word).name == SWEEP_FILE else Path(word)
    return folder if _is_file(folder / SWEEP_FILE) else None


def _is_file(path: Path) -> bool:
    """Whether a file exists; never raises, even for invalid paths."""
    return os.path.isfile(path)


def _newest_alone(out_dir: Path, count: int) -> Selection:
    """The newest runs outside of sweeps."""
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
    """Read sweeps, each once; returns those with a valid manifest, and the problems of the others
    by resolved folder."""
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
    """For each run directory, what the first sweep that lists it declares: the sweep, the name of
    the arm, and whether the run is a trial."""
    found: dict[Path, dict[str, Any]] = {}
    for sweep in reversed(sweeps):
        own = {"sweep": str(sweep.folder)}
        found |= {folder.resolve(): {**own, "trial": True} for folder in sweep.trials}
        for name, folders in sweep.arms.items():
            found |= {folder.resolve(): {**own, "arm": printable(name)} for folder in folders}
    return found


def _without_log(sweep: Sweep) -> Iterator[str]:
    """Yield messages about the runs of a sweep without a log: by name if they printed something,
    otherwise as a count."""
    missing = [run for run in sweep.runs if not _is_file(run / RUN_FILE)]
    failed = [run for run in missing if _is_file(output_file(run))]
    for run in failed:
        why = "it failed before it logged anything, or has just started"
        yield f"{run}: {why}; see {output_file(run)}"
    waiting = len(missing) - len(failed)
    if waiting:
        verb = "have" if waiting > 1 else "has"
        yield f"{_runs(waiting)} of {sweep.folder} that {verb} not started"


def _baseline_of(
    sweeps: Sequence[Sweep], named: Sequence[Sweep], runs: Sequence[LoggedRun]
) -> LoggedRun | None:
    """A baseline run of the first sweep; None if there is no sweep, or only a part of one without
    its baseline was requested."""
    for run in runs:
        if sweeps and run.path.parent in sweeps[0].baseline:
            return run
    if not named or not runs:
        return None
    raise UserError(
        f"no baseline run of {sweeps[0].folder} can be read, so there is nothing to compare with; "
        "train it with the command of the sweep, or choose another group with --baseline."
    )
