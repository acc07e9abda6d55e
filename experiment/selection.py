"""Which runs a comparison is of, and what a sweep knows of them beyond their logs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from comparison.findings import Findings, compare
from comparison.runs import RUN_FILE, SWEEP_FILE, Run, expand, find, load_runs, logs_below, newest
from errors import UserError
from experiment.manifest import Sweep, read_sweep

DEFAULT_LATEST = 3


@dataclasses.dataclass(frozen=True)
class Selection:
    """What is to be compared.

    Attributes:
        runs: Those that could be read.
        problems: Of the others, what is wrong with each.
        baseline: A run of the group to compare with; None where no sweep says which it is.
        studied: Keys of the recipe that are part of an arm.
        factors: The keys of a factorial design.
    """

    runs: list[Run]
    problems: list[str]
    baseline: Run | None = None
    studied: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()

    def findings(
        self,
        baseline: str | None = None,
        margin: float | None = None,
        tuned: Sequence[str] = (),
    ) -> Findings:
        """What the runs show; see `comparison.findings.compare`."""
        studied = [*tuned, *self.studied]
        return compare(self.runs, baseline or self.baseline, margin, studied, self.factors)


def select(
    words: Sequence[str], latest: int | None, out_dir: Path, *, baseline_given: bool = False
) -> Selection:
    """The runs that command-line words mean; without any, the newest.

    Args:
        words: Runs, sweeps, folders that hold some, globs, or names under `out_dir`.
        latest: How many of the newest, where there are no words.
        out_dir: The folder searched.
        baseline_given: Whether somebody has said what to compare with.

    Raises:
        UserError: the manifest of a sweep cannot be read, or none of its baseline's runs has
            begun while others have, and no other baseline is given.
    """
    if not words:
        runs, problems = load_runs(logs_below(out_dir))
        return Selection(newest(runs, latest or DEFAULT_LATEST), problems)
    words = list(expand(where_named(word, out_dir) for word in words))
    sweeps = [read_sweep(folder) for folder in map(sweep_folder, words) if folder]
    others = [word for word in words if not sweep_folder(word)]
    begun = [run for sweep in sweeps for run in sweep.runs if (run / RUN_FILE).exists()]
    runs, problems = load_runs(dict.fromkeys([*begun, *find(others)]))
    missing = sum(len(sweep.runs) for sweep in sweeps) - len(begun)
    if missing:
        problems.append(f"{missing} runs of the sweep that have not begun")
    needs_baseline = sweeps and runs and not baseline_given
    return Selection(
        runs,
        problems,
        baseline=_baseline_of(sweeps[0], runs) if needs_baseline else None,
        studied=tuple(key for sweep in sweeps for key in sweep.studied),
        factors=sweeps[0].factors if len(words) == 1 and sweeps else (),
    )


def where_named(word: str, out_dir: Path) -> str:
    """The folder under `out_dir` for a run's or a sweep's name; anything else as it is."""
    named = [out_dir / word, out_dir / "sweeps" / word]
    found = [] if Path(word).exists() else [path for path in named if path.exists()]
    return str(found[0]) if found else word


def sweep_folder(word: str) -> Path | None:
    """The folder of the sweep that a word names, by itself or by its manifest."""
    folder = Path(word).parent if Path(word).name == SWEEP_FILE else Path(word)
    return folder if (folder / SWEEP_FILE).is_file() else None


def _baseline_of(sweep: Sweep, runs: Sequence[Run]) -> Run:
    for run in runs:
        if run.path.parent in sweep.baseline:
            return run
    raise UserError(
        f"no run of the baseline of {sweep.folder} can be read, so there is nothing to compare "
        "with; train it with the command of the sweep, or name another group with --baseline."
    )
