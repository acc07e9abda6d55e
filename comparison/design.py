"""What was declared about a comparison before its runs: in manifests of sweeps, or by options."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from comparison.groups import Group
from inference.looks import Look
from inference.rules import ConfidenceSequence, DeclaredSeeds, Rule
from inference.verdicts import MARGIN


@dataclasses.dataclass(frozen=True)
class TuningCurve:
    """The results of the tuning trials of an arm.

    Attributes:
        key: The tuned key.
        tried: Its tried values.
        losses: Mean final loss for each value, in nats per token; None if a run failed.
        fitted: The value that the final runs were trained with.
        allowance: How much lower the loss could be at the best value, in nats per token.
    """

    arm: str
    key: str
    tried: tuple[float, ...]
    losses: tuple[float | None, ...]
    fitted: float
    allowance: float


@dataclasses.dataclass(frozen=True)
class Declared:
    """Facts about a sweep that are shown to readers but not used by the analysis.

    Attributes:
        command: The command that created the sweep.
        match: The `--match` of the sweep.
        budget: The budget of every run as given by the command; None: that of the config.
        curves: The tuning curves of the arms for which a number was tuned.
    """

    command: str | None = None
    match: str | None = None
    budget: str | None = None
    curves: tuple[TuningCurve, ...] = ()


@dataclasses.dataclass(frozen=True)
class Promise:
    """What a sweep declared about its runs.

    Attributes:
        seeds: Number of seeds per arm; None for a sweep with --until_sure.
        looks: Numbers of seeds after which verdicts were shown.
    """

    seeds: int | None
    looks: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Design:
    """A declared comparison.

    Attributes:
        arms: Number of arms besides the baseline; None if not declared: the arms compared.
        baselines: Sweeps with the arms that they declared as their baselines.
        all_pairs: Whether the baseline is an arm that no sweep declared as its baseline. It may
            have been chosen after seeing the results, so intervals hold for all pairs of arms.
        seeds: Number of seeds per arm; None if not declared. There is no verdict before all have
            finished, because stopping after any seed would raise the error rate.
        schedule: The scheduled looks of a sweep with --until_sure; empty for a fixed number of
            seeds.
        seed_order: The (seed, data_seed) of its runs, in the order in which they are added.
        looks: Numbers of seeds after which verdicts were shown. If seeds were added after one, the
            intervals are confidence sequences, which are valid for any number of looks.
        undeclared_looks: The looks after which seeds were added; see `with_looks_at`.
        promises: By sweep, what it declared about its runs if it is compared with other runs. The
            declarations of a sweep compared alone are in `seeds`, `schedule` and `looks`.
        margin: Differences up to this many nats per token count as equal.
        declared_margin: The smallest margin that a sweep declared; None if none did.
        tuned: Keys that were tuned with the same number of trials for every arm.
        studied: By folder of a sweep, the recipe keys that it tuned or varied.
        allowances: By sweep and arm, how much lower the arm's loss could be at its best tuned
            value, in nats per token.
        at_edge: Sweeps and arms with a tuned value at the edge of the tried values.
        varied: Keys that were varied on purpose; they come first in the changes of an arm.
        factors: The keys of a factorial design; empty: derived from the groups.
        declared: Further declarations to show to readers.
    """

    arms: int | None = None
    baselines: frozenset[tuple[str, str]] = frozenset()
    all_pairs: bool = False
    seeds: int | None = None
    schedule: tuple[Look, ...] = ()
    seed_order: tuple[tuple[int, int], ...] = ()
    looks: tuple[int, ...] = ()
    undeclared_looks: tuple[int, ...] = ()
    promises: Mapping[str, Promise] = dataclasses.field(default_factory=dict)
    margin: float = MARGIN
    declared_margin: float | None = None
    tuned: tuple[str, ...] = ()
    studied: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    allowances: Mapping[tuple[str, str], float] = dataclasses.field(default_factory=dict)
    at_edge: frozenset[tuple[str, str]] = frozenset()
    varied: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()
    declared: Declared = Declared()

    def rule(self, arms: int) -> Rule:
        """The rule for intervals.

        Args:
            arms: Number of arms compared, which exceeds the declared number if code differs.
        """
        return self.rule_for(self.family(arms))

    def rule_for(self, family: int) -> Rule:
        """The rule for intervals that are simultaneous over a family of this size."""
        return ConfidenceSequence(family) if self.undeclared_looks else DeclaredSeeds(family)

    def family(self, arms: int) -> int:
        """Number of arms, or pairs of arms, over which intervals are simultaneous, given the number
        of arms compared."""
        count = max(self.arms or 0, arms, 1)
        return count * (count + 1) // 2 if self.all_pairs else count

    def against(self, baseline: Group) -> Design:
        """The design with this group as the baseline."""
        chosen = any(
            run.sweep is not None and (run.sweep, run.arm) not in self.baselines
            for run in baseline.runs
        )
        return dataclasses.replace(self, all_pairs=chosen)

    def with_looks_at(self, groups: Iterable[Group]) -> Design:
        """The design with `undeclared_looks`: those after which any of these groups got more seeds,
        from its own sweep or from other runs."""
        seen: set[int] = set()
        for group in groups:
            own = [promise for sweep, promise in self.promises.items() if sweep in group.sweeps]
            for promise in (Promise(self.seeds, self.looks), *own):
                seeds = max(group.n + group.diverged, promise.seeds or 0)
                seen |= {n for n in promise.looks if n < seeds}
        looks = () if self.schedule else tuple(sorted(seen))
        return dataclasses.replace(self, undeclared_looks=looks)

    def declares(self, group: Group) -> bool:
        """Whether the number of seeds of a group was declared before its runs."""
        return self.seeds is not None or group.sweeps <= self.promises.keys()

    def waits_for(self, group: Group) -> str:
        """Why the losses of a group may not be judged yet; empty if they may."""
        if any(run.trial for run in group.runs):
            return f"{group.name} contains tuning trials, which cannot be used for a verdict"
        own = [promise for sweep, promise in self.promises.items() if sweep in group.sweeps]
        if any(promise.seeds is None for promise in own):
            return (
                f"{group.name} belongs to a sweep with --until_sure, which gets verdicts only if "
                "compared alone"
            )
        declared = max([self.seeds or 0, *(promise.seeds for promise in own)])
        finished = group.n + group.diverged
        if finished < declared:
            return f"{finished} of {declared} declared seeds of {group.name} have finished"
        return ""

    def allowance(self, group: Group) -> float:
        """How much lower the loss of a group could be at its best tuned value."""
        return max(self.allowances.get((run.sweep, run.arm), 0.0) for run in group.runs)

    def is_at_edge(self, group: Group) -> bool:
        """Whether the tuned value of a group is at the edge of the tried values."""
        return any((run.sweep, run.arm) in self.at_edge for run in group.runs)

    def may_differ(self, group: Group, baseline: Group) -> set[str]:
        """The recipe keys that may differ between the two. Keys that a sweep tuned or varied count
        only if all runs belong to it."""
        sweeps = group.sweeps | baseline.sweeps
        shared = self.studied.get(next(iter(sweeps)) or "", ()) if len(sweeps) == 1 else ()
        return {*self.tuned, *shared}
