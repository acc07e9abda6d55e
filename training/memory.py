"""What a run will need of memory, before it starts.

The peak of a training step is found by tracing one: forward, loss, backward, clipping and the
optimizer's step run under FakeTensorMode, which computes nothing, while every tensor storage that
is made and freed is counted. So transients count too, such as the logits in float32, their
log-softmax and their gradient, which are most of the peak where the vocabulary is large. On a CPU
the allocator keeps small blocks that are freed, so the most of them is added to the most of large
ones. What Python, torch and the inside of kernels need is not counted.

Layers are alike, so two small depths are traced and the rest is extrapolated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils._python_dispatch import TorchDispatchMode

from components.registry import is_users_own
from components.tensor_split import TensorSplit
from data.prefetch import PREFETCH_DEPTH
from errors import UserError
from model_builder import GPT
from model_components import BLOCKS
from model_config import ModelArchitectureConfig
from recipe.objectives import make_objective
from recipe.optimizers import OPTIMIZERS, make_optimizer
from recipe.snapshot import Snapshot
from training.activation_checkpointing import checkpoint_block
from training.optim import trained_parameters
from training.optimizer_state import create_state, takes_found_inf
from training_config import TrainingConfig

COMPILED_SHARE = 0.25
"""torch.compile computes some activations anew instead of keeping them, how many is not known
beforehand: a compiled run is refused only where even this share of them does not fit."""

WEIGHT_BYTES = 8
"""Per parameter in float32: the weight and its gradient."""

HEAP_SLACK = {"none": 0.42, "block": 1.2, "selective": 0.65}
"""The gaps between the blocks of a CPU's heap, as a share of all, by `activation_checkpointing`;
fitted to measurements (`scripts/memory.py`)."""

LAYER_BYTES = 20_000
"""What Python holds for the modules of a layer, at least, whatever their widths."""


@dataclasses.dataclass(frozen=True)
class ExpectedMemory:
    """Bytes at the peak of a training step, on the device that trains."""

    weights: int
    """Weights and gradients."""
    optimizer: int
    """What the optimizer keeps of the weights."""
    activations: int
    """What else is held at the peak: activations and their gradients, casts of weights, logits."""

    block: int = 0
    """Weights and gradients of the largest block; part of `weights`."""
    ends: int = 0
    """Weights and gradients of what is in no block: embedding, LM head, final norm."""
    heap: bool = False
    """Whether it is in the heap of a CPU, which keeps what is freed."""
    saved_copy: int = 0
    """The copy of weights and optimizer state that checkpoints are written from (`async_save`)."""

    @property
    def state(self) -> int:
        """Weights, gradients, and what the optimizer keeps of them."""
        return self.weights + self.optimizer

    def of_worker(
        self, parallelism: str, shards: int, workers: int, gathers: bool = False
    ) -> ExpectedMemory:
        """The memory of one of several workers, each of which has this batch.

        Args:
            parallelism: Other than "auto".
            shards: Workers that share a copy of the parameters.
            workers: All workers.
            gathers: Whether a sharded parameter is gathered where the optimizer updates it.
        """
        if workers == 1:
            return self
        optimizer = self.optimizer // (workers if parallelism == "zero1" else shards)
        if shards > 1:
            # The ends, and two blocks' weights and one's gradients; each also as a message.
            messages = 2 * self.ends + 3 * self.block
            if self.heap:  # which keeps them apart; fitted to measurements
                messages += self.ends + 3 * self.block
            messages += self.weights // shards if gathers else 0
        else:
            # DDP arranges gradients anew after the first step; the heap keeps the first buckets.
            messages = self.weights // 2 if self.heap else 0
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
        """What cannot be done without, bytes."""
        activations = self.activations * (COMPILED_SHARE if compiled else 1)
        return self.state + activations + self.saved_copy


# Bounds that need no trace


def least_parameters(config: ModelArchitectureConfig, vocab_size: int) -> int:
    """Parameters of the embedding and of attention, if every layer has it; a lower bound.

    Args:
        config: The architecture, of any size.
        vocab_size: Tokens of the vocabulary, at least.
    """
    attention = min(
        2 * config.n_embd * layer.head_dim * (layer.n_head + layer.n_kv_head)
        if layer.mixer == "attention"
        else 0
        for layer in config.kinds
    )
    return config.n_embd * vocab_size + config.n_layer * attention


def least_state(
    config: ModelArchitectureConfig, vocab_size: int, optimizer: str, workers: int = 1
) -> int:
    """Bytes that training holds whatever the batch: a lower bound that takes no time.

    Args:
        config: The architecture, of any size.
        vocab_size: Tokens of the vocabulary, at least.
        optimizer: Its name.
        workers: Over how many workers parameters and the rest may be spread.
    """
    each = WEIGHT_BYTES + OPTIMIZERS[optimizer].least_bytes
    spread = each * least_parameters(config, vocab_size) // workers
    return spread + LAYER_BYTES * config.n_layer


def batch_bytes(training: TrainingConfig) -> int:
    """Bytes on the host of int64 inputs and targets: of a step, and of those prefetched."""
    return (PREFETCH_DEPTH + 1) * 16 * training.tokens_per_step


# The trace


def expected_memory(
    config: ModelArchitectureConfig, training: TrainingConfig, device: str, dtype: torch.dtype
) -> ExpectedMemory | None:
    """The memory of a training step, from a trace that computes nothing.

    Args:
        config: The architecture.
        training: The batch, and the optimizer. If a step has several micro-batches, the gradients
            of the ones before are held while the next is computed.
        device: Device type.
        dtype: Compute type of the matmuls.

    Returns:
        The expectation; None if the model cannot be traced, as with a part whose shapes depend on
        the data.

    Raises:
        UserError: the model cannot be made.
    """
    config = _traceable(config, device)
    # The shapes of a GPU's step can be traced where there is none.
    place = "cpu" if device == "cuda" and not torch.cuda.is_available() else device
    traced = []
    try:
        for depth in _depths_to_trace(config):
            smaller = config.adapted(n_layer=depth)
            with FakeTensorMode(), torch.device(place):
                traced.append(_trace(smaller, training, place, dtype))
    except UserError:
        raise
    except Exception:  # whatever a part of the user's own does that a fake tensor cannot
        return None
    slack = HEAP_SLACK[training.activation_checkpointing] if device == "cpu" else 0.0
    return _extrapolated(traced, config.n_layer, slack)


def _traceable(config: ModelArchitectureConfig, device: str) -> ModelArchitectureConfig:
    """The config with SDPA in place of the fused kernels that cannot be traced, and keep alike."""
    if set(config.attention_backends_on(device)) <= {"manual", "sdpa"}:
        return config
    return config.adapted(attention_backend="sdpa", attention_softcap=None)


def _depths_to_trace(config: ModelArchitectureConfig) -> list[int]:
    """Two depths a period of the layers' patterns apart; the depth itself where that is no more.

    The shallower has two periods or more: one whose backward pass comes first, and another.
    """
    period, layers = config.period, config.n_layer
    shallow = config.prefix + 2 * period + (layers - config.prefix) % period
    own_blocks = any(is_users_own(BLOCKS[layer.norm_position]) for layer in config.kinds)
    if layers <= shallow + period or own_blocks:
        return [layers]
    return [shallow, shallow + period]


@dataclasses.dataclass
class _Trace:
    """One traced step, and the most bytes alive in each of its phases, the optimizer's left out."""

    layers: int
    weights: int
    """Bytes of weights and gradients."""
    block: int
    """Those of them in the largest block."""
    ends: int
    """Those of them in no block."""
    optimizer: int
    """Bytes that the optimizer keeps, during the whole step."""
    peaks: dict[str, int]
    """Of each phase."""


