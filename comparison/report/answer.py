"""The answer in words, which the page begins with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from comparison.findings import Findings, GroupResult
from comparison.formatting import format_loss
from comparison.report.arms import after_verdict, compared, label, set_apart, verdict_mark
from comparison.report.markup import Figures, Markup, element, joined
from comparison.verdicts import BETTER, CANNOT_TELL, EQUAL, WORSE

_MOST_LISTED = 6  # arms of one verdict; the table has the others
_ORDER = (BETTER, WORSE, EQUAL, CANNOT_TELL)
_PHRASES = {
    BETTER: ("is better", "are better"),
    WORSE: ("is worse", "are worse"),
    EQUAL: ("is equal", "are equal"),
    CANNOT_TELL: ("cannot be told from it", "cannot be told from it"),
}


def answer(figures: Figures, findings: Findings) -> Markup:
    """Who is better and who is worse than the baseline, and what cannot be told."""
    return joined(
        [
            element("p", _headline(findings), class_="headline"),
            element("p", *_baseline(figures, findings), class_="lead"),
            _listed(findings),
        ]
    )


def _by_verdict(findings: Findings) -> dict[str, list[tuple[int, GroupResult]]]:
    _, *arms = compared(findings)
    found = {
        verdict: [(n, row) for n, row in arms if row.verdict.verdict == verdict]
        for verdict in _ORDER
    }
    return {verdict: rows for verdict, rows in found.items() if rows}


def _headline(findings: Findings) -> str:
    found = _by_verdict(findings)
    count = sum(map(len, found.values()))
    apart = len(set_apart(findings))
    other = f" {apart} {_plural('arm', apart)} set apart: not comparable." if apart else ""
    if not count:
        nothing = "No arm is comparable with it" if apart else "There is one arm only"
        return f"{nothing}, so there is nothing to tell.{other}"
    if count == 1:
        (verdict,) = found
        return f"The one arm beside the baseline {_PHRASES[verdict][0]}.{other}"
    phrases = [f"{len(rows)} {_PHRASES[verdict][len(rows) > 1]}" for verdict, rows in found.items()]
    return f"Of {count} arms beside the baseline, {_and(phrases)}.{other}"


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"


def _and(phrases: Sequence[str]) -> str:
    *first, last = phrases
    return f"{', '.join(first)} and {last}" if first else last


def _baseline(figures: Figures, findings: Findings) -> Iterator[str]:
    n = findings.baseline.group.n
    yield "The baseline is "
    yield label(1, findings.baseline)
    if not n:
        yield ", which has no run that counts."
        return
    yield ". It ends at a validation loss of "
    yield figures.show(format_loss, "groups", 0, "loss")
    yield " nats per token, the mean of " if n > 1 else " nats per token, of "
    yield figures.show(str, "groups", 0, "n")
    yield f" {_plural('seed', n)}."
    if figures.at("noise_floor") is not None:
        yield " Another seed alone moves it by "
        yield figures.show(format_loss, "noise_floor")
        yield ", the noise floor."
    elif n == 1:
        yield " One seed tells nothing of chance, so nothing can be called better or worse."
    if figures.at("margin") is not None:
        yield " Differences up to "
        yield figures.show(format_loss, "margin")
        yield " count as equal."


def _listed(findings: Findings) -> Markup | None:
    found = _by_verdict(findings)
    lists = [
        element("div", element("dt", verdict_mark(verdict)), *_entries(verdict, rows))
        for verdict, rows in found.items()
    ]
    return element("dl", *lists, class_="answers") if lists else None


def _entries(verdict: str, rows: Sequence[tuple[int, GroupResult]]) -> Iterator[Markup]:
    for number, row in rows[:_MOST_LISTED]:
        rest = after_verdict(verdict, row.verdict.words)
        yield element("dd", label(number, row), " ", element("span", rest, class_="why"))
    if len(rows) > _MOST_LISTED:
        link = element("a", "the verdicts", href="#verdicts")
        yield element("dd", f"and {len(rows) - _MOST_LISTED} more, in ", link)
