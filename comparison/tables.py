"""Findings as numbered groups and tables, in text or Markdown."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

from comparison.exports import costs, factor_object, numbers, sample_object
from comparison.findings import Findings, GroupResult
from comparison.formatting import (
    ACTIVE,
    QUANTITIES,
    REACHED,
    axis_name,
    format_budget,
    format_difference,
    format_factor,
    format_first,
    format_interval,
    format_loss,
    format_p,
)
from comparison.groups import Group
from comparison.judging import BASELINE
from comparison.labels import Label, labels
from comparison.readings import Reading
from comparison.verdict_lines import verdict_line
from inference.contrasts import Contrast
from inference.estimates import Estimate
from inference.verdicts import BETTER, EQUAL, INCONCLUSIVE, WORSE, Verdict
from training_logger import CONSOLE_WIDTH, LINE_WIDTH, UNBROKEN_SPACE

MOST_CONDITIONS = 4
"""Maximum number of conditions listed for a group that is not comparable."""


@dataclasses.dataclass(frozen=True)
class TitledTable:
    """A table with a title and sentences below it, or only a title and sentences.

    Attributes:
        header: The column names; the first column contains the row labels.
        rows: The cells of each row, one per column.
        sentences: The sentences below the table.
    """

    title: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    sentences: Sequence[str] = ()


def sections(findings: Findings, ratio: bool = False) -> Iterator[TitledTable]:
    """Yield the sections to show, in order; groups are numbered, the baseline is 1.

    Args:
        ratio: Whether to include quality against memory and speed.
    """
    numbered = dict(zip(map(str, range(1, len(findings.rows) + 1)), findings.rows, strict=True))
    compared = {number: row for number, row in numbered.items() if not row.set_apart}
    apart = {number: row for number, row in numbered.items() if row.set_apart}
    yield _names(findings)
    yield _final(findings, compared)
    yield _costs(numbered, costs(findings))
    for axis in findings.axes:
        yield _at_equal(axis, compared)
    if any(log for row in findings.rows for log in row.speedups.values()):
        yield _speedups(compared)
    if findings.effects:
        yield _effects(findings)
    if ratio:
        yield _ratio(compared)
    if apart:
        yield _set_apart(apart)
    if findings.notes:
        yield TitledTable("Notes", sentences=findings.notes)


def _names(findings: Findings) -> TitledTable:
    def sentence(label: Label) -> str:
        unfinished = f" ({', '.join(label.unfinished)})" if label.unfinished else ""
        called = "the baseline" if label.is_baseline and label.name != BASELINE else ""
        what = ", ".join(filter(None, (called, label.details)))
        return f"{label.number}  {label.name}{unfinished}" + (f": {what}" if what else "")

    return TitledTable(
        "Groups of runs that differ only by seed, and how they differ from the baseline",
        sentences=[sentence(label) for label in labels(findings)],
    )


_JUDGED = ("difference", "95 % interval", "p", "verdict")
_P = _JUDGED.index("p")


def _judged(verdict: Verdict | None) -> tuple[str, ...]:
    """The cells of the _JUDGED columns."""
    if verdict is None:
        return "-", "-", "-", "descriptive"
    if verdict.difference is None:
        return "-", "-", "-", verdict.word
    numbers = _estimated(verdict.difference, verdict.interval, verdict.p_adjusted)
    return *numbers, verdict.word


def _estimated(
    estimate: Estimate, interval: tuple[float, float], p_adjusted: float
) -> tuple[str, ...]:
    """The cells of an estimate, its interval and its p value."""
    return format_difference(estimate.value), format_interval(interval), format_p(p_adjusted)


def _numbers(group: Group, keys: Sequence[str]) -> tuple[str, ...]:
    """The cells of a group for these quantities."""
    known = numbers(group)
    return tuple(QUANTITIES[key].format(known[key]) for key in keys)


def _labels(keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(QUANTITIES[key].label for key in keys)


def _final(findings: Findings, rows: Mapping[str, GroupResult]) -> TitledTable:
    def cells(number: str, row: GroupResult) -> tuple[str, ...]:
        judged = without_p(_judged(row.verdict))
        return number, str(row.group.n), *_numbers(row.group, REACHED), *judged

    def without_p(cells: Sequence[str]) -> Sequence[str]:
        """The cells without the p value, which is in the line of the arm."""
        return *cells[:_P], *cells[_P + 1 :]

    sentences = [f"{number}  {line_of(row)}" for number, row in rows.items()]
    if findings.noise_floor is not None:
        sentences.append(
            "Noise floor: standard deviation of the difference between two baseline runs, "
            f"{findings.noise_floor:.4f} ({findings.baseline.group.n} seeds)."
        )
    if any(row.verdict.interval for row in rows.values()):
        sentences.append(
            f"Simultaneous 95 % intervals for {family_of(findings)}. "
            f"Equal: within {findings.design.margin:g} nats."
        )
    if findings.fewer_seeds:
        sentences.append(
            "A difference is the mean over the n seeds of its verdict, which arm and baseline "
            "share. Losses are means over all seeds, so subtracting them gives other values."
        )
    return TitledTable(
        "Final validation loss, nats per token",
        ("", "n", "loss", *_labels(REACHED)[1:], *without_p(_JUDGED)),
        [cells(number, row) for number, row in rows.items()],
        sentences,
    )


def family_of(findings: Findings) -> str:
    """The family over which the intervals are simultaneous: `all 4 arms`."""
    count = findings.family
    if findings.design.all_pairs:
        return f"all {count} pairs of arms" if count > 1 else "the one pair of arms"
    return f"all {count} arms" if count > 1 else "the one arm"


def line_of(row: GroupResult) -> str:
    """The verdict in words, followed by the caveats."""
    noted = f" Note: {'; '.join(row.caveats)}." if row.caveats else ""
    return verdict_line(row.verdict, row.terms, row.new_text) + ("." if noted else "") + noted


def _costs(rows: Mapping[str, GroupResult], keys: Sequence[str]) -> TitledTable:
    sentence = "seconds: in training steps; tokens/s and MFU: medians; 1 GB = 1e9 bytes."
    if ACTIVE in keys:
        sentence = f"active: parameters used per token; {sentence}"
    return TitledTable(
        "Cost",
        ("", *_labels(keys)),
        [(number, *_numbers(row.group, keys)) for number, row in rows.items()],
        [sentence],
    )


def _at_equal(axis: str, rows: Mapping[str, GroupResult]) -> TitledTable:
    unit = axis_name(axis)
    title = f"Validation loss at equal {unit} (exploratory)"
    readings = {n: row.at_equal[axis] for n, row in rows.items() if axis in row.at_equal}
    if all(reading.final for reading in readings.values()):
        return TitledTable(title, sentences=[f"As above: all runs end at equal {unit}."])
    if too_few(readings.values()):
        return TitledTable(title, sentences=[TOO_FEW.format(unit=unit)])

    def cells(number: str, reading: Reading) -> tuple[str, ...]:
        sample = sample_object(reading.losses)
        shown = (format_loss(sample[key]) for key in ("loss", "sd"))
        difference, *judged = _judged(reading.verdict)
        if reading.verdict is None:
            difference = format_difference(reading.difference)
        budget = format_budget(axis, reading.budget)
        return number, budget, str(sample["n"]), *shown, difference, *judged

    descriptive = {n: reading.descriptive for n, reading in readings.items() if reading.descriptive}
    return TitledTable(
        title,
        ("", "at", "n", "loss", "sd", *_JUDGED),
        [cells(number, reading) for number, reading in readings.items()],
        [f"{number}  descriptive: {why}" for number, why in descriptive.items()],
    )


TOO_FEW = (
    "Not shown: no arm has two seeds with validation losses at equal {unit}; lower "
    "--eval_interval to validate more often."
)


def too_few(readings: Iterable[Reading]) -> bool:
    """Whether no arm has losses of two seeds; the first reading is that of the baseline."""
    _, *arms = readings
    return all(len(reading.losses) < 2 for reading in arms)


def _speedups(rows: Mapping[str, GroupResult]) -> TitledTable:
    def cell(log: Estimate | None) -> str:
        if log is None:
            return "-"
        factor = factor_object(log)
        low, high = factor["interval"]
        return f"{format_factor(factor['factor'])} ({low:.3g} to {high:.3g})"

    axes = {axis: axis_name(axis) for row in rows.values() for axis in row.speedups}
    return TitledTable(
        "Speed-up to the baseline's final loss (exploratory)",
        ("", *axes.values()),
        [
            (number, *(cell(row.speedups[axis]) for axis in axes))
            for number, row in rows.items()
            if row.verdict.word != BASELINE
        ],
        [
            "Budget that the baseline needs to reach that loss, divided by that of the group, with "
            "a 95 % interval. A group that ends higher is compared at its own final loss."
        ],
    )


def _effects(findings: Findings) -> TitledTable:
    def cells(number: int, contrast: Contrast) -> tuple[str, ...]:
        return f"e{number}", *_estimated(contrast.estimate, contrast.interval, contrast.p_adjusted)

    listed = list(enumerate(findings.effects, start=1))
    return TitledTable(
        "Main effects and two-way interactions, nats per token (exploratory)",
        ("", "effect", "95 % interval", "p"),
        [cells(number, effect.contrast) for number, effect in listed],
        [f"e{number}  {' x '.join(effect.changes)}" for number, effect in listed],
    )


def _ratio(rows: Mapping[str, GroupResult]) -> TitledTable:
    base = numbers(next(iter(rows.values())).group)

    def times(known: Mapping[str, float | None], key: str) -> str:
        if not known[key] or not base[key]:
            return "-"
        return f"{known[key] / base[key]:.2f}x"

    def cells(number: str, row: GroupResult) -> tuple[str, ...]:
        known = numbers(row.group)
        marks = {True: "*", False: "", None: "-"}
        keys = ("peak_memory_bytes", "tokens_per_second", "flops_per_token", "parameters")
        loss = format_loss(known["loss"])
        return number, loss, *(times(known, key) for key in keys), marks[row.pareto]

    return TitledTable(
        "Quality against memory and speed, as multiples of the baseline",
        ("", "val loss", "memory", "tokens/s", "FLOPs/token", "params", "Pareto"),
        [cells(number, row) for number, row in rows.items()],
        [
            "*: in the Pareto set: no group is better in one of mean loss, memory and speed "
            "without being worse in another; -: unknown, or one seed. Differences within the noise "
            "floor may be due to chance."
        ],
    )


def _set_apart(rows: Mapping[str, GroupResult]) -> TitledTable:
    return TitledTable(
        "Not comparable with the baseline",
        ("", "n", "loss", *_labels(REACHED)[1:]),
        [(number, str(row.group.n), *_numbers(row.group, REACHED)) for number, row in rows.items()],
        [
            f"{number}  {'; '.join(format_first(row.set_apart, MOST_CONDITIONS, 'settings'))}"
            for number, row in rows.items()
        ],
    )


# Text and Markdown


_COLOURS = {BETTER: "\033[32m", WORSE: "\033[31m", EQUAL: "\033[36m", INCONCLUSIVE: "\033[33m"}
_BOLD, _PLAIN = "\033[1m", "\033[0m"


def to_text(findings: Findings, *, ratio: bool = False, colour: bool = False) -> str:
    """Aligned tables of at most LINE_WIDTH columns."""
    return text_of(sections(findings, ratio), colour)


def text_of(tables: Iterable[TitledTable], colour: bool = False) -> str:
    """Aligned tables of at most LINE_WIDTH columns, and below them their sentences, in lines of
    CONSOLE_WIDTH."""
    lines = []
    for section in tables:
        lines += [f"{_BOLD}{section.title}{_PLAIN}" if colour else section.title]
        if section.rows:
            lines += aligned(section.header, section.rows, colour)
        for sentence in section.sentences:
            lines += wrapped(sentence)
        lines.append("")
    return "\n".join(lines[:-1])


def wrapped(sentence: str) -> list[str]:
    """Wrap a sentence below a table; lines after the first are indented further. A longer word, as
    the name of an architecture, is broken after a separator."""
    indent = "     "
    intervals_whole = re.sub(r"(\[\S+,) (\S+\])", rf"\1{UNBROKEN_SPACE}\2", sentence)
    words = (_pieces(word, CONSOLE_WIDTH - len(indent)) for word in intervals_whole.split(" "))
    lines = textwrap.wrap(
        " ".join(piece for pieces in words for piece in pieces),
        CONSOLE_WIDTH,
        initial_indent="  ",
        subsequent_indent=indent,
        break_on_hyphens=False,
    )
    return [line.replace(UNBROKEN_SPACE, " ") for line in lines]


def _pieces(word: str, width: int) -> Iterator[str]:
    """The pieces of a word, each as long as possible, that end with a separator if it has one."""
    while len(word) > width:
        end = max(word.rfind(separator, 0, width) for separator in "-_,=/+") + 1 or width
        yield word[:end]
        word = word[end:]
    yield word


def aligned(
    header: Sequence[str], rows: Sequence[Sequence[str]], colour: bool = False
) -> Iterator[str]:
    """The lines of a table; columns that do not fit continue below."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for columns in _fitting(widths):
        for row in (header, *rows):
            cells = (
                _painted(row[i].rjust(widths[i]), _COLOURS.get(row[i], "") if colour else "")
                for i in columns
            )
            yield "  " + "  ".join(cells)


