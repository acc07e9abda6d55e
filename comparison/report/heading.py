"""The title of the page of a comparison."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import PurePath

from comparison.figures import Figures
from comparison.findings import Findings
from comparison.formatting import format_budget
from comparison.runs import LoggedRun
from errors import printable


@dataclasses.dataclass(frozen=True)
class Heading:
    """The title of a page.

    Attributes:
        name: The name of the sweep, or the number of arms compared.
        facts: Dataset, budget and date, as far as known.
    """

    name: str
    facts: Sequence[str]

    @property
    def title(self) -> str:
        return f"{self.name}: {', '.join(self.facts)}"


def heading(findings: Findings, figures: Figures) -> Heading:
    runs = [run for row in findings.rows for run in row.group.runs]
    sweeps = {run.sweep for run in runs}
    arms = len(figures.arms)
    name = f"{arms} arms compared" if arms > 1 else figures.arms[0].label.name
    if len(sweeps) == 1 and None not in sweeps:
        name = printable(PurePath(sweeps.pop()).name)
    facts = [datasets(runs), _budget(findings), dates(runs)]
    return Heading(name, [fact for fact in facts if fact])


def datasets(runs: Sequence[LoggedRun]) -> str:
    """The names of the datasets, at most three."""
    names = dict.fromkeys(str(run.data.get("dataset", "")) for run in runs)
    return ", ".join(list(filter(None, names))[:3])


def _budget(findings: Findings) -> str:
    """The budget of each run of the baseline."""
    declared, base = findings.design.declared, findings.baseline.group
    if declared.budget:
        return f"{declared.budget} per run"
    if not base.counted:
        return ""
    return f"{format_budget('tokens', base.counted[0].tokens)} per run"


def dates(runs: Sequence[LoggedRun]) -> str:
    """`2026-11-30`, or the first and the last day."""
    days = sorted(run.start_time[:10] for run in runs)
    return days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
