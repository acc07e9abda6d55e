"""Checks that refuse a run before it creates or trains anything."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from configurator import Settings
from data.batches import Shares
from errors import ConfigError, Problem
from recipe.log_sinks import missing_packages
from training.hardware import (
    device_name,
    has_tf32,
    host_memory,
    resolve_async_save,
    total_memory,
)
from training.memory import (
    ExpectedMemory,
    batch_bytes,
    expected_memory,
    least_parameters,
    least_state,
)
from training.parallel import shards
from training.smoke import check_own_optimizer, check_own_parts
from training.workers import ALONE, Workers
from training_components import OPTIMIZERS
from training_config import TrainingConfig
from training_logger import format_bytes


def refuse_machine(
    settings: Settings, device: torch.device, dtype: torch.dtype, workers: Workers = ALONE
) -> None:
    """Refuse settings that these workers cannot train on this machine with any data.

    Raises:
        ConfigError: If there are problems; it lists them all.
        UserError: If a custom part or optimizer does not work; see training/smoke.py.
    """
    uneven = share_problems(settings.training, workers.data_size)
    problems = [
        *uneven,
        *parallelism_problems(settings.training, workers),
        *([] if uneven else _size_problems(settings, device, workers)),
        *_plugin_problems(settings),
        *_tf32_problems(settings.training, device, dtype),
        *_log_problems(settings.training),
        *_quantization_problems(settings.training),
        *(
            Problem(("attention_backend",), refusal)
            for refusal in settings.model.backend_refusals(device.type, dtype)
        ),
    ]
    if problems:
        raise ConfigError(problems)
    check_own_parts(settings.model, device, dtype)
    check_own_optimizer(settings, device, dtype)


def share_problems(training: TrainingConfig, workers: int) -> list[Problem]:
    """The problem if a batch does not divide among the workers, with the nearest valid values."""
    problem = Shares(training.gradient_accumulation_steps, training.batch_size, workers).problem
    return [Problem(("gradient_accumulation_steps", "batch_size"), problem)] if problem else []


def parallelism_problems(training: TrainingConfig, workers: Workers) -> Iterator[Problem]:
    """Yield the reasons why a model cannot be spread over these workers as configured."""
    asked, size = training.parallelism, workers.size
    if asked == "none" and size > 1:
        yield Problem(
            ("parallelism",),
            f"parallelism='none' trains in one process, but {size} were started; drop it, or "
            "start train.py without torchrun.",
        )
    if asked not in ("auto", "none") and not workers.joined:
        yield Problem(
            ("parallelism",),
            f"parallelism={asked!r} spreads a model over workers, but train.py was started without "
            "torchrun; start it with torchrun --standalone --nproc_per_node=N train.py, or drop "
            "the key.",
        )
    tensor = training.tensor_parallel
    if tensor > 1 and size % tensor:
        yield Problem(
            ("tensor_parallel",),
            f"tensor_parallel={tensor} does not divide {size} workers; use one of "
            f"{_divisors(size)}."
            if size > 1
            else f"tensor_parallel={tensor} needs {tensor} workers, but train.py was started "
            f"without torchrun; start it with torchrun --standalone --nproc_per_node={tensor} "
            "train.py, or drop the key.",
        )
        return
    if tensor > 1 and not OPTIMIZERS[training.optimizer].elementwise:
        able = ", ".join(name for name in OPTIMIZERS if OPTIMIZERS[name].elementwise)
        yield Problem(
            ("tensor_parallel", "optimizer"),
            f"optimizer={training.optimizer!r} needs whole matrices, which "
            f"tensor_parallel={tensor} splits; use one of {able}, or tensor_parallel=1.",
        )
    if asked != "hsdp" or not workers.joined:
        return
    group, size = shards(asked, training, workers), workers.data_size
    if size % group:
        yield Problem(
            ("shard_size", "parallelism"),
            f"shard_size={group} does not divide {size} workers; use one of {_divisors(size)}.",
        )


def _divisors(size: int) -> str:
    return ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)


def _plugin_problems(settings: Settings) -> list[Problem]:
    """Plugins must have distinct file names, under which checkpoints store their source."""
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
        why = f"in {str(dtype).removeprefix('torch.')}: it affects float32 matmuls only"
        fix = "drop it, or set dtype='float32'"
        return [Problem(("tf32", "dtype"), f"tf32=True has no effect {why}; {fix}.")]
    return []


def _log_problems(training: TrainingConfig) -> list[Problem]:
    missing = " ".join(missing_packages(training.log_sinks))
    if not missing:
        return []
    needs = f"log_to={training.log_to!r} needs packages that are not installed"
    return [Problem(("log_to",), f"{needs}: pip install {missing}; or change log_to.")]


def _quantization_problems(training: TrainingConfig) -> list[Problem]:
    scheme = training.get("quantize_base", "none")
    if scheme == "none" or importlib.util.find_spec("bitsandbytes"):
        return []
    message = (
        f"quantize_base={scheme!r} needs bitsandbytes, which is not installed: pip install "
        "bitsandbytes; or drop quantize_base."
    )
    return [Problem(("quantize_base",), message)]


def _size_problems(settings: Settings, device: torch.device, workers: Workers) -> Iterator[Problem]:
    """Yield problems of runs that cannot fit, by cheap lower bounds."""
    training = share_of(settings.training, workers.data_size)
    yield from _batch_problems(training)
    available = total_memory(device)
    if available is not None:
        vocab_size = settings.model.vocab_size if settings.fixes_vocabulary else 1
        spread = workers.tensor if training.parallelism == "ddp" else workers.size
        yield from _state_problems(settings, vocab_size, device, available, spread)
        yield from _logits_problems(training, vocab_size, device, available)


def _batch_problems(training: TrainingConfig) -> Iterator[Problem]:
    host, needed = host_memory(), batch_bytes(training)
    if needed > host:
        yield Problem(
            ("gradient_accumulation_steps", "batch_size", "sequence_length"),
            f"gradient_accumulation_steps={training.gradient_accumulation_steps} x "
            f"batch_size={training.batch_size} x sequence_length={training.sequence_length} are "
            f"{training.tokens_per_step} tokens per step, which need {format_bytes(needed)} for "
            f"inputs and targets, including prefetched ones, but the machine has "
            f"{format_bytes(host)}; lower one of them.",
        )


def _state_problems(
    settings: Settings, vocab_size: int, device: torch.device, available: int, spread: int
) -> Iterator[Problem]:
    model = settings.model
    needed = least_state(model, vocab_size, settings.training, spread)
    if needed > available:
        yield Problem(
            ("n_layer", "n_embd", "vocab_size"),
            f"n_layer={model.n_layer} with n_embd={model.n_embd} needs at least "
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
            f"batch_size={training.batch_size} with sequence_length={training.sequence_length} "
            f"needs at least {format_bytes(needed)} for logits over {vocab_size} tokens, but "
            f"{device_name(device)} has {format_bytes(available)}; lower batch_size and raise "
            "gradient_accumulation_steps by the same factor: the steps stay the same.",
        )


def fitting(
    settings: Settings,
    device: torch.device,
    dtype: torch.dtype,
    compiled: bool,
    workers: Workers = ALONE,
) -> dict[str, ExpectedMemory | None]:
    """The values of `parallelism` that fit, fastest first, with the expected memory per worker;
    None if it cannot be estimated.

    Raises:
        ConfigError: If none fits on the device.
    """
    too_large = list(_size_problems(settings, device, workers))
    if too_large:
        raise ConfigError(too_large)
    training = share_of(settings.training, workers.data_size)
    whole = expected_memory(settings.model, training, device.type, dtype)
    available = _available(device, workers)
    candidates = _candidates(training, workers)
    if whole is None or available is None:
        return dict.fromkeys(candidates, whole)
    batches = batch_bytes(training) if device.type == "cpu" else 0
    fits: dict[str, ExpectedMemory | None] = {}
    for parallelism in candidates:
        memory = memory_of_worker(whole, parallelism, training, workers)
        if memory.least(compiled) + batches <= available:
            fits[parallelism] = memory
    if fits:
        return fits
    each = f" for each of {workers.local_size} workers" if workers.local_size > 1 else ""
    message = (
        f"batch_size={training.batch_size} with sequence_length={training.sequence_length} needs "
        f"{'at least' if compiled else 'about'} {format_bytes(memory.least(compiled) + batches)} "
        f"({format_bytes(memory.state)} of it for weights, gradients and "
        "optimizer state), but "
        f"{device_name(device)} has {format_bytes(available)}{each}; lower "
        f"{_memory_fix(memory, available, training)}."
    )
    raise ConfigError([Problem(("batch_size", "sequence_length", "n_embd"), message)])


def memory_of_worker(
    whole: ExpectedMemory, parallelism: str, training: TrainingConfig, workers: Workers
) -> ExpectedMemory:
    """The memory of a worker (the first one, if they differ), given that of the whole model with
    the worker's share of the batch."""
    parts = shards(parallelism, training, workers)
    gathers = not OPTIMIZERS[training.optimizer].elementwise
    memory = whole.of_worker(parallelism, parts, workers.data_size, gathers)
    if whole.heap and resolve_async_save(training.async_save, torch.device("cpu")):
        copied = workers.tensor * (whole.gradients + whole.optimizer)  # at most
        memory = dataclasses.replace(memory, saved_copy=copied)
    return memory


