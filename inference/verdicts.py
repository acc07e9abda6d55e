"""Verdicts: better, worse, equal or inconclusive, determined by one simultaneous interval per arm.

The intervals of a family of arms all cover their true differences with probability 1 - alpha, so
the probability of any false verdict is at most alpha. See docs/calibration.md for simulations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from inference.differences import Difference
from inference.grids import full_grid, independent
from inference.planning import Plan
from inference.rules import DeclaredSeeds, Rule
from inference.samples import Sample, shared_seeds

MARGIN = 0.01
"""Differences up to this many nats per token (1 % of perplexity) count as equal."""

SCREENING = 3
"""With this many seeds or fewer, only large effects can be detected: a screening."""

BETTER, WORSE, EQUAL, INCONCLUSIVE = "better", "worse", "equal", "inconclusive"


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of the runs of an arm.

    Attributes:
        losses: The final loss of each finished run, by seed; lower is better.
        failures: Number of failed runs; see `failures`.
        allowance: How much lower the losses could be at the arm's best learning rate; see `tuning`.
            0 without tuning.
    """

    losses: Sample
    failures: int = 0
    allowance: float = 0.0

    @property
    def runs(self) -> int:
        return len(self.losses) + self.failures


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on an arm compared to the baseline.

    Attributes:
        word: better, worse, equal or inconclusive.
        difference: The estimated difference; None if there is none.
        interval: Simultaneous interval of the true difference.
        p_adjusted: The p value of no difference, adjusted for the family; below ALPHA exactly if
            the interval excludes 0.
        margin: Differences up to this count as equal.
        rule: The rule for the interval.
        allowance: The larger of the tuning allowances of arm and baseline.
        reason: Why the verdict is inconclusive, if not because of the interval's width.
    """

    word: str
    difference: Difference | None = None
    interval: tuple[float, float] | None = None
    p_adjusted: float | None = None
    margin: float = MARGIN
    rule: Rule = DeclaredSeeds(1)
    allowance: float = 0.0
    reason: str = ""

    @property
    def seeds_needed(self) -> int | None:
        """Seeds needed to detect a true difference of the margin, see `planning`; None if there is
        no estimate, or too many would be needed."""
        return self._plan and self._plan.seeds_needed(self.margin)

    @property
    def detectable(self) -> float | None:
        """The smallest true difference that the current seeds can detect; see `planning`."""
        return self._plan and self._plan.detectable()

    @property
    def _plan(self) -> Plan | None:
        return self.difference and Plan.after(self.difference, self.rule, self.allowance)

    def read(self, interval: tuple[float, float]) -> str:
        """The verdict word for an interval."""
        return _word(*interval, self.margin)

    @property
    def farthest(self) -> float | None:
        """The largest absolute difference that the runs do not rule out."""
        return None if self.interval is None else max(map(abs, self.interval))

    @property
    def negligible(self) -> bool:
        """Whether the arm is better or worse, but by less than the margin."""
        return self.word in (BETTER, WORSE) and self.farthest <= self.margin

    @property
    def screening(self) -> bool:
        """Whether there are too few seeds to detect any but large effects."""
        return self.difference is not None and self.difference.n <= SCREENING


def judge(
    baseline: Results,
    arms: Sequence[Results],
    rule: Rule | None = None,
    margin: float = MARGIN,
) -> list[Verdict]:
    """Give the verdict on each arm.

    Args:
        baseline: The results of the baseline.
        arms: The results of the arms to be judged.
        rule: The rule for intervals. Defaults to a declared number of seeds and the family of these
            arms.
        margin: Differences up to this count as equal.
    """
    rule = rule or DeclaredSeeds(len(arms))
    assert len(arms) <= rule.family, "the family must include all declared arms"
    estimates = rule.estimates(baseline.losses, [arm.losses for arm in arms])
    return [
        unjudged(_why_no_estimate(baseline, arm, rule), margin)
        if estimate is None
        else _verdict(estimate, rule, baseline, arm, margin)
        for arm, estimate in zip(arms, estimates, strict=True)
    ]


def unjudged(reason: str, margin: float = MARGIN) -> Verdict:
    """The verdict on an arm that cannot or must not be judged."""
    return Verdict(INCONCLUSIVE, margin=margin, reason=reason)


def _verdict(
    estimate: Difference, rule: Rule, baseline: Results, arm: Results, margin: float
) -> Verdict:
    half = rule.half_width(estimate)
    low = estimate.value - half - arm.allowance
    high = estimate.value + half + baseline.allowance
    towards_zero = baseline.allowance if estimate.value < 0 else arm.allowance
    word = _word(low, high, margin)
    barred = _bar(word, baseline, arm)
    return Verdict(
        INCONCLUSIVE if barred else word,
        estimate,
        (low, high),
        rule.p_adjusted(estimate, towards_zero),
        margin,
        rule,
        max(baseline.allowance, arm.allowance),
        barred,
    )


def _word(low: float, high: float, margin: float) -> str:
    if high < 0:
        return BETTER
    if low > 0:
        return WORSE
    return EQUAL if -margin <= low and high <= margin else INCONCLUSIVE


def _bar(word: str, baseline: Results, arm: Results) -> str:
    """Why failed runs prevent a verdict on the finished ones; empty if they do not.

    An arm must not win by losing its worst runs. It can only be better if it failed no more often
    than the baseline, worse if it failed no less often, and equal if neither failed.
    """
    allowed = {
        BETTER: arm.failures <= baseline.failures,
        WORSE: arm.failures >= baseline.failures,
        EQUAL: arm.failures == baseline.failures == 0,
    }
    if allowed.get(word, True):
        return ""
    failed = "; ".join(
        f"{results.failures} of {results.runs} runs of the {whose} failed"
        for results, whose in ((arm, "arm"), (baseline, "baseline"))
        if results.failures
    )
    return f"{word} among finished runs, but {failed}"


def _why_no_estimate(baseline: Results, arm: Results, rule: Rule) -> str:
    for results, whose in ((arm, "the arm"), (baseline, "the baseline")):
        if len(results.losses) < 2:
            runs = "finished run" if len(results.losses) == 1 else "finished runs"
            failed = f" ({results.failures} failed)" if results.failures else ""
            return f"{whose} has {len(results.losses)} {runs}{failed}; at least 2 are needed"
    shared = shared_seeds(baseline.losses, arm.losses)
    samples = [shared] if len(shared) > 1 else [baseline.losses, arm.losses]
    if not all(independent(seeds) or full_grid(seeds) for seeds in samples):
        return (
            "runs share seeds or data orders without forming a full grid, so they are not "
            "independent; give each --seed its own --data_seed"
        )
    if len(shared) < 2 and rule.needs_pairs:
        return "fewer than 2 shared seeds, which intervals after adding seeds require"
    if len(shared) > 1 and all(arm.losses[seed] == baseline.losses[seed] for seed in shared):
        return "every seed has the loss of the baseline, as the same model would"
    return "all seeds give the same difference, so its variance is unknown"
