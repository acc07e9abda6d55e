"""Cases of parametrized tests of which only some run in every run of the tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
from _pytest.mark import ParameterSet


def one_in(
    number: int, cases: Mapping[str, Any] | Iterable[Any], start: int = 0
) -> list[ParameterSet]:
    """The arguments of `parametrize`: every `number`-th case, and the others marked as slow.

    Args:
        number: 2: every second case runs in every run.
        cases: The cases, or id -> case.
        start: Index of the first case that runs, counted modulo `number`.
    """
    named = isinstance(cases, Mapping)
    found = []
    for index, case in enumerate(cases):
        marks = () if (index - start) % number == 0 else pytest.mark.slow
        value, name = (cases[case], case) if named else (case, None)
        found.append(pytest.param(value, id=name, marks=marks))
    return found


def in_turn(cases: Iterable[Any], others: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Each case with one of the others, which take turns: far fewer than all pairs."""
    return list(zip(cases, itertools.cycle(others), strict=False))
