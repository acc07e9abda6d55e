"""Losses at equal budgets: exploratory, and judged only if the reading is reliable.

A loss in mid-training says little about an architecture if the learning rate of one run has decayed
further than that of the other, and a loss between two evaluations is interpolated. So a reading
gets a verdict only if both runs are at the same point of their schedules and the interpolation
error is small compared with the difference; otherwise it is descriptive.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from statistics import fmean

from comparison.curves import AXES, common_budget, curve, loss_at, loss_error
from comparison.design import Design
from comparison.groups import Group
from comparison.judging import judged_groups, unfinished
from inference.samples import Sample
from inference.verdicts import Verdict

SAME_PROGRESS = 0.01
"""Difference up to which fractions of a schedule count as the same point."""

SOUND_ERROR = 0.1
"""Maximum interpolation error, as a fraction of the difference or of the margin, whichever is
larger."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """A group at a budget that it and the baseline spent.

    Attributes:
        budget: The largest such budget; for the baseline, that of its own runs.
        losses: The losses of the group by seed.
        difference: Mean difference from the baseline at this budget over the shared seeds; None if
            there are none.
        final: Whether both runs end at this budget, so that the reading adds nothing new.
        verdict: The verdict; None for a descriptive reading.
        descriptive: Why there is no verdict.
    """

    budget: float
    losses: Sample
    difference: float | None
    final: bool
    verdict: Verdict | None
    descriptive: str = ""


def readings(
    groups: Sequence[Group], design: Design, verdicts: Mapping[str, Verdict]
) -> dict[str, dict[str, Reading]]:
    """For each unit of budget, the readings of the groups by name.

    Args:
        groups: The groups, the baseline first.
        design: The declarations.
        verdicts: By name, the verdicts on the final losses, which are also those of readings at the
            end of the runs.
    """
    found = {axis: _on_axis(groups, axis, design, verdicts) for axis in AXES}
    return {axis: own for axis, own in found.items() if len(own) > 1}


def _on_axis(
    groups: Sequence[Group], axis: str, design: Design, final: Mapping[str, Verdict]
) -> dict[str, Reading]:
    base = groups[0]
    budgets = {group.name: common_budget((base, group), axis) for group in groups if group.n}
    pairs = {
        group.name: _Pair(group, base, axis, budgets[group.name], design)
        for group in groups
        if budgets.get(group.name) and base.n
    }
    verdicts = {
        name: final[name] for name, pair in pairs.items() if pair.final and final[name].difference
    }
    verdicts[base.name] = final[base.name]
    left = [g for g in groups if g.name in pairs.keys() - verdicts.keys()]
    sound = [group for group in left if not pairs[group.name].unsound]
    # Arms read at the same budget share the baseline's losses and can borrow variances.
    for budget in dict.fromkeys(pairs[group.name].budget for group in sound):
        at = [group for group in sound if pairs[group.name].budget == budget]
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
            verdicts.get(name),
            "" if name in verdicts else pair.unsound,
        )
        for name, pair in pairs.items()
    }


def losses_at(group: Group, axis: str, budget: float) -> Sample:
    """The loss of each seed at a budget that every run spent, in nats per token."""
    found = {run.seeds: loss_at(curve(run, axis), budget) for run in group.counted}
    return {seeds: loss for seeds, loss in found.items() if loss is not None}


class _Pair:
    """A group and the baseline at a budget that both spent."""

    def __init__(self, group: Group, baseline: Group, axis: str, budget: float, design: Design):
        self._groups = (group, baseline)
        self._axis, self.budget, self._design = axis, budget, design
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
        """Why there is no verdict; empty if there can be one."""
        waits = unfinished(*self._groups, self._design)
        if waits or self._design.schedule:
            return waits or "sequential testing applies to final losses only"
        shares = [self._progress(group) for group in self._groups]
        if None in shares or abs(shares[0] - shares[1]) > SAME_PROGRESS:
            told = " and ".join("?" if s is None else f"{100 * s:.0f} %" for s in shares)
            return f"at {told} of the schedules"
        error = sum(self._error(group) for group in self._groups)
        if math.isinf(error):
            return "outside the evaluations of a run"
        if error > SOUND_ERROR * max(abs(self.difference or 0), self._design.margin):
            return f"between evaluations: interpolation error up to {error:.4f}"
        return ""

    def _progress(self, group: Group) -> float | None:
        """The fraction of the schedule completed at this budget."""
        ends = [curve(run, self._axis)[-1][0] for run in group.counted]
        return group.progress and group.progress * self.budget / fmean(ends)

    def _error(self, group: Group) -> float:
        """Upper bound of the interpolation error of the mean loss."""
        return fmean(loss_error(curve(run, self._axis), self.budget) for run in group.counted)
