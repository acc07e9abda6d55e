"""What the runs were told and where they ran: keys against arms, and values told once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from comparison.findings import Findings, GroupResult
from comparison.report.arms import label, numbered, ranges
from comparison.report.markup import Markup, element, joined, sentences
from comparison.runs import LoggedRun

_NAMES = {"run_name"}  # differ from run to run by design
_MOST_VALUES = 8  # of one key that a cell or a row lists
_ABSENT = "not logged"

Rows = Sequence[tuple[int, GroupResult]]


def _texts(
    runs: Sequence[LoggedRun], table: Callable[[LoggedRun], Mapping[str, Any]], key: str
) -> list[str]:
    """The distinct values of a key, in the order of the runs."""
    return list(dict.fromkeys(str(table(run).get(key, _ABSENT)) for run in runs))


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - _MOST_VALUES
    return ", ".join(texts[:_MOST_VALUES]) + (f" and {more} more" if more > 0 else "")


# The configs, a column for each arm


def configs(findings: Findings) -> Markup:
    """The keys in which an arm differs from the baseline; the others at a switch."""
    rows = numbered(findings)
    runs = [run for _, row in rows for run in row.group.runs]
    keys = [key for key in dict.fromkeys(chain(*(run.config for run in runs))) if key not in _NAMES]
    texts = {
        key: [_listed(_texts(row.group.runs, _config, key)) for _, row in rows] for key in keys
    }
    differing = [key for key in keys if len(set(texts[key])) > 1]
    shared = [key for key in keys if key not in differing]
    lead = (
        f"{len(differing)} of {len(keys)} keys differ between arms."
        if differing
        else f"All {len(keys)} keys are the same in every arm."
    )
    return element("div", _lead(lead, shared), _config_table(rows, texts, differing, shared))


def _config(run: LoggedRun) -> Mapping[str, Any]:
    return run.config


def _lead(lead: str, shared: Sequence[str]) -> Markup:
    box = element("input", type="checkbox", id="all-keys")
    switch = element("label", box, " Show all keys", class_="switch")
    return element("p", lead, " ", switch if shared else None, class_="lead")


def _config_table(
    rows: Rows, texts: Mapping[str, list[str]], differing: Sequence[str], shared: Sequence[str]
) -> Markup:
    head = [
        element("th", label(number, row), scope="col", class_="arm-column") for number, row in rows
    ]
    lines = [
        *(_config_row(key, _cells(texts[key])) for key in differing),
        *(
            _config_row(key, [element("td", texts[key][0], colspan=len(rows))], class_="shared")
            for key in shared
        ),
    ]
    table = element(
        "table",
        element("caption", "Bold: unlike the baseline, which is in the first column."),
        element("thead", element("tr", element("th", "Key", scope="col"), *head)),
        element("tbody", *lines),
        class_="configs",
    )
    empty = "" if differing else " empty"
    return element(
        "div",
        table,
        class_=f"scroll{empty}",
        role="region",
        tabindex=0,
        aria_label="Configs, scrolls sideways",
    )


def _config_row(key: str, cells: Sequence[Markup], **attributes: str) -> Markup:
    name = joined(key.split("_"), between="_<wbr>")  # it may be broken there
    return element("tr", element("th", name, scope="row"), *cells, **attributes)


def _cells(texts: Sequence[str]) -> list[Markup]:
    return [
        element("td", element("strong", text)) if text != texts[0] else element("td", text)
        for text in texts
    ]


# Environment and data, told once


def environment(findings: Findings) -> Markup:
    """What every run agrees on, once; elsewhere each value, and whose it is."""
    return joined(
        element(
            "div",
            element("h3", title),
            element("dl", *_entries(numbered(findings), table), class_="facts-list"),
        )
        for title, table in (
            ("Software and machine", lambda run: run.environment),
            ("Data", lambda run: run.data),
        )
    )


def _entries(rows: Rows, table: Callable[[LoggedRun], Mapping[str, Any]]) -> Iterator[Markup]:
    """Where the runs disagree comes first."""
    runs = [run for _, row in rows for run in row.group.runs]
    keys = dict.fromkeys(chain(*map(table, runs)))
    values = {key: _texts(runs, table, key) for key in keys}
    for key in keys:
        if len(values[key]) > 1:
            owned = sentences(list(_owned(rows, table, key, values[key])))
            yield element("div", element("dt", key), element("dd", owned), class_="unlike")
    for key in keys:
        if len(values[key]) == 1:
            yield element("div", element("dt", key), element("dd", values[key][0]))


def _owned(
    rows: Rows, table: Callable[[LoggedRun], Mapping[str, Any]], key: str, values: Sequence[str]
) -> Iterator[str]:
    """Each value with the arms and the number of runs that have it."""
    for value in values[:_MOST_VALUES]:
        owners = {
            number: sum(str(table(run).get(key, _ABSENT)) == value for run in row.group.runs)
            for number, row in rows
        }
        numbers = [number for number, count in owners.items() if count]
        count = sum(owners.values())
        whose = f"arm{'s' * (len(numbers) != 1)} {ranges(numbers)}"
        yield f"{value} ({whose}; {count} run{'s' * (count != 1)})"
    if len(values) > _MOST_VALUES:
        yield f"and {len(values) - _MOST_VALUES} more values"
