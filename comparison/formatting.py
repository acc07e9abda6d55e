"""Formatting of numbers and changes, shared by all human-readable views."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training_logger import format_bytes, format_count, format_flops, format_number


def format_path(path: Path) -> str:
    """A path as a user would type it: relative if it is below the current directory."""
    inside = path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd()) if inside else path)


def format_loss(value: float | None) -> str:
    """`2.5050`, nats per token or bits per byte; `-` if not finite."""
    return format_number(value, ".4f")


def format_difference(value: float | None) -> str:
    """`-0.1975`, always with its sign; `-` if not finite."""
    return format_number(value, "+.4f")


def format_interval(ends: tuple[float, float] | None) -> str:
    """`[-0.0486, -0.0154]`; `-` if there is none."""
    return "-" if ends is None else f"[{', '.join(f'{end:+.4f}' for end in ends)}]"


def format_p(value: float | None) -> str:
    """`0.148`, `<0.001`; `-` if there is none."""
    return "<0.001" if value is not None and value < 0.001 else format_number(value, ".3f")


def format_factor(value: float | None) -> str:
    """`1.07x`; `-` if not finite."""
    text = format_number(value, ".3g")
    return text if text == "-" else f"{text}x"


def format_percent(value: float | None) -> str:
    """`45.3%`; `-` if not finite."""
    text = format_number(value, ".1f")
    return text if text == "-" else f"{text}%"


def format_budget(axis: str, budget: float) -> str:
    """`1.20M tokens`, `3.4 TFLOPs`, `12.0 seconds`."""
    if axis == "flops":
        return format_flops(budget)
    return f"{format_count(budget)} tokens" if axis == "tokens" else f"{budget:,.1f} seconds"


def axis_name(axis: str) -> str:
    """The name of a unit of budget, such as `FLOPs`."""
    return axis.replace("flops", "FLOPs")


def assignments(keys: Mapping[str, Any]) -> str:
    """`normalization=rmsnorm, bias=False`"""
    return ", ".join(assigned(keys))


def assigned(keys: Mapping[str, Any]) -> list[str]:
    """`normalization=rmsnorm`, `bias=False`"""
    return [f"{key}={format_value(value)}" for key, value in keys.items()]


def format_value(value: Any) -> str:
    """A value of a key; a number without rounding errors: 0.0003, not 0.00030000000000000003."""
    return str(float(f"{value:.12g}") if isinstance(value, float) else value)


def format_first(texts: Sequence[str], most: int, what: str) -> list[str]:
    """At most this many of the texts, and how many more there are of `what`."""
    more = len(texts) - most
    return [*texts[:most], f"and {more} more {what}"] if more > 1 else list(texts)


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A number of a group: its column header and format."""

    label: str
    format: Callable[[float | None], str]


ACTIVE = "active_parameters"
"""Shown only if lower than the total, as in a mixture of experts."""

QUANTITIES = {
    "loss": Quantity("val loss", format_loss),
    "sd": Quantity("sd", format_loss),
    "bits_per_byte": Quantity("bits/byte", format_loss),
    "parameters": Quantity("params", format_count),
    ACTIVE: Quantity("active", format_count),
    "flops_per_token": Quantity("FLOPs/token", format_flops),
    "attention_ffn_ratio": Quantity("attention/FFN", lambda value: format_number(value, ".2f")),
    "tokens_per_second": Quantity("tokens/s", format_count),
    "mfu_percent": Quantity("MFU", format_percent),
    "peak_memory_bytes": Quantity("memory", format_bytes),
    "seconds": Quantity("seconds", lambda value: format_number(value, ",.1f")),
    "total_tokens": Quantity("tokens", format_count),
    "total_flops": Quantity("total FLOPs", format_flops),
}
"""By key of `exports.numbers`: the results of a group, then its costs."""

REACHED = tuple(QUANTITIES)[:3]
COST = tuple(QUANTITIES)[3:]
