"""Verdicts in one line, shared by all views."""

from __future__ import annotations

from collections.abc import Iterator

from comparison.formatting import format_difference, format_interval, format_p
from comparison.new_text import NewText
from comparison.readings import Reading
from inference.verdicts import EQUAL, INCONCLUSIVE, Verdict


def verdict_line(verdict: Verdict, terms: str = "", new_text: NewText | None = None) -> str:
    """`better: -0.0320 [-0.0486, -0.0154] nats at equal parameters and tokens, n=5, p=0.001`,
    followed by the `verdict_notes`; without a full stop.

    Args:
        verdict: The verdict.
        terms: What is equal in the arm and the baseline; see `groups.terms`.
        new_text: Whether it holds on new text, if known.
    """
    return f"{verdict.word}{_within(verdict)}{after_word(verdict, terms, new_text)}"


def _within(verdict: Verdict) -> str:
    return f" within {verdict.margin:g}" if verdict.word == EQUAL else ""


def after_word(verdict: Verdict, terms: str = "", new_text: NewText | None = None) -> str:
    """The line after the verdict word: `: -0.0320 [-0.0486, -0.0154] nats ...`; may be empty."""
    notes = list(verdict_notes(verdict))
    if verdict.difference is not None:
        notes = [_numbers(verdict, terms), *notes]
    if new_text is not None:
        notes.append(new_text_note(verdict, new_text))
    return f": {'; '.join(notes)}" if notes else ""


def effect(verdict: Verdict, terms: str) -> str:
    """`-0.0320 [-0.0486, -0.0154] nats at equal parameters and tokens, n=5`; needs an estimate."""
    estimate = verdict.difference
    found = f"{format_difference(estimate.value)} {format_interval(verdict.interval)} nats"
    return f"{found} {terms}".rstrip() + f", n={estimate.n}"


def _numbers(verdict: Verdict, terms: str) -> str:
    return f"{effect(verdict, terms)}, p{_p(verdict.p_adjusted)}"


def new_text_note(verdict: Verdict, found: NewText) -> str:
    """`also better on new text, interval [-0.0501, -0.0139]`"""
    held = f"also {verdict.word}" if found.holds else f"not shown to be {verdict.word}"
    return f"{held} on new text, interval {format_interval(found.interval)}"


def _p(value: float) -> str:
    text = format_p(value)
    return text if text.startswith("<") else f"={text}"


def verdict_notes(verdict: Verdict) -> Iterator[str]:
    """Yield notes on a verdict in addition to its word and numbers."""
    if verdict.reason:
        yield verdict.reason
    if verdict.difference is None:
        return
    if not verdict.difference.paired:
        yield "unpaired, because seeds are not shared"
    if verdict.negligible:
        yield f"by less than {verdict.margin:g}"
    if verdict.screening:
        yield f"only {verdict.difference.n} seeds, so preliminary"
    if verdict.word == INCONCLUSIVE and not verdict.reason:
        yield _what_it_takes(verdict)


def reading_verdict(reading: Reading) -> tuple[str, str]:
    """The word for a reading at an equal budget, and the notes on it."""
    if reading.verdict is None:
        return "descriptive", reading.descriptive
    return reading.verdict.word, "; ".join(verdict_notes(reading.verdict))


def _what_it_takes(verdict: Verdict) -> str:
    needed, detectable = verdict.seeds_needed, verdict.detectable
    if needed is not None:
        return f"detecting a difference of {verdict.margin:g} takes about {needed} seeds"
    if detectable is None:
        return f"{verdict.difference.n} seeds cannot detect a difference (some were added later)"
    return f"{verdict.difference.n} seeds can detect differences of {detectable:.2g} or more"
