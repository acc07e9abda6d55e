"""The arms of a comparison as the page names them: by a number in a colour, and their name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from comparison.findings import Findings, GroupResult
from comparison.formatting import assignments, verdict_word
from comparison.report.markup import Markup, element
from comparison.verdicts import BASELINE

HUES = 6
"""Colours of the palette in style.css; arms share them, so the number tells them apart."""


def numbered(findings: Findings) -> list[tuple[int, GroupResult]]:
    """The rows with their numbers; the baseline is 1, and number n stands in the document at
    `groups[n - 1]`."""
    return list(enumerate(findings.rows, start=1))


def compared(findings: Findings) -> list[tuple[int, GroupResult]]:
    return [(number, row) for number, row in numbered(findings) if not row.set_apart]


def set_apart(findings: Findings) -> list[tuple[int, GroupResult]]:
    return [(number, row) for number, row in numbered(findings) if row.set_apart]


def hue(number: int) -> str:
    """The class that colours what belongs to an arm."""
    return f"hue-{(number - 1) % HUES + 1}"


def badge(number: int) -> Markup:
    return element("span", str(number), class_=f"badge {hue(number)}")


def label(number: int, row: GroupResult, *, details: bool = False) -> Markup:
    """The badge and the name of an arm; with details, also how it differs from the baseline."""
    name = element("span", row.group.name, class_="name")
    return element("span", badge(number), name, *(_details(row) if details else ()), class_="arm")


def _details(row: GroupResult) -> Iterator[Markup]:
    if row.verdict.verdict == BASELINE:
        yield element("span", "the baseline", class_="tag")
        if row.group.arm:
            yield element("span", row.group.architecture["name"], class_="changes")
    for status in sorted({run.status for run in row.group.counted} - {"completed"}):
        yield element("span", status, class_="tag")
    if row.set_apart:
        yield element("span", "set apart", class_="tag")
    if row.unnamed_changes:
        yield element("span", assignments(row.unnamed_changes), class_="changes")


def verdict_mark(verdict: str) -> Markup:
    """A verdict in its colour; the word says it by itself."""
    return element("span", verdict_word(verdict), class_=f"verdict {verdict}")


def after_verdict(verdict: str, words: str) -> str:
    """What the words of a verdict say besides it: `by 0.1975 (0.1736 to 0.2214)`."""
    return words.removeprefix(verdict_word(verdict)).lstrip(": ")


def ranges(numbers: Sequence[int]) -> str:
    """`1 to 3, 7`: rising numbers, three or more in a row as a range."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = (f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
    return ", ".join(texts)
