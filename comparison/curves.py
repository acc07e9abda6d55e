"""Validation curves: the loss at a budget, and the budget needed for a loss.

Between two evaluations, the loss is interpolated linearly in the logarithm of the budget. Loss
curves resemble power laws (Kaplan et al. 2020, arXiv 2001.08361), which are convex in the budget:
interpolating linearly in the budget itself would overestimate the loss between distant points.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Iterable
from itertools import pairwise
from typing import Any

from comparison.groups import Group, machines
from comparison.runs import LoggedRun
from inference.contrasts import Term, estimate_contrast
from inference.estimates import Estimate

AXES = {"tokens": "tokens_seen", "flops": "flops", "seconds": "seconds"}
"""The units of budget, with their keys in the records of evaluations."""

Curve = list[tuple[float, float]]
"""(budget spent, validation loss) at each evaluation, with strictly increasing budget."""


def curve(run: LoggedRun, axis: str) -> Curve:
    """The finite validation losses of a run over a unit of budget."""
    points: Curve = []
    for record in run.eval_steps:
        spent, loss = record.get(AXES[axis]), record["val_loss"]
        if spent is not None and loss is not None and (not points or spent > points[-1][0]):
            points.append((spent, loss))
    return points


def loss_at(points: Curve, budget: float) -> float | None:
    """The loss at a budget; None outside the curve."""
    if not points or not points[0][0] <= budget <= points[-1][0]:
        return None
    index = bisect_left(points, budget, key=lambda point: point[0])
    if points[index][0] == budget:
        return points[index][1]
    (x0, y0), (x1, y1) = points[index - 1], points[index]
    return y0 + (y1 - y0) * _along(x0, x1, budget)


def loss_error(points: Curve, budget: float) -> float:
    """Upper bound of the error of `loss_at`: 0 at an evaluation, infinite outside the curve.

    A falling loss lies between those of the evaluations around it. If the curve is convex there,
    it also lies above the straight lines through the evaluations before and after.
    """
    loss = loss_at(points, budget)
    if loss is None:
        return math.inf
    index = bisect_left(points, budget, key=lambda point: point[0])
    if points[index][0] == budget:
        return 0.0
    (_, before), (_, after) = points[index - 1], points[index]
    falling = max(abs(loss - before), abs(loss - after))
    beside = (points[index - 2 : index], points[index : index + 2])
    lines = [
        y0 + (y1 - y0) * _along(x0, x1, budget)
        for (x0, y0), (x1, y1) in (pair for pair in beside if len(pair) == 2)
    ]
    convex = loss - max(lines, default=-math.inf)
    return min(falling, convex) if convex >= 0 else falling


def _along(x0: float, x1: float, x: float) -> float:
    """The relative position of x between x0 and x1, on a logarithmic scale if x0 is above 0."""
    if x0 <= 0:
        return (x - x0) / (x1 - x0)
    return math.log(x / x0) / math.log(x1 / x0)


def cost_of(points: Curve, loss: float) -> float | None:
    """The budget at which the curve first falls to a loss; None if it starts at or below it, or
    never reaches it."""
    if points[0][1] <= loss:
        return None
    for (x0, y0), (x1, y1) in pairwise(points):
        if y1 <= loss:
            share = (y0 - loss) / (y0 - y1)
            return x0 * (x1 / x0) ** share if x0 > 0 else x0 + (x1 - x0) * share
    return None


def common_budget(groups: Iterable[Group], axis: str) -> float | None:
    """The largest budget that every included run of the groups spent; None if one is unknown, or
    for seconds if the machines differ."""
    groups = [group for group in groups if group.n]
    if axis == "seconds" and len(set().union(*machines(groups))) > 1:
        return None
    curves = [curve(run, axis) for group in groups for run in group.counted]
    return min((points[-1][0] for points in curves), default=None) if all(curves) else None


def speedup(
    group: Group, baseline: Group, axis: str, seeds: Collection[Any] | None = None
) -> Estimate | None:
    """The natural logarithm of the speed-up of a group: the budget that the baseline needs for a
    loss, divided by the budget that the group needs for it.

    For each seed, the loss is one that both runs reach: the final loss of the baseline, or of the
    group if that is higher. So swapping the two only changes the sign, and both runs are used in
    full. The mean is over the given seeds, or all. None if no loss is shared, the seeds are not
    paired, or the group is the baseline.
    """
    own, other = machines([group, baseline])
    if group is baseline or (axis == "seconds" and own != other):
        return None
    theirs = {run.seeds: run for run in baseline.counted}
    logs = {
        run.seeds: _log_ratio(curve(theirs[run.seeds], axis), curve(run, axis))
        for run in group.counted
        if run.seeds in theirs and (seeds is None or run.seeds in seeds)
    }
    if None in logs.values():
        return None
    return estimate_contrast([Term(1, logs)])


def _log_ratio(baseline: Curve, arm: Curve) -> float | None:
    """log(cost of the baseline / cost of the arm) at the higher of their final losses."""
    if not baseline or not arm:
        return None
    loss = max(baseline[-1][1], arm[-1][1])
    spent = [cost_of(points, loss) for points in (baseline, arm)]
    return math.log(spent[0] / spent[1]) if all(spent) else None
