"""Losses at equal budgets: exploratory, and judged only where the reading is sound.

A loss read in mid-training says little of an architecture if the learning rate of one run has
decayed further than that of the other, and a loss between two evaluations is a guess. So a reading
has a verdict only if both runs are as far on their schedule and the guess is much better than the
difference; else it is descriptive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from statistics import fmean

from comparison.curves import AXES, common_budget, curve, loss_at, loss_error
from comparison.design import Design
from comparison.groups import Group
from comparison.judging import judged_groups
from inference.samples import Sample
from inference.verdicts import Verdict

SAME_PROGRESS = 0.01
"""Shares of a schedule that differ by no more than this are the same place on it."""

SOUND_ERROR = 0.1
"""An interpolation may be off by this share of the difference, or of the margin if that is more."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """A group at a budget that it and the baseline spent.

    Attributes:
        budget: The largest such; for the baseline, what its own runs spent.
        losses: Of the group, for each of its seeds.
        difference: Mean over the shared seeds, from the baseline at this budget; None if none.
        final: Whether both are at the end of their runs, so that the reading tells nothing new.
        verdict: None for a reading that is descriptive.
        descriptive: Why it is.
    """

    budget: float
    losses: Sample
    difference: float | None
    final: bool
    verdict: Verdict | None
    descriptive: str = ""


def readings(groups: Sequence[Group], design: Design) -> dict[str, dict[str, Reading]]:
    """For each unit of budget, by name the reading of each group that has one; the baseline is the
    first of the groups."""
    found = {axis: _on_axis(groups, axis, design) for axis in AXES}
    return {axis: own for axis, own in found.items() if len(own) > 1}


def _on_axis(groups: Sequence[Group], axis: str, design: Design) -> dict[str, Reading]:
    base = groups[0]
    budgets = {group.name: common_budget((base, group), axis) for group in groups if group.n}
    pairs = {
        group.name: _Pair(group, base, axis, budgets[group.name], design.margin)
        for group in groups
        if budgets.get(group.name) and base.n
    }
    sound = [group for group in groups if group.name in pairs and not pairs[group.name].unsound]
    # Arms with one budget share the baseline's losses at it, and can borrow variances.
    verdicts: dict[str, Verdict] = {}
    for budget in dict.fromkeys(pairs[group.name].budget for group in sound):
        at = [g for g in sound if pairs[g.name].budget == budget and g is not base]
        verdicts |= judged_groups(
            [base, *at],
            lambda group, budget=budget: losses_at(group, axis, budget),
            lambda group: "",
            design if design.arms else dataclasses.replace(design, arms=len(groups) - 1),
        )
    return {
        name: Reading(
            pair.budget,
            pair.losses,
            pair.difference,
            pair.final,
            None if pair.unsound else verdicts[name],
            pair.unsound,
        )
        for name, pair in pairs.items()
    }


def losses_at(group: Group, axis: str, budget: float) -> Sample:
    """The loss of each seed at a budget that every run spent, nats per token."""
    found = {run.seeds: loss_at(curve(run, axis), budget) for run in group.counted}
    return {seeds: loss for seeds, loss in found.items() if loss is not None}


class _Pair:
    """A group and the baseline at a budget that both spent."""

    def __init__(self, group: Group, baseline: Group, axis: str, budget: float, margin: float):
        self._groups = (group, baseline)
        self._axis, self.budget, self._margin = axis, budget, margin
        self.losses = losses_at(group, axis, budget)
        base = losses_at(baseline, axis, budget)
        differences = [loss - base[seeds] for seeds, loss in self.losses.items() if seeds in base]
        self.difference = fmean(differences) if differences else None

    @property
    def final(self) -> bool:
        curves = (curve(run, self._axis) for group in self._groups for run in group.counted)
        return all(points[-1][0] == self.budget for points in curves)

    @cached_property
    def unsound(self) -> str:
        """Why it has no verdict; empty if it may have one."""
        shares = [self._progress(group) for group in self._groups]
        if None in shares or abs(shares[0] - shares[1]) > SAME_PROGRESS:
            told = " and ".join("?" if s is None else f"{100 * s:.0f} %" for s in shares)
            return f"at {told} of the schedules"
        error = sum(self._error(group) for group in self._groups)
        if error > SOUND_ERROR * max(abs(self.difference or 0), self._margin):
            return f"between evaluations: may be off by {error:.4f}"
        return ""

    def _progress(self, group: Group) -> float | None:
        """The share of the schedule after which the budget was spent."""
        ends = [curve(run, self._axis)[-1][0] for run in group.counted]
        return group.progress and group.progress * self.budget / fmean(ends)

    def _error(self, group: Group) -> float:
        """How far interpolation may put the mean loss off."""
        return fmean(loss_error(curve(run, self._axis), self.budget) for run in group.counted)
