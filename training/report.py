"""What is printed before training: the model, its cost, the data, the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from configurator import Settings, shown
from options import KEYS
from training.memory import ExpectedMemory
from training.run import Run
from training_components import OPTIMIZERS
from training_config import TrainingConfig
from training_logger import (
    format_bytes,
    format_count,
    format_flops,
    format_number,
    format_start_report,
)


def start_report(run: Run, device_name: str, peak_flops: float | None) -> str:
    """The whole report, a block for each question that a reader of a run asks."""
    return format_start_report(
        [
            ("Run", [("directory", str(run.folder))]),
            (run.network.config.architecture_name, _architecture(run.settings)),
            ("Cost", _cost(run)),
            ("Data", _data(run)),
            ("Training", _training(run.settings)),
            ("Machine", _machine(run, device_name, peak_flops)),
        ]
    )


Rows = list[tuple[str, str]]


def _architecture(settings: Settings) -> Rows:
    """Every choice, several to a row; keys that the chosen parts have no use for left out."""
    rows = [("preset", settings.arch_preset)]
    if settings.training.init_from != "none":
        rows = [("weights", f"from {settings.training.init_from}")]
    sections: dict[str, list[str]] = {}
    for key, value in settings.model.to_dict().items():
        sections.setdefault(KEYS[key].section.lower(), []).append(f"{key} {shown(value)}")
    return [*rows, *((heading, ", ".join(words)) for heading, words in sections.items())]


def _cost(run: Run) -> Rows:
    length = run.settings.training.sequence_length
    cost = run.cost
    full, causal = cost["flops_per_token"], cost["flops_per_token_causal"]
    matrices = run.whole_network.num_parameters(embeddings=False)
    return [
        ("parameters", f"{cost['parameters']:,} ({matrices:,} outside the embedding tables)"),
        *_active(cost),
        ("FLOPs/token", f"{full:,} at {length} tokens, on which MFU is based"),
        ("", f"{causal:,} if only what the causal mask leaves is counted"),
        ("mixer/FFN", f"{cost['attention_ffn_ratio']:.3f} of forward FLOPs"),
        ("decoding state", f"{format_bytes(cost['decoding_state_bytes'])} for {length} tokens"),
        *_optimizer_cost(run),
    ]


def _active(cost: Mapping[str, Any]) -> Rows:
    """The parameters that a token uses, if those are not all."""
    active = cost["active_parameters"]
    if active == cost["parameters"]:
        return []
    return [("", f"{active:,} of them active: used by a token")]


def _optimizer_cost(run: Run) -> Rows:
    """The matmuls of the optimizer, if it has any: FLOPs per token leave them out."""
    flops = run.cost["optimizer_flops_per_step"]
    if not flops:
        return []
    of_model = run.cost["flops_per_token"] * run.settings.training.tokens_per_step
    share = format_number(100 * flops / of_model, ".3g")
    return [("optimizer", f"{flops:,} FLOPs per step besides, {share} % of those of the model")]


def _data(run: Run) -> Rows:
    dataset, read = run.dataset, run.validation.tokens
    return [
        ("dataset", f"{run.settings.training.dataset}, fingerprint {dataset.fingerprint[:12]}"),
        ("tokenizer", f"{dataset.meta['tokenizer']['name']}, vocabulary {dataset.vocab_size:,}"),
        ("train", f"{len(dataset.train):,} tokens"),
        ("validation", f"{read:,} of {len(dataset.val):,} tokens, the same each time"),
    ]


def _training(settings: Settings) -> Rows:
    training = settings.training
    return [
        (
            "batch",
            f"{training.tokens_per_step:,} tokens a step: gradient_accumulation_steps "
            f"{training.gradient_accumulation_steps} x batch_size {training.batch_size} x "
            f"sequence_length {training.sequence_length}",
        ),
        ("length", _length(training)),
        (
            "learning rate",
            f"{training.learning_rate:g}, {training.lr_schedule}, warm-up of "
            f"{_steps(training.warmup_iters)}",
        ),
        ("optimizer", _optimizer(training)),
        ("seeds", f"seed {training.seed}, data_seed {training.data_seed}"),
    ]


def _optimizer(training: TrainingConfig) -> str:
    options = OPTIMIZERS.entry(training.optimizer).keys
    words = (f"{key} {shown(training.get(key))}" for key in options)
    return f"{training.optimizer}: {', '.join(words)}"


def _length(training: TrainingConfig) -> str:
    total = format_count(training.max_iters * training.tokens_per_step)
    steps = f"{_steps(training.max_iters)}, {total} tokens"
    if training.max_minutes == 0:
        return steps
    return f"{training.max_minutes:g} minutes of training, but at most {steps}"


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count:,} steps"


def _machine(run: Run, device_name: str, peak_flops: float | None) -> Rows:
    model, device = run.settings.model, run.device.type
    backends = model.attention_backends_on(device)
    return [
        ("device", f"{device_name} ({device})"),
        ("compute", f"{_compute_type(run)}, {_peak(device, peak_flops)}"),
        *([("attention", _attention(model.attention_backend, backends))] if backends else []),
        ("compiled", "yes" if run.placement.compiles else "no"),
        *_workers(run),
        ("memory", _memory(run.memory)),
    ]


def _workers(run: Run) -> Rows:
    size = run.workers.size
    return [] if size == 1 else [("workers", _spread(run))]


def _spread(run: Run) -> str:
    """How the model is spread over the workers."""
    words = f"{run.workers.size}, parallelism {run.placement.parallelism}"
    if run.workers.tensor == 1:
        return words
    whole = ", ".join(sorted(run.placement.whole_parts))
    kept = f"; whole on each worker: {whole}" if whole else ""
    return f"{words}, tensor_parallel {run.workers.tensor}{kept}"


def _attention(backend: str, doing_the_work: Sequence[str]) -> str:
    return f"attention_backend {backend}: {' and '.join(doing_the_work)}"


def _memory(memory: ExpectedMemory | None) -> str:
    if memory is None:
        return "unknown: a step cannot be traced before it runs"
    copied = f", copy for async_save {format_bytes(memory.saved_copy)}" if memory.saved_copy else ""
    return (
        f"about {format_bytes(memory.total)}: weights, gradients and optimizer state "
        f"{format_bytes(memory.state)}, activations and other temporaries "
        f"{format_bytes(memory.activations)}{copied}; not counting Python and torch themselves"
    )


def _compute_type(run: Run) -> str:
    name = str(run.dtype).removeprefix("torch.")
    return f"{name} by TF32" if run.settings.training.tf32 else name


def _peak(device: str, peak_flops: float | None) -> str:
    if peak_flops is None:
        return "peak unknown: MFU is left out"
    source = "measured with a matmul" if device == "cpu" else "dense, by its data sheet"
    return f"peak {format_flops(peak_flops)}/s, {source}"
