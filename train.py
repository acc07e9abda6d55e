"""Train the architecture described by config files and flags, and log its cost.

python train.py config/arch_llama.py --max_iters=100
python train.py --help
"""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import configurator
from cli import run_cli
from configurator import Settings
from data.batches import TrainingBatches
from data.dataset import Dataset
from data.dataset_lookup import prepare_if_missing
from data.prefetch import prefetch
from data.validation import ValidationWindows
from interop.huggingface import load_weights
from interop.starting_model import new_settings, refuse_other_tokenizer
from recipe.objectives import make_objective, validation_loss
from recipe.optimizers import make_optimizer
from recipe.qk_clip import clip_attention_logits, measures_logits, measuring_flops
from recipe.schedules import learning_rate_at
from training.base_model import BaseDigests, adapt_base, load_start
from training.clock import Stopwatch
from training.compiling import compilation
from training.console import Console
from training.dry_run import dry_run, split_dry_run
from training.hardware import (
    autocast,
    memory_stats,
    prepare_device,
    resolve_device,
    resolve_dtype,
    seed_everything,
)
from training.memory import ExpectedMemory
from training.optim import clip_gradients, set_learning_rate
from training.parallel import Replicated, loss_scaler, new_placement
from training.preflight import fitting, refuse_machine
from training.resume import Start, find_resumed, start_from
from training.run import Run
from training.run_directory import run_directory
from training.run_log import open_log, own_folder
from training.samples import log_sample, sample_due
from training.saved_plugins import resumed_plugins
from training.saving import CheckpointSaver
from training.signals import StopRequest
from training.step_guard import StepGuard
from training.step_means import StepMeans
from training.text_losses import save_text_losses
from training.workers import ALONE, Workers, join_workers
from training_logger import NoLog, TrainingLogger, refuse_existing_log
from user_files import rerun_plugins


def main(argv: list[str]) -> None:
    """Train as specified on the command line. Raises UserError for user-fixable errors."""
    train_run(argv)


def train_run(argv: list[str], quiet: bool = False) -> Path | None:
    """Like `main`, but returns the run directory; None with --dry_run or --print_config.

    With `quiet`, prints nothing about the run; the log is unchanged.
    """
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(join_workers())
        silent = quiet or not workers.first
        console = Console(silent=silent)
        with workers.together():
            assumed, argv = split_dry_run(argv)
        argv = workers.only_first(lambda: resumed_plugins(argv))
        with workers.together():
            asked = configurator.read(argv)
        found = workers.only_first(lambda: find_resumed(asked))
        with workers.together():
            start = start_from(asked, found, new_settings)
        if asked.print_config or assumed:
            if workers.first and asked.print_config:
                print(configurator.settings_table(start.settings))
            if workers.first and assumed:
                print(dry_run(start.settings, assumed))
            return None
        training = start.settings.training
        precision = torch.get_float32_matmul_precision()  # `prepare_device` changes it
        stack.callback(torch.set_float32_matmul_precision, precision)
        workers = workers.arranged(training.hang_timeout, training.tensor_parallel)
        stack.enter_context(workers.ending_together())
        run = set_up(start, workers, quiet)
        workers.only_first(lambda: stack.enter_context(own_folder(run, start, console)))
        stop = stack.enter_context(StopRequest(silent=silent))
        log = stack.enter_context(open_log(run, start, console))
        fit(run, log, stop)
        return run.folder


# Setting up


