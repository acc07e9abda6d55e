"""Estimate the memory, time and cost of a run: `train.py --dry_run`. Nothing is allocated."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch

from configurator import Settings
from data.dataset_files import read_meta
from data.dataset_lookup import prepared_folder, why_unprepared
from errors import ConfigError, Problem, nearest, quoted
from model_config import ModelArchitectureConfig
from recipe.adapters import adapted_model
from recipe.optimizers import make_optimizer
from recipe.qk_clip import measuring_flops
from training.hardware import (
    KNOWN_GPUS,
    device_name,
    peak_flops,
    peak_of_gpu,
    resolve_device,
    resolve_dtype,
    total_memory,
)
from training.memory import ExpectedMemory, batch_bytes, expected_memory
from training.parallel import shards
from training.preflight import memory_of_worker, parallelism_problems, share_of, share_problems
from training.workers import Workers, workers_to_start
from training_config import TrainingConfig
from training_logger import (
    UNBROKEN_SPACE,
    format_bytes,
    format_count,
    format_duration,
    format_flop_rate,
    format_flops,
    format_start_report,
)

MFU = 0.4
"""Default model FLOPs utilization."""

WORKERS_OF_A_MACHINE = 8
"""Workers that share one copy of the model under hsdp, unless `shard_size` is set."""

LARGEST_BATCH = 2**16
"""Largest micro-batch considered, in sequences."""

SMALL_VOCABULARY = 256
"""The memory of the logits is that of a step minus that of a step with this vocabulary size."""


@dataclasses.dataclass(frozen=True)
class Assumed:
    """The assumptions of a dry run about the machines.

    Attributes:
        gpu: Name of the GPU, as in `KNOWN_GPUS`; None: this machine's device.
        workers: Number of workers.
        mfu: Model FLOPs utilization.
        price: Dollars per device and hour; None if unknown.
    """

    gpu: str | None
    workers: int
    mfu: float
    price: float | None


def parser() -> argparse.ArgumentParser:
    """The parser of the dry-run options; `configurator` parses the rest."""
    flags = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    flags.add_argument("--dry_run", action="store_true")
    for name in ("device_name", "workers", "mfu", "price_per_hour"):
        flags.add_argument(f"--{name}", nargs="?", const="")
    return flags


def split_dry_run(argv: Sequence[str]) -> tuple[Assumed | None, list[str]]:
    """Split the dry-run options from a command line.

    Returns:
        The options, None without --dry_run; and the remaining arguments.

    Raises:
        ConfigError: If an option has an invalid value, or has no effect.
    """
    for argument in argv:
        if argument.startswith("--dry_run="):
            message = (
                f"cannot parse {quoted(argument)}; --dry_run takes no value. Choose a GPU with "
                "--device_name."
            )
            raise ConfigError([Problem(("dry_run",), message)])
    found, rest = parser().parse_known_args(list(argv))
    given = {key: v for key, v in vars(found).items() if key != "dry_run" and v is not None}
    if not found.dry_run:
        problems = [
            Problem(
                (key,),
                f"--{key}={text} has no effect without --dry_run; add --dry_run, or drop it.",
            )
            for key, text in given.items()
        ]
        if problems:
            raise ConfigError(problems)
        return None, rest
    problems = list(_problems(given))
    if problems:
        raise ConfigError(problems)
    price = given.get("price_per_hour")
    assumed = Assumed(
        gpu=given.get("device_name"),
        workers=int(given.get("workers", 1)),
        mfu=float(given.get("mfu", MFU)),
        price=None if price is None else float(price),
    )
    return assumed, rest


def _problems(given: dict[str, str]) -> Iterator[Problem]:
    gpu = given.get("device_name")
    if gpu is not None and gpu not in KNOWN_GPUS:
        known, meant = ", ".join(KNOWN_GPUS), nearest(gpu, list(KNOWN_GPUS))
        yield Problem(("device_name",), f"--device_name={gpu} is unknown{meant} Known: {known}.")
    for key, most in (("workers", 10**6), ("mfu", 1), ("price_per_hour", 10**6)):
        text = given.get(key)
        if text is not None and not _is_between(text, 0, most, whole=key == "workers"):
            kind = "a whole number" if key == "workers" else "a number"
            yield Problem((key,), f"--{key}={text} must be {kind} above 0 and at most {most:,}.")


def _is_between(text: str, low: float, high: float, *, whole: bool) -> bool:
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        return False
    return low < number <= high


# The report


@dataclasses.dataclass(frozen=True)
class Machine:
    """The devices of a dry run.

    Attributes:
        name: Name of a device.
        kind: Device type.
        dtype: Compute dtype of the matmuls.
        memory: Bytes available to a worker; None if unknown.
        peak: Peak FLOP/s of a device; None if unknown.
    """

    name: str
    kind: str
    dtype: torch.dtype
    memory: int | None
    peak: float | None


def dry_run(settings: Settings, assumed: Assumed) -> str:
    """Report the model size, the memory under each `parallelism`, the time and the cost of a run.

    Raises:
        ConfigError: If the batch does not divide among the workers, or the vocabulary size is
            unknown.
    """
    settings = _with_vocabulary(settings)
    training = settings.training
    workers = _workers(training, assumed.workers)
    machine = _machine(training, assumed)
    cost, flops = _cost_and_flops(settings)
    own = share_of(training, workers.data_size)
    memory = Memory(settings.model, own, machine, workers)
    return format_start_report(
        [
            (f"Dry run: {cost['name']}", _size_rows(cost, training)),
            (_of_workers("Memory", machine, assumed), memory.rows()),
            ("Time", list(_time_rows(flops, training, machine, assumed))),
        ]
    )


@dataclasses.dataclass(frozen=True)
class Needs:
    """The compute and memory that a run needs on any GPU.

    Attributes:
        flops: FLOPs of all steps, including the optimizer, excluding validation.
        memory: Bytes per worker under the run's `parallelism`, or under the one that needs the
            least if it is "auto"; None if it cannot be estimated.
    """

    flops: float
    memory: int | None

    def hours(self, peak: float, workers: int, mfu: float) -> float:
        """Hours that the steps take on devices with this peak in FLOP/s."""
        return self.flops / (peak * workers * mfu) / 3600


def needs_on_gpus(settings: Settings, workers: int, dtype: torch.dtype) -> Needs:
    """Estimate the needs of a run on several GPUs that compute in `dtype`.

    Raises:
        ConfigError: If the batch does not divide among the workers, or the vocabulary size is
            unknown.
    """
    settings = _with_vocabulary(settings)
    group = _workers(settings.training, workers)
    machine = Machine("GPU", "cuda", dtype, None, None)
    memory = Memory(settings.model, share_of(settings.training, group.data_size), machine, group)
    return Needs(_cost_and_flops(settings)[1], memory.least())


def dtype_on_gpu(training: TrainingConfig, name: str) -> torch.dtype:
    """The compute dtype that `resolve_dtype` would choose on a GPU with this full name."""
    if training.dtype != "auto":
        return getattr(torch, training.dtype)
    return torch.bfloat16 if peak_of_gpu(name, torch.bfloat16) else torch.float32


def _cost_and_flops(settings: Settings) -> tuple[dict, float]:
    """The cost report of a model, and the FLOPs of all steps of its training."""
    training = settings.training
    with torch.device("meta"):
        model = adapted_model(settings.model, training)
        optimizer_flops = make_optimizer(model, training).step_flops()
        optimizer_flops += measuring_flops(model, training)
    cost = model.cost_report(training.sequence_length)
    tokens = training.max_iters * training.tokens_per_step
    return cost, cost["flops_per_token"] * tokens + optimizer_flops * training.max_iters


def _workers(training: TrainingConfig, count: int) -> Workers:
    """The workers of the run; raises ConfigError if they cannot train it."""
    workers = workers_to_start(count, training.tensor_parallel)
    local = min(count, WORKERS_OF_A_MACHINE)
    workers = dataclasses.replace(workers, local_size=local)
    problems = [
        *parallelism_problems(training, workers),
        *share_problems(training, workers.data_size),
    ]
    if problems:
        raise ConfigError(problems)
    return workers


def _of_workers(what: str, machine: Machine, assumed: Assumed) -> str:
    several = f" of each of {assumed.workers} workers" if assumed.workers > 1 else ""
    return f"{what}{several} on {machine.name}"


def _with_vocabulary(settings: Settings) -> Settings:
    """The settings with the vocabulary size of their data, which must be prepared or given."""
    folder = prepared_folder(settings.training.dataset)
    if folder is not None:
        return settings.for_data(read_meta(folder)["vocab_size"])
    if settings.fixes_vocabulary:
        return settings
    message = (
        f"{why_unprepared(settings.training.dataset)} Without a dataset, a dry run needs "
        "--vocab_size."
    )
    raise ConfigError([Problem(("dataset", "vocab_size"), message)])


def _machine(training: TrainingConfig, assumed: Assumed) -> Machine:
    if assumed.gpu is None:
        device = resolve_device(training.device)
        dtype = resolve_dtype(training.dtype, device)
        available = total_memory(device)
        if available is not None and device.type == "cpu":
            available //= assumed.workers
        return Machine(
            device_name(device), device.type, dtype, available, peak_flops(device, dtype)
        )
    name, memory = KNOWN_GPUS[assumed.gpu]
    dtype = dtype_on_gpu(training, name)
    return Machine(assumed.gpu, "cuda", dtype, memory, peak_of_gpu(name, dtype, training.tf32))


def _size_rows(cost: dict, training: TrainingConfig) -> list[tuple[str, str]]:
    parameters, active = cost["parameters"], cost["active_parameters"]
    used = f", {active:,} of them active" if active < parameters else ""
    if "mtp_parameters" in cost:
        used += f"; {cost['mtp_parameters']:,} more for multi-token prediction"
    return [
        ("parameters", f"{parameters:,}{used}"),
        ("FLOPs/token", f"{cost['flops_per_token']:,} at {training.sequence_length} tokens"),
        (
            "batch",
            f"{training.tokens_per_step:,} tokens per step: gradient_accumulation_steps "
            f"{training.gradient_accumulation_steps} x batch_size {training.batch_size} x "
            f"sequence_length {training.sequence_length}",
        ),
    ]


class Memory:
    """The memory of one worker under each `parallelism`.

    Args:
        config: The architecture.
        training: The training config with the batch of one worker.
        machine: The machine it trains on.
        workers: The workers of the run.
    """

    def __init__(
        self,
        config: ModelArchitectureConfig,
        training: TrainingConfig,
        machine: Machine,
        workers: Workers,
    ):
        self._machine = machine
        self._training = training
        self._workers = workers
        self._config = config
        self._steps: dict[int, ExpectedMemory | None] = {}
        few = config.changed(vocab_size=min(SMALL_VOCABULARY, config.vocab_size))
        self._without_logits = self._traced(few, training)

    def _traced(
        self, config: ModelArchitectureConfig, training: TrainingConfig
    ) -> ExpectedMemory | None:
        return expected_memory(config, training, self._machine.kind, self._machine.dtype)

    def _step(self, batch_size: int) -> ExpectedMemory | None:
        """The memory of a step on one device with micro-batches of `batch_size` sequences."""
        if batch_size not in self._steps:
            training = TrainingConfig.make(self._training.to_dict(), {"batch_size": batch_size})
            self._steps[batch_size] = self._traced(self._config, training)
        return self._steps[batch_size]

    def rows(self) -> list[tuple[str, str]]:
        """Table rows: the memory by component under each `parallelism`."""
        available = self._machine.memory
        has = "of unknown size" if available is None else format_bytes(available)
        head = [("device", f"{has}; micro-batches of {self._training.batch_size} sequences")]
        if self._step(self._training.batch_size) is None:
            return [*head, ("memory", "unknown: the step cannot be traced")]
        return head + [row for name in self._ways() for row in self._rows_of(name)]

    def least(self) -> int | None:
        """Bytes per worker under the config's `parallelism`; for "auto", under the one that needs
        the least."""
        if self._step(self._training.batch_size) is None:
            return None
        asked = self._training.parallelism
        ways = self._ways() if asked == "auto" else [asked]
        batch = self._training.batch_size
        return min(self._needed(self._of_worker(way, batch)) for way in ways)

    def _ways(self) -> list[str]:
        if self._workers.size == 1:
            return ["none"]
        size, group = self._workers.data_size, shards("hsdp", self._training, self._workers)
        several = group < size and size % group == 0
        return ["ddp", "zero1", "fsdp", *(["hsdp"] if several else [])]

    def _rows_of(self, parallelism: str) -> Iterator[tuple[str, str]]:
        own, logits = self._of_worker(parallelism, self._training.batch_size), self._logits()
        parts = {
            "weights": own.weights - own.gradients,
            "gradients": own.gradients,
            "optimizer": own.optimizer,
            "activations": own.activations - logits,
            "logits": logits,
            "copy for async_save": own.saved_copy,
        }
        sizes = {name: format_bytes(size) for name, size in parts.items() if size}
        listed = ", ".join(
            f"{name} {size.replace(' ', UNBROKEN_SPACE)}" for name, size in sizes.items()
        )
        yield parallelism, f"{format_bytes(self._needed(own))}: {listed}"
        if self._machine.memory is not None:
            most = self._largest_batch(parallelism)
            yield "", f"largest batch_size that fits: {most}" if most else "does not fit"

    def _of_worker(self, parallelism: str, batch_size: int) -> ExpectedMemory:
        step = self._step(batch_size)
        return memory_of_worker(step, parallelism, self._training, self._workers)

    def _needed(self, memory: ExpectedMemory) -> int:
        """Total bytes, including the batches if they are on the device."""
        return memory.total + (batch_bytes(self._training) if self._machine.kind == "cpu" else 0)

    def _logits(self) -> int:
        """Bytes of the logits and their gradients."""
        if self._without_logits is None:
            return 0
        step = self._step(self._training.batch_size)
        return max(0, step.activations - self._without_logits.activations)

    def _largest_batch(self, parallelism: str) -> int:
        """The largest micro-batch that fits, in sequences, to a few percent; 0 if none fits.

        Memory is linear in the batch size once the batch is large enough for one phase of the step
        to determine the peak.
        """
        return self._extrapolated(parallelism, self._large_batch)

    @cached_property
    def _large_batch(self) -> int:
        """A micro-batch size close to the largest that fits. Shared by every `parallelism`, because
        each size must be traced."""
        batch = 2 * self._training.batch_size
        for _ in range(2):
            batch = min(max(self._extrapolated(self._ways()[0], batch), 2), LARGEST_BATCH)
        return batch

    def _extrapolated(self, parallelism: str, batch: int) -> int:
        """Extrapolate the number of sequences that fit from `batch` and half of it."""
        sizes = (batch // 2, batch)
        half, whole = (self._needed(self._of_worker(parallelism, size)) for size in sizes)
        each = max((whole - half) / (batch - batch // 2), 1)
        return max(0, int(batch + (self._machine.memory - whole) // each))


def _time_rows(
    flops: float, training: TrainingConfig, machine: Machine, assumed: Assumed
) -> Iterator[tuple[str, str]]:
    """Table rows: the time and cost of the steps, excluding validation and startup."""
    tokens = training.max_iters * training.tokens_per_step
    yield "steps", f"{training.max_iters:,}, {format_count(tokens)} tokens, {format_flops(flops)}"
    if machine.peak is None:
        yield "time", f"unknown: the peak FLOP/s of {machine.name} is not known"
        return
    hours = Needs(flops, None).hours(machine.peak, assumed.workers, assumed.mfu)
    dtype = str(machine.dtype).removeprefix("torch.")
    yield (
        "time",
        f"{format_duration(3600 * hours)} at {100 * assumed.mfu:g} % MFU of {assumed.workers} x "
        f"{format_flop_rate(machine.peak)} ({dtype}); validation and startup excluded",
    )
    if training.max_minutes:
        yield "", f"max_minutes={training.max_minutes:g} may end the run earlier"
    if assumed.price is not None:
        total = hours * assumed.workers * assumed.price
        yield "cost", f"${total:,.2f} at ${assumed.price:.2f} per device and hour"
