"""The validation curve of a group with its range over seeds, as the plot and the page draw it."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from statistics import fmean

from comparison.curves import curve, loss_at
from comparison.groups import Group


@dataclasses.dataclass(frozen=True)
class Band:
    """Losses of a group over a unit of budget, in nats per token; all lists have the same length.

    Attributes:
        budgets: The budgets, in increasing order.
        mean: The mean loss over the included seeds at each budget.
        low: The lowest loss of a seed at each budget.
        high: The highest loss of a seed at each budget.
    """

    budgets: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]

    @property
    def trained(self) -> Band | None:
        """The band after step 0; None if it has no other point."""
        start = bisect_right(self.budgets, 0)
        return self._at(range(start, len(self.budgets))) if self.budgets[start:] else None

    def since(self, least: float) -> Band:
        """The band from this budget upward."""
        return self._at(range(bisect_left(self.budgets, least), len(self.budgets)))

    def thinned(self, most: int) -> Band:
        """The band with at most this many evenly spaced points, including the first and last."""
        count = len(self.budgets)
        if count <= most:
            return self
        return self._at([round(i * (count - 1) / (most - 1)) for i in range(most)])

    def _at(self, indices: Sequence[int]) -> Band:
        columns = (self.budgets, self.mean, self.low, self.high)
        return Band(*([column[i] for i in indices] for column in columns))


def band(group: Group, axis: str) -> Band | None:
    """The band of a group, at every budget at which one of its runs was evaluated and that all of
    them reached; None if there is no such budget.

    Args:
        group: The group; only its included runs are used.
        axis: A unit of budget, a key of `curves.AXES`.
    """
    curves = [curve(run, axis) for run in group.counted]
    if not curves or not all(curves):
        return None
    first = max(points[0][0] for points in curves)
    last = min(points[-1][0] for points in curves)
    budgets = sorted({spent for points in curves for spent, _ in points if first <= spent <= last})
    if not budgets:
        return None
    losses = [[float(loss_at(points, budget)) for points in curves] for budget in budgets]
    return Band(
        [float(budget) for budget in budgets],  # NumPy has no larger ints than 2**63
        mean=[fmean(row) for row in losses],
        low=[min(row) for row in losses],
        high=[max(row) for row in losses],
    )
