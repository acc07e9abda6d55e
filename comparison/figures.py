"""What the plot and the page draw, as plain data: curves with their bands, differences with their
intervals, and what they are called."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from comparison.bands import Band, band
from comparison.code_versions import code_note
from comparison.curves import AXES, common_budget
from comparison.effects import Effect
from comparison.findings import Findings, GroupResult
from comparison.inference import ALPHA, Estimate
from comparison.labels import Label, labels
from comparison.verdicts import BETTER, CANNOT_TELL, WORSE, Verdict

BUDGET_TITLES = {
    "tokens": "training tokens",
    "flops": "training FLOPs",
    "seconds": "training time",
}
"""What each unit of budget is called along an axis."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference or an effect with its 95 % interval, nats per token; below zero is better.

    Attributes:
        verdict: better, worse, equal or cannot_tell.
    """

    value: float
    low: float
    high: float
    verdict: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmFigure:
    """An arm as it is drawn.

    Attributes:
        seeds: How many runs count.
        loss: Mean final validation loss, nats per token.
        bands: Its curve over each unit of budget in which it has one.
        verdict: On the final loss.
        difference: From the final loss of the baseline; None where that cannot be judged.
        code_note: A sentence where its runs were made by different code.
    """

    label: Label
    seeds: int
    loss: float | None
    bands: Mapping[str, Band]
    verdict: Verdict
    difference: Difference | None
    code_note: str | None


@dataclasses.dataclass(frozen=True)
class BudgetAxis:
    """A unit of budget over which there are curves.

    Attributes:
        unit: A key of `curves.AXES`.
        comparable: Whether every arm that is compared and was trained has spent a known amount of
            it, seconds on one machine.
    """

    unit: str
    title: str
    comparable: bool


@dataclasses.dataclass(frozen=True)
class Figures:
    """All that is drawn of a comparison.

    Attributes:
        arms: Those of `Findings.rows`, in their order.
        axes: Without the units over which no arm has a curve.
        margin: Differences up to this count as equal, nats per token; None where it is not known.
    """

    arms: tuple[ArmFigure, ...]
    axes: tuple[BudgetAxis, ...]
    margin: float | None

    @property
    def compared(self) -> list[ArmFigure]:
        """The baseline and the arms that are comparable with it."""
        return [arm for arm in self.arms if not arm.label.set_apart]


def figures_of(findings: Findings) -> Figures:
    """The figures of a comparison."""
    pairs = zip(labels(findings), findings.rows, strict=True)
    arms = tuple(_arm(label, row) for label, row in pairs)
    trained = {
        unit: [
            row
            for arm, row in zip(arms, findings.rows, strict=True)
            if not row.set_apart and unit in arm.bands and arm.bands[unit].trained
        ]
        for unit in AXES
    }
    axes = tuple(
        BudgetAxis(unit, BUDGET_TITLES[unit], _comparable(trained[unit], unit))
        for unit in AXES
        if any(unit in arm.bands for arm in arms)
    )
    return Figures(arms, axes, findings.margin)


def _arm(label: Label, row: GroupResult) -> ArmFigure:
    bands = {unit: band(row.group, unit) for unit in AXES}
    return ArmFigure(
        label=label,
        seeds=row.group.n,
        loss=row.group.loss,
        bands={unit: found for unit, found in bands.items() if found},
        verdict=row.verdict,
        difference=difference_of(row.verdict),
        code_note=code_note(row.group),
    )


def _comparable(trained: Iterable[GroupResult], unit: str) -> bool:
    return bool(common_budget((row.group for row in trained), unit))


def difference_of(verdict: Verdict) -> Difference | None:
    """What a verdict rests on; None where there is no estimate."""
    estimate = verdict.estimate
    return _difference(estimate, verdict.verdict) if estimate else None


def effect_of(effect: Effect) -> Difference:
    """An effect, called better or worse where chance is ruled out."""
    if effect.p_adjusted >= ALPHA:
        return _difference(effect.estimate, CANNOT_TELL)
    return _difference(effect.estimate, BETTER if effect.estimate.value < 0 else WORSE)


def _difference(estimate: Estimate, verdict: str) -> Difference:
    return Difference(estimate.value, *estimate.interval(), verdict)
