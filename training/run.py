"""A run: its settings, data, model and optimizer, made ready for the next step."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from components.part import own_stream
from configurator import Settings
from data.dataset import Dataset
from data.validation import ValidationWindows
from errors import ConfigError, Problem, UserError
from model_builder import GPT
from training.checkpoint import load_model_weights, load_optimizer, load_rng
from training.claim import make_run_folder
from training.clock import Stopwatch
from training.config import TrainingConfig
from training.hardware import device_name, has_tf32, total_memory
from training.memory import (
    ExpectedMemory,
    batch_bytes,
    expected_memory,
    least_parameters,
    least_state,
)
from training.optim import Stepper
from training.resume import Start
from training.sinks import missing_packages
from training.smoke import check_own_parts
from training_logger import format_bytes
from user_files import run_source

PADDED_FROM = 4096
"""Vocabularies of at least so many tokens are padded to a multiple of 64, for faster matmuls."""


@dataclasses.dataclass
class Run:
    """What a run consists of, and how far it is.

    Attributes:
        memory: What it is expected to need; None where that cannot be told.
        network: The model; `model` is the same, compiled where that is asked for.
        watch: Time spent in training steps, validation and saving not counted.
        step: Optimizer steps done.
        seconds: What `watch` showed after the last of them.
        logged_at: The step of the last log line.
        evaluated_at: The step of the last validation, None before the first.
        val_loss: What that gave, in nats per token; None where it is not known.
        saved_at: The step of the last checkpoint, None before the first.
    """

    settings: Settings
    folder: Path
    dataset: Dataset
    validation: ValidationWindows
    device: torch.device
    dtype: torch.dtype
    memory: ExpectedMemory | None
    network: GPT
    model: nn.Module
    optimizer: torch.optim.AdamW
    stepper: Stepper
    watch: Stopwatch
    step: int = 0
    seconds: float = 0.0
    logged_at: int = 0
    evaluated_at: int | None = None
    val_loss: float | None = None
    saved_at: int | None = None

    @property
    def tokens_seen(self) -> int:
        return self.step * self.settings.training.tokens_per_step

    def advance(self) -> None:
        """Count the step that was just given to the device."""
        self.step += 1
        self.seconds = self.watch.read()

    @property
    def position(self) -> float:
        """Where it is on the schedule of its learning rate, in steps.

        A share of the minutes stands for that share of max_iters, so that the schedule ends with
        the run whichever limit ends it (Geiping and Goldstein 2022, "Cramming", arXiv 2212.14034).
        """
        training = self.settings.training
        if training.max_minutes == 0:
            return self.step
        share = self.seconds / (60 * training.max_minutes)
        return max(self.step, share * training.max_iters)

    @property
    def over(self) -> bool:
        """Whether its steps are done, or its minutes spent."""
        return self.position >= self.settings.training.max_iters

    @property
    def finished(self) -> bool:
        """Whether it is over and validated."""
        return self.over and self.evaluated_at == self.step

    def restore(self, start: Start) -> None:
        """Go back to where a checkpoint was saved, random generators included.

        Raises:
            UserError: the data is not what the checkpoint was trained on.
        """
        saved, found = start.state["data_fingerprint"], self.dataset.fingerprint
        if saved != found:
            raise UserError(
                f"the run to resume was trained on data of fingerprint {saved[:12]}, but "
                f"dataset={self.settings.training.dataset!r} now has {found[:12]}; prepare the "
                "same data again, or start a new run."
            )
        load_model_weights(start.checkpoint, self.network)
        load_optimizer(start.checkpoint, self.network, self.optimizer)
        load_rng(start.checkpoint)
        self.stepper.load_state_dict(start.state["stepper"])
        self.step = self.saved_at = self.logged_at = start.state["step"]
        self.evaluated_at = start.state["evaluated_at"]
        self.val_loss = start.state["val_loss"]
        self.seconds = start.state["seconds"]
        self.watch = Stopwatch(self.device, self.seconds)


def refuse_machine(settings: Settings, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse what cannot be trained on a machine, whatever the data are.

    Raises:
        ConfigError: with every reason.
        UserError: a part of the user's own does not work; see `check_own_parts`.
    """
    problems = [
        *_size_problems(settings, device),
        *_plugin_problems(settings),
        *_tf32_problems(settings.training, device, dtype),
        *_log_problems(settings.training),
        *(
            Problem(("attention_backend",), refusal)
            for refusal in settings.model.backend_refusals(device.type, dtype)
        ),
    ]
    if problems:
        raise ConfigError(problems)
    check_own_parts(settings.model, device, dtype)


