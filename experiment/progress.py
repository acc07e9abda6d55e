"""Running jobs with an engine, and telling a person how they go."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from experiment.engines import Engine
from experiment.jobs import COMPLETED, ENDED, FAILED, Job, Outcome
from experiment.overview import format_duration
from training.signals import StopRequest


def run_jobs(jobs: Sequence[Job], engine: Engine, stop: StopRequest) -> list[Outcome]:
    """Run the jobs that have not ended; those that failed come back."""
    waiting = [job for job in jobs if job.status not in ENDED]
    done = len(jobs) - len(waiting)
    if stop.requested or not jobs:
        return []
    if done:
        print(f"{done if waiting else 'all'} of {len(jobs)} runs are done already.")
    if not waiting:
        return []
    failed = []
    with Progress(waiting) as progress:
        for outcome in engine.run(waiting, lambda: stop.requested is not None):
            progress.show(outcome)
            if outcome and outcome.status == FAILED:
                failed.append(outcome)
    return failed


class Progress:
    """A line for every run that ended, and on a terminal a bar beneath, with the time left.

    What earlier sessions did of a run is no part of the work: it took none of this session's time.
    """

    def __init__(self, jobs: Sequence[Job]):
        self._left = {job.folder: job for job in jobs}
        self._runs = len(jobs)
        self._costs = {job.folder: job.cost * (1 - job.share_done) for job in jobs}
        self._began = time.monotonic()

    def __enter__(self) -> Progress:
        self._bar = tqdm(
            total=1.0,
            file=sys.stdout,
            dynamic_ncols=True,
            leave=False,
            disable=not sys.stdout.isatty(),
            bar_format="{percentage:3.0f}% |{bar}| {postfix} [{elapsed}, {remaining} left]",
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, outcome: Outcome | None) -> None:
        """Move on, and print how a run went where one ended."""
        if outcome:
            self._left.pop(outcome.job.folder, None)
            if outcome.status == FAILED:
                self._costs[outcome.job.folder] = 0.0  # how soon it failed tells nothing of others
            tqdm.write(self._line(outcome), file=sys.stdout)
            sys.stdout.flush()
        if not self._bar.disable:
            self._bar.set_postfix_str(f"{self._ended}/{self._runs} runs", refresh=False)
            self._bar.update(self._share_done - self._bar.n)

    @property
    def _ended(self) -> int:
        return self._runs - len(self._left)

    @property
    def _share_done(self) -> float:
        """Of this session's work, from 0 to 1; runs under way count as far as they are."""
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
