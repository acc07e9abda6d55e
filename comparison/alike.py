"""In what the sweeps of a series are not alike, though they should be."""

from __future__ import annotations

from collections.abc import Sequence

from comparison.caveats import unlike_code_or_machine
from comparison.findings import Findings
from comparison.groups import conditions

_SAME_IN_ALL = ("data", "tokenizer", "validation set", "compute dtype")
"""Conditions without which losses of different sweeps cannot be held against each other."""


def other_conditions(findings: Sequence[Findings]) -> list[str]:
    """The conditions in which the baselines are not all alike; nothing may be concluded from sweeps
    that have some."""
    first, *others = conditions([own.baseline.group for own in findings])
    return [key for key in _SAME_IN_ALL if any(own.get(key) != first.get(key) for own in others)]


def other_code_or_machine(findings: Sequence[Findings]) -> list[str]:
    """What else the baselines are not alike in: code, versions, devices."""
    return list(unlike_code_or_machine(own.baseline.group for own in findings))
