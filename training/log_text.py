"""Format numbers for people, and the lines that a run prints.

Units are SI: 1 GB is 1e9 bytes, 1 TFLOP/s is 1e12 FLOP/s.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

LINE_WIDTH = 100
"""Width of tables, in columns."""

CONSOLE_WIDTH = 80
"""Width of a run's console output, in columns."""

UNBROKEN_SPACE = "\N{NO-BREAK SPACE}"
"""A space in the value of a row at which lines are not wrapped."""


# Numbers


def format_number(value: float | None, spec: str) -> str:
    """Format `value` by a format specification; `-` if it is None or not finite."""
    return "-" if value is None or not math.isfinite(value) else format(value, spec)


def _scaled(value: float | None, units: Sequence[str], small_decimals: int = 1) -> str:
    """Format `value` in the unit that keeps it below 1000; each unit is 1000 times the previous.

    Numbers below 100 get `small_decimals` decimals, larger ones one decimal, and whole numbers of
    the first unit none. `-` if `value` is None or not finite.
    """
    if value is None or not math.isfinite(value):
        return "-"
    power = 0
    while abs(value) >= 999.95 and power < len(units) - 1:  # 999.95 would print as 1000.0
        value, power = value / 1000, power + 1
    decimals = small_decimals if abs(value) < 99.995 else 1
    if power == 0 and value == int(value):
        decimals = 0
    return f"{value:.{decimals}f}{units[power]}"


def format_count(value: float | None) -> str:
    """`1.23B`, `124.4M`, `12.34K`, `987`; `-` if `value` is None or not finite."""
    return _scaled(value, ("", "K", "M", "B", "T"), small_decimals=2)


def format_flops(value: float | None) -> str:
    """`854.7 MFLOPs`; `-` if `value` is None or not finite."""
    return _scaled(value, [f" {prefix}FLOPs" for prefix in ("", *"kMGTPEZ")])


def format_flop_rate(value: float | None) -> str:
    """`471.5 GFLOP/s`; `-` if `value` is None or not finite."""
    return _scaled(value, [f" {prefix}FLOP/s" for prefix in ("", *"kMGTPEZ")])


def format_bytes(value: float | None) -> str:
    """`3.2 GB`, where 1 GB is 1e9 bytes; `-` if `value` is None or not finite."""
    return _scaled(value, [f" {prefix}B" for prefix in ("", *"kMGTP")])


def format_byte_sum(parts: Sequence[float]) -> list[str]:
    """The sum of the parts, then the parts, all in one unit: `2.43 GB`, `1.36 GB`, `1.07 GB`. The
    sum is that of the rounded parts, so that the numbers add up."""
    total = sum(parts)
    power = next((p for p in range(5) if total / 1000**p < 999.95), 5)
    decimals = 0 if power == 0 else 2 if total / 1000**power < 99.995 else 1
    rounded = [round(part / 1000**power, decimals) for part in parts]
    unit = ("B", "kB", "MB", "GB", "TB", "PB")[power]
    return [f"{value:.{decimals}f} {unit}" for value in (sum(rounded), *rounded)]


# Lines on the console


def format_start_report(sections: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> str:
    """Format titled blocks of `name  value` rows; values are wrapped, and aligned over all blocks.

    Args:
        sections: Title and rows of each block.

    Returns:
        Lines of at most CONSOLE_WIDTH columns.
    """
    names = [name for _, rows in sections for name, _ in rows]
    column = max(map(len, names), default=0) + 4  # 2 of indentation, 2 between the columns
    blocks = [[title, *_rows(rows, column, indent="  ")] for title, rows in sections]
    return "\n".join(line for block in blocks for line in block)


def format_rows(rows: Sequence[tuple[str, str]]) -> str:
    """Format `name  value` rows, values aligned and wrapped to CONSOLE_WIDTH columns."""
    return "\n".join(_rows(rows, max((len(name) for name, _ in rows), default=0) + 2))


def _rows(rows: Sequence[tuple[str, str]], column: int, indent: str = "") -> list[str]:
    lines: list[str] = []
    for name, value in rows:
        lines += textwrap.wrap(
            value,
            CONSOLE_WIDTH,
            initial_indent=f"{indent}{name}".ljust(column),
            subsequent_indent=" " * column,
            break_on_hyphens=False,
            break_long_words=False,  # so that paths can be copied
        ) or [f"{indent}{name}"]
    return [line.replace(UNBROKEN_SPACE, " ") for line in lines]


def format_note(text: str) -> str:
    """Wrap a message to CONSOLE_WIDTH columns; its own line breaks are kept."""
    return "\n".join(line for own in text.split("\n") for line in _rows([("", own)], column=0))


def format_clock(seconds: float) -> str:
    """`2:48`, `1:02:48`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_duration(seconds: float) -> str:
    """`45 s`, `3.2 min`, `1.5 h`, `2.5 days`."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    if round(seconds / 60, 1) < 60:
        return f"{seconds / 60:.1f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def _pack(fields: Sequence[str]) -> str:
    """Join fields with bars, on as few lines as CONSOLE_WIDTH allows."""
    lines = [fields[0]]
    for field in fields[1:]:
        if len(lines[-1]) + 3 + len(field) <= CONSOLE_WIDTH:
            lines[-1] += " | " + field
        else:
            lines.append("  " + field)
    return "\n".join(lines)


def _progress(iter: int, max_iters: int | None) -> str:
    if max_iters is None:
        return f"step {iter:,}"
    return f"step {iter:>{len(str(max_iters))}}/{max_iters}"


def _memory_field(memory: Mapping[str, float | None]) -> str:
    """`mem 11.2 peak 133 reserved 134 GB`; `mem` is allocated memory, or resident on a CPU."""
    shown = {"allocated": "mem", "resident": "mem", "peak": "peak", "reserved": "reserved"}
    parts = [
        f"{label} {memory[key] / 1e9:.3g}"
        for key, label in shown.items()
        if memory.get(key) is not None
    ]
    return " ".join(parts) + " GB" if parts else "mem -"


def _tflops(value: float | None) -> str:
    """Three significant digits, without an exponent: `0.0517`, `45.6`, `989`, `2250`."""
    return format_number(value, ".0f" if value is not None and value >= 100 else ".3g")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}%"


