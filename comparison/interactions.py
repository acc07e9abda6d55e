"""Whether changes have the same effect on several baselines: effects and interactions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from comparison.alike import other_code_or_machine, other_conditions
from comparison.findings import Findings, GroupResult
from comparison.formatting import format_difference, format_interval, format_loss, format_p
from comparison.tables import TitledTable, family_of, line_of
from comparison.verdict_lines import verdict_line
from inference.contrasts import Contrast, Term, judge_contrast
from inference.rules import ConfidenceSequence, DeclaredSeeds, Rule
from inference.verdicts import Verdict
from training_logger import format_count, json_safe


@dataclasses.dataclass(frozen=True)
class Interaction:
    """The effect of a change on one baseline minus its effect on the first.

    Attributes:
        change: The name of the arm in the sweeps.
        baseline: The label of the other baseline.
        contrast: The difference of the differences, in nats per token; its interval is simultaneous
            over all interactions. None if it cannot be estimated.
        reason: Why it cannot be estimated; empty if it can.
    """

    change: str
    baseline: str
    contrast: Contrast | None
    reason: str


@dataclasses.dataclass(frozen=True)
class OnBaselines:
    """The effects of changes on several baselines.

    Attributes:
        findings: By label of the baseline, the findings of its sweep.
        rows: By label of the baseline and change, the result of the change in its sweep.
        notes: By label, the notes on that sweep, one sentence each.
        interactions: The interaction of each change that was tried on all baselines, for each
            baseline except the first.
    """

    findings: Mapping[str, Findings]
    rows: Mapping[str, Mapping[str, GroupResult]]
    notes: Mapping[str, tuple[str, ...]]
    interactions: tuple[Interaction, ...]

    @property
    def baselines(self) -> tuple[str, ...]:
        """Their labels."""
        return tuple(self.findings)


def on_baselines(findings: Mapping[str, Findings]) -> OnBaselines:
    """Compare the sweeps of several baselines, given their findings by label."""
    rows = {label: _rows(own) for label, own in findings.items()}
    first, *others = findings
    changes = [name for name in rows[first] if all(name in own for own in rows.values())]
    family = max(len(changes) * len(others), 1)
    looked = any(own.design.undeclared_looks for own in findings.values())
    rule = ConfidenceSequence(family) if looked else DeclaredSeeds(family)

    def shown(label: str, change: str) -> tuple[Findings, GroupResult]:
        return findings[label], rows[label][change]

    interactions = [
        _interaction(change, label, (shown(first, change), shown(label, change)), rule)
        for change in changes
        for label in others
    ]
    notes = {label: own.notes_on_runs + own.further_notes for label, own in findings.items()}
    unlike = other_code_or_machine(list(findings.values()))
    if unlike:
        notes[first] += (f"The sweeps differ in {', '.join(unlike)}.",)
    return OnBaselines(findings, rows, notes, tuple(interactions))


def _rows(findings: Findings) -> dict[str, GroupResult]:
    return {row.group.arm_or_name: row for row in findings.rows[1:]}


def _interaction(
    name: str, label: str, two: Sequence[tuple[Findings, GroupResult]], rule: Rule
) -> Interaction:
    """The effect of an arm on the second of two baselines minus that on the first.

    Args:
        name: The name of the arm in the sweeps.
        label: The label of the second baseline.
        two: The findings of each sweep, with its row for the arm.
        rule: The rule for the interval.
    """
    unlike = other_conditions([own for own, _ in two])
    if unlike:
        return Interaction(name, label, None, f"the sweeps differ in {', '.join(unlike)}")
    terms = []
    for sign, (own, row) in zip((-1, 1), two, strict=True):
        base = own.baseline.group
        if row.verdict.difference is None:
            return Interaction(name, label, None, row.verdict.reason)
        if row.group.diverged or base.diverged:
            return Interaction(name, label, None, "runs failed on one of the baselines")
        for weight, group in ((sign, row.group), (-sign, base)):
            terms.append(Term(weight, group.losses, own.design.allowance(group)))
    contrast = judge_contrast(terms, rule)
    reason = "" if contrast else "fewer than 2 shared seeds, or they all give the same difference"
    return Interaction(name, label, contrast, reason)


# As tables, and as JSON


def interaction_sections(found: OnBaselines) -> Iterator[TitledTable]:
    """Yield the sections to show, in order."""
    bases = {label: own.baseline.group for label, own in found.findings.items()}
    yield TitledTable(
        "Baselines",
        ("", "params", "n", "val loss"),
        [
            (label, format_count(own.architecture["parameters"]), str(own.n), format_loss(own.loss))
            for label, own in bases.items()
        ],
        [f"{label}: {own.architecture['name']}" for label, own in bases.items()],
    )
    for label, rows in found.rows.items():
        family = family_of(found.findings[label])
        yield TitledTable(
            f"Changes on {label}",
            ("change", "difference", "95 % interval", "p", "verdict"),
            [_verdict_cells(change, row.verdict) for change, row in rows.items()],
            [
                *(f"{change}: {line_of(row)}" for change, row in rows.items()),
                f"Simultaneous 95 % intervals for {family}.",
                *found.notes[label],
            ],
        )
    first = found.baselines[0]
    for label in found.baselines[1:]:
        own = [each for each in found.interactions if each.baseline == label]
        yield TitledTable(
            f"Interactions: the effect on {label} minus that on {first} (exploratory)",
            ("change", "difference", "95 % interval", "p"),
            [(each.change, *_cells(each.contrast)) for each in own],
            [*sentences_on(found, label), *_level(found)],
        )


def _level(found: OnBaselines) -> Iterator[str]:
    known = [own.contrast for own in found.interactions if own.contrast]
    if known:
        seeds = ", ".join(map(str, sorted({own.estimate.n for own in known})))
        count = len(found.interactions)
        what = f"all {count} interactions" if count > 1 else "the one interaction"
        yield f"Simultaneous 95 % intervals for {what}, n={seeds}."


def sentences_on(found: OnBaselines, label: str) -> list[str]:
    """Sentences on the changes whose effect on a baseline differs from that on the first."""
    first = found.baselines[0]
    interactions = [own for own in found.interactions if own.baseline == label]
    apart = list(_not_on_all(found)) if label == found.baselines[-1] else []
    if not interactions:
        return ["No change was tested on all baselines.", *apart]
    words = []
    for own in interactions:
        if own.contrast is None:
            words.append(f"{own.change}: {own.reason}.")
        elif own.contrast.shown:
            lower = "lower (better)" if own.contrast.estimate.value < 0 else "higher (worse)"
            words.append(
                f"The effect of {own.change} on the loss is {lower} on {label} than on {first}."
            )
    nothing = f"No change has been shown to have different effects on {label} and {first}."
    return [*(words or [nothing]), *apart]


def _not_on_all(found: OnBaselines) -> Iterator[str]:
    """Yield sentences on changes that were not tested on all baselines."""
    changes = dict.fromkeys(change for own in found.rows.values() for change in own)
    for change in changes:
        tried = [label for label, own in found.rows.items() if change in own]
        if len(tried) < len(found.baselines):
            yield (
                f"{change} was tested on {' and '.join(tried)} only: a sweep skips values that its "
                "baseline already has."
            )


def _verdict_cells(change: str, verdict: Verdict) -> tuple[str, ...]:
    difference = verdict.difference and verdict.difference.value
    return (
        change,
        format_difference(difference),
        format_interval(verdict.interval),
        format_p(verdict.p_adjusted),
        verdict.word,
    )


def _cells(contrast: Contrast | None) -> tuple[str, str, str]:
    if contrast is None:
        return format_difference(None), format_interval(None), format_p(None)
    difference = format_difference(contrast.estimate.value)
    return difference, format_interval(contrast.interval), format_p(contrast.p_adjusted)


def interaction_document(found: OnBaselines) -> dict[str, Any]:
    """The results as a JSON object, in nats per token."""
    return json_safe(
        {
            "document_version": 1,
            "baselines": found.baselines,
            "notes": found.notes,
            "effects": [
                {
                    "change": change,
                    "baseline": label,
                    "verdict": row.verdict.word,
                    "difference": row.verdict.difference and row.verdict.difference.value,
                    "interval": row.verdict.interval,
                    "p_adjusted": row.verdict.p_adjusted,
                    "n": row.verdict.difference and row.verdict.difference.n,
                    "words": verdict_line(row.verdict, row.terms, row.new_text),
                    "reason": row.verdict.reason or None,
                    "caveats": row.caveats,
                }
                for label, own in found.rows.items()
                for change, row in own.items()
            ],
            "interactions": [
                {
                    "change": own.change,
                    "baseline": own.baseline,
                    "difference": own.contrast and own.contrast.estimate.value,
                    "interval": own.contrast and own.contrast.interval,
                    "p_adjusted": own.contrast and own.contrast.p_adjusted,
                    "n": own.contrast and own.contrast.estimate.n,
                    "reason": own.reason or None,
                }
                for own in found.interactions
            ],
        }
    )
