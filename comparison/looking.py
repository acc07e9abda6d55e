"""Scheduled looks at a sweep with --until_sure, recomputed from its runs.

The result of each look depends only on the runs, so a sweep need not store it between sessions, and
a comparison shows the same verdicts by which the sweep stopped its arms.
"""

from __future__ import annotations

from collections.abc import Sequence

from comparison.design import Design
from comparison.groups import Group
from inference.looks import Standing, take_looks
from inference.verdicts import Results


def standings_of(base: Group, arms: Sequence[Group], design: Design) -> list[Standing]:
    """The standing of each arm; see `inference.looks.take_looks`."""

    def results(arm: int | None, count: int) -> Results | None:
        group = base if arm is None else arms[arm]
        seeds = design.seed_order[:count]
        failed = group.failed_seeds
        if any(own not in group.losses and own not in failed for own in seeds):
            return None
        return Results(
            {own: group.losses[own] for own in seeds if own in group.losses},
            sum(own in failed for own in seeds),
            design.allowance(group),
        )

    return take_looks(results, len(arms), design.schedule, design.family(len(arms)), design.margin)
