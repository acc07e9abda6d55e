"""Whether a verdict generalizes to new text: seeds crossed with blocks of the validation text.

A verdict is about one validation text. The losses of the final weights on blocks of that text show
how much the difference varies between blocks, and thus how precisely it is known for new text of
the same kind.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import numpy as np

from comparison.groups import Group
from comparison.runs import LoggedRun
from inference.crossed import crossed
from inference.estimates import MODERATED, PAIRED
from inference.verdicts import BETTER, EQUAL, WORSE, Verdict

FEWEST_BLOCKS = 21
"""Minimum number of blocks, about 84 KB of text. With fewer, the variance of text has less than
three degrees of freedom and is often so low by chance that it would seem negligible."""

SAME_LOSS = 1e-3
"""Maximum relative difference between the mean over blocks and the logged loss; blocks differ in
length."""


@dataclasses.dataclass(frozen=True)
class NewText:
    """The difference on new text of the same kind; exploratory.

    Attributes:
        interval: Simultaneous interval for new seeds and new text.
        holds: Whether this interval gives the same verdict.
        blocks: Number of blocks of text used.
        df: Degrees of freedom of the variance of text, far fewer than blocks because neighboring
            blocks are correlated.
    """

    interval: tuple[float, float]
    holds: bool
    blocks: int
    df: int


def on_new_text(
    group: Group, baseline: Group, verdict: Verdict, seeds: Collection[Any]
) -> NewText | None:
    """Extend a verdict to new text, using the blocks of the validation text.

    Args:
        group: The arm.
        baseline: The baseline that it was compared with.
        verdict: The verdict on the final losses.
        seeds: The seeds used for the verdict.

    Returns:
        None without a verdict on paired, independent seeds, if a run has no block losses, or if
        `with_text` returns None.
    """
    if verdict.word not in (BETTER, WORSE, EQUAL):
        return None
    if verdict.difference.test not in (PAIRED, MODERATED):
        return None
    values = _differences(group, baseline, seeds)
    return None if values is None else with_text(verdict, values)


def with_text(verdict: Verdict, values: np.ndarray) -> NewText | None:
    """Extend a verdict to new text by treating text as a random factor like seeds.

    Blocks of one text are not independent: in our runs, the differences of neighboring 4 KB blocks
    had correlations of 0.1 to 0.4. The variance of text accounts for that; see `inference.crossed`.

    The half-width is the square root of the sum of two squared half-widths: that of the verdict,
    and that of text alone at the same level. If both random factors are normal, the coverage of the
    interval is at least nominal at any level (Banerjee 1961, "On confidence interval for two-means
    problem based on separate estimates of variances and tabulated values of t-table"). A single t
    interval with Satterthwaite's degrees of freedom undercovers at the levels of large families: if
    the variance of text, which has few degrees of freedom, is low by chance, so is its weight in
    the estimate of the degrees of freedom.

    Args:
        verdict: The verdict on the means over blocks.
        values: Arm minus baseline in nats per token, shape (seeds, blocks), in the order of the
            text.

    Returns:
        None if the variance of text is negligible (below a tenth of that of seeds), or if the text
        is too short to estimate it; see `FEWEST_BLOCKS`.
    """
    if values.shape[1] < FEWEST_BLOCKS:
        return None
    found = crossed(values, verdict.difference, in_order=True)
    if found is None or not found.columns_matter:
        return None
    of_seeds = verdict.rule.half_width(found.rows)
    wider = math.hypot(of_seeds, found.columns.half_width(verdict.rule.level)) - of_seeds
    low, high = verdict.interval
    interval = low - wider, high + wider
    holds = verdict.read(interval) == verdict.word
    return NewText(interval, holds, values.shape[1], round(found.columns.df))


def _differences(group: Group, baseline: Group, seeds: Collection[Any]) -> np.ndarray | None:
    """Arm minus baseline, (seeds, blocks); None unless all runs have losses of the same blocks."""
    arm, base = ({run.seeds: run for run in own.counted} for own in (group, baseline))
    shared = [own for own in arm if own in base and own in seeds]
    losses = [[_of_final_weights(own[seed]) for seed in shared] for own in (arm, base)]
    shapes = {None if row is None else row.shape for own in losses for row in own}
    if len(shared) < 2 or len(shapes) > 1 or None in shapes:
        return None
    return np.array(losses[0]) - np.array(losses[1])


def _of_final_weights(run: LoggedRun) -> np.ndarray | None:
    """The block losses; None if the logged loss is from other weights."""
    losses = run.text_losses
    if losses is None or abs(losses.mean() - run.loss) > SAME_LOSS * run.loss:
        return None
    return losses
