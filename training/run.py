"""A run: what it consists of, how far it is, and going back to a checkpoint."""

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
    """What a run consists of, and how far it is.

    Attributes:
        memory: What it is expected to need; None where that cannot be told.
        placement: What each worker has of the model.
        network: The model; `model` is the same as the loop calls it, see `Replicated.trained_form`.
        optimizer_flops: Matmul FLOPs of its step, over all workers.
        updates: Which parameters the optimizer of this worker updates.
        scaler: Of the loss in float16, whose range is small; elsewhere it does nothing.
        watch: Time spent in training steps, validation and saving not counted.
        step: Optimizer steps done.
        seconds: What `watch` showed after the last of them.
        logged_at: The step of the last log line.
        evaluated_at: The step of the last validation, None before the first.
        val_loss: What that gave, in nats per token; None where it is not known.
        saved_at: The step of the last checkpoint, None before the first.
        sampled_at: The step of the last sample, None before the first.
        compilation: Whether the model is compiled, and why.
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

    @property
    def workers(self) -> Workers:
        """Those that train it, of which this process is one."""
        return self.placement.workers

    @property
    def device(self) -> torch.device:
        """That of this worker."""
        return self.placement.device

    @property
    def config(self) -> dict[str, Any]:
        """Every key and its value, for the log and the checkpoints; run_name is the folder's."""
        return {**self.settings.to_dict(), "run_name": self.folder.name}

    @property
    def cost(self) -> dict[str, Any]:
        """What the model is and costs, and the matmul FLOPs of the optimizer apart."""
        cost = self.whole_network.cost_report(self.settings.training.sequence_length)
        return {**cost, "optimizer_flops_per_step": self.optimizer_flops}

    @property
    def whole_network(self) -> GPT:
        """The model as it would be on one worker; its weights are not to be used."""
        if self.workers.tensor == 1:
            return self.network
        with torch.device("meta"):  # the network has a share of the heads and hidden units
            return GPT(self.settings.model)

    @property
    def tokens_seen(self) -> int:
        return self.step * self.settings.training.tokens_per_step

    def advance(self) -> None:
        """Count the step that was just given to the device."""
        self.step += 1
        if self.settings.training.max_minutes:  # then it decides when the run ends
            self.seconds = self.workers.clock(self.watch.read())
        else:
            self.seconds = self.watch.read()

    @property
    def position(self) -> float:
        """Where it is on the schedule of its learning rate, in steps.

        A share of the minutes stands for that share of max_iters, so that the schedule ends with
        the run whichever limit ends it (Geiping and Goldstein 2022, "Cramming", arXiv 2212.14034).
        """
        training = self.settings.training
        if training.max_minutes == 0:
            return self.step
        share = self.seconds / (60 * training.max_minutes)
        return max(self.step, share * training.max_iters)

    @property
    def share_done(self) -> float:
        """Share of its steps or minutes that are done, whichever is larger."""
        return min(1.0, self.position / self.settings.training.max_iters)

    @property
    def over(self) -> bool:
        """Whether its steps are done, or its minutes spent."""
        return self.position >= self.settings.training.max_iters

    @property
    def evaluation_due(self) -> bool:
        """Whether the weights as they are now are to be validated, and have not been."""
        interval = self.settings.training.eval_interval
        at_interval = interval > 0 and self.step % interval == 0
        return (at_interval or self.over) and self.evaluated_at != self.step

    @property
    def finished(self) -> bool:
        """Whether it is over and validated."""
        return self.over and self.evaluated_at == self.step

    def state(self) -> dict[str, Any]:
        """What a checkpoint has of it beside tensors, its step and its log, for `restore`."""
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
            "seconds": self.watch.total,
            "stepper": {**self.guard.state_dict(), "scaler": self.scaler.state_dict()},
        }

    def restore(self, start: Start) -> None:
        """Go back to where a checkpoint was saved, random generators included.

        Raises:
            UserError: the data is not what the checkpoint was trained on.
        """
        saved, found = start.state["data_fingerprint"], self.dataset.fingerprint
        if saved != found:
            raise UserError(
                f"the run to resume was trained on data of fingerprint {saved[:12]}, but "
                f"dataset={self.settings.training.dataset!r} now has {found[:12]}; prepare the "
                "same data again, or start a new run."
            )
        load_model_weights(start.checkpoint, self.network, self.placement.parts)
        load_optimizer(start.checkpoint, self.updates)
        load_rng(start.checkpoint)
        self.guard.load_state_dict(start.state["stepper"])
        if start.state["stepper"]["scaler"]:  # empty unless float16 was trained in
            self.scaler.load_state_dict(start.state["stepper"]["scaler"])
        self.step = self.saved_at = self.logged_at = start.state["step"]
        self.sampled_at = start.state.get("sampled_at")
        self.evaluated_at = start.state["evaluated_at"]
        self.val_loss = start.state["val_loss"]
        self.seconds = start.state["seconds"]
        self.watch = Stopwatch(self.device, self.seconds)
