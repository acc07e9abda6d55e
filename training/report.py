"""The start report: the model, its cost, the data and the machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from configurator import Settings, shown
from options import KEYS
from training.dry_run import MFU, Needs
from training.memory import ExpectedMemory
from training.run import Run
from training_components import OPTIMIZERS
from training_config import TrainingConfig
from training_logger import (
    UNBROKEN_SPACE,
    format_byte_sum,
    format_bytes,
    format_count,
    format_duration,
    format_flop_rate,
    format_number,
    format_rows,
    format_start_report,
)

COMPONENTS = (
    "mixer",
    "position_encoding",
    "normalization",
    "norm_position",
    "ffn_type",
    "activation",
    "bias",
    "weight_tying",
    "dropout",
)
"""Model keys shown even at their defaults; other keys only if they differ from them."""

MAX_LINES = 20
"""Of the start report, unless its other rows need more."""

NAME_WIDTH = 64
"""Columns of a line of the architecture's name."""

LONG_SECONDS = 3600.0
"""Expected duration above which the report includes a warning."""

Rows = list[tuple[str, str]]


def start_report(run: Run, device_name: str, peak_flops: float | None) -> str:
    """The report printed before the first step. One of more than `MAX_LINES` lines is shortened:
    it leaves out details of memory and compilation, and the last keys that differ from their
    defaults."""
    report = format_rows(_rows(run, device_name, peak_flops))
    keys = len(_changed_keys(run.settings))
    while report.count("\n") >= MAX_LINES and keys > 0:
        keys -= 1
        report = format_rows(_rows(run, device_name, peak_flops, keys))
    return report


def _rows(run: Run, device_name: str, peak_flops: float | None, keys: int | None = None) -> Rows:
    """The rows of the report, shortened if a number of changed keys is given."""
    return [
        ("run directory", str(run.folder)),
        *_name(run.network.config.architecture_name),
        ("components", _components(run.settings, keys)),
        ("sizes", _sizes(run.settings)),
        *_cost(run),
        ("data", _data(run)),
        ("training", _training(run.settings.training)),
        *_long(run, peak_flops),
        *_machine(run, device_name, peak_flops, short=keys is not None),
    ]


def all_settings(settings: Settings) -> str:
    """Every key of a run and its value, by section."""
    sections: dict[str, list[str]] = {}
    values = {"arch_preset": settings.arch_preset, **settings.model.to_dict()}
    for key, value in {**values, **settings.training.to_dict()}.items():
        sections.setdefault(KEYS[key].section, []).append(f"{key} {shown(value)}")
    rows = [(heading, ", ".join(words)) for heading, words in sections.items()]
    return format_start_report([("All settings", rows)])


def _name(name: str) -> Rows:
    """The name of an architecture, broken at hyphens if it is wider than the report."""
    heading, lines = "architecture", [""]
    for tag in re.findall(r"[^-]+-?", name):
        if len(lines[-1] + tag) > NAME_WIDTH:
            lines.append("")
        lines[-1] += tag
    return [(heading if line is lines[0] else "", line) for line in lines]


def _words(values: Mapping[str, Any], keys: Iterable[str]) -> str:
    return ", ".join(f"{key}{UNBROKEN_SPACE}{shown(values[key])}" for key in keys)


def _components(settings: Settings, number: int | None) -> str:
    """The preset, the components, and the first `number` of the other keys that differ from their
    defaults; by default all of them."""
    values = settings.model.to_dict()
    parts, changed = [key for key in COMPONENTS if key in values], _changed_keys(settings)
    kept = changed[:number]
    weights = settings.training.init_from
    start = "" if weights == "none" else f", weights from {weights}"
    left = len(changed) - len(kept)
    more = f"; {left} more with --verbose" if left else ""
    return f"preset {settings.arch_preset}{start}; {_words(values, [*parts, *kept])}{more}"


