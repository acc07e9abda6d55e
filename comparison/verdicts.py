"""From the results of arms to verdicts: better, worse, equal, or what it would take to tell.

Lower is better: a result is a loss in nats per token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from comparison.inference import ALPHA, Estimate, Sample, contrast, deviation, holm

BASELINE, BETTER, WORSE = "baseline", "better", "worse"
EQUAL, CANNOT_TELL = "equal", "cannot_tell"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What can be said of an arm beside the baseline.

    Attributes:
        verdict: baseline, better, worse, equal or cannot_tell.
        estimate: Its difference from the baseline; None where that cannot be judged.
        p_adjusted: The p value after Holm's correction over the arms.
        margin: Differences up to this count as equal; None where no margin is known.
        level: ALPHA over the number of arms, at which plans and claims of equality are made.
        why_not: Why it cannot be judged, where that is so.
    """

    verdict: str
    estimate: Estimate | None = None
    p_adjusted: float | None = None
    margin: float | None = None
    level: float = ALPHA
    why_not: str = ""

    @property
    def seeds_needed(self) -> int | None:
        """Seeds per arm with which a true difference of `margin` is likely to show."""
        if self.estimate is None or not self.margin:
            return None
        return self.estimate.seeds_needed(self.margin, self.level)

    @property
    def detectable(self) -> float | None:
        """The true difference that is likely to show with the seeds that there are."""
        return None if self.estimate is None else self.estimate.detectable(self.level)

    @property
    def words(self) -> str:
        """The verdict as a sentence, without a full stop."""
        if self.verdict == CANNOT_TELL:
            return f"cannot tell: {self.why_not or self._what_it_takes()}"
        if self.verdict == EQUAL:
            return f"equal within {self.margin:.4f}"
        if self.estimate is None:
            return self.verdict
        size = abs(self.estimate.value)
        low, high = sorted(abs(bound) for bound in self.estimate.interval())
        small = self.margin is not None and size < self.margin
        note = f", though less than {self.margin:.4f}" if small else ""
        return f"{self.verdict} by {size:.4f} ({low:.4f} to {high:.4f}){note}"

    def _what_it_takes(self) -> str:
        seeds, needed = self.estimate.seeds, self.seeds_needed
        if needed is None:
            return f"{seeds} seeds show differences from {self.detectable:.4f}"
        if needed > seeds:
            return f"needs about {needed} seeds to see {self.margin:.4f}"
        return f"{seeds} seeds would likely show {self.margin:.4f}, and show none"


def judge(baseline: Sample, arms: Sequence[Sample], margin: float | None = None) -> list[Verdict]:
    """The verdict on each arm.

    "Better" and "worse" rest on p values with Holm's correction over the arms. "Equal" is said
    where the interval, widened to hold for all arms together (Bonferroni), lies within the margin:
    then it is wrong no more often than the interval misses the truth, however the margin was
    chosen. That is stricter than two one-sided tests (Schuirmann 1987).

    Args:
        baseline: Its loss for each of its seeds.
        arms: The same of each arm.
        margin: Differences up to this count as equal, nats per token; None: the noise floor, which
            is the baseline's standard deviation from seed to seed.
    """
    if margin is None:
        margin = deviation(list(baseline.values()))
    estimates = [contrast((-1, 1), (baseline, arm)) for arm in arms]
    adjusted = iter(holm([e.p_value for e in estimates if e is not None]))
    level = ALPHA / max(1, sum(e is not None for e in estimates))
    return [
        Verdict(CANNOT_TELL, margin=margin, why_not=_why_not(baseline, arm))
        if estimate is None
        else _verdict(estimate, next(adjusted), margin, level)
        for arm, estimate in zip(arms, estimates, strict=True)
    ]


def _verdict(estimate: Estimate, p_adjusted: float, margin: float, level: float) -> Verdict:
    low, high = estimate.interval(level)
    if p_adjusted < ALPHA:
        verdict = BETTER if estimate.value < 0 else WORSE
    elif -margin <= low and high <= margin:
        verdict = EQUAL
    else:
        verdict = CANNOT_TELL
    return Verdict(verdict, estimate, p_adjusted, margin, level)


def _why_not(baseline: Sample, arm: Sample) -> str:
    for sample, whose in ((arm, ""), (baseline, " of the baseline")):
        if len(sample) < 2:
            return f"n={len(sample)}{whose}"
    return "seeds changed nothing, so that chance is not known"
