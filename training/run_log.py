"""Open the log of a run: lock its directory and print the start report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from training.console import Console
from training.hardware import environment, peak_flops
from training.log_text import format_note
from training.provenance import plugin_digests
from training.report import all_settings, start_report
from training.resume import Start
from training.run import Run
from training.run_directory import locked
from training_logger import NoLog, TrainingLogger, refuse_existing_log, set_aside_unfinished_log


@contextlib.contextmanager
def own_folder(run: Run, start: Start, console: Console) -> Iterator[None]:
    """Lock the run directory, and rename the log of an unfinished run if a new run starts.

    Raises:
        UserError: If another process trains in it, or it contains a completed run.
    """
    with locked(run.folder):
        if start.checkpoint is None:
            if run.settings.training.resume == "auto":
                renamed = set_aside_unfinished_log(run.folder)
                if renamed:  # the run was killed before its first checkpoint, or lost them all
                    log = f"the log in {run.folder}, which has no checkpoint"
                    console.say(f"Renamed {log}, to {renamed}.")
            refuse_existing_log(run.folder)
        yield


def open_log(run: Run, start: Start, console: Console) -> TrainingLogger | NoLog:
    """Print the start report and open the log of a run. Only the first worker logs."""
    if not run.workers.first:
        return NoLog()
    training = run.settings.training
    machine = environment(run.device)
    machine["device_count"] = run.workers.size
    machine["parallelism"] = run.placement.parallelism  # the resolved value of "auto"
    machine["compiled"] = run.placement.compiles
    peak = peak_flops(run.device, run.dtype)
    console.say(start_report(run, machine["device"], peak))
    if training.verbose:
        console.say(all_settings(run.settings))
    for note in (*start.settings.notes, *start.notes):
        console.say(format_note(note))
    return TrainingLogger(
        run.folder,
        run.folder.name,
        config=run.config,
        architecture=run.cost,
        environment={**machine, "dtype": str(run.dtype).removeprefix("torch.")},
        data={
            **_start_weights(run),
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


def _start_weights(run: Run) -> dict[str, str | None]:
    """The digest of the weights that a run started from, if it has `init_from`."""
    if run.settings.training.init_from == "none":
        return {}
    return {"init_from_sha256": run.init_from_sha256}