def _available(device: torch.device, workers: Workers) -> int | None:
    """Bytes of its device that a worker may use; None if unknown."""
    available = total_memory(device)
    if available is None or device.type != "cpu":
        return available
    return available // workers.local_size


def _candidates(training: TrainingConfig, workers: Workers) -> list[str]:
    """The values of `parallelism` to try, fastest first."""
    if training.parallelism != "auto":
        return [training.parallelism]
    if workers.size == 1:
        return ["none"]
    return ["ddp", "fsdp"] if training.adapter == "none" else ["ddp"]


def share_of(training: TrainingConfig, workers: int) -> TrainingConfig:
    """The training config with the batch of one of several workers."""
    if workers == 1:
        return training
    shares = Shares(training.gradient_accumulation_steps, training.batch_size, workers)
    own = {
        "gradient_accumulation_steps": shares.micro_batches,
        "batch_size": shares.sequences,
    }
    return TrainingConfig.make(training.to_dict(), own)


def _memory_fix(memory: ExpectedMemory, available: int, training: TrainingConfig) -> str:
    """Which keys to lower for a run that does not fit."""
    if memory.state > available:
        return "n_layer, n_embd or vocab_size"
    if training.batch_size == 1:
        return "sequence_length"
    if memory.state + memory.activations / training.batch_size > available:
        return "batch_size and n_layer, n_embd or vocab_size: one sequence does not fit"
    return (
        "batch_size and raise gradient_accumulation_steps by the same factor: the steps stay the "
        "same"
    )
