"""Train the architecture that config files and flags describe, and log what it costs.

python train.py config/arch_llama.py --max_iters=100
python train.py --help
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import configurator
from configurator import Settings
from model_builder import GPT
from options import ConfigError, Problem
from training.checkpoint import (
    load_model_weights,
    load_optimizer,
    load_rng,
    save_checkpoint,
)
from training.clock import Stopwatch
from training.data import (
    Dataset,
    TrainingBatches,
    ValidationWindows,
    prefetch,
    prepare_if_missing,
)
from training.hardware import (
    autocast,
    environment,
    memory_stats,
    peak_flops,
    resolve_device,
    resolve_dtype,
    seed_everything,
)
from training.optim import Diverged, Stepper, learning_rate_at, make_optimizer
from training.report import start_report
from training.resume import Start, find_start
from training.signals import StopRequest
from training_logger import TrainingLogger


@dataclasses.dataclass
class Run:
    """What a run consists of, and how far it is.

    Attributes:
        network: The model; `model` is the same, compiled where that is asked for.
        step: Optimizer steps done.
        evaluated_at: The step of the last validation, None before the first.
        val_loss: What that gave, in nats per token.
        saved_at: The step of the last checkpoint, None before the first.
        watch: Time spent in training steps, validation and saving not counted.
        logged_at: The step of the last log line.
    """

    settings: Settings
    folder: Path
    dataset: Dataset
    validation: ValidationWindows
    device: torch.device
    dtype: torch.dtype
    network: GPT
    model: nn.Module
    optimizer: torch.optim.AdamW
    stepper: Stepper
    watch: Stopwatch
    step: int = 0
    logged_at: int = 0
    evaluated_at: int | None = None
    val_loss: float | None = None
    saved_at: int | None = None

    @property
    def tokens_seen(self) -> int:
        return self.step * self.settings.training.tokens_per_step


# Setting up


def set_up(start: Start) -> Run:
    """Everything in place for the first step. Raises ValueError for what a user can mend."""
    training = start.settings.training
    device = resolve_device(training.device)
    dtype = resolve_dtype(training.dtype, device)
    dataset = Dataset.open(prepare_if_missing(training.dataset), training.sequence_length)
    settings = with_run_name(with_vocabulary(start.settings, dataset))
    refuse_attention(settings, device, dtype)

    seed_everything(training.seed)
    network = GPT(settings.model).to(device)
    optimizer = make_optimizer(network, training)
    run = Run(
        settings=settings,
        folder=start.run_folder or Path(training.out_dir) / settings.training.run_name,
        dataset=dataset,
        validation=ValidationWindows(
            dataset.val,
            dataset.token_bytes,
            training.sequence_length,
            training.batch_size,
            training.eval_tokens,
        ),
        device=device,
        dtype=dtype,
        network=network,
        model=torch.compile(network) if compiles(settings, device) else network,
        optimizer=optimizer,
        stepper=Stepper(optimizer, training, dtype),
        watch=Stopwatch(device),
    )
    if start.checkpoint:
        restore(run, start)
    return run


def with_vocabulary(settings: Settings, dataset: Dataset) -> Settings:
    """The settings with the data's vocabulary, unless one is set that holds it.

    A large vocabulary is padded to a multiple of 64, which matmuls on GPUs are faster at.
    """
    needed = dataset.vocab_size
    if "vocab_size" not in settings.explicit:
        padded = needed if needed < 4096 else math.ceil(needed / 64) * 64
        return dataclasses.replace(settings, model=settings.model.changed(vocab_size=padded))
    if settings.model.vocab_size < needed:
        message = (
            f"vocab_size={settings.model.vocab_size} is too small for the {needed} tokens of "
            f"dataset={settings.training.dataset!r}; drop it, or raise it to {needed}."
        )
        raise ConfigError([Problem(("vocab_size", "dataset"), message)])
    return settings


def with_run_name(settings: Settings) -> Settings:
    """The settings with a name for the run where it is `auto`: preset, date and time."""
    training = settings.training
    if training.run_name != "auto":
        return settings
    name = f"{settings.arch_preset}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    taken = {path.name for path in Path(training.out_dir).glob(f"{name}*")}
    if name in taken:
        name = next(f"{name}-{n}" for n in range(2, 2 + len(taken)) if f"{name}-{n}" not in taken)
    named = dataclasses.replace(training, run_name=name)
    return dataclasses.replace(settings, training=named)


def refuse_attention(settings: Settings, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ConfigError where the attention backend cannot train on this device in this dtype."""
    refusals = settings.model.backend_refusals(device.type, dtype)
    if refusals:
        raise ConfigError([Problem(("attention_backend",), refusal) for refusal in refusals])


