"""Whether changes do the same on several baselines: the effect on each, and the interaction."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from comparison.findings import Findings, GroupResult
from comparison.formatting import format_difference, format_interval, format_p
from comparison.tables import TitledTable
from inference.contrasts import Contrast, Term, judge_contrast
from inference.rules import DeclaredSeeds, Rule
from inference.verdicts import Verdict
from training_logger import json_safe


@dataclasses.dataclass(frozen=True)
class Interaction:
    """By how much a change does more on one baseline than on the first.

    Attributes:
        change: What the sweeps call the arm.
        baseline: The label of the other baseline.
        contrast: The difference of the differences, nats per token; its interval holds together
            with those of all interactions. None if one of the two is not judged, without two shared
            seeds, or if it is the same for all of them.
    """

    change: str
    baseline: str
    contrast: Contrast | None


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
        Interaction(name, label, _contrast(name, findings[first], findings[label], rule))
        for name in changes
        for label in others
    ]
    verdicts = {
        label: {name: row.verdict for name, row in own.items()} for label, own in rows.items()
    }
    return OnBaselines(tuple(findings), verdicts, tuple(interactions))


def _rows(findings: Findings) -> dict[str, GroupResult]:
    return {row.group.arm_or_name: row for row in findings.rows[1:]}


def _contrast(name: str, first: Findings, other: Findings, rule: Rule) -> Contrast | None:
    """The effect of an arm in the other sweep minus that in the first."""
    terms = []
    for sign, own in ((-1, first), (1, other)):
        row = _rows(own)[name]
        if row.verdict.difference is None:
            return None
        for weight, group in ((sign, row.group), (-sign, own.baseline.group)):
            terms.append(Term(weight, group.losses, own.design.allowance(group)))
    return judge_contrast(terms, rule)


# As tables, and as JSON


def interaction_sections(found: OnBaselines) -> Iterator[TitledTable]:
    """What there is to say, in order."""
    for label, verdicts in found.verdicts.items():
        rows = [
            (
                change,
                format_difference(own.difference and own.difference.value),
                format_interval(own.interval),
                own.word,
            )
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
            [(each.change, *_cells(each.contrast)) for each in own],
            _sentences(own, label, first),
        )


def _sentences(interactions: Sequence[Interaction], label: str, first: str) -> list[str]:
    if not interactions:
        return ["No change was tried on all baselines: a sweep skips its baseline's own values."]
    words = [
        f"{own.change} gains {'less' if own.contrast.estimate.value > 0 else 'more'} on {label} "
        f"than on {first}."
        for own in interactions
        if own.contrast and own.contrast.shown
    ]
    return words or [f"No change is shown to have a different effect on {label} and {first}."]


def _cells(contrast: Contrast | None) -> tuple[str, str, str]:
    if contrast is None:
        return format_difference(None), format_interval(None), format_p(None)
    difference = format_difference(contrast.estimate.value)
    return difference, format_interval(contrast.interval), format_p(contrast.p_adjusted)


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
                    "difference": own.contrast and own.contrast.estimate.value,
                    "interval": own.contrast and own.contrast.interval,
                    "p_adjusted": own.contrast and own.contrast.p_adjusted,
                    "n": own.contrast and own.contrast.estimate.n,
                }
                for own in found.interactions
            ],
        }
    )
