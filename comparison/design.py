"""What was declared of a comparison before its runs, by the manifest of a sweep or by a person."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from comparison.groups import Group
from inference.looks import Look
from inference.rules import ConfidenceSequence, DeclaredSeeds, Rule
from inference.verdicts import MARGIN


@dataclasses.dataclass(frozen=True)
class TuningCurve:
    """What the trials of an arm came to.

    Attributes:
        key: The number that was tuned.
        tried: Its values.
        losses: Mean final loss at each, nats per token; None where a run failed.
        fitted: The value that the runs of the verdict have.
        allowance: By how much the loss at the best value may be lower, nats per token.
    """

    arm: str
    key: str
    tried: tuple[float, ...]
    losses: tuple[float | None, ...]
    fitted: float
    allowance: float


@dataclasses.dataclass(frozen=True)
class Declared:
    """What a reader is told of a sweep, beyond what the analysis needs.

    Attributes:
        command: That made it.
        match: The `--match` of the sweep.
        budget: What every run spends, as the command says; None: what the config says.
        curves: Of each arm whose number was tuned.
    """

    command: str | None = None
    match: str | None = None
    budget: str | None = None
    curves: tuple[TuningCurve, ...] = ()


@dataclasses.dataclass(frozen=True)
class Promise:
    """What a sweep declared of its runs.

    Attributes:
        seeds: Seeds of each arm; None if they are added until the verdict is sure.
        looks: Numbers of seeds after which verdicts were shown.
    """

    seeds: int | None
    looks: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Design:
    """A declared comparison.

    Attributes:
        arms: Arms beside the baseline; None if nobody said, then those that are compared.
        baselines: Sweeps and the arms that they declared as their baselines.
        all_pairs: Whether the baseline is an arm that no sweep declared as that. Whoever names it
            may have seen the results, so intervals hold for all pairs of arms.
        seeds: Seeds per arm; None if nobody said. There is no verdict before all have finished:
            a verdict that is looked at seed by seed is false more often than promised.
        schedule: Looks of a sweep that goes on until it is sure; none of one with a fixed number of
            seeds.
        seed_order: The (seed, data_seed) of its runs, in the order in which they are added.
        looks: Numbers of seeds after which verdicts were shown. If seeds were added after one, the
            intervals are those of a confidence sequence, which holds however many looks there are.
        undeclared_looks: Those after which seeds were added, see `with_looks_at`.
        promises: By sweep what it declared of its runs, if it is compared beside other runs. That
            of a sweep compared by itself is in `seeds`, `schedule` and `looks`.
        margin: Differences up to this many nats per token count as equal.
        declared_margin: What sweeps declared of it, the smallest; None if none did.
        tuned: Keys that every arm was given the same trials to choose.
        studied: The same for the arms of one sweep, by its folder, and the keys of the recipe that
            it varies.
        allowances: By sweep and arm how far the loss at the arm's best tuned value may lie below
            that of its runs, nats per token.
        at_edge: Sweeps and arms whose tuned value is at an end of those that were tried.
        varied: Keys that were varied on purpose; they lead the changes of an arm.
        factors: The keys of a factorial design; none: those that the groups themselves show.
        declared: What else a reader is told.
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
        """How intervals are made.

        Args:
            arms: Arms that are compared; more than were declared if their code differs.
        """
        return self.rule_for(self.family(arms))

    def rule_for(self, family: int) -> Rule:
        """How intervals that hold for so many together are made."""
        return ConfidenceSequence(family) if self.undeclared_looks else DeclaredSeeds(family)

    def family(self, arms: int) -> int:
        """Arms, or pairs of arms, that intervals hold for together, given how many are compared."""
        count = max(self.arms or 0, arms, 1)
        return count * (count + 1) // 2 if self.all_pairs else count

    def against(self, baseline: Group) -> Design:
        """The design of a comparison with a group."""
        chosen = any(
            run.sweep is not None and (run.sweep, run.arm) not in self.baselines
            for run in baseline.runs
        )
        return dataclasses.replace(self, all_pairs=chosen)

    def with_looks_at(self, groups: Iterable[Group]) -> Design:
        """The design with the looks after which seeds were added to some of these groups, by
        their sweep or from elsewhere."""
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
            return f"{group.name} has trials of tuning, which no verdict may rest on"
        own = [promise for sweep, promise in self.promises.items() if sweep in group.sweeps]
        if any(promise.seeds is None for promise in own):
            return (
                f"{group.name} is of a sweep that adds seeds until sure, which is judged only by "
                "itself"
            )
        declared = max([self.seeds or 0, *(promise.seeds for promise in own)])
        finished = group.n + group.diverged
        if finished < declared:
            return f"{finished} of {declared} declared seeds of {group.name} have finished"
        return ""

    def allowance(self, group: Group) -> float:
        """How far the loss of a group at its best tuned value may lie below that of its runs."""
        return max(self.allowances.get((run.sweep, run.arm), 0.0) for run in group.runs)

    def is_at_edge(self, group: Group) -> bool:
        """Whether the tuned value of a group is at an end of those that were tried."""
        return any((run.sweep, run.arm) in self.at_edge for run in group.runs)

    def may_differ(self, group: Group, baseline: Group) -> set[str]:
        """The keys of the recipe that are part of an arm. What a sweep tuned or varied says nothing
        of runs outside it."""
        sweeps = group.sweeps | baseline.sweeps
        shared = self.studied.get(next(iter(sweeps)) or "", ()) if len(sweeps) == 1 else ()
        return {*self.tuned, *shared}
