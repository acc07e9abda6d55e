"""Run jobs with an engine and report their progress."""

from __future__ import annotations

import time
from collections.abc import Sequence

from experiment.engines import Engine
from experiment.jobs import COMPLETED, ENDED, FAILED, Job, Outcome
from training.console import Console
from training.signals import StopRequest
from training_logger import format_duration


def run_jobs(
    jobs: Sequence[Job], engine: Engine, stop: StopRequest, console: Console
) -> list[Outcome]:
    """Run the jobs that have not ended; returns the outcomes of those that failed."""
    waiting = [job for job in jobs if job.status not in ENDED]
    done = len(jobs) - len(waiting)
    if stop.requested or not jobs:
        return []
    if done:
        console.say(f"{done if waiting else 'all'} of {len(jobs)} runs are already done.")
    if not waiting:
        return []
    failed = []
    with Progress(waiting, console) as progress:
        for outcome in engine.run(waiting, lambda: stop.requested is not None):
            progress.show(outcome)
            if outcome and outcome.status == FAILED:
                failed.append(outcome)
    return failed


class Progress:
    """Prints a line for every run that ends, and on a terminal a progress bar with the time left.

    Progress made in earlier sessions is excluded, since it took none of this session's time.
    """

    def __init__(self, jobs: Sequence[Job], console: Console):
        self._console = console
        self._left = {job.folder: job for job in jobs}
        self._runs = len(jobs)
        self._costs = {job.folder: job.cost * (1 - job.share_done) for job in jobs}
        self._began = time.monotonic()

    def __enter__(self) -> Progress:
        look = "{percentage:3.0f}% |{bar}| {postfix} [{elapsed}, {remaining} left]"
        self._console.open_bar(0.0, 1.0, bar_format=look)
        return self

    def __exit__(self, *_: object) -> None:
        self._console.close()

    def show(self, outcome: Outcome | None) -> None:
        """Update the bar, and print the outcome of a run that ended."""
        if outcome:
            self._left.pop(outcome.job.folder, None)
            if outcome.status == FAILED:
                self._costs[outcome.job.folder] = 0.0  # its duration says nothing about others
            self._console.say(self._line(outcome))
        self._console.advance(self._share_done, f"{self._ended}/{self._runs} runs")

    @property
    def _ended(self) -> int:
        return self._runs - len(self._left)

    @property
    def _share_done(self) -> float:
        """Fraction of this session's work that is done, from 0 to 1, including runs in progress."""
        to_do = sum(
            min(job.cost * (1 - job.share_done), self._costs[folder])
            for folder, job in self._left.items()
        )
        return 1 - to_do / (sum(self._costs.values()) or 1.0)

    def _line(self, outcome: Outcome) -> str:
        fields = [
            f"{self._ended:>{len(str(self._runs))}}/{self._runs}",
            outcome.job.title,
            _result(outcome),
            format_duration(outcome.seconds),
        ]
        share, spent = self._share_done, time.monotonic() - self._began
        if self._left and share > 0:
            fields.append(f"about {format_duration(spent * (1 / share - 1))} left")
        return "  ".join(fields)


def _result(outcome: Outcome) -> str:
    if outcome.status == COMPLETED:
        loss = outcome.job.loss
        return "no finite val loss" if loss is None else f"val loss {loss:.4f}"
    return outcome.status
