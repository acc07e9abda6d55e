"""Estimate the memory of a run before it starts.

The peak of a training step is found by tracing one: forward, loss, backward, clipping and the
optimizer step run under FakeTensorMode, which computes nothing, and every tensor storage that is
allocated and freed is counted. This includes temporaries such as the logits in float32, their
log-softmax and their gradient, which dominate the peak if the vocabulary is large. On a CPU the
gaps between the blocks of the heap are added (HEAP_SLACK). Memory used by Python, by torch itself
and inside kernels is not counted.

Since layers are alike, two small depths are traced and the result is extrapolated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils._python_dispatch import TorchDispatchMode

from components.attention_backends import attention_needs
from components.layer_config import LayerConfig
from components.quantized_linear import quantized_tensors
from components.registry import is_users_own
from components.residuals import Stream
from components.tensor_split import TensorSplit
from data.prefetch import PREFETCH_DEPTH
from errors import ConfigError, UserError
from model_builder import GPT
from model_components import BLOCKS
from model_config import ModelArchitectureConfig
from recipe.adapters import adapted_model
from recipe.objectives import make_objective
from recipe.optimizers import OPTIMIZERS, make_optimizer
from recipe.qk_clip import measures_logits
from recipe.snapshot import Snapshot
from training.activation_checkpointing import checkpoint_block
from training.optim import trained_parameters
from training.optimizer_state import create_state, takes_found_inf
from training_config import TrainingConfig

COMPILED_SHARE = 0.25
"""Fraction of the activations that a compiled run needs at least: torch.compile recomputes some
instead of keeping them, and how many is not known in advance. A compiled run is refused only if
even this fraction does not fit."""

WEIGHT_BYTES = 8
"""Bytes per float32 parameter: the weight and its gradient."""

QUANTIZED_BYTES = 0.5
"""Bytes per weight of a quantized base, without scales."""

HEAP_SLACK = {"none": 0.42, "block": 1.2, "selective": 0.65}
"""Gaps between the blocks of a CPU's heap, as a fraction of the peak, by `activation_checkpointing`
mode; fitted to measurements (`scripts/memory.py`)."""

LAYER_BYTES = 20_000
"""Lower bound on the bytes that Python needs for the modules of a layer, at any width."""


@dataclasses.dataclass(frozen=True)
class ExpectedMemory:
    """Bytes at the peak of a training step, on the device that trains."""

    weights: int
    """Weights and gradients."""
    optimizer: int
    """Optimizer state."""
    activations: int
    """Everything else at the peak: activations and their gradients, casts of weights, logits."""

    block: int = 0
    """Weights and gradients of the largest block; part of `weights`."""
    ends: int = 0
    """Weights and gradients outside the blocks: embedding, LM head, final norm."""
    heap: bool = False
    """Whether the memory is on the heap of a CPU, which keeps freed memory."""
    frozen: int = 0
    """Weights that have no gradient; part of `weights`."""
    saved_copy: int = 0
    """Copy of weights and optimizer state from which checkpoints are written (`async_save`)."""

    @property
    def gradients(self) -> int:
        """Bytes of the gradients, and of the weights that have one."""
        return (self.weights - self.frozen) // 2

    @property
    def state(self) -> int:
        """Bytes of weights, gradients and optimizer state."""
        return self.weights + self.optimizer

    def of_worker(
        self, parallelism: str, shards: int, workers: int, gathers: bool = False
    ) -> ExpectedMemory:
        """The memory of one of several workers that each process this batch.

        Args:
            parallelism: The value of `parallelism`; not "auto".
            shards: Number of workers that share a copy of the parameters.
            workers: Number of all workers.
            gathers: Whether sharded parameters are gathered for the optimizer step.
        """
        if workers == 1:
            return self
        optimizer = self.optimizer // (workers if parallelism == "zero1" else shards)
        if shards > 1:
            # The ends, the weights of two blocks and the gradients of one; each with its message.
            messages = 2 * self.ends + 3 * self.block
            if self.heap:  # which keeps their memory separate; fitted to measurements
                messages += self.ends + 3 * self.block
            messages += self.weights // shards if gathers else 0
        else:
            # DDP rebuilds its buckets after the first step; the heap keeps the memory of the first.
            messages = self.gradients if self.heap else 0
        return dataclasses.replace(
            self,
            weights=self.weights // shards,
            optimizer=optimizer,
            activations=self.activations + messages,
        )

    @property
    def total(self) -> int:
        return self.state + self.activations + self.saved_copy

    def least(self, compiled: bool) -> float:
        """Lower bound on the bytes needed; `compiled`: whether the model is compiled."""
        activations = self.activations * (COMPILED_SHARE if compiled else 1)
        return self.state + activations + self.saved_copy


# Bounds without a trace


def least_parameters(config: ModelArchitectureConfig, vocab_size: int) -> int:
    """Lower bound on the number of parameters: the embedding, and attention if every layer has it.

    Args:
        config: The architecture, of any size.
        vocab_size: Lower bound on the vocabulary size.
    """

    def of(layer: LayerConfig) -> int:
        if layer.mixer != "attention":
            return 0
        keys = 0 if layer.kv_sharing else layer.n_kv_head
        return 2 * config.n_embd * layer.head_dim * (layer.n_head + keys)

    attention = min(map(of, config.kinds))
    return config.n_embd * vocab_size + config.n_layer * attention


def least_state(
    config: ModelArchitectureConfig, vocab_size: int, training: TrainingConfig, workers: int = 1
) -> int:
    """Lower bound on the bytes that training needs at any batch size; cheap to compute.

    Args:
        config: The architecture, of any size.
        vocab_size: Lower bound on the vocabulary size.
        training: The training config, which decides the optimizer and whether weights are frozen.
        workers: Number of workers that the training state may be spread over.
    """
    each = WEIGHT_BYTES + OPTIMIZERS[training.optimizer].least_bytes
    if training.adapter != "none":
        quantized = training.quantize_base != "none"
        each = QUANTIZED_BYTES if quantized else WEIGHT_BYTES // 2  # no gradients
        workers = 1  # each worker has all of them
    spread = int(each * least_parameters(config, vocab_size)) // workers
    return spread + LAYER_BYTES * config.n_layer


def batch_bytes(training: TrainingConfig) -> int:
    """Bytes of int64 inputs and targets on the host: the current batch and the prefetched ones."""
    return (PREFETCH_DEPTH + 1) * 16 * training.tokens_per_step


# The trace


def expected_memory(
    config: ModelArchitectureConfig, training: TrainingConfig, device: str, dtype: torch.dtype
) -> ExpectedMemory | None:
    """Estimate the memory of a training step from a trace that computes nothing.

    Args:
        config: The architecture.
        training: The batch and the optimizer. With gradient accumulation, the accumulated gradients
            are held throughout the step.
        device: Device type.
        dtype: Compute dtype of the matmuls.

    Returns:
        The estimate; None if the model cannot be traced, for example because shapes depend on the
        data.

    Raises:
        UserError: If the model cannot be built.
    """
    config = _traceable(config, device)
    # A GPU's step can be traced on a CPU, as only shapes matter.
    place = "cpu" if device == "cuda" and not torch.cuda.is_available() else device
    traced = []
    try:
        for smaller in _smaller_models(config):
            with FakeTensorMode(), torch.device(place):
                traced.append(_trace(smaller, training, place, dtype))
    except UserError:
        raise
    except Exception:  # a plugin may do anything that fake tensors do not support
        return None
    slack = HEAP_SLACK[training.activation_checkpointing] if device == "cpu" else 0.0
    return _extrapolated(traced, config.effective_depth, slack)


def _traceable(config: ModelArchitectureConfig, device: str) -> ModelArchitectureConfig:
    """The config with SDPA instead of fused kernels, which cannot be traced but use as much."""
    if set(config.attention_backends_on(device)) <= {"manual", "sdpa"}:
        return config
    if any(attention_needs(layer).scores for layer in config.kinds if "attention_backend" in layer):
        return config.adapted(attention_backend="manual")
    return config.adapted(attention_backend="sdpa", attention_softcap=None)


def _smaller_models(config: ModelArchitectureConfig) -> list[ModelArchitectureConfig]:
    """The models to trace: with fewer layers, or with fewer loops."""
    if config.loop_count > 1:
        counts = range(2, 4) if config.loop_count > 3 else [config.loop_count]
        return [config.adapted(loop_count=count) for count in counts]
    return [config.adapted(n_layer=depth) for depth in _depths_to_trace(config)]


def _depths_to_trace(config: ModelArchitectureConfig) -> list[int]:
    """The depths to trace: two that differ by one period of the layer patterns, or the full depth.

    The shallower one has at least two periods: the one whose backward pass runs first, and another.
    """
    period, layers = config.period, config.n_layer
    if "attn_res_block" in config:
        if config.attn_res_block is None:  # not linear in depth: the mixtures grow
            return [layers]
        period = math.lcm(period, config.attn_res_block)
    shallow = config.prefix + 2 * period + (layers - config.prefix) % period
    own_blocks = any(is_users_own(BLOCKS[layer.norm_position]) for layer in config.kinds)
    if layers <= shallow + period or own_blocks:
        return [layers]
    return [shallow, shallow + period]


@dataclasses.dataclass
class _Trace:
    """The memory of one traced step, in bytes."""

    layers: int
    """Number of layers of the traced model; looped layers count `loop_count` times."""
    weights: int
    """Weights and gradients."""
    frozen: int
    """Weights without gradients."""
    block: int
    """Weights and gradients of the largest block."""
    ends: int
    """Weights and gradients outside the blocks."""
    optimizer: int
    """Optimizer state, which is held during the whole step."""
    peaks: dict[str, int]
    """Peak of each phase, excluding the optimizer state."""


def _extrapolated(traced: list[_Trace], layers: int, slack: float) -> ExpectedMemory:
    """Extrapolate traces to a model with `layers` layers, where looped layers count `loop_count`
    times: each phase's peak is linear in depth."""
    first, last = traced[0], traced[-1]
    gap = max(last.layers - first.layers, 1)

    def at_depth(shallow: int, deep: int) -> int:
        return deep + (deep - shallow) * (layers - last.layers) // gap

    optimizer = at_depth(first.optimizer, last.optimizer)
    weights = at_depth(first.weights, last.weights)
    frozen = at_depth(first.frozen, last.frozen)
    peak = max(at_depth(first.peaks[phase], last.peaks[phase]) for phase in last.peaks)
    peak += int(slack * peak)
    activations = max(0, peak - weights)
    ends = (last.block, last.ends, slack > 0)
    return ExpectedMemory(weights, optimizer, activations, *ends, frozen=frozen)