def _changed_keys(settings: Settings) -> list[str]:
    """The keys, besides `COMPONENTS` and sizes, that differ from their defaults."""
    values = settings.model.to_dict()
    told = {*COMPONENTS, *_size_keys(settings), *settings.derived}
    return [key for key in values if key not in told and values[key] != KEYS[key].default]


def _sizes(settings: Settings) -> str:
    return _words(settings.model.to_dict(), _size_keys(settings))


def _size_keys(settings: Settings) -> list[str]:
    """The keys of the section Sizes, and derived integer keys."""
    return [
        key
        for key, value in settings.model.to_dict().items()
        if KEYS[key].section == "Sizes" or (key in settings.derived and type(value) is int)
    ]


def _cost(run: Run) -> Rows:
    length = run.settings.training.sequence_length
    cost = run.cost
    full, causal = cost["flops_per_token"], cost["flops_per_token_causal"]
    matrices = run.whole_network.num_parameters(embeddings=False)
    state = f"decoding{UNBROKEN_SPACE}state {format_bytes(cost['decoding_state_bytes'])}"
    ratio = cost["attention_ffn_ratio"]
    shares = "" if ratio is None else f"; attention/FFN{UNBROKEN_SPACE}{ratio:.3f}"
    return [
        ("parameters", f"{cost['parameters']:,} ({matrices:,} without embeddings); {state}"),
        *_active(cost),
        *_multi_token(cost),
        *_trained(cost),
        *_quantized(cost, run.settings.training),
        ("FLOPs/token", f"{full:,} at {length} tokens ({causal:,} causal){shares}"),
        *_optimizer_cost(run),
    ]


def _active(cost: Mapping[str, Any]) -> Rows:
    """The number of parameters that a token uses, if it does not use all."""
    active = cost["active_parameters"]
    if active == cost["parameters"]:
        return []
    return [("", f"{active:,} of them active (used per token)")]


def _multi_token(cost: Mapping[str, Any]) -> Rows:
    """The number of parameters that only training uses, if any."""
    if "mtp_parameters" not in cost:
        return []
    return [("", f"{cost['mtp_parameters']:,} more for multi-token prediction (in training only)")]


def _trained(cost: Mapping[str, Any]) -> Rows:
    """The number of parameters that are trained, if adapters; FLOPs per token exclude the FLOPs
    that each forward pass needs at any batch size."""
    if "trained_parameters" not in cost:
        return []
    flops = cost.get("adapter_flops_per_pass")
    added = f"; {flops:,} additional FLOPs per forward pass" if flops else ""
    return [("", f"{cost['trained_parameters']:,} of them trained (adapters){added}")]


def _quantized(cost: Mapping[str, Any], training: TrainingConfig) -> Rows:
    """The bytes of the frozen weights, if they are quantized."""
    if "base_bytes" not in cost:
        return []
    now, before = format_bytes(cost["base_bytes"]), format_bytes(cost["unquantized_base_bytes"])
    return [("", f"frozen weights in {training.quantize_base}: {now}, {before} in float32")]


def _optimizer_cost(run: Run) -> Rows:
    """Matmul FLOPs of the optimizer, if any; FLOPs per token exclude them."""
    flops = run.cost["optimizer_flops_per_step"]
    if not flops:
        return []
    of_model = run.cost["flops_per_token"] * run.settings.training.tokens_per_step
    share = format_number(100 * flops / of_model, ".3g")
    return [("optimizer", f"{flops:,} additional FLOPs per step, {share} % of the model's")]


def _data(run: Run) -> str:
    dataset = run.dataset
    tokenizer = dataset.meta["tokenizer"]["name"]
    return (
        f"{run.settings.training.dataset}, tokenizer {tokenizer}, {len(dataset.train):,} training "
        f"tokens; validation on {run.validation.tokens:,} of {len(dataset.val):,}; "
        f"{_batch(run.settings.training)}"
    )


def _batch(training: TrainingConfig) -> str:
    """Tokens per step: micro-batches, if more than one, sequences and their length."""
    sizes = [training.batch_size, training.sequence_length]
    if training.gradient_accumulation_steps > 1:
        sizes.insert(0, training.gradient_accumulation_steps)
    return f"batch {' x '.join(map(str, sizes))} = {training.tokens_per_step:,} tokens"


