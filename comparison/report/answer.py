"""The answer in words, at the top of the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from comparison.figures import ArmFigure, Figures
from comparison.formatting import format_loss
from comparison.judging import BASELINE
from comparison.labels import Label
from comparison.report.document_numbers import DocumentNumbers, ShownNumber
from inference.verdicts import BETTER, EQUAL, INCONCLUSIVE, WORSE

_PHRASES = {
    BETTER: ("is better", "are better"),
    WORSE: ("is worse", "are worse"),
    EQUAL: ("is equal", "are equal"),
    INCONCLUSIVE: ("is inconclusive", "are inconclusive"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """Which arms are better, worse or equal, and which are inconclusive.

    Attributes:
        headline: The verdict on the best arm, or if none is better, on the worst; empty if no arm
            is better or worse.
        count: The number of arms with each verdict, in words.
        n: Number of seeds of the baseline.
        loss: Final loss of the baseline.
    """

    headline: str
    count: str
    baseline: Label
    n: int
    seeds: ShownNumber | None
    loss: ShownNumber | None
    noise_floor: ShownNumber | None
    margin: ShownNumber | None


def answer(numbers: DocumentNumbers, figures: Figures) -> Answer:
    baseline, *arms = figures.compared
    words = [arm.verdict.word for arm in arms]
    counts = {verdict: words.count(verdict) for verdict in _PHRASES if verdict in words}
    return Answer(
        headline=_clearest(arms, baseline),
        count=_count(counts, len(figures.arms) - len(figures.compared)),
        baseline=baseline.label,
        n=baseline.seeds,
        seeds=numbers.show(str, "groups", 0, "n"),
        loss=numbers.show(format_loss, "groups", 0, "loss"),
        noise_floor=numbers.show(format_loss, "noise_floor"),
        margin=numbers.show(format_loss, "margin"),
    )


def _clearest(arms: Sequence[ArmFigure], baseline: ArmFigure) -> str:
    """`position_encoding=rope is better than the baseline by 0.0504 nats per token (95 % interval:
    0.0325 to 0.0683) at equal parameters and tokens, n=10.`"""
    judged = [arm for arm in arms if arm.verdict.word in (BETTER, WORSE)]
    if not judged:
        return ""
    arm = min(judged, key=lambda own: (own.verdict.word == WORSE, -abs(own.difference.value)))
    found = arm.difference
    low, high = sorted((found.low, found.high), key=abs)
    called = baseline.label.name
    than = f"the {called}" if called == BASELINE else f"the baseline, {called},"
    at = f" {arm.terms}" if arm.terms else ""
    return (
        f"{arm.label.name} is {arm.verdict.word} than {than} by {abs(found.value):.4f} nats per "
        f"token (95\N{NO-BREAK SPACE}% interval: {abs(low):.4f} to {abs(high):.4f}){at}, "
        f"n={arm.verdict.difference.n}."
    )


def _count(counts: dict[str, int], apart: int) -> str:
    """The number of arms with each verdict, and of those that are not comparable, in words."""
    other = f" {apart} arm{'s' * (apart != 1)} cannot be compared with it." if apart else ""
    total = sum(counts.values())
    if not total:
        nothing = "No arm is comparable with the baseline" if apart else "There is only one arm"
        return f"{nothing}, so there is nothing to compare.{other}"
    if total == 1:
        (verdict,) = counts
        return f"The only arm besides the baseline {_PHRASES[verdict][0]}.{other}"
    if len(counts) == 1:
        (verdict,) = counts
        return f"All {total} arms besides the baseline {_PHRASES[verdict][1]}.{other}"
    phrases = [f"{count} {_PHRASES[verdict][count > 1]}" for verdict, count in counts.items()]
    return f"Of {total} arms besides the baseline, {_and(phrases)}.{other}"


def _and(phrases: Sequence[str]) -> str:
    *first, last = phrases
    return f"{', '.join(first)} and {last}" if first else last
