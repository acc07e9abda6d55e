"""A ladder as text tables and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from comparison.formatting import format_difference, format_factor, format_loss
from comparison.groups import Group
from comparison.ladder_findings import ArmOnLadder, LadderFindings, Where
from comparison.tables import TitledTable
from inference.ladder import FADES, GROWS, HOLDS, INCONCLUSIVE, SAME_EXPONENT, Ladder
from training_logger import format_count, format_flops, format_number, json_safe

_TRENDS = {
    GROWS: "grows with compute",
    FADES: "fades with compute",
    HOLDS: f"holds: the exponent is within {SAME_EXPONENT:g} of 0",
    INCONCLUSIVE: "may grow or fade: the interval of the exponent is too wide",
}


def ladder_sections(found: LadderFindings) -> Iterator[TitledTable]:
    """Yield the sections to show, in order."""
    rows = []
    for label, own, compute in zip(found.labels, found.rungs, found.compute, strict=True):
        base = own.baseline.group
        params = format_count(base.architecture["parameters"])
        rows.append((label, params, format_flops(compute), str(base.n), format_loss(base.loss)))
    title = f"Rungs of the baseline, {found.baseline}"
    header = ("rung", "params", "compute", "n", "val loss")
    yield TitledTable(title, header, rows, list(about_rungs(found)))
    for arm in found.arms:
        yield _arm(found, arm)


def about_rungs(found: LadderFindings) -> Iterator[str]:
    """Yield notes on the rungs and their runs."""
    if found.unlike:
        yield f"The rungs differ in {', '.join(found.unlike)}."
    for note, labels in found.notes.items():
        yield f"{_rungs(labels, found.labels)}: {note}"


def _rungs(labels: Sequence[str], all_labels: Sequence[str]) -> str:
    return "every rung" if len(labels) == len(all_labels) else ", ".join(labels)


def _arm(found: LadderFindings, arm: ArmOnLadder) -> TitledTable:
    ladder = arm.ladder
    multipliers = intervals = ["-"] * len(found.labels)
    if ladder:
        multipliers = [format_factor(value) for value in ladder.multipliers]
        intervals = [f"{low:.3g} to {high:.3g}" for low, high in ladder.intervals]
    differences = map(format_difference, arm.differences)
    return TitledTable(
        f"{arm.name}: compute multiplier",
        ("rung", "difference", "multiplier", "95 % interval"),
        list(zip(found.labels, differences, multipliers, intervals, strict=True)),
        [*_sentences(found, arm), *about_arm(arm, found.labels)],
    )


def about_arm(arm: ArmOnLadder, labels: Sequence[str]) -> Iterator[str]:
    """Yield what differs between an arm and the baseline besides the architecture."""

    def listed(phrases: Where) -> str:
        return "; ".join(f"{phrase} ({_rungs(own, labels)})" for phrase, own in phrases.items())

    if arm.terms:
        yield f"The arm runs {listed(arm.terms)}; the multiplier accounts for that."
    if arm.caveats:
        yield f"Notes: {listed(arm.caveats)}."


def _sentences(found: LadderFindings, arm: ArmOnLadder) -> Iterator[str]:
    if arm.ladder is None:
        yield f"{arm.word}: {trend(arm)}."
        return
    low, high = arm.ladder.exponent_interval
    unlike = f"; the rungs differ in {', '.join(found.unlike)}" if found.unlike else ""
    family = found.family
    together = f", which holds for {family} arms together" if family > 1 else ""
    yield (
        f"{arm.word}: {trend(arm)}{unlike}. The multiplier scales as compute to the power "
        f"{arm.ladder.exponent:+.3f} [{low:+.3f}, {high:+.3f}]{together}."
    )
    yield (
        "The multiplier is the compute that the baseline would need for the arm's loss, divided by "
        "the arm's compute; its interval holds for one rung at a time (exploratory)."
    )
    if arm.allowance:
        text = format_number(arm.allowance, ".4f")
        yield (
            f"The intervals include allowances for tuning: up to {text} nats at a rung (sum of arm "
            "and baseline)."
        )


def trend(arm: ArmOnLadder) -> str:
    """What the trend of the multiplier means for the gain or the disadvantage of the arm, or why
    there is no trend."""
    return arm.reason if arm.ladder is None else _trend(arm.ladder)


def _trend(ladder: Ladder) -> str:
    rungs, word = len(ladder.multipliers), ladder.verdict
    if ladder.better == rungs:
        return f"its gain {_TRENDS[word]}"
    if ladder.worse == rungs:
        shrinking = {GROWS: "shrinks with compute", FADES: "grows with compute"}
        return f"its disadvantage {shrinking.get(word, _TRENDS[word])}"
    counts = {"a gain": ladder.better, "a disadvantage": ladder.worse}
    shown = " and ".join(
        f"{what} is shown at {n} of {rungs} rungs" for what, n in counts.items() if n
    )
    return f"{shown or 'no gain is shown'}; the multiplier {_TRENDS[word]}"


def ladder_document(found: LadderFindings) -> dict[str, Any]:
    """A ladder as a JSON object; losses in nats per token."""
    return json_safe(
        {
            "document_version": 1,
            "baseline": found.baseline,
            "rungs": [
                _rung_object(label, own.baseline.group, compute)
                for label, own, compute in zip(
                    found.labels, found.rungs, found.compute, strict=True
                )
            ],
            "arms": [_arm_object(arm) for arm in found.arms],
            "family": found.family,
            "rungs_differ_in": found.unlike,
            "notes": found.notes,
        }
    )


def _rung_object(label: str, base: Group, compute: float | None) -> dict[str, Any]:
    return {
        "label": label,
        "parameters": base.architecture["parameters"],
        "compute": compute,
        "n": base.n,
        "loss": base.loss,
    }


def _arm_object(arm: ArmOnLadder) -> dict[str, Any]:
    ladder = arm.ladder
    return {
        "name": arm.name,
        "verdict": arm.word,
        "reason": arm.reason or None,
        "differences": arm.differences,
        "multipliers": ladder and ladder.multipliers,
        "intervals": ladder and ladder.intervals,
        "exponent": ladder and ladder.exponent,
        "exponent_interval": ladder and ladder.exponent_interval,
        "allowance": arm.allowance,
        "allowances": [own and {"arm": own[0], "baseline": own[1]} for own in arm.allowances],
        "compute": arm.compute,
        "terms": arm.terms,
        "caveats": arm.caveats,
    }