def set_up(start: Start, workers: Workers = ALONE, quiet: bool = False) -> Run:
    """Prepare everything for the next step. Raises UserError for user-fixable errors."""
    training = start.settings.training
    with workers.together():
        device = workers.device(resolve_device(training.device))
        dtype = resolve_dtype(training.dtype, device)
        refuse_machine(start.settings, device, dtype, workers)
        if training.resume == "none":
            refuse_existing_log(Path(training.out_dir) / training.run_name)
    folder = workers.first_then_all(
        lambda: prepare_if_missing(training.dataset, start.checkpoint is None, quiet)
    )
    with workers.together():
        dataset = Dataset.open(folder, training.sequence_length)
        if start.checkpoint is None:
            refuse_other_tokenizer(training.init_from, dataset)
        settings = start.settings.for_data(dataset.vocab_size)
    prepare_device(device, tf32=training.tf32)
    compiled = workers.only_first(lambda: compilation(settings, device, dtype, workers.size))
    with workers.together():
        fits = fitting(settings, device, dtype, compiled.compiles, workers)
    parallelism = workers.first_in_common(list(fits))
    placement = new_placement(parallelism, training, workers, device, compiled.compiles)
    with workers.together():
        run = built(start, settings, dataset, placement, dtype, fits[parallelism])
    run.compilation = compiled
    # A step may leave parameters of custom parts unused.
    run.model = placement.trained_form(run.network, some_unused=bool(settings.plugins))
    # Created last, so that a failure leaves no empty folder.
    run.folder = workers.only_first(
        lambda: (
            start.run_folder
            or run_directory(Path(training.out_dir), training.run_name, run.settings.short_name)
        )
    )
    return run


def built(
    start: Start,
    settings: Settings,
    dataset: Dataset,
    placement: Replicated,
    dtype: torch.dtype,
    memory: ExpectedMemory | None,
) -> Run:
    """Build the run and its model, still without run directory and gradient averaging."""
    training, device = settings.training, placement.device
    seed_everything(training.seed)
    rerun_plugins(settings.plugins)
    network = placement.new_model(settings.model)
    init_from_sha256 = load_start(network, training, start.state, placement, load_weights)
    base = adapt_base(network, training, BaseDigests.of_state(start.state), device)
    optimizer = make_optimizer(network, training)
    optimizer_flops = optimizer.step_flops() + measuring_flops(network, training)
    updates = placement.updates(network, optimizer)
    windows = (training.sequence_length, training.batch_size, training.eval_tokens)
    run = Run(
        settings=settings,
        folder=Path(),
        dataset=dataset,
        validation=ValidationWindows(dataset.val, dataset.token_bytes, *windows),
        dtype=dtype,
        memory=memory,
        placement=placement,
        network=network,
        model=network,
        objective=make_objective(training),
        optimizer=optimizer,
        optimizer_flops=optimizer_flops,
        updates=updates,
        scaler=loss_scaler(device, dtype, placement.workers),
        guard=StepGuard(optimizer, training.max_bad_steps, updates.gradients),
        watch=Stopwatch(device),
        init_from_sha256=init_from_sha256,
        base=base,
    )
    if start.checkpoint is not None:
        run.restore(start)
    return run


# The loop


def fit(run: Run, log: TrainingLogger | NoLog, stop: StopRequest) -> None:
    """Train until the run ends or the user asks to stop."""
    training = run.settings.training
    batches = TrainingBatches(
        run.dataset.train,
        training.sequence_length,
        training.batch_size,
        training.gradient_accumulation_steps,
        training.data_seed,
        run.workers.data_rank,
        run.workers.data_size,
    )
    last_save = time.monotonic()
    with (
        prefetch(batches, run.step, training.max_iters, run.device) as prefetched,
        CheckpointSaver(run, log) as saver,
    ):
        while True:
            minutes = (time.monotonic() - last_save) / 60
            if run.evaluation_due:
                saves = validate(run, log, stop) and run.step > 0
            else:
                saves = run.workers.any(minutes >= training.checkpoint_minutes > 0)
            if saves:
                with log.pause("saving a checkpoint"):
                    saver.save()
                last_save = time.monotonic()
            if sample_due(run):
                log_sample(run, log)
            run.workers.note(run.step)
            stopped = run.workers.any(bool(stop.requested) or saver.poll())
            if run.over or stopped:
                break
            train_and_log(run, log, *next(prefetched))
        if stopped and not run.finished:
            saver.finish()  # raises if a failed checkpoint stopped the run
            log.interrupted()
            if run.step and run.saved_at != run.step:
                saver.save()
            signal = stop.requested or "a signal to another worker"
            log.say(f"{signal} received: stopped after {run.step} steps.")


