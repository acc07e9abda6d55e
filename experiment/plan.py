"""The plan of a sweep: arms, seeds, tuning trials, and the resulting jobs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from comparison.formatting import assignments
from comparison.runs import SWEEP_FILE, TRIALS_FOLDER
from data.dataset import Dataset
from experiment.arms import Arm, ArmMaker, slug, studied_keys
from experiment.jobs import DIVERGED, ENDED, SOURCE_OF, Job, digest
from experiment.request import TUNING_SEEDS_FROM, Request
from experiment.trials import Trial, equal_trials
from experiment.tuning import Tuned, allowances, outcome
from inference.looks import Look, scheduled_looks
from inference.verdicts import MARGIN
from options import KEYS, Role
from training.provenance import PROJECT, imported_by, plugin_digests, source_digest
from training_components import LOG_SINKS

RUNS_FOLDER = "runs"

Seeds = tuple[int, int]
"""(seed, data_seed)"""

_WHERE = {"out_dir", "run_name", "resume"}
_NOT_THE_PLAN = (Role.BOOKKEEPING, Role.SEED)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep that is ready to run.

    Attributes:
        request: The request.
        arms: The arms with equal sizes and budgets, the baseline first.
        directory: The folder to which paths in the request are relative.
        dataset: The training data of all arms.
        trials: The tuning trials of each arm, the same number for every arm; empty if nothing is
            tuned.
        looks: Numbers of seeds after which verdicts were shown.
        reached: Number of seeds to train each arm with so far, in a sweep with --until_sure; None:
            all.
    """

    request: Request
    arms: tuple[Arm, ...]
    directory: Path
    dataset: Dataset
    trials: Mapping[str, tuple[Trial, ...]]
    looks: tuple[int, ...] = ()
    reached: Mapping[str, int] | None = None

    @property
    def baseline(self) -> Arm:
        return self.arms[0]

    @property
    def match(self) -> str:
        """The matched count. `active_params` becomes `params`, the simpler term, if a token uses
        all parameters of every arm."""
        sparse = any(arm.is_sparse for arm in self.arms)
        asked = self.request.match
        return asked if sparse or asked != "active_params" else "params"

    # Name and identity

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that defines the sweep, including the project's code: changing any of it would
        mix two experiments. The number of seeds is not included."""
        return self._asked | {"source": source_digest(PROJECT)[:12]}

    @cached_property
    def _asked(self) -> dict[str, Any]:
        request = self.request
        margin = {} if request.margin == MARGIN else {"margin": request.margin}
        until_sure = {"max_seeds": request.seeds} if request.until_sure else {}
        return (
            margin
            | until_sure
            | {
                "design": request.design,
                "match": self.match,
                "tune": {key: list(values) for key, values in request.tune.items()},
                "tune_seeds": request.tune_seeds if request.tune else 0,
                "first_seeds": list(self.seeds[0]),
                "data": self.dataset.fingerprint,
                "arms": {arm.name: _config(arm) for arm in self.arms},
            }
        )

    @cached_property
    def name(self) -> str:
        """The folder name: as requested, else the preset of the baseline, the varied keys and a
        digest. Without a preset, the name of the first config file.

        Earlier versions used the default preset in that case; such a folder keeps its name.
        """
        if self.request.name:
            return self.request.name
        preset = self.baseline.settings.arch_preset
        earlier = self._name_from([preset])
        files = [Path(path).stem for path in self.request.files[:1]]
        if self.baseline.settings.chooses_preset or (self._sweeps / earlier / SWEEP_FILE).exists():
            return earlier
        return self._name_from(files)

    def _name_from(self, baseline: Sequence[str]) -> str:
        text = json.dumps(self._asked, sort_keys=True)
        varied = self.request.vary or [Path(path).stem for path in self.request.arms]
        return f"{slug('-'.join([*baseline, *varied]))[:60]}-{digest(text.encode())[:8]}"

    @property
    def folder(self) -> Path:
        return (self._sweeps / self.name).resolve()

    @property
    def _sweeps(self) -> Path:
        return self.directory / self.baseline.settings.training.out_dir / "sweeps"

    @property
    def studied(self) -> list[str]:
        """Recipe keys that may differ between arms."""
        tried = [trial.arm for own in self.trials.values() for trial in own]
        return sorted(studied_keys(self.request, [*self.arms, *tried]))

    # Seeds, trials, jobs

    @property
    def seeds(self) -> list[Seeds]:
        """The seeds of the final runs: those of the config, and the following numbers."""
        return self._seeds_from(0, self.request.seeds)

    @property
    def tuning_seeds(self) -> list[Seeds]:
        return self._seeds_from(TUNING_SEEDS_FROM, self.request.tune_seeds)

    def _seeds_from(self, offset: int, count: int) -> list[Seeds]:
        training = self.baseline.settings.training
        first, first_data = training.seed + offset, training.data_seed + offset
        return [(first + k, first_data + k) for k in range(count)]

    @property
    def trials_each(self) -> int:
        """Number of trials per arm."""
        return len(self.trials[self.baseline.name])

    def trial_jobs(self, arm: str, trial: Trial) -> list[Job]:
        """The jobs of a trial of an arm, one for each tuning seed."""
        title = f"{arm} with {assignments(trial.choice)}" if trial.choice else arm
        return [
            self._job(arm, trial.arm, TRIALS_FOLDER, title, seeds) for seeds in self.tuning_seeds
        ]

    def tuning_jobs(self) -> list[Job]:
        """The jobs of all trials, starting with the first trial of every arm."""
        return [
            job
            for together in zip(*self.trials.values(), strict=True)
            for arm, trial in zip(self.trials, together, strict=True)
            for job in self.trial_jobs(arm, trial)
        ]

    def final_jobs(self, tuned: Mapping[str, Tuned]) -> list[Job]:
        """The jobs of the final runs, for the arms whose trials have ended. They start with the
        first seed of every arm, so that completed runs are always comparable."""
        return [
            self._job(name, own.arm, RUNS_FOLDER, name, seeds)
            for k, seeds in enumerate(self.seeds)
            for name, own in tuned.items()
            if self.reached is None or k < self.reached[name]
        ]

    @property
    def schedule(self) -> list[Look]:
        """The scheduled looks of a sweep with --until_sure; empty otherwise."""
        return scheduled_looks(self.request.seeds) if self.request.until_sure else []

    @property
    def is_timed(self) -> bool:
        """Whether the budget is in minutes."""
        return self.request.budget is not None and self.request.budget.unit == "minutes"

    @cached_property
    def _files(self) -> dict[str, dict[str, str]]:
        """By arm and path, the current digests of its config files, its plugins and the local
        modules that plugins import."""
        return {
            arm.name: {path: digest((self.directory / path).read_bytes()) for path in paths}
            for arm in self.arms
            for plugins in [arm.settings.plugins]
            for paths in [
                dict.fromkeys((*arm.files, *plugins, *map(str, imported_by(plugins).values())))
            ]
        }

    def _job(self, name: str, arm: Arm, where: str, title: str, seeds: Seeds) -> Job:
        """A job of the arm called `name`, trained with the settings of `arm`."""
        seed, data_seed = seeds
        flags = {**arm.flags, "seed": seed, "data_seed": data_seed}
        flags = {key: value for key, value in flags.items() if key not in _WHERE}
        training = arm.settings.training
        for sink in training.log_sinks:
            flags = {**LOG_SINKS[sink].keys_in_sweep(self.folder.name), **flags}
        return Job(
            arm=name,
            title=f"{title}, seed {seed}",
            folder=self.folder / where / f"{slug(title)}-s{seed}",
            arguments=(*arm.files, *(f"--{key}={value}" for key, value in flags.items())),
            directory=self.directory,
            files=self._files[name],
            cost=1.0 if self.is_timed else arm.flops,
            length=("wall_seconds", 60 * training.max_minutes)
            if self.is_timed
            else ("iter", training.max_iters),
        )

    def tuned(self) -> dict[str, Tuned]:
        """The tuning outcome of each arm, over the tuning seeds.

        Arms with missing trials are omitted, because fewer trials would be a disadvantage.
        """
        found: dict[str, Tuned] = {}
        for arm in self.arms:
            trials = self.trials[arm.name]
            jobs = [self.trial_jobs(arm.name, trial) for trial in trials]
            if all(job.status in ENDED for own in jobs for job in own):
                found[arm.name] = outcome(arm, trials, list(map(_mean_loss, jobs)))
        return found

    def allowances(self, tuned: Mapping[str, Tuned]) -> dict[str, float]:
        """The allowances of the tuned arms, see `tuning.allowances`; empty if nothing is tuned."""
        return allowances(tuned) if self.trials_each else {}


def make_plan(request: Request, directory: Path) -> Plan:
    """Create the plan of a request; see `ArmMaker.equal_arms` and `equal_trials` for errors."""
    maker = ArmMaker(request)
    arms = tuple(maker.equal_arms())
    return Plan(request, arms, directory, maker.dataset, equal_trials(maker, arms))


def _config(arm: Arm) -> dict[str, Any]:
    """The non-default values of an arm's config, so that a key added in a later version does not
    change the sweep's identity; and the digests of its plugins and of what these import."""
    said = {
        key: value
        for key, value in arm.settings.to_dict().items()
        if KEYS[key].role not in _NOT_THE_PLAN and value != KEYS[key].default
    }
    sources = {
        f"{SOURCE_OF}{name}": found[:12]
        for name, found in plugin_digests(arm.settings.plugins).items()
    }
    return said | sources


def _mean_loss(jobs: Sequence[Job]) -> float | None:
    """The mean loss of a trial; None if a run diverged."""
    losses = [job.loss for job in jobs]
    diverged = any(job.status == DIVERGED for job in jobs) or None in losses
    return None if diverged else fmean(losses)