def format_step(record: Mapping[str, Any], max_iters: int | None, eta: float | None = None) -> str:
    """Format a record of `training_iterations` as lines: progress, speed, then the rest.

    Args:
        record: The record.
        max_iters: Steps of the whole run; None if unknown.
        eta: Remaining seconds of the run; None if unknown.
    """
    mfu, gradients = record["mfu"], record["gradients"]
    progress = [
        _progress(record["iter"], max_iters),
        f"loss {record['loss']:.4f}",
        f"lr {record['lr']:.2e}",
        f"{record['time_ms']:.1f} ms",
        *_eta(eta),
    ]
    speed = [
        f"  MFU {_percent(mfu['mfu_percent'])}, {_tflops(mfu['achieved_tflops'])} of "
        f"{_tflops(mfu['peak_tflops'])} TFLOP/s",
        f"{format_count(record['tokens_per_second'])} tok/s",
        f"{format_flops(mfu['flops_per_token'])}/token",
    ]
    rest = [
        f"  {_memory_field(record['memory'])}",
        f"grads: norm {gradients['norm']:.3g}, mean {format_number(gradients['mean'], '.0e')}, "
        f"std {format_number(gradients['std'], '.0e')}",
    ]
    auxiliary = {k: v for k, v in record.get("terms", {}).items() if k != "cross_entropy"}
    rest += [f"{name} {value:.3g}" for name, value in auxiliary.items()]
    if record["bad_steps"]:
        rest.append(f"skipped steps {record['bad_steps']}")
    return "\n".join(map(_pack, (progress, speed, rest)))


def format_step_briefly(
    record: Mapping[str, Any], max_iters: int | None, eta: float | None = None
) -> str:
    """Format a record of `training_iterations` as one line; see `format_step`."""
    percent = record["mfu"]["mfu_percent"]
    fields = [
        _progress(record["iter"], max_iters),
        f"loss {record['loss']:.4f}",
        f"lr {record['lr']:.1e}",
        f"{format_count(record['tokens_per_second'])} tok/s",
        *([] if percent is None else [f"MFU {percent:.0f}%"]),
        *_eta(eta),
    ]
    return " | ".join(fields)


def _eta(seconds: float | None) -> list[str]:
    return [] if seconds is None else [f"ETA {format_clock(seconds)}"]


def format_eval(
    record: Mapping[str, Any], max_iters: int | None, best: Mapping[str, Any] | None
) -> str:
    """Format a record of `eval_steps`; `best` is the record with the lowest loss so far."""
    best_text = "none finite" if best is None else f"{best['val_loss']:.4f} (step {best['iter']})"
    fields = [
        _progress(record["iter"], max_iters),
        f"val loss {record['val_loss']:.4f}",
        f"{record['val_bits_per_byte']:.4f} bits/byte",
        f"best {best_text}",
    ]
    return _pack(fields)


def format_sample(record: Mapping[str, Any]) -> str:
    """Format a record of `samples` as an indented block. Control characters become dots."""
    text = f"{record['prompt']}{record['text']}".strip("\n").expandtabs(4)
    shown = "".join(c if c.isprintable() or c == "\n" else "." for c in text)
    lines = [
        part
        for line in shown.split("\n")
        for part in textwrap.wrap(line, CONSOLE_WIDTH - len(_BESIDE), **_AS_WRITTEN) or [""]
    ]
    return "\n".join([f"sample after step {record['iter']}:", *(_BESIDE + part for part in lines)])


_BESIDE = "  | "
_AS_WRITTEN = {"drop_whitespace": False, "replace_whitespace": False, "break_on_hyphens": False}
