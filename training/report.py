"""What is printed before training: the model, its cost, the data, the machine."""

from __future__ import annotations

import torch

from configurator import Settings
from model_builder import GPT
from training.data import Dataset, ValidationWindows
from training.memory import expected_memory
from training_logger import format_bytes, format_count, format_flops, format_start_report


def start_report(
    settings: Settings,
    model: GPT,
    dataset: Dataset,
    validation: ValidationWindows,
    device: torch.device,
    dtype: torch.dtype,
    device_name: str,
    peak_flops: float | None,
    compiled: bool,
) -> str:
    """The whole report, a block for each question that a reader of a run asks."""
    machine = _machine(settings, device, dtype, device_name, peak_flops, compiled)
    return format_start_report(
        [
            (model.config.architecture_name, _architecture(settings)),
            ("Cost", _cost(settings, model)),
            ("Data", _data(settings, dataset, validation)),
            ("Training", _training(settings)),
            ("Machine", machine),
        ]
    )


Rows = list[tuple[str, str]]


def _architecture(settings: Settings) -> Rows:
    """Every choice, several to a row."""
    groups = {
        "sizes": ("n_layer", "n_head", "n_kv_head", "n_embd", "head_dim", "block_size"),
        "norm": ("normalization", "norm_position", "norm_eps", "qk_norm"),
        "ffn": ("ffn_type", "activation", "ffn_hidden"),
        "attention": ("sliding_window", "window_pattern", "attention_softcap", "attention_bias"),
        "positions": ("position_encoding", "rope_theta", "rope_fraction", "rope_scaling"),
        "other": (
            *("vocab_size", "bias", "weight_tying", "dropout", "output_softcap"),
            *("embedding_scale", "init_std"),
        ),
    }
    values = settings.model.to_dict()
    unused = set(settings.model.unused_keys())
    rows = [("preset", settings.arch_preset)]
    for title, keys in groups.items():
        shown = [f"{key} {values[key]}" for key in keys if key not in unused]
        rows.append((title, ", ".join(shown)))
    return rows


def _cost(settings: Settings, model: GPT) -> Rows:
    length = settings.training.sequence_length
    full, causal = (model.flops_per_token(length, causal) for causal in (False, True))
    parameters = model.num_parameters()
    matrices = model.num_parameters(embeddings=False)
    return [
        ("parameters", f"{parameters:,} ({matrices:,} outside the embedding tables)"),
        ("FLOPs/token", f"{full:,} with the full attention square ({format_flops(full)}; for MFU)"),
        ("", f"{causal:,} with what the causal mask leaves"),
        ("attention/FFN", f"{model.attention_ffn_ratio(length):.3f} of forward FLOPs"),
    ]


def _data(settings: Settings, dataset: Dataset, validation: ValidationWindows) -> Rows:
    return [
        ("dataset", f"{settings.training.dataset}, fingerprint {dataset.fingerprint[:12]}"),
        ("tokenizer", f"{dataset.meta['tokenizer']['name']}, vocabulary {dataset.vocab_size:,}"),
        ("train", f"{len(dataset.train):,} tokens"),
        ("validation", f"{validation.tokens:,} of {len(dataset.val):,} tokens, the same each time"),
    ]


def _training(settings: Settings) -> Rows:
    training = settings.training
    total = training.max_iters * training.tokens_per_step
    return [
        (
            "batch",
            f"{training.tokens_per_step:,} tokens a step = {training.gradient_accumulation_steps} "
            f"micro-batches x {training.batch_size} sequences x {training.sequence_length} tokens",
        ),
        ("length", f"{training.max_iters:,} steps, {format_count(total)} tokens"),
        (
            "learning rate",
            f"{training.learning_rate:g}, {training.lr_schedule}, warm-up of "
            f"{training.warmup_iters} steps, weight decay {training.weight_decay:g}",
        ),
        ("seeds", f"seed {training.seed}, data_seed {training.data_seed}"),
    ]


def _machine(
    settings: Settings,
    device: torch.device,
    dtype: torch.dtype,
    device_name: str,
    peak_flops: float | None,
    compiled: bool,
) -> Rows:
    training = settings.training
    peak = "unknown: MFU is left out" if peak_flops is None else f"{format_flops(peak_flops)}/s"
    memory = expected_memory(
        settings.model, training.batch_size, training.sequence_length, device.type, dtype
    )
    backends = settings.model.attention_backends_on(device.type)
    measured = ", measured with a matmul" if device.type == "cpu" else ", dense"
    return [
        ("device", f"{device_name} ({device.type})"),
        ("compute", f"{str(dtype).removeprefix('torch.')}, peak {peak}{measured}"),
        ("attention", f"{' and '.join(backends)} ({settings.model.attention_backend})"),
        ("compiled", "yes" if compiled else "no"),
        (
            "memory",
            f"about {format_bytes(memory.total)}: weights, gradients and AdamW "
            f"{format_bytes(memory.state)}, activations {format_bytes(memory.activations)}",
        ),
    ]