class _LiveStorages(TorchDispatchMode):
    """Counts the bytes of live storages, and their peak in each phase."""

    def __init__(self) -> None:
        super().__init__()
        self.peaks: dict[str, int] = {}
        self._live = 0
        self._known: dict[int, int] = {}
        self.enter("forward")

    def enter(self, phase: str) -> None:
        """Start a phase."""
        self._phase = phase
        self._note_peak()

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's storage once, until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known[key] = size
            self._live += size
            weakref.finalize(storage, self._release, key)
            self._note_peak()

    def leave_out(self, tensor: Tensor) -> None:
        """Exclude a tensor's storage from the count."""
        self._known[tensor.untyped_storage()._cdata] = 0

    def _release(self, key: int) -> None:
        self._live -= self._known.pop(key)

    def _note_peak(self) -> None:
        self.peaks[self._phase] = max(self.peaks.get(self._phase, 0), self._live)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.hold(value)
        return result


def _trace(
    config: ModelArchitectureConfig,
    training: TrainingConfig,
    device: str,
    dtype: torch.dtype,
) -> _Trace:
    """Trace a training step. Call under FakeTensorMode with `device` as the default device."""
    model = _adapted(config, training)
    for block in model.all_blocks:
        if training.tensor_parallel > 1:
            block.split(TensorSplit(0, training.tensor_parallel))
        checkpoint_block(block, training.activation_checkpointing)
    parameters = list(model.parameters())
    optimizer = make_optimizer(model, training)
    create_state(optimizer)
    kept = [value for state in optimizer.state.values() for value in state.values()]
    storages = _LiveStorages()
    for tensor in kept:
        storages.leave_out(tensor)
    for tensor in (*parameters, *model.buffers()):
        storages.hold(tensor)
    if training.gradient_accumulation_steps > 1:
        for parameter in trained_parameters(optimizer):
            parameter.grad = torch.zeros_like(parameter)
            storages.hold(parameter.grad)
    idx = torch.zeros(training.batch_size, training.sequence_length, dtype=torch.long)
    with storages, _entering_phases(model, config.period, storages):
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            measures = measures_logits(training, logs=True)
            loss = model(idx, idx, objective=make_objective(training), measures=measures).loss
        storages.enter("head")
        loss.backward()
        storages.enter("step")
        gradients = [p.grad for p in parameters if p.grad is not None]
        clip_grads_with_norm_(parameters, 1.0, get_total_norm(gradients))
        _guarded_step(optimizer, device)
    blocks = [_bytes(block.parameters()) + _quantized_bytes(block) for block in model.all_blocks]
    quantized = _quantized_bytes(model)
    weights = _bytes(parameters) + quantized
    return _Trace(
        layers=config.effective_depth,
        weights=weights,
        frozen=sum(p.nbytes for p in parameters if not p.requires_grad) + quantized,
        block=max(blocks),
        ends=weights - sum(blocks),
        optimizer=sum(tensor.nbytes for tensor in kept),
        peaks=storages.peaks,
    )


