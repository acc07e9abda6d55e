"""Unintended differences between the sweeps of a series."""

from __future__ import annotations

from collections.abc import Sequence

from comparison.caveats import unlike_code_or_machine
from comparison.findings import Findings
from comparison.groups import conditions

_SAME_IN_ALL = ("data", "tokenizer", "validation set", "compute dtype")
"""Conditions that must be equal to compare losses of different sweeps."""


def other_conditions(findings: Sequence[Findings]) -> list[str]:
    """The conditions in which the baselines differ; if there are any, nothing may be concluded from
    the sweeps together."""
    first, *others = conditions([own.baseline.group for own in findings])
    return [key for key in _SAME_IN_ALL if any(own.get(key) != first.get(key) for own in others)]


def other_code_or_machine(findings: Sequence[Findings]) -> list[str]:
    """Other differences between the baselines: code, versions, devices."""
    return list(unlike_code_or_machine(own.baseline.group for own in findings))
