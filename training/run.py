"""A training run: its components, its progress, and restoring it from a checkpoint."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configurator import Settings
from data.dataset import Dataset
from data.validation import ValidationWindows
from errors import UserError
from model_builder import GPT, Objective
from recipe.optimizers import UpdateRule
from training.base_model import BaseDigests
from training.checkpoint import load_model_weights, load_optimizer, load_rng
from training.clock import Stopwatch
from training.compiling import Compilation
from training.memory import ExpectedMemory
from training.parallel import Replicated
from training.resume import Start
from training.step_guard import StepGuard
from training.updates import Updates
from training.workers import Workers
from user_files import located


@dataclasses.dataclass
class Run:
    """The components of a training run, and its progress.

    Attributes:
        memory: Expected memory of a step; None if it cannot be estimated.
        placement: How the model is spread over the workers.
        network: The model.
        model: The model as the training loop calls it; see `Replicated.trained_form`.
        optimizer_flops: Matmul FLOPs of an optimizer step, over all workers.
        updates: The parameters that this worker's optimizer updates.
        scaler: The loss scaler for float16; disabled for other dtypes.
        watch: Time spent in training steps, excluding validation and saving.
        step: Optimizer steps done.
        seconds: Reading of `watch` after the last step.
        logged_at: The step of the last log line.
        evaluated_at: The step of the last validation; None before the first.
        val_loss: Result of the last validation, in nats per token; None if unknown.
        saved_at: The step of the last checkpoint; None before the first.
        sampled_at: The step of the last sample; None before the first.
        compilation: Whether the model is compiled, and why.
        init_from_sha256: Digest of the weights of `init_from`; None if unknown.
        base: Digests of the frozen weights, if the run has adapters.
    """

    settings: Settings
    folder: Path
    dataset: Dataset
    validation: ValidationWindows
    dtype: torch.dtype
    memory: ExpectedMemory | None
    placement: Replicated
    network: GPT
    model: nn.Module
    objective: Objective
    optimizer: UpdateRule
    optimizer_flops: int
    updates: Updates
    scaler: torch.amp.GradScaler
    guard: StepGuard
    watch: Stopwatch
    step: int = 0
    seconds: float = 0.0
    logged_at: int = 0
    evaluated_at: int | None = None
    val_loss: float | None = None
    saved_at: int | None = None
    sampled_at: int | None = None
    compilation: Compilation = dataclasses.field(default_factory=lambda: Compilation(False))
    init_from_sha256: str | None = None
    base: BaseDigests = BaseDigests()

    @property
    def workers(self) -> Workers:
        """The workers of the run, including this process."""
        return self.placement.workers

    @property
    def device(self) -> torch.device:
        """The device of this worker."""
        return self.placement.device

    @property
    def config(self) -> dict[str, Any]:
        """All keys and values, for the log and the checkpoints; `run_name` is the folder's name."""
        return {**self.settings.to_dict(), "run_name": self.folder.name}

    @property
    def cost(self) -> dict[str, Any]:
        """The model's cost report, plus the matmul FLOPs of an optimizer step."""
        cost = self.whole_network.cost_report(self.settings.training.sequence_length)
        return {**cost, "optimizer_flops_per_step": self.optimizer_flops}

    @property
    def whole_network(self) -> GPT:
        """The model as it would be on one worker. Do not use its weights: it may be on meta."""
        if self.workers.tensor == 1:
            return self.network
        with torch.device("meta"):  # the network has a share of the heads and hidden units
            return GPT(self.settings.model)

    @property
    def tokens_seen(self) -> int:
        return self.step * self.settings.training.tokens_per_step

    def advance(self) -> None:
        """Count the step that was just queued on the device."""
        self.step += 1
        if self.settings.training.max_minutes:  # the time decides when the run ends
            self.seconds = self.workers.clock(self.watch.read())
        else:
            self.seconds = self.watch.read()

    @property
    def position(self) -> float:
        """Position on the learning-rate schedule, in steps.

        A fraction of `max_minutes` counts as that fraction of `max_iters`, so that the schedule
        ends with the run, whichever limit ends it (Geiping and Goldstein 2022, "Cramming", arXiv
        2212.14034).
        """
        training = self.settings.training
        if training.max_minutes == 0:
            return self.step
        share = self.seconds / (60 * training.max_minutes)
        return max(self.step, share * training.max_iters)

    @property
    def share_done(self) -> float:
        """Fraction of the steps or of the minutes that are done, whichever is larger."""
        return min(1.0, self.position / self.settings.training.max_iters)

    @property
    def over(self) -> bool:
        """Whether all steps are done or the time limit is reached."""
        return self.position >= self.settings.training.max_iters

    @property
    def evaluation_due(self) -> bool:
        """Whether the current weights should be validated and have not been."""
        interval = self.settings.training.eval_interval
        at_interval = interval > 0 and self.step % interval == 0
        return (at_interval or self.over) and self.evaluated_at != self.step

    @property
    def finished(self) -> bool:
        """Whether the run is over and its final weights are validated."""
        return self.over and self.evaluated_at == self.step

    def state(self) -> dict[str, Any]:
        """The state for `restore` that a checkpoint stores besides tensors, step and log."""
        return {
            "config": self.config,
            "derived": self.settings.derived,
            "data_fingerprint": self.dataset.fingerprint,
            "tokenizer": self.dataset.meta["tokenizer"],
            "plugin_paths": {
                Path(path).name: os.path.abspath(located(path)) for path in self.settings.plugins
            },
            "evaluated_at": self.evaluated_at,
            "sampled_at": self.sampled_at,
            "init_from_sha256": self.init_from_sha256,
            **self.base.to_state(),
            "seconds": self.watch.total,
            "stepper": {**self.guard.state_dict(), "scaler": self.scaler.state_dict()},
        }

    def restore(self, start: Start) -> None:
        """Restore the run from a checkpoint, including the random number generators.

        Raises:
            UserError: If the data is not what the checkpoint was trained on.
        """
        saved, found = start.state["data_fingerprint"], self.dataset.fingerprint
        if saved != found:
            raise UserError(
                f"the run to resume was trained on data with fingerprint {saved[:12]}, but "
                f"dataset={self.settings.training.dataset!r} now has {found[:12]}; prepare the "
                "same data again, or start a new run."
            )
        load_model_weights(start.checkpoint, self.network, self.placement.parts)
        load_optimizer(start.checkpoint, self.updates)
        load_rng(start.checkpoint)
        self.guard.load_state_dict(start.state["stepper"])
        if start.state["stepper"]["scaler"]:  # empty unless it trained in float16
            self.scaler.load_state_dict(start.state["stepper"]["scaler"])
        self.step = self.saved_at = self.logged_at = start.state["step"]
        self.sampled_at = start.state.get("sampled_at")
        self.evaluated_at = start.state["evaluated_at"]
        self.val_loss = start.state["val_loss"]
        self.seconds = start.state["seconds"]
        self.watch = Stopwatch(self.device, self.seconds)
