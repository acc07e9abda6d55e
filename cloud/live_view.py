"""Console output while a pod trains: state, progress, loss, dollars and the end of the log in one
line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from cloud.budget import Budget
from training.log_text import format_clock

EVERY_SECONDS = 300.0
"""Maximum seconds between two lines."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """The content of a line.

    Attributes:
        phase: What the pod is doing.
        step: Steps done; None before the first.
        steps: Steps of the run.
        val_loss: Last validation loss in nats per token; None before the first.
        runs: Completed runs of a sweep; None for a single run.
        trouble: What is not responding; empty if nothing.
        log: Last line of the log.
    """

    phase: str
    step: int | None = None
    steps: int | None = None
    val_loss: float | None = None
    runs: int | None = None
    trouble: str = ""
    log: str = ""


class LiveView:
    """Prints a line when something important changes, and at least every 300 s.

    Args:
        say: Prints a line.
        budget: The amounts spent.
    """

    def __init__(self, say: Callable[[str], None], budget: Budget):
        self._say, self._budget = say, budget
        self._before: tuple[object, ...] | None = None
        self._at = 0.0

    def show(self, shown: Shown) -> None:
        """Print the state if it has changed, or if the last line is old."""
        elapsed = self._budget.elapsed()
        important = (shown.phase, shown.val_loss, shown.runs, shown.trouble)
        if important == self._before and elapsed - self._at < EVERY_SECONDS:
            return
        self._before, self._at = important, elapsed
        self._say(self.line(shown))

    def line(self, shown: Shown) -> str:
        """The state in one line."""
        parts = [f"{format_clock(self._budget.elapsed())} {shown.phase}"]
        if shown.step is not None:
            parts.append(f"step {shown.step:,}" + (f" of {shown.steps:,}" if shown.steps else ""))
        if shown.val_loss is not None:
            parts.append(f"val loss {shown.val_loss:.4f}")
        if shown.runs is not None:
            parts.append(f"{shown.runs} runs completed")
        parts.append(f"${self._budget.spent():.2f} of ${self._budget.cap:.2f}")
        parts.append(f"${self._budget.rate():.2f}/h")
        if shown.trouble:
            parts.append(shown.trouble)
        if shown.log:
            parts.append(f"| {shown.log}")
        return "  ".join(parts)
