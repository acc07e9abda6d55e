"""The configs of the arms, and the environment and data of their runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from comparison.findings import Findings
from comparison.formatting import format_value
from comparison.labels import Label, labels
from comparison.runs import LoggedRun
from pages.rendering import IN_LOGS_ONLY

_NAMES = {"run_name"}  # differ from run to run by design
_MOST_VALUES = 8  # listed for a key in a cell or row
_ABSENT, _UNSET = "not logged", "not set"

Facts = Callable[[LoggedRun], Mapping[str, Any]]
"""Returns a section of the log of a run: its config, environment or data."""


# The configs, one column per arm


@dataclasses.dataclass(frozen=True)
class ConfigTable:
    """The config keys and their values.

    Attributes:
        arms: The arms, one column each, the baseline first.
        differing: By key, the value in each arm, for keys that differ.
        shared: By key, the common value, for keys that do not differ.
    """

    arms: Sequence[Label]
    differing: Mapping[str, Sequence[str]]
    shared: Mapping[str, str]


def config_table(findings: Findings) -> ConfigTable:
    groups = [row.group for row in findings.rows]
    keys = dict.fromkeys(key for group in groups for run in group.runs for key in run.config)
    texts = {
        key: [_listed(_texts(group.runs, _config, key, _UNSET)) for group in groups]
        for key in keys
        if key not in (*_NAMES, *IN_LOGS_ONLY)
    }
    return ConfigTable(
        arms=labels(findings),
        differing={key: values for key, values in texts.items() if len(set(values)) > 1},
        shared={key: values[0] for key, values in texts.items() if len(set(values)) == 1},
    )


def _config(run: LoggedRun) -> Mapping[str, Any]:
    return run.config


def _texts(runs: Sequence[LoggedRun], facts: Facts, key: str, absent: str = _ABSENT) -> list[str]:
    """The distinct values of a key, in the order of the runs."""
    return list(dict.fromkeys(format_value(facts(run).get(key, absent)) for run in runs))


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - _MOST_VALUES
    return ", ".join(texts[:_MOST_VALUES]) + (f" and {more} more" if more > 0 else "")


# Environment and data


@dataclasses.dataclass(frozen=True)
class SharedFacts:
    """Facts about the runs, shared or differing.

    Attributes:
        differing: By key, each value with the arms that have it.
        shared: By key, the value of all runs, except facts that are only useful in logs.
    """

    title: str
    differing: Mapping[str, Sequence[str]]
    shared: Mapping[str, str]


def shared_facts(findings: Findings) -> list[SharedFacts]:
    """The environment and data of the runs: shared values once, others with their arms."""
    return [
        _facts_of("Software and machine", findings, lambda run: run.environment),
        _facts_of("Data", findings, lambda run: run.data),
    ]


def _facts_of(title: str, findings: Findings, facts: Facts) -> SharedFacts:
    runs = [run for row in findings.rows for run in row.group.runs]
    values = {key: _texts(runs, facts, key) for key in dict.fromkeys(chain(*map(facts, runs)))}
    return SharedFacts(
        title=title,
        differing={
            key: list(_owned(findings, facts, key, texts))
            for key, texts in values.items()
            if len(texts) > 1
        },
        shared={
            key: texts[0]
            for key, texts in values.items()
            if len(texts) == 1 and key not in IN_LOGS_ONLY
        },
    )


def _owned(findings: Findings, facts: Facts, key: str, values: Sequence[str]) -> Iterator[str]:
    """Yield each value with the arms and the number of runs that have it."""
    for value in values[:_MOST_VALUES]:
        owners = {
            number: sum(
                format_value(facts(run).get(key, _ABSENT)) == value for run in row.group.runs
            )
            for number, row in enumerate(findings.rows, start=1)
        }
        numbers = [number for number, count in owners.items() if count]
        count = sum(owners.values())
        whose = f"arm{'s' * (len(numbers) != 1)} {ranges(numbers)}"
        yield f"{value} ({whose}; {count} run{'s' * (count != 1)})"
    if len(values) > _MOST_VALUES:
        yield f"and {len(values) - _MOST_VALUES} more values"


def ranges(numbers: Sequence[int]) -> str:
    """`1 to 3, 7`: increasing numbers, with three or more consecutive ones as a range."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = (f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
    return ", ".join(texts)