def _fitting(widths: Sequence[int]) -> list[list[int]]:
    """Split the columns into as many parts as needed to fit; each part starts with the labels."""
    parts, used = [[0]], widths[0] + 2
    for column, width in enumerate(widths[1:], start=1):
        if used + 2 + width > LINE_WIDTH and len(parts[-1]) > 1:
            parts.append([0])
            used = widths[0] + 2
        parts[-1].append(column)
        used += 2 + width
    return parts


def _painted(cell: str, code: str) -> str:
    return f"{code}{cell}{_PLAIN}" if code else cell


def to_markdown(findings: Findings, *, ratio: bool = False) -> str:
    """The same tables in GitHub's Markdown."""
    return markdown_of(sections(findings, ratio))


def markdown_of(tables: Iterable[TitledTable]) -> str:
    """Tables in GitHub's Markdown, their sentences below them."""
    lines = []
    for section in tables:
        lines += [f"### {section.title}", ""]
        if section.rows:
            lines += [*markdown_table(section.header, section.rows), ""]
        lines += [*(f"- {sentence}" for sentence in section.sentences), ""]
    return "\n".join(lines).rstrip()


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table in GitHub's Markdown, with all but the labels right-aligned."""
    yield _markdown_row(header)
    yield "|---" + "|---:" * (len(header) - 1) + "|"
    yield from map(_markdown_row, rows)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
