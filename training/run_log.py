"""The log of a run: its folder, which one process owns, and what is told before the first step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from training.console import Console
from training.hardware import environment, peak_flops
from training.provenance import plugin_digests
from training.report import all_settings, start_report
from training.resume import Start
from training.run import Run
from training.run_directory import locked
from training_logger import NoLog, TrainingLogger, refuse_existing_log, set_aside_unfinished_log


@contextlib.contextmanager
def own_folder(run: Run, start: Start, console: Console) -> Iterator[None]:
    """Keep the run directory for this process, and make room in it for the log of a new run.

    Raises:
        UserError: another process trains in it, or it holds a run that completed.
    """
    with locked(run.folder):
        if start.checkpoint is None:
            if run.settings.training.resume == "auto":
                renamed = set_aside_unfinished_log(run.folder)
                if renamed:  # its run was killed before it saved anything, or lost what it saved
                    console.say(f"The log in {run.folder} has no checkpoint: renamed to {renamed}.")
            refuse_existing_log(run.folder)
        yield


def open_log(run: Run, start: Start, console: Console) -> TrainingLogger | NoLog:
    """The log of a run, after its start report is printed; the first worker keeps it."""
    if not run.workers.first:
        return NoLog()
    training = run.settings.training
    machine = environment(run.device)
    machine["device_count"] = run.workers.size
    machine["parallelism"] = run.placement.parallelism  # what auto came to
    machine["compiled"] = run.placement.compiles
    peak = peak_flops(run.device, run.dtype)
    console.say(start_report(run, machine["device"], peak))
    if training.verbose:
        console.say(all_settings(run.settings))
    for note in (*start.settings.notes, *start.notes):
        console.say(note)
    return TrainingLogger(
        run.folder,
        run.folder.name,
        config=run.config,
        architecture=run.cost,
        environment={**machine, "dtype": str(run.dtype).removeprefix("torch.")},
        data={
            "dataset": training.dataset,
            "fingerprint": run.dataset.fingerprint,
            "tokenizer": run.dataset.meta["tokenizer"]["name"],
            "train_tokens": len(run.dataset.train),
            "val_tokens": len(run.dataset.val),
            "val_tokens_read": run.validation.tokens,
            "val_fingerprint": run.validation.fingerprint,
        },
        peak_flops=peak and peak * run.workers.size,
        max_iters=None if training.max_minutes else training.max_iters,
        plugins=plugin_digests(run.settings.plugins),
        roles=run.settings.roles,
        defaults=run.settings.defaults,
        resume=start.resume_point,
        sinks=training.log_sinks,
        console=console,
        brief=training.console == "brief",
        one_of_several=run.workers.size > 1,
    )
