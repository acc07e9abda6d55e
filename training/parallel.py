"""How the model and the optimizer state are spread over the workers: `parallelism`.

    none    one process
    ddp     every worker has the whole model; gradients are averaged in the backward pass (Li et al.
            2020, "PyTorch Distributed", VLDB 13(12))
    zero1   like ddp, but each worker updates a share of the parameters and holds only their
            optimizer state (Rajbhandari et al. 2020, arXiv 1910.02054)
    fsdp    every worker has a slice of each parameter, its gradient and optimizer state; a block's
            parameters are gathered when it runs (Zhao et al. 2023, arXiv 2304.11277)
    hsdp    fsdp among the workers of a group, ddp between groups

None of them changes the mathematics: losses differ only by rounding and by the dropout masks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from components.blocks import Block
from components.tensor_split import Division, TensorSplit
from errors import ConfigError, Problem
from model_builder import GPT
from recipe.optimizers import UpdateRule
from training.activation_checkpointing import checkpoint_block
from training.sharded_tensors import Parts, own_tensors
from training.updates import OwnedUpdates, SlicedUpdates, Updates
from training.workers import Workers
from training_config import TrainingConfig

SHARDED = ("fsdp", "hsdp")
"""The values of `parallelism` with sharded parameters."""


def new_placement(
    parallelism: str,
    training: TrainingConfig,
    workers: Workers,
    device: torch.device,
    compiles: bool = False,
) -> Replicated:
    """Create the placement for a value of `parallelism` other than "auto"."""
    checkpointing = training.activation_checkpointing
    options = {"parallelism": parallelism, "compiles": compiles, "checkpointing": checkpointing}
    if parallelism in SHARDED:
        copies = workers.data_size // shards(parallelism, training, workers)
        return Sharded(workers, device, copies=copies, **options)
    # A device on which only the quantized base fits must never hold it in float32.
    quantizes = training.get("quantize_base", "none") != "none"
    return Replicated(workers, device, made_on_cpu=quantizes, **options)


def shards(parallelism: str, training: TrainingConfig, workers: Workers) -> int:
    """Number of workers over which the parameters of one copy of the model are sharded."""
    if parallelism not in SHARDED:
        return 1
    if parallelism == "fsdp":
        return workers.data_size
    return training.shard_size or max(workers.local_size // workers.tensor, 1)


def loss_scaler(device: torch.device, dtype: torch.dtype, workers: Workers) -> torch.amp.GradScaler:
    """The loss scaler for float16, synchronized over all workers; disabled for other dtypes."""
    enabled = dtype is torch.float16
    if workers.size == 1:
        return torch.amp.GradScaler(device.type, enabled=enabled)
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler  # slow to import

    return ShardedGradScaler(device.type, enabled=enabled, process_group=workers.group)


def _refuse_trained_positions(network: GPT) -> None:
    """Raise ConfigError for a position encoding with parameters that attention trains: under tensor
    parallelism each worker would only use the gradients of its own heads."""
    for encoding in network.position_encodings:
        if not encoding.of_whole_model and list(encoding.parameters()):
            message = (
                f"{type(encoding).__name__} has parameters that are trained by attention, which "
                "tensor_parallel splits; use tensor_parallel=1 or another position_encoding."
            )
            raise ConfigError([Problem(("tensor_parallel", "position_encoding"), message)])


class Replicated:
    """Every worker has the whole model; the optimizer state may be divided (zero1).

    Args:
        workers: The workers of the run.
        device: The device of this worker.
        compiles: Whether to compile the model.
        checkpointing: Mode of activation checkpointing; see `checkpoint_block`.
        parallelism: "zero1" divides the optimizer state among the workers.
        made_on_cpu: Whether new models stay on the CPU, until they are quantized.
    """

    def __init__(
        self,
        workers: Workers,
        device: torch.device,
        *,
        compiles: bool = False,
        checkpointing: str = "none",
        parallelism: str = "none",
        made_on_cpu: bool = False,
    ):
        self.workers = workers
        self.device = device
        self._made_on = torch.device("cpu") if made_on_cpu else device
        self.compiles = compiles
        self._checkpointing = checkpointing
        self.parallelism = parallelism
        self._divided: dict[str, Division] = {}
        self._partial: list[str] = []
        self.whole_parts: set[str] = set()
        """Kinds of parts that tensor parallelism replicates on each worker."""

    def new_model(self, config: Any) -> GPT:
        """Create a model with initial weights on the device, or on the CPU if it is to be
        quantized; its parameters are already distributed."""
        network = GPT(config, ready=self._place_block)
        if self.workers.tensor > 1:
            _refuse_trained_positions(network)
        self._place_rest(network)
        return network

    def _place_block(self, name: str, block: Block) -> None:
        if self.workers.tensor > 1:
            self._split(name, block)
        checkpoint_block(block, self._checkpointing)
        block.to(self._made_on)

    def _split(self, block_name: str, block: Block) -> None:
        """Keep this worker's share of a block's weights."""
        workers = self.workers
        over = TensorSplit(workers.tensor_rank, workers.tensor, workers.tensor_group)
        self.whole_parts |= block.split(over)
        for name, parameter in block.named_parameters(prefix=block_name):
            if parameter in over.divided:
                self._divided[name] = over.divided[parameter]
            if any(parameter is own for own in over.partial):
                self._partial.append(name)

    @property
    def parts(self) -> Parts:
        """The parts of the model's tensors that this worker holds."""
        return Parts(self.workers, self._divided)

    def _place_rest(self, network: GPT) -> None:
        network.to(self._made_on)

    def load(self, network: GPT, load: Callable[[GPT], None]) -> None:
        """Load weights. `load` fills a whole model, whose parts are copied into `network`."""
        if self.keeps_whole:
            load(network)
            return
        whole = GPT(network.config)
        load(whole)
        loaded = own_tensors(whole)
        for name, own in own_tensors(network).items():
            self.parts.copy(name, loaded[name], own)

    @property
    def keeps_whole(self) -> bool:
        """Whether this worker has the whole model."""
        return self.workers.tensor == 1

    def trained_form(self, network: GPT, some_unused: bool = False) -> nn.Module:
        """The model as the training loop calls it: compiled if requested, with gradients averaged
        over the workers.

        Args:
            network: The model from `new_model`.
            some_unused: Whether a step may leave some parameters unused; detecting them takes time.
        """
        # Shapes hardly ever change. Uncompiled runs save the seconds that torch.compile takes to
        # load.
        model = torch.compile(network, dynamic=False) if self.compiles else network
        if self.workers.data_size == 1:
            return model
        return DistributedDataParallel(
            model,
            process_group=self.workers.data_group,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            find_unused_parameters=some_unused,
            forward_sync_buffers=False,  # all workers change them equally: see `Workers.mean`
            gradient_as_bucket_view=True,
        )

    def accumulating(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """A context for one micro-batch: gradients are averaged only in the last one of a step.

        Args:
            model: The model from `trained_form`.
            last: Whether this is the last micro-batch of the step.
        """
        if self.workers.data_size == 1 or last:
            return contextlib.nullcontext()
        return model.no_sync()

    def updates(self, network: GPT, optimizer: UpdateRule) -> Updates:
        """Create the `Updates` of an optimizer of the model's parameters; changes its groups."""
        kind = OwnedUpdates if self.parallelism == "zero1" else Updates
        return kind(network, optimizer, self.parts, self._partial)


class Sharded(Replicated):
    """Every worker has a slice of each parameter, by torch's `fully_shard` (FSDP2).

    Scalars, which FSDP2 cannot shard, are replicated. All workers must use the same parameters in a
    step.

    Args:
        copies: Number of worker groups that each hold a full copy of the model, sharded within the
            group.
    """

    def __init__(self, workers: Workers, device: torch.device, *, copies: int = 1, **options: Any):
        super().__init__(workers, device, **options)
        self._mesh = workers.mesh(device, copies)

    @property
    def keeps_whole(self) -> bool:
        return False

    def new_model(self, config: Any) -> GPT:
        """See `Replicated.new_model`. Raises ConfigError for `sphere_weights`, which needs whole
        weights after every step."""
        if config.sphere_weights:
            message = (
                f"sphere_weights=True needs whole weights after every step, which "
                f"parallelism={self.parallelism!r} shards; use parallelism='ddp' or 'zero1'."
            )
            raise ConfigError([Problem(("sphere_weights", "parallelism"), message)])
        return super().new_model(config)

    def _place_block(self, name: str, block: Block) -> None:
        super()._place_block(name, block)
        if self.compiles:  # without the hooks that gather and free its parameters
            block.forward = torch.compile(block.forward, dynamic=False)
        self._shard(block)

    def _place_rest(self, network: GPT) -> None:
        for child in network.children():
            if child is not network.blocks:
                child.to(self.device)
        self._shard(network)

    def _shard(self, module: nn.Module) -> None:
        from torch.distributed.fsdp import fully_shard  # slow to import

        scalars = {p for p in module.parameters() if p.ndim == 0}
        fully_shard(module, mesh=self._mesh, ignored_params=scalars)

    def trained_form(self, network: GPT, some_unused: bool = False) -> nn.Module:
        """See `Replicated.trained_form`; here the blocks are already sharded and compiled."""
        return network

    def accumulating(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """See `Replicated.accumulating`; here every micro-batch averages its gradients, so that no
        full gradient is held between micro-batches."""
        return contextlib.nullcontext()

    def updates(self, network: GPT, optimizer: UpdateRule) -> Updates:
        """See `Replicated.updates`."""
        kind = SlicedUpdates if optimizer.elementwise else OwnedUpdates
        return kind(network, optimizer, self.parts, self._partial)