def _size_problems(settings: Settings, device: torch.device) -> Iterator[Problem]:
    """What can never fit, by arithmetic that takes no time and no memory."""
    model, training = settings.model, settings.training
    host = total_memory(torch.device("cpu"))
    batches = batch_bytes(training)
    if host is not None and batches > host:
        yield Problem(
            ("gradient_accumulation_steps", "batch_size", "sequence_length"),
            f"gradient_accumulation_steps={training.gradient_accumulation_steps} x "
            f"batch_size={training.batch_size} x sequence_length={training.sequence_length} are "
            f"{training.tokens_per_step} tokens a step, which need {format_bytes(batches)} for "
            f"inputs and targets, prefetched ones included, but the machine has "
            f"{format_bytes(host)}; lower one of them.",
        )
    available = total_memory(device)
    vocab_size = model.vocab_size if _fixes_vocabulary(settings) else 1
    state = least_state(model, vocab_size)
    if available is not None and state > available:
        yield Problem(
            ("n_layer", "n_embd", "vocab_size"),
            f"n_layer={model.n_layer} of n_embd={model.n_embd} needs at least "
            f"{format_bytes(state)} for weights, gradients and AdamW "
            f"({least_parameters(model, vocab_size)} parameters or more), but "
            f"{device_name(device)} has {format_bytes(available)}; lower n_layer, n_embd, n_head, "
            "head_dim or vocab_size.",
        )
    logits = 2 * training.batch_size * training.sequence_length * vocab_size
    if available is not None and logits > available:
        yield Problem(
            ("batch_size", "sequence_length", "vocab_size"),
            f"batch_size={training.batch_size} of sequence_length={training.sequence_length} needs "
            f"at least {format_bytes(logits)} for the logits of {vocab_size} tokens, but "
            f"{device_name(device)} has {format_bytes(available)}; lower batch_size, and raise "
            "gradient_accumulation_steps as much: the steps stay the same.",
        )


def fitting_memory(
    settings: Settings, device: torch.device, dtype: torch.dtype, compiled: bool
) -> ExpectedMemory | None:
    """What a run will need of memory; None if that cannot be told before it is tried.

    Raises:
        ConfigError: it is more than the device has, whatever else is in there.
    """
    too_large = list(_size_problems(settings, device))
    if too_large:
        raise ConfigError(too_large)
    model, training = settings.model, settings.training
    memory = expected_memory(
        model,
        training.batch_size,
        training.sequence_length,
        device.type,
        dtype,
        accumulates=training.gradient_accumulation_steps > 1,
    )
    available = total_memory(device)
    if memory is None or available is None:
        return memory
    batches = batch_bytes(training) if device.type == "cpu" else 0
    needed = memory.least(compiled) + batches
    if needed <= available:
        return memory
    message = (
        f"batch_size={training.batch_size} of sequence_length={training.sequence_length} needs "
        f"{'at least' if compiled else 'about'} {format_bytes(needed)} "
        f"({format_bytes(memory.state)} of it for weights, gradients and AdamW), but "
        f"{device_name(device)} has {format_bytes(available)}; lower "
        f"{_memory_fix(memory, available, training)}."
    )
    raise ConfigError([Problem(("batch_size", "sequence_length", "n_embd"), message)])


