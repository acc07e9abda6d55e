"""What is refused before a run creates or trains anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from configurator import Settings
from data.batches import Shares
from errors import ConfigError, Problem
from recipe.log_sinks import missing_packages
from training.hardware import device_name, has_tf32, host_memory, total_memory
from training.memory import (
    ExpectedMemory,
    batch_bytes,
    expected_memory,
    least_parameters,
    least_state,
)
from training.parallel import ALONE, Workers
from training.smoke import check_own_optimizer, check_own_parts
from training_config import TrainingConfig
from training_logger import format_bytes


def refuse_machine(
    settings: Settings, device: torch.device, dtype: torch.dtype, workers: int = 1
) -> None:
    """Refuse what cannot be trained on a machine by so many workers, whatever the data are.

    Raises:
        ConfigError: with every reason.
        UserError: a part or an optimizer of the user's own does not work; see training/smoke.py.
    """
    uneven = _share_problems(settings.training, workers)
    problems = [
        *uneven,
        *([] if uneven else _size_problems(settings, device, workers)),
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
    check_own_optimizer(settings, device, dtype)


def _share_problems(training: TrainingConfig, workers: int) -> list[Problem]:
    problem = Shares(training.gradient_accumulation_steps, training.batch_size, workers).problem
    return [Problem(("gradient_accumulation_steps", "batch_size"), problem)] if problem else []


def _plugin_problems(settings: Settings) -> list[Problem]:
    """A checkpoint keeps the source of each plugin under its file's name."""
    names = Counter(Path(path).name for path in settings.plugins)
    return [
        Problem(
            ("plugins",), f"{count} plugins have the file name {name}; give each a different one."
        )
        for name, count in names.items()
        if count > 1
    ]


def _tf32_problems(
    training: TrainingConfig, device: torch.device, dtype: torch.dtype
) -> list[Problem]:
    if not training.tf32:
        return []
    if not has_tf32(device):
        why = (
            f"on {device_name(device)}: it needs a CUDA device of compute capability 8.0 or higher"
        )
        return [Problem(("tf32", "device"), f"tf32=True has no effect {why}; drop it.")]
    if dtype is not torch.float32:
        why = f"in {str(dtype).removeprefix('torch.')}: it rounds the inputs of float32 matmuls"
        fix = "drop it, or set dtype='float32'"
        return [Problem(("tf32", "dtype"), f"tf32=True has no effect {why}; {fix}.")]
    return []


def _log_problems(training: TrainingConfig) -> list[Problem]:
    missing = " ".join(missing_packages(training.log_sinks))
    if not missing:
        return []
    needs = f"log_to={training.log_to!r} needs packages that are not installed"
    return [Problem(("log_to",), f"{needs}: pip install {missing}; or change log_to.")]


def _size_problems(settings: Settings, device: torch.device, workers: int) -> Iterator[Problem]:
    """What can never fit, by arithmetic that takes no time and no memory."""
    training = _share_of(settings.training, workers)
    yield from _batch_problems(training)
    available = total_memory(device)
    if available is not None:
        vocab_size = settings.model.vocab_size if settings.fixes_vocabulary else 1
        yield from _state_problems(settings, vocab_size, device, available)
        yield from _logits_problems(training, vocab_size, device, available)


def _batch_problems(training: TrainingConfig) -> Iterator[Problem]:
    host, needed = host_memory(), batch_bytes(training)
    if needed > host:
        yield Problem(
            ("gradient_accumulation_steps", "batch_size", "sequence_length"),
            f"gradient_accumulation_steps={training.gradient_accumulation_steps} x "
            f"batch_size={training.batch_size} x sequence_length={training.sequence_length} are "
            f"{training.tokens_per_step} tokens a step, which need {format_bytes(needed)} for "
            f"inputs and targets, prefetched ones included, but the machine has "
            f"{format_bytes(host)}; lower one of them.",
        )


def _state_problems(
    settings: Settings, vocab_size: int, device: torch.device, available: int
) -> Iterator[Problem]:
    model = settings.model
    needed = least_state(model, vocab_size, settings.training.optimizer)
    if needed > available:
        yield Problem(
            ("n_layer", "n_embd", "vocab_size"),
            f"n_layer={model.n_layer} of n_embd={model.n_embd} needs at least "
            f"{format_bytes(needed)} for weights, gradients and optimizer state "
            f"({least_parameters(model, vocab_size)} parameters or more), but "
            f"{device_name(device)} has {format_bytes(available)}; lower n_layer, n_embd, n_head, "
            "head_dim or vocab_size.",
        )


def _logits_problems(
    training: TrainingConfig, vocab_size: int, device: torch.device, available: int
) -> Iterator[Problem]:
    needed = 2 * training.batch_size * training.sequence_length * vocab_size
    if needed > available:
        yield Problem(
            ("batch_size", "sequence_length", "vocab_size"),
            f"batch_size={training.batch_size} of sequence_length={training.sequence_length} needs "
            f"at least {format_bytes(needed)} for the logits of {vocab_size} tokens, but "
            f"{device_name(device)} has {format_bytes(available)}; lower batch_size, and raise "
            "gradient_accumulation_steps as much: the steps stay the same.",
        )


def fitting_memory(
    settings: Settings,
    device: torch.device,
    dtype: torch.dtype,
    compiled: bool,
    workers: Workers = ALONE,
) -> ExpectedMemory | None:
    """What each worker of a run will need of memory; None if that cannot be told before it is
    tried.

    Raises:
        ConfigError: it is more than the device has, whatever else is in there.
    """
    too_large = list(_size_problems(settings, device, workers.size))
    if too_large:
        raise ConfigError(too_large)
    model, training = settings.model, _share_of(settings.training, workers.size)
    memory = expected_memory(model, training, device.type, dtype)
    available = total_memory(device)
    each = ""
    if available is not None and device.type == "cpu" and workers.local_size > 1:
        available //= workers.local_size
        each = f" for each of {workers.local_size} workers"
    if memory is None or available is None:
        return memory
    batches = batch_bytes(training) if device.type == "cpu" else 0
    needed = memory.least(compiled) + batches
    if needed <= available:
        return memory
    message = (
        f"batch_size={training.batch_size} of sequence_length={training.sequence_length} needs "
        f"{'at least' if compiled else 'about'} {format_bytes(needed)} "
        f"({format_bytes(memory.state)} of it for weights, gradients and "
        "optimizer state), but "
        f"{device_name(device)} has {format_bytes(available)}{each}; lower "
        f"{_memory_fix(memory, available, training)}."
    )
    raise ConfigError([Problem(("batch_size", "sequence_length", "n_embd"), message)])


def _share_of(training: TrainingConfig, workers: int) -> TrainingConfig:
    """The batch of one of several workers."""
    if workers == 1:
        return training
    shares = Shares(training.gradient_accumulation_steps, training.batch_size, workers)
    own = {
        "gradient_accumulation_steps": shares.micro_batches,
        "batch_size": shares.sequences,
    }
    return TrainingConfig.make(training.to_dict(), own)


def _memory_fix(memory: ExpectedMemory, available: int, training: TrainingConfig) -> str:
    """What to lower of a run that does not fit."""
    if memory.state > available:
        return "n_layer, n_embd or vocab_size"
    if training.batch_size == 1:
        return "sequence_length"
    if memory.state + memory.activations / training.batch_size > available:
        return "batch_size and n_layer, n_embd or vocab_size: one sequence does not fit"
    return "batch_size, and raise gradient_accumulation_steps as much: the steps stay the same"