def compiles(settings: Settings, device: torch.device) -> bool:
    """Whether the model is compiled."""
    wanted = settings.training.compile
    return device.type == "cuda" if wanted == "auto" else bool(wanted)


def restore(run: Run, start: Start) -> None:
    """Put a run where its checkpoint was saved, random generators included."""
    saved = start.state["data_fingerprint"]
    if saved != run.dataset.fingerprint:
        raise ValueError(
            f"the run to resume was trained on data of fingerprint {saved[:12]}, and "
            f"{run.settings.training.dataset!r} now has {run.dataset.fingerprint[:12]}; prepare "
            "the same data again, or start a new run."
        )
    load_model_weights(start.checkpoint, run.network)
    load_optimizer(start.checkpoint, run.network, run.optimizer)
    load_rng(start.checkpoint)
    run.stepper.load_state_dict(start.state["stepper"])
    run.step = run.saved_at = run.logged_at = start.state["step"]
    run.evaluated_at = start.state["evaluated_at"]
    run.watch = Stopwatch(run.device, start.state["seconds"])


def open_log(run: Run, resumed: bool) -> TrainingLogger:
    """The log of a run, its start report printed."""
    training, network = run.settings.training, run.network
    machine = {**environment(run.device), "dtype": str(run.dtype).removeprefix("torch.")}
    peak = peak_flops(run.device, run.dtype)
    print(
        start_report(
            run.settings,
            network,
            run.dataset,
            run.validation,
            run.device,
            run.dtype,
            machine["device"],
            peak,
            run.model is not network,
        )
    )
    length = training.sequence_length
    return TrainingLogger(
        run.folder,
        run.folder.name,
        config=run.settings.to_dict(),
        architecture={
            "name": network.config.architecture_name,
            "parameters": network.num_parameters(),
            "flops_per_token": network.flops_per_token(length),
            "flops_per_token_causal": network.flops_per_token(length, causal=True),
            "attention_ffn_ratio": network.attention_ffn_ratio(length),
        },
        environment=machine,
        data={
            "dataset": training.dataset,
            "fingerprint": run.dataset.fingerprint,
            "tokenizer": run.dataset.meta["tokenizer"]["name"],
            "train_tokens": len(run.dataset.train),
            "val_tokens": len(run.dataset.val),
            "val_tokens_read": run.validation.tokens,
        },
        peak_flops=peak,
        max_iters=training.max_iters,
        resume_step=run.step if resumed else None,
    )


# The loop


def fit(run: Run, log: TrainingLogger, stop: StopRequest) -> None:
    """Train from where the run is to its end, or until the user asks to stop."""
    training = run.settings.training
    batches = TrainingBatches(
        run.dataset.train,
        training.sequence_length,
        training.batch_size,
        training.gradient_accumulation_steps,
        training.data_seed,
    )
    last_save = time.monotonic()
    with prefetch(batches, run.step, training.max_iters, run.device) as prefetched:
        while True:
            minutes = (time.monotonic() - last_save) / 60
            if evaluation_due(run):
                saves = validate(run, log, stop) and run.step > 0
            else:
                saves = minutes >= training.checkpoint_minutes > 0
            if saves:
                save(run, log)
                last_save = time.monotonic()
            if run.step >= training.max_iters or stop.requested:
                break
            train_and_log(run, log, *next(prefetched))
    if stop.requested and (run.step < training.max_iters or evaluation_due(run)):
        log.say(f"{stop.requested} received after {run.step} steps: the run stops here.")
        log.interrupted()
        if run.step and run.saved_at != run.step:
            save(run, log)


def evaluation_due(run: Run) -> bool:
    """Whether the weights as they are now are to be validated, and have not been."""
    training = run.settings.training
    at_interval = run.step % training.eval_interval == 0 or run.step == training.max_iters
    return at_interval and run.evaluated_at != run.step