def train_and_log(run: Run, log: TrainingLogger | NoLog, inputs: Tensor, targets: Tensor) -> None:
    """Run the next step, and log it if due; only logging waits for the device."""
    training = run.settings.training
    done = run.step + 1
    logs = done % training.log_interval == 0 or done == training.max_iters
    learning_rate = learning_rate_at(run.position, training)

    run.watch.start()
    run.workers.separate_randomness(training.seed, run.step)
    means = train_step(run, inputs, targets, learning_rate, statistics=logs)
    run.advance()
    log.advance(done)
    stuck = run.workers.any(run.guard.stuck())
    if not (logs or run.over or stuck):  # the last two are known only after the step
        return
    report, (terms, metrics) = run.guard.read(), means.read()
    seconds, steps = run.watch.lap(), done - run.logged_at
    run.logged_at = done
    log.log_step(
        iter=done,
        loss=report.loss,
        terms=terms,
        metrics=metrics,
        lr=learning_rate,
        time_ms=1000 * seconds / steps,
        tokens_seen=run.tokens_seen,
        tokens_per_second=steps * training.tokens_per_step / seconds,
        memory=run.workers.largest(memory_stats(run.device)) if logs else memory_stats(run.device),
        gradients=report.gradients,
        bad_steps=report.bad_steps,
        share_done=run.share_done,
    )
    run.guard.stop_if_stuck(report)


def train_step(
    run: Run, inputs: Tensor, targets: Tensor, learning_rate: float, *, statistics: bool
) -> StepMeans:
    """Run an optimizer step over micro-batches; inputs and targets are (micro-batches, B, T).

    A step with a non-finite loss or gradient changes nothing. Returns the means over micro-batches.
    """
    training, means = run.settings.training, StepMeans(len(inputs))
    measures = measures_logits(training, logs=statistics)
    for index, (x, y) in enumerate(zip(inputs, targets, strict=True), start=1):
        with run.placement.accumulating(run.model, last=index == len(inputs)):
            with autocast(run.device, run.dtype):
                output = run.model(x, y, objective=run.objective, measures=measures)
            run.scaler.scale(output.loss / len(inputs)).backward()
        means.add(output)
    means.share(run.workers)
    run.updates.take_gradients()
    run.scaler.unscale_(run.optimizer)
    norm = run.guard.check(means.output.loss, statistics=statistics)
    clip_gradients(run.optimizer, norm, training.grad_clip)
    set_learning_rate(run.optimizer, learning_rate)
    if run.guard.allows_update():
        run.optimizer.step()
    run.updates.give_parameters()
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    clip_attention_logits(run.network, means.output.metrics, training.qk_clip, run.guard.good)
    run.network.after_step(means.output.metrics, run.guard.good)
    return means


# Evaluating


def validate(run: Run, log: TrainingLogger | NoLog, stop: StopRequest) -> bool:
    """Evaluate and log. Returns False if the user asked to stop before it finished."""
    run.watch.stop()
    with log.pause(f"validating on {run.validation.tokens:,} tokens"):
        losses = evaluation_losses(run, stop)
    if losses is None:
        return False
    run.evaluated_at, run.val_loss = run.step, math.fsum(losses) / len(losses)
    nats = run.val_loss * run.validation.tokens
    if run.over and run.workers.first:
        save_text_losses(run.folder, run.validation.block_means(losses))
    log.log_eval(
        iter=run.step,
        val_loss=run.val_loss,
        val_bits_per_byte=nats / math.log(2) / run.validation.bytes,
        tokens_seen=run.tokens_seen,
        seconds=run.watch.total,
    )
    return True


@torch.no_grad()
def evaluation_losses(run: Run, stop: StopRequest) -> np.ndarray | None:
    """The loss of each validation window in nats per token, shape (windows,); None if the user
    asked to stop. The windows are divided among the workers."""
    run.model.eval()
    losses = torch.zeros(run.validation.windows, device=run.device)
    parts = losses.split(run.settings.training.batch_size)
    stopped = False
    for mine, (part, (x, y)) in run.workers.share(zip(parts, run.validation, strict=True)):
        stopped = run.workers.any(bool(stop.requested))
        if stopped:
            break
        with autocast(run.device, run.dtype):
            output = run.model(x.to(run.device), y.to(run.device), objective=validation_loss)
        if mine:
            part.copy_(output.terms["cross_entropy"])
    run.model.train()
    return None if stopped else run.workers.sum(losses).cpu().numpy()


if __name__ == "__main__":
    run_cli(main)
