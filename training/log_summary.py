"""The `summary` of a run.json, computed from the records of the log."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping
from typing import Any


class RunningMedian:
    """The median of the numbers added so far."""

    def __init__(self) -> None:
        self._ordered: list[float] = []

    def add(self, value: float | None) -> None:
        if value is not None:
            insort(self._ordered, value)

    @property
    def value(self) -> float | None:
        """The median; None if no number was added."""
        count = len(self._ordered)
        if not count:
            return None
        low, high = self._ordered[(count - 1) // 2], self._ordered[count // 2]
        return low if count % 2 else (low + high) / 2


class RunSummary:
    """The summary of a run so far, updated record by record; unknown values are null.

    The medians exclude the first log interval, which includes warm-up and compilation, unless it is
    the only one. `total_flops` counts training by the full (not the causal) convention.
    """

    def __init__(self, flops_per_token: int):
        self._flops_per_token = flops_per_token
        self._first_interval: Mapping[str, Any] | None = None
        self._last_interval: Mapping[str, Any] = {}
        self._final: Mapping[str, Any] = {}
        self.best: Mapping[str, Any] | None = None
        """The evaluation with the lowest loss."""
        self._total_tokens = 0
        self._peak_memory: int | None = None
        self._tokens_per_second = RunningMedian()
        self._mfu_percent = RunningMedian()

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a record of metrics.jsonl; samples are ignored."""
        if line["kind"] == "sample":
            return
        self._total_tokens = max(self._total_tokens, line["tokens_seen"])
        if line["kind"] == "eval":
            self._final = line
            loss = line["val_loss"]
            if loss is not None and (self.best is None or loss < self.best["val_loss"]):
                self.best = line
        else:
            self._add_interval(line)

    def _add_interval(self, line: Mapping[str, Any]) -> None:
        self._last_interval = line
        peaks = (self._peak_memory, line["memory"].get("peak"))
        self._peak_memory = max((peak for peak in peaks if peak is not None), default=None)
        if self._first_interval is None:
            self._first_interval = line
        else:
            self._tokens_per_second.add(line["tokens_per_second"])
            self._mfu_percent.add(line["mfu"]["mfu_percent"])

    def to_dict(self, wall_seconds: float) -> dict[str, Any]:
        """The `summary` object of run.json."""
        best, only = self.best or {}, self._first_interval
        if only is not None and only is not self._last_interval:
            only = None
        return {
            "final_val_loss": self._final.get("val_loss"),
            "final_val_bits_per_byte": self._final.get("val_bits_per_byte"),
            "best_val_loss": best.get("val_loss"),
            "best_val_bits_per_byte": best.get("val_bits_per_byte"),
            "best_val_iter": best.get("iter"),
            "total_tokens": self._total_tokens,
            "total_flops": self._total_tokens * self._flops_per_token,
            "wall_seconds": wall_seconds,
            "median_tokens_per_second": (
                only["tokens_per_second"] if only else self._tokens_per_second.value
            ),
            "median_mfu_percent": only["mfu"]["mfu_percent"] if only else self._mfu_percent.value,
            "peak_memory_bytes": self._peak_memory,
            "bad_steps": self._last_interval.get("bad_steps", 0),
        }


class TimeLeft:
    """Estimates the remaining time of a run from its pace since the first log line of this start,
    including validation and saving.

    Attributes:
        seconds: Remaining seconds as of the last log line; None before the first.
    """

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._first: tuple[float, float] | None = None

    def update(self, done: float, wall_seconds: float, training_seconds: float) -> None:
        """Update the estimate at a log line.

        Args:
            done: Fraction of the run that is done.
            wall_seconds: Wall time so far.
            training_seconds: Training time so far, which gives the pace at the first log line.
        """
        if self._first is None:
            self._first = done, wall_seconds
        share, seconds = done - self._first[0], wall_seconds - self._first[1]
        self.seconds = (1 - done) * (seconds / share if share else training_seconds / done)


def summarize(
    lines: Iterable[Mapping[str, Any]], *, flops_per_token: int, wall_seconds: float
) -> dict[str, Any]:
    """The summary of the records of a metrics.jsonl; see `RunSummary`."""
    summary = RunSummary(flops_per_token)
    for line in lines:
        summary.add(line)
    return summary.to_dict(wall_seconds)
