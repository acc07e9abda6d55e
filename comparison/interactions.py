"""Whether changes do the same on several baselines: the effect on each, and the interaction."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from comparison.findings import Findings, GroupResult
from comparison.formatting import format_difference, format_interval, format_p
from comparison.tables import TitledTable
from inference.differences import contrast
from inference.estimates import Estimate
from inference.rules import DeclaredSeeds
from inference.verdicts import Verdict
from training_logger import json_safe


@dataclasses.dataclass(frozen=True)
class Interaction:
    """By how much a change does more on one baseline than on the first.

    Attributes:
        change: What the sweeps call the arm.
        baseline: The label of the other baseline.
        estimate: The difference of the differences, nats per token; None without two shared seeds,
            or if it is the same for all of them.
        interval: Simultaneous with those of all interactions.
        p_adjusted: Adjusted for their number.
    """

    change: str
    baseline: str
    estimate: Estimate | None
    interval: tuple[float, float] | None
    p_adjusted: float | None

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


@dataclasses.dataclass(frozen=True)
class OnBaselines:
    """What changes do on each of several baselines.

    Attributes:
        baselines: Their labels.
        verdicts: By label of the baseline and change.
        interactions: Of each change that all baselines have tried, and each baseline but the first.
    """

    baselines: tuple[str, ...]
    verdicts: Mapping[str, Mapping[str, Verdict]]
    interactions: tuple[Interaction, ...]


def on_baselines(findings: Mapping[str, Findings]) -> OnBaselines:
    """What the sweeps of the baselines, by label, show of the changes that all of them tried."""
    rows = {label: _rows(own) for label, own in findings.items()}
    first, *others = findings
    changes = [name for name in rows[first] if all(name in own for own in rows.values())]
    rule = DeclaredSeeds(max(len(changes) * len(others), 1))
    interactions = [
        _interaction(name, label, _contrast(name, findings, rows, first, label), rule)
        for name in changes
        for label in others
    ]
    verdicts = {
        label: {name: row.verdict for name, row in own.items()} for label, own in rows.items()
    }
    return OnBaselines(tuple(findings), verdicts, tuple(interactions))


def _rows(findings: Findings) -> dict[str, GroupResult]:
    return {row.group.arm_or_name: row for row in findings.rows[1:]}


def _contrast(
    name: str,
    findings: Mapping[str, Findings],
    rows: Mapping[str, Mapping[str, GroupResult]],
    first: str,
    other: str,
) -> Estimate | None:
    """The effect on the other baseline minus that on the first; None where one is not judged."""
    if any(rows[label][name].verdict.difference is None for label in (first, other)):
        return None
    groups = [
        group
        for label in (other, first)
        for group in (rows[label][name].group, findings[label].baseline.group)
    ]
    return contrast((1, -1, -1, 1), [group.losses for group in groups])


def _interaction(
    change: str, baseline: str, estimate: Estimate | None, rule: DeclaredSeeds
) -> Interaction:
    if estimate is None:
        return Interaction(change, baseline, None, None, None)
    half = rule.half_width(estimate)
    interval = estimate.value - half, estimate.value + half
    return Interaction(change, baseline, estimate, interval, rule.p_adjusted(estimate))


# As tables, and as JSON


def interaction_sections(found: OnBaselines) -> Iterator[TitledTable]:
    """What there is to say, in order."""
    for label, verdicts in found.verdicts.items():
        rows = [
            (change, *_estimated(own.difference, own.interval), own.word)
            for change, own in verdicts.items()
        ]
        yield TitledTable(
            f"Changes on {label}", ("change", "difference", "95 % interval", "verdict"), rows
        )
    first = found.baselines[0]
    for label in found.baselines[1:]:
        own = [each for each in found.interactions if each.baseline == label]
        yield TitledTable(
            f"Interactions: the effect on {label} minus that on {first} (exploratory)",
            ("change", "difference", "95 % interval", "p"),
            [
                (each.change, *_estimated(each.estimate, each.interval), format_p(each.p_adjusted))
                for each in own
            ],
            _sentences(own, label, first),
        )


def _sentences(interactions: Sequence[Interaction], label: str, first: str) -> list[str]:
    if not interactions:
        return ["No change was tried on all baselines: a sweep skips its baseline's own values."]
    shown = [own for own in interactions if own.shown]
    words = [
        f"{own.change} gains {'less' if own.estimate.value > 0 else 'more'} on {label} than on "
        f"{first}."
        for own in shown
    ]
    return words or [f"No change is shown to have a different effect on {label} and {first}."]


def _estimated(estimate: Estimate | None, interval: tuple[float, float] | None) -> tuple[str, str]:
    return format_difference(estimate and estimate.value), format_interval(interval)


def interaction_document(found: OnBaselines) -> dict[str, Any]:
    """The same as an object for JSON; nats per token."""
    return json_safe(
        {
            "document_version": 1,
            "baselines": found.baselines,
            "effects": [
                {
                    "change": change,
                    "baseline": label,
                    "verdict": verdict.word,
                    "difference": verdict.difference and verdict.difference.value,
                    "interval": verdict.interval,
                }
                for label, own in found.verdicts.items()
                for change, verdict in own.items()
            ],
            "interactions": [
                {
                    "change": own.change,
                    "baseline": own.baseline,
                    "difference": own.estimate and own.estimate.value,
                    "interval": own.interval,
                    "p_adjusted": own.p_adjusted,
                    "n": own.estimate and own.estimate.n,
                }
                for own in found.interactions
            ],
        }
    )