def _adapted(config: ModelArchitectureConfig, training: TrainingConfig) -> GPT:
    """A shallow model with adapters: in every layer, if the pattern names deeper layers."""
    try:
        return adapted_model(config, training)
    except ConfigError:
        return adapted_model(config, training.changed(adapter_pattern="*"))


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    """Bytes of parameters and their gradients, which frozen ones lack."""
    return sum(p.nbytes * (2 if p.requires_grad else 1) for p in parameters)


def _quantized_bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in quantized_tensors(module).values())


def _guarded_step(optimizer: torch.optim.Optimizer, device: str) -> None:
    """An optimizer step that can be undone, as under `StepGuard`."""
    bad = torch.zeros(())
    if takes_found_inf(optimizer, torch.device(device)):
        optimizer.found_inf = bad
        optimizer.step()
    else:
        before = Snapshot(optimizer, trained_parameters(optimizer))
        optimizer.step()
        before.restore_if(bad)


@contextlib.contextmanager
def _entering_phases(model: GPT, period: int, storages: _LiveStorages) -> Iterator[None]:
    """Start a phase of `storages` at the backward pass of the last period of layers, and another at
    that of the earlier layers."""

    def at_gradient(phase: str) -> Any:
        def hook(module: nn.Module, args: Any, output: tuple[Stream, Any]) -> None:
            stream = output[0] if isinstance(output[0], Tensor) else output[0][-1]
            stream.register_hook(lambda gradient: storages.enter(phase))

        return hook

    last, before = model.blocks[-1], model.blocks[: -period or None]
    handles = [last.register_forward_hook(at_gradient("last layers"))]
    if len(before) and before[-1] is not last:
        handles.append(before[-1].register_forward_hook(at_gradient("layers before")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
