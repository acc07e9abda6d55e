"""The answer in words, which the page begins with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from comparison.figures import ArmFigure, Figures
from comparison.formatting import format_loss
from comparison.labels import Label
from comparison.report.document_numbers import DocumentNumbers, ShownNumber
from comparison.verdict_lines import after_word, effect
from inference.verdicts import BETTER, EQUAL, INCONCLUSIVE, WORSE

_MOST_LISTED = 6  # arms of one verdict; the table has the others
_PHRASES = {
    BETTER: ("is better", "are better"),
    WORSE: ("is worse", "are worse"),
    EQUAL: ("is equal", "are equal"),
    INCONCLUSIVE: ("is inconclusive", "are inconclusive"),
}


@dataclasses.dataclass(frozen=True)
class JudgedArms:
    """The arms of one verdict.

    Attributes:
        listed: The label of each, and what its verdict says besides the word.
        more: How many there are beyond those.
    """

    verdict: str
    listed: Sequence[tuple[Label, str]]
    more: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """Which arms are better, worse or equal, and which are inconclusive.

    Attributes:
        headline: The verdict on the arm that gains most, or else loses most; empty if none does.
        count: How many arms there are of each verdict.
        n: Seeds of the baseline.
        loss: Of the baseline, at its end.
    """

    headline: str
    count: str
    baseline: Label
    n: int
    seeds: ShownNumber | None
    loss: ShownNumber | None
    noise_floor: ShownNumber | None
    margin: ShownNumber | None
    verdicts: Sequence[JudgedArms]


def answer(numbers: DocumentNumbers, figures: Figures) -> Answer:
    baseline, *arms = figures.compared
    by_verdict = {
        verdict: [arm for arm in arms if arm.verdict.word == verdict] for verdict in _PHRASES
    }
    by_verdict = {verdict: found for verdict, found in by_verdict.items() if found}
    counts = {verdict: len(found) for verdict, found in by_verdict.items()}
    return Answer(
        headline=_clearest(arms),
        count=_headline(counts, len(figures.arms) - len(figures.compared)),
        baseline=baseline.label,
        n=baseline.seeds,
        seeds=numbers.show(str, "groups", 0, "n"),
        loss=numbers.show(format_loss, "groups", 0, "loss"),
        noise_floor=numbers.show(format_loss, "noise_floor"),
        margin=numbers.show(format_loss, "margin"),
        verdicts=[_judged(verdict, found) for verdict, found in by_verdict.items()],
    )


def _clearest(arms: Sequence[ArmFigure]) -> str:
    """`position_encoding=rope: -0.0504 [-0.0683, -0.0325] nats at equal parameters and tokens,
    n=10`"""
    judged = [arm for arm in arms if arm.verdict.word in (BETTER, WORSE)]
    if not judged:
        return ""
    arm = min(judged, key=lambda own: (own.verdict.word == WORSE, -abs(own.difference.value)))
    return f"{arm.label.name}: {effect(arm.verdict, arm.terms)}"


def _headline(counts: dict[str, int], apart: int) -> str:
    """The number of arms of each verdict, and of those set apart, in words."""
    other = f" {apart} arm{'s' * (apart != 1)} set apart: not comparable." if apart else ""
    total = sum(counts.values())
    if not total:
        nothing = "No arm is comparable with it" if apart else "There is one arm only"
        return f"{nothing}, so there is nothing to compare.{other}"
    if total == 1:
        (verdict,) = counts
        return f"The one arm beside the baseline {_PHRASES[verdict][0]}.{other}"
    phrases = [f"{count} {_PHRASES[verdict][count > 1]}" for verdict, count in counts.items()]
    return f"Of {total} arms beside the baseline, {_and(phrases)}.{other}"


def _and(phrases: Sequence[str]) -> str:
    *first, last = phrases
    return f"{', '.join(first)} and {last}" if first else last


def _judged(verdict: str, arms: Sequence[ArmFigure]) -> JudgedArms:
    listed = [
        (arm.label, after_word(arm.verdict, arm.terms, arm.new_text).lstrip(": "))
        for arm in arms[:_MOST_LISTED]
    ]
    return JudgedArms(verdict, listed, len(arms) - len(listed))