def _memory_fix(memory: ExpectedMemory, available: int, training: TrainingConfig) -> str:
    """What to lower of a run that does not fit."""
    if memory.state > available:
        return "n_layer, n_embd or vocab_size"
    if training.batch_size == 1:
        return "sequence_length"
    if memory.state + memory.activations / training.batch_size > available:
        return "batch_size and n_layer, n_embd or vocab_size: one sequence does not fit"
    return "batch_size, and raise gradient_accumulation_steps as much: the steps stay the same"


def complete(settings: Settings, dataset: Dataset) -> Settings:
    """The settings with what the data decide.

    Raises:
        ConfigError: the vocabulary is too small for the data.
    """
    problems = _vocabulary_problems(settings, dataset)
    if problems:
        raise ConfigError(problems)
    if _fixes_vocabulary(settings):
        return settings
    model = settings.model.changed(vocab_size=padded_vocabulary(dataset.vocab_size))
    return dataclasses.replace(settings, model=model)


def reload_plugins(settings: Settings) -> None:
    """Run the plugins again, so that the run has the state of their modules for itself.

    The check of a user's own parts and the trace of their memory may leave there what they made: a
    layer of another width, its gradient, cached tensors of no data. Random numbers that a plugin
    draws now follow from the seed.
    """
    for path, source in settings.plugins.items():
        with own_stream(Path(path).name):
            run_source(path, source)


def named(settings: Settings) -> Settings:
    """The settings with the name of a new folder, made here, where they leave it to the clock."""
    training = settings.training
    if training.run_name != "auto":
        return settings
    folder = make_run_folder(settings.arch_preset, Path(training.out_dir))
    training = dataclasses.replace(training, run_name=folder.name)
    return dataclasses.replace(settings, training=training)


def padded_vocabulary(vocab_size: int) -> int:
    """The vocabulary of a model for data of `vocab_size` tokens."""
    return vocab_size if vocab_size < PADDED_FROM else math.ceil(vocab_size / 64) * 64


def _vocabulary_problems(settings: Settings, dataset: Dataset) -> list[Problem]:
    have, need = settings.model.vocab_size, dataset.vocab_size
    if not _fixes_vocabulary(settings) or have >= need:
        return []
    init_from = settings.training.init_from
    fix = (
        f"drop it, or raise it to {need}"
        if init_from == "none"
        else f"prepare the data with the tokenizer of init_from={init_from!r}"
    )
    message = (
        f"vocab_size={have} is too small for the {need} tokens of "
        f"dataset={settings.training.dataset!r}; {fix}."
    )
    return [Problem(("vocab_size", "dataset"), message)]


def _fixes_vocabulary(settings: Settings) -> bool:
    """Whether the vocabulary is not the data's to decide."""
    return "vocab_size" in settings.explicit or settings.training.init_from != "none"


def _tf32_problems(
    training: TrainingConfig, device: torch.device, dtype: torch.dtype
) -> list[Problem]:
    if not training.tf32 or (has_tf32(device) and dtype is torch.float32):
        return []
    computes = str(dtype).removeprefix("torch.")
    message = (
        f"tf32=True does nothing for {computes} on {device_name(device)}: it is a way to compute "
        "dtype='float32' on CUDA devices of capability 8.0 or more; drop it, or set those."
    )
    return [Problem(("tf32", "device", "dtype"), message)]


def _log_problems(training: TrainingConfig) -> list[Problem]:
    missing = " ".join(missing_packages(training.log_sinks))
    if not missing:
        return []
    needs = f"log_to={training.log_to!r} needs what is not installed"
    return [Problem(("log_to",), f"{needs}: pip install {missing}; or change log_to.")]


def _plugin_problems(settings: Settings) -> list[Problem]:
    """A checkpoint keeps the source of each plugin under its file's name."""
    names = Counter(Path(path).name for path in settings.plugins)
    return [
        Problem(("plugins",), f"{count} plugins are called {name}; give each a name of its own.")
        for name, count in names.items()
        if count > 1
    ]
