"""A ladder as a person reads it, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from comparison.formatting import format_difference, format_factor, format_loss
from comparison.groups import Group
from comparison.ladder_findings import ArmOnLadder, LadderFindings
from comparison.tables import TitledTable
from inference.ladder import SAME_EXPONENT
from training_logger import format_count, format_flops, format_number, json_safe

_WORDS = {
    "grows": "its gain grows with compute",
    "fades": "its gain fades with compute",
    "holds": f"its gain holds: the exponent is within {SAME_EXPONENT:g} of 0",
    "inconclusive": "the exponent is not known well enough",
}


def ladder_sections(found: LadderFindings) -> Iterator[TitledTable]:
    """What there is to say, in order."""
    rows = []
    for label, own, compute in zip(found.labels, found.rungs, found.compute, strict=True):
        base = own.baseline.group
        params = format_count(base.architecture["parameters"])
        rows.append((label, params, format_flops(compute), str(base.n), format_loss(base.loss)))
    title = f"Rungs of the baseline, {found.baseline}"
    yield TitledTable(title, ("rung", "params", "compute", "n", "val loss"), rows)
    for arm in found.arms:
        yield _arm(found, arm)


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
        list(_sentences(arm)),
    )


def _sentences(arm: ArmOnLadder) -> Iterator[str]:
    if arm.ladder is None:
        yield f"inconclusive: {arm.reason}."
        return
    low, high = arm.ladder.exponent_interval
    yield (
        f"{arm.word}: {_WORDS[arm.word]}. The multiplier goes as compute to the power "
        f"{arm.ladder.exponent:+.3f} [{low:+.3f}, {high:+.3f}]."
    )
    yield (
        "The multiplier is how many times less compute the arm needs for the baseline's loss; "
        "its interval holds for one rung at a time (exploratory)."
    )
    if arm.allowance:
        text = format_number(arm.allowance, ".4f")
        yield (
            f"The intervals allow for tuning: up to {text} nats at a rung, of arm and baseline "
            "together."
        )


def ladder_document(found: LadderFindings) -> dict[str, Any]:
    """A ladder as an object for JSON; losses in nats per token."""
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
    }
