"""Whether a difference depends on which text was read: seeds crossed with blocks of the text.

A verdict is about one validation text. The losses of the final weights on blocks of that text tell
how much the difference varies from block to block, and so how well it is known for new text of the
same kind.
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
"""About 84 KB of text. The variance of fewer has less than three degrees of freedom and is often so
low by chance that text would seem to change nothing."""

SAME_LOSS = 1e-3
"""Share by which the mean over blocks may differ from the logged loss: blocks differ in length."""


@dataclasses.dataclass(frozen=True)
class NewText:
    """The difference on new text of the same kind; exploratory.

    Attributes:
        interval: Simultaneous interval for new seeds and new text.
        holds: Whether the verdict can be read off this interval, too.
        blocks: Blocks of text that it rests on.
        df: Degrees of freedom of the variance of text. They are far fewer than blocks, because
            neighbouring blocks are alike.
    """

    interval: tuple[float, float]
    holds: bool
    blocks: int
    df: int


def on_new_text(
    group: Group, baseline: Group, verdict: Verdict, seeds: Collection[Any]
) -> NewText | None:
    """What the blocks of the validation text say of a verdict.

    Args:
        group: The arm.
        baseline: What it was compared with.
        verdict: On the final losses.
        seeds: The seeds that it rests on.

    Returns:
        None without a verdict on paired, independent seeds, if a run has no losses of blocks, or if
        `with_text` has nothing to say.
    """
    if verdict.word not in (BETTER, WORSE, EQUAL):
        return None
    if verdict.difference.test not in (PAIRED, MODERATED):
        return None
    values = _differences(group, baseline, seeds)
    return None if values is None else with_text(verdict, values)


def with_text(verdict: Verdict, values: np.ndarray) -> NewText | None:
    """What a verdict comes to if text is a source of chance like seeds.

    Blocks of one text are not independent: neighbours of 4 KB were seen to correlate by 0.1 to 0.4
    in their differences. The variance of text allows for that, see `inference.crossed`.

    The half-width is the root of the sum of the squares of two: the verdict's, and that of text by
    itself at the same level. If each source of chance is normal, the interval covers the difference
    at least as often as promised at any level (Banerjee 1961, "On confidence interval for two-means
    problem based on separate estimates of variances and tabulated values of t-table"). One t
    interval with Satterthwaite's degrees of freedom does not at the levels of large families: where
    the variance of text, which has few, comes out low by chance, its weight and so the estimate of
    the degrees of freedom go wrong with it.

    Args:
        verdict: On the means over blocks.
        values: Arm minus baseline in nats per token, shape (seeds, blocks), in the order of the
            text.

    Returns:
        None if text changes nothing, as its variance is below a tenth of that of seeds; or if it is
        too short to tell, see `FEWEST_BLOCKS`.
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
    """Arm minus baseline, (seeds, blocks); None if a run has no losses of the same blocks."""
    arm, base = ({run.seeds: run for run in own.counted} for own in (group, baseline))
    shared = [own for own in arm if own in base and own in seeds]
    losses = [[_of_final_weights(own[seed]) for seed in shared] for own in (arm, base)]
    shapes = {None if row is None else row.shape for own in losses for row in own}
    if len(shared) < 2 or len(shapes) > 1 or None in shapes:
        return None
    return np.array(losses[0]) - np.array(losses[1])


def _of_final_weights(run: LoggedRun) -> np.ndarray | None:
    """The losses of blocks, unless they are those of other weights than the logged loss."""
    losses = run.text_losses
    if losses is None or abs(losses.mean() - run.loss) > SAME_LOSS * run.loss:
        return None
    return losses