def _extrapolated(traced: list[_Trace], layers: int, slack: float) -> ExpectedMemory:
    """What the traces say of a model of `layers` layers: each phase's peak is linear in them."""
    first, last = traced[0], traced[-1]
    gap = max(last.layers - first.layers, 1)

    def at_depth(shallow: int, deep: int) -> int:
        return deep + (deep - shallow) * (layers - last.layers) // gap

    optimizer = at_depth(first.optimizer, last.optimizer)
    weights = at_depth(first.weights, last.weights)
    peak = max(at_depth(first.peaks[phase], last.peaks[phase]) for phase in last.peaks)
    peak += int(slack * peak)
    activations = max(0, peak - weights)
    return ExpectedMemory(weights, optimizer, activations, last.block, last.ends, slack > 0)


class _LiveStorages(TorchDispatchMode):
    """Counts the bytes of the storages alive, and the most of them in each phase."""

    def __init__(self) -> None:
        super().__init__()
        self.peaks: dict[str, int] = {}
        self._live = 0
        self._known: dict[int, int] = {}
        self.enter("forward")

    def enter(self, phase: str) -> None:
        """Begin a phase."""
        self._phase = phase
        self._note_peak()

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known[key] = size
            self._live += size
            weakref.finalize(storage, self._release, key)
            self._note_peak()

    def leave_out(self, tensor: Tensor) -> None:
        """Do not count a tensor's storage."""
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
    """Trace a step of a model; call it under FakeTensorMode and with `device` the default."""
    model = GPT(config)
    for block in model.blocks:
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
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
            storages.hold(parameter.grad)
    idx = torch.zeros(training.batch_size, training.sequence_length, dtype=torch.long)
    with storages, _entering_phases(model, config.period, storages):
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = model(idx, idx, objective=make_objective(training)).loss
        storages.enter("head")
        loss.backward()
        storages.enter("step")
        gradients = [p.grad for p in parameters if p.grad is not None]
        clip_grads_with_norm_(parameters, 1.0, get_total_norm(gradients))
        _guarded_step(optimizer, device)
    blocks = [_bytes(block.parameters()) for block in model.blocks]
    weights = _bytes(parameters)
    return _Trace(
        layers=config.n_layer,
        weights=weights,
        block=max(blocks),
        ends=weights - sum(blocks),
        optimizer=sum(tensor.nbytes for tensor in kept),
        peaks=storages.peaks,
    )


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    """Of parameters and their gradients."""
    return 2 * sum(p.nbytes for p in parameters)


def _guarded_step(optimizer: torch.optim.Optimizer, device: str) -> None:
    """A step that can be undone, as `StepGuard` sees to it."""
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
    """Tell `storages` when the backward pass reaches the last layers, and the layers before."""

    def at_gradient(phase: str) -> Any:
        def hook(module: nn.Module, args: Any, output: tuple[Tensor, Any]) -> None:
            output[0].register_hook(lambda gradient: storages.enter(phase))

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