def _training(training: TrainingConfig) -> str:
    steps = training.warmup_iters
    warm_up = f"warm-up {_steps(steps)}" if steps else "no warm-up"
    return (
        f"{_length(training)}; {_optimizer(training)}, lr {training.learning_rate:g}, "
        f"{training.lr_schedule}, {warm_up}; seed {training.seed}"
    )


def _optimizer(training: TrainingConfig) -> str:
    """The optimizer's name, and its options that differ from their defaults."""
    values = training.to_dict()
    own = OPTIMIZERS.entry(training.optimizer).keys
    changed = [key for key in own if values[key] != KEYS[key].default]
    return training.optimizer + (f" ({_words(values, changed)})" if changed else "")


def _length(training: TrainingConfig) -> str:
    total = format_count(training.max_iters * training.tokens_per_step)
    steps = f"{_steps(training.max_iters)}, {total} tokens"
    if training.max_minutes == 0:
        return steps
    return f"{training.max_minutes:g} minutes of training, at most {steps}"


def _long(run: Run, peak_flops: float | None) -> Rows:
    """A warning if the run is expected to take over an hour."""
    training = run.settings.training
    tokens = (training.max_iters - run.step) * training.tokens_per_step
    needs = Needs(tokens * run.cost["flops_per_token"], None)
    seconds = 3600 * needs.hours(peak_flops, run.workers.size, MFU) if peak_flops else 0.0
    if training.max_minutes:
        seconds = min(seconds, 60 * training.max_minutes - run.seconds)
    if seconds <= LONG_SECONDS:
        return []
    about = f"about {format_duration(seconds)} at {100 * MFU:g} % MFU, excluding validation"
    return [("time", f"{about}; --max_minutes=60 limits it to an hour")]


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count:,} steps"


def _machine(run: Run, device_name: str, peak_flops: float | None, short: bool) -> Rows:
    model, device = run.settings.model, run.device.type
    length = run.settings.training.sequence_length
    backends = model.attention_backends_on(device, length)
    compute = [
        f"{device_name} ({device}), {_compute_type(run)}, {_peak(device, peak_flops)}",
        run.compilation.summary if short else str(run.compilation),
    ]
    if backends:
        compute.append(f"attention_backend {model.attention_backend}: {' and '.join(backends)}")
    workers = [("workers", _spread(run))] if run.workers.size > 1 else []
    return [("hardware", "; ".join(compute)), *workers, ("memory", _memory(run.memory, short))]


def _spread(run: Run) -> str:
    """How the model is spread over the workers."""
    words = f"{run.workers.size}, parallelism {run.placement.parallelism}"
    if run.workers.tensor == 1:
        return words
    whole = ", ".join(sorted(run.placement.whole_parts))
    kept = f"; replicated on each worker: {whole}" if whole else ""
    return f"{words}, tensor_parallel {run.workers.tensor}{kept}"


def _memory(memory: ExpectedMemory | None, short: bool) -> str:
    if memory is None:
        return "unknown: the step cannot be traced"
    total, state, activations, saved = format_byte_sum(
        [memory.state, memory.activations, memory.saved_copy]
    )
    own = " (excluding PyTorch itself)" if memory.heap else ""
    if short:
        return f"{total} expected{own}"
    copied = f", copy for async_save {saved}" if memory.saved_copy else ""
    return f"{total} expected{own}: model and optimizer {state}, activations {activations}{copied}"


def _compute_type(run: Run) -> str:
    name = str(run.dtype).removeprefix("torch.")
    return f"{name} with TF32" if run.settings.training.tf32 else name


def _peak(device: str, peak_flops: float | None) -> str:
    if peak_flops is None:
        return "peak unknown (no MFU)"
    source = "measured" if device == "cpu" else "data sheet, dense"
    return f"peak {format_flop_rate(peak_flops)} ({source})"