def train_and_log(run: Run, log: TrainingLogger, inputs: Tensor, targets: Tensor) -> None:
    """The next step, logged where that is due: the only wait for the device."""
    training = run.settings.training
    done = run.step + 1
    logs = done % training.log_interval == 0 or done == training.max_iters
    learning_rate = learning_rate_at(run.step, training)

    run.watch.start()
    train_step(run, inputs, targets, learning_rate, statistics=logs)
    run.step = done
    log.advance(done)
    if not logs:
        return
    report = run.stepper.read()
    seconds, steps = run.watch.lap(), done - run.logged_at
    run.logged_at = done
    log.log_step(
        iter=done,
        loss=report.loss,
        lr=learning_rate,
        time_ms=1000 * seconds / steps,
        tokens_seen=run.tokens_seen,
        tokens_per_second=steps * training.tokens_per_step / seconds,
        memory=memory_stats(run.device),
        gradients=report.gradients,
        bad_steps=report.bad_steps,
    )
    run.stepper.stop_if_stuck(report)


def train_step(
    run: Run, inputs: Tensor, targets: Tensor, learning_rate: float, *, statistics: bool
) -> None:
    """One update from micro-batches: inputs and targets are (micro-batches, B, T)."""
    total = torch.zeros((), device=run.device)
    for x, y in zip(inputs, targets, strict=True):
        with autocast(run.device, run.dtype):
            loss = run.model(x, y)[1] / len(inputs)
        run.stepper.backward(loss)
        total += loss.detach()
    run.stepper.step(total, learning_rate, statistics=statistics)


# Evaluating, saving


def validate(run: Run, log: TrainingLogger, stop: StopRequest) -> bool:
    """Evaluate and log; False where the user asked to stop before it was through."""
    run.watch.stop()
    losses = evaluation_losses(run, stop)
    if losses is None:
        return False
    nats = math.fsum(losses)
    run.evaluated_at, run.val_loss = run.step, nats / run.validation.tokens
    log.log_eval(
        iter=run.step,
        val_loss=run.val_loss,
        val_bits_per_byte=nats / math.log(2) / run.validation.bytes,
        tokens_seen=run.tokens_seen,
        seconds=run.watch.total,
    )
    return True


@torch.no_grad()
def evaluation_losses(run: Run, stop: StopRequest) -> list[float] | None:
    """Summed loss in nats of each batch of the validation set, or None once a stop is asked for."""
    run.model.eval()
    losses = []
    for x, y in run.validation:
        if stop.requested:
            break
        with autocast(run.device, run.dtype):
            loss = run.model(x.to(run.device), y.to(run.device))[1]
        losses.append(loss * y.numel())
    run.model.train()
    return None if stop.requested else torch.stack(losses).tolist()


def save(run: Run, log: TrainingLogger) -> None:
    """Save a checkpoint that `--resume` goes on from."""
    run.watch.stop()
    path = save_checkpoint(
        run.folder / "checkpoints",
        step=run.step,
        model=run.network,
        optimizer=run.optimizer,
        state={
            "config": run.settings.to_dict(),
            "data_fingerprint": run.dataset.fingerprint,
            "tokenizer": run.dataset.meta["tokenizer"],
            "evaluated_at": run.evaluated_at,
            "seconds": run.watch.total,
            "stepper": run.stepper.state_dict(),
        },
        val_loss=run.val_loss if run.evaluated_at == run.step else None,
        plugins={Path(path).name: source for path, source in run.settings.plugins.items()},
        keep=run.settings.training.keep_checkpoints,
    )
    run.saved_at = run.step
    log.log_checkpoint(path, run.step)


def main(argv: list[str]) -> None:
    """Train; exits with status 1 and a message for what a user can mend."""
    try:
        start = find_start(configurator.load(argv))
        run = set_up(start)
    except ConfigError:
        raise
    except ValueError as error:
        sys.exit(str(error))
    for note in start.notes:
        print(note)
    with StopRequest() as stop:
        try:
            with open_log(run, resumed=start.checkpoint is not None) as log:
                fit(run, log, stop)
        except Diverged as error:
            sys.exit(str(error))


if __name__ == "__main__":
    configurator.run_cli(main)
