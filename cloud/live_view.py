"""What a person sees while a pod trains: state, progress, loss and dollars in one line, and the
log's end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from cloud.budget import Budget

EVERY_SECONDS = 300.0
"""At the latest, a line is printed."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """What is shown of a pod.

    Attributes:
        phase: What it does.
        step: Steps done, of `steps`; None before the first.
        steps: Of the run.
        val_loss: The last validation loss in nats; None before the first.
        runs: Of a sweep, those that are complete; None for a run.
        trouble: What does not answer just now.
        log: The last line of the log.
    """

    phase: str
    step: int | None = None
    steps: int | None = None
    val_loss: float | None = None
    runs: int | None = None
    trouble: str = ""
    log: str = ""


class LiveView:
    """Prints a line when something has changed that matters, else every 300 s.

    Args:
        say: Prints a line.
        budget: What has been spent.
    """

    def __init__(self, say: Callable[[str], None], budget: Budget):
        self._say, self._budget = say, budget
        self._before: tuple[object, ...] | None = None
        self._at = 0.0

    def show(self, shown: Shown) -> None:
        """Print the state if it is new, or the last line is old."""
        elapsed = self._budget.elapsed()
        matters = (shown.phase, shown.val_loss, shown.runs, shown.trouble)
        if matters == self._before and elapsed - self._at < EVERY_SECONDS:
            return
        self._before, self._at = matters, elapsed
        self._say(self.line(shown))

    def line(self, shown: Shown) -> str:
        parts = [f"{elapsed_text(self._budget.elapsed())} {shown.phase}"]
        if shown.step is not None:
            parts.append(f"step {shown.step:,}" + (f" of {shown.steps:,}" if shown.steps else ""))
        if shown.val_loss is not None:
            parts.append(f"val loss {shown.val_loss:.4f}")
        if shown.runs is not None:
            parts.append(f"{shown.runs} runs complete")
        parts.append(f"${self._budget.spent():.2f} of ${self._budget.cap:.2f}")
        parts.append(f"${self._budget.rate():.2f}/h")
        if shown.trouble:
            parts.append(shown.trouble)
        if shown.log:
            parts.append(f"| {shown.log}")
        return "  ".join(parts)


def elapsed_text(seconds: float) -> str:
    """`0:05:07`."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
