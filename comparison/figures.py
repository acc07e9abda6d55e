"""What the plot and the page draw, as plain data: curves with their bands, differences with their
intervals, and labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from comparison.bands import Band, band
from comparison.curves import AXES, common_budget
from comparison.findings import Findings, GroupResult
from comparison.groups import Group
from comparison.labels import Label, labels
from comparison.new_text import NewText
from comparison.training_bands import training_bands
from inference.contrasts import Contrast
from inference.samples import shared_seeds
from inference.verdicts import BETTER, INCONCLUSIVE, WORSE, Verdict

BUDGET_TITLES = {
    "tokens": "training tokens",
    "flops": "training FLOPs",
    "seconds": "training time",
}
"""The axis label of each unit of budget."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference or an effect with its interval, in nats per token; negative is better.

    Attributes:
        verdict: better, worse, equal or inconclusive.
        seeds: The difference of each pair of runs with the same seeds; empty if unpaired.
    """

    value: float
    low: float
    high: float
    verdict: str
    seeds: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmFigure:
    """The data to draw an arm.

    Attributes:
        seeds: Number of included runs.
        loss: Mean final validation loss, in nats per token.
        bands: Its validation curves by unit of budget.
        training_bands: Returns the same for the training loss, given the maximum number of points
            of a curve; reads the logs of the runs.
        verdict: The verdict on the final loss.
        terms: What is equal to the baseline; see `groups.terms`.
        new_text: Whether its verdict holds on new text, if known.
        difference: The difference in final loss from the baseline; None if it cannot be judged.
        caveats: Other differences from the baseline, one phrase each.
    """

    label: Label
    seeds: int
    loss: float | None
    bands: Mapping[str, Band]
    training_bands: Callable[[int], Mapping[str, Band]]
    verdict: Verdict
    terms: str
    new_text: NewText | None
    difference: Difference | None
    caveats: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class BudgetAxis:
    """A unit of budget that has curves.

    Attributes:
        unit: A key of `curves.AXES`.
        comparable: Whether the amount is known for every compared arm that was trained, and for
            seconds whether all ran on one machine.
    """

    unit: str
    title: str
    comparable: bool


@dataclasses.dataclass(frozen=True)
class Figures:
    """The data to draw a comparison.

    Attributes:
        arms: The arms of `Findings.rows`, in that order.
        axes: The units of budget for which at least one arm has a curve.
        margin: Differences up to this many nats per token count as equal.
        fewer_seeds: See `Findings.fewer_seeds`.
    """

    arms: tuple[ArmFigure, ...]
    axes: tuple[BudgetAxis, ...]
    margin: float
    fewer_seeds: bool

    @property
    def compared(self) -> list[ArmFigure]:
        """The baseline and the arms that can be compared with it."""
        return [arm for arm in self.arms if not arm.label.set_apart]


def figures_of(findings: Findings) -> Figures:
    """The figures of a comparison."""
    pairs = zip(labels(findings), findings.rows, strict=True)
    base = findings.baseline.group
    arms = tuple(_arm(label, row, base) for label, row in pairs)
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
    return Figures(arms, axes, findings.design.margin, findings.fewer_seeds)


def _arm(label: Label, row: GroupResult, baseline: Group) -> ArmFigure:
    bands = {unit: band(row.group, unit) for unit in AXES}
    return ArmFigure(
        label=label,
        seeds=row.group.n,
        loss=row.group.loss,
        bands={unit: found for unit, found in bands.items() if found},
        training_bands=partial(training_bands, row.group),
        verdict=row.verdict,
        terms=row.terms,
        new_text=row.new_text,
        difference=final_difference(row, baseline),
        caveats=row.caveats,
    )


def _comparable(trained: Iterable[GroupResult], unit: str) -> bool:
    return bool(common_budget((row.group for row in trained), unit))


def difference_of(verdict: Verdict | None) -> Difference | None:
    """The difference behind a verdict; None if there is no estimate."""
    if verdict is None or verdict.difference is None:
        return None
    return Difference(verdict.difference.value, *verdict.interval, verdict.word)


def final_difference(row: GroupResult, baseline: Group) -> Difference | None:
    """The difference in final loss of an arm, with the differences of single seeds."""
    found = difference_of(row.verdict)
    if found is None or not row.verdict.difference.paired:
        return found
    losses, others = row.group.losses, baseline.losses
    seeds = tuple(losses[own] - others[own] for own in shared_seeds(losses, others))
    return dataclasses.replace(found, seeds=seeds)


def contrast_figure(contrast: Contrast) -> Difference:
    """A contrast, marked as better or worse if its interval excludes 0."""
    value = contrast.estimate.value
    word = INCONCLUSIVE if not contrast.shown else BETTER if value < 0 else WORSE
    return Difference(value, *contrast.interval, word)
