"""Estimate the duration of a run by timing a few steps on random tokens."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import torch

from configurator import Settings
from data.batches import Shares
from experiment.jobs import PROJECT, launched
from recipe.adapters import adapted_model
from recipe.objectives import make_objective
from recipe.optimizers import make_optimizer
from training.hardware import autocast, prepare_device, resolve_device, resolve_dtype, synchronize

STEPS = 3
"""Number of timed micro-batches, after one for warm-up."""

FORWARD_SHARE = 1 / 3
"""Fraction of a step's time that validation takes for as many tokens: the backward pass takes twice
as long as the forward pass."""


def seconds_of_run(settings: Settings, steps: int, val_tokens: int, processes: int = 1) -> float:
    """Estimated seconds for training and validation on this machine, excluding process start-up,
    compilation and communication.

    Args:
        settings: The settings of the run.
        steps: Number of optimizer steps.
        val_tokens: Tokens in the validation split, all of which are read if eval_tokens=0.
        processes: Number of processes that share every batch.
    """
    training = settings.training
    share = Shares(training.gradient_accumulation_steps, training.batch_size, processes)
    micro_batch = _seconds_of_micro_batch(settings, share.sequences)
    tokens = share.sequences * training.sequence_length
    interval = training.eval_interval
    evaluations = 1 + -(-steps // interval) if interval else 1
    validated = evaluations * (training.eval_tokens or val_tokens) / processes / tokens
    trained = steps * share.micro_batches
    return micro_batch * (trained + FORWARD_SHARE * validated)


def _seconds_of_micro_batch(settings: Settings, sequences: int) -> float:
    """The median time of forward, backward and optimizer step for a micro-batch."""
    training = settings.training
    device = resolve_device(training.device)
    dtype = resolve_dtype(training.dtype, device)
    prepare_device(device, tf32=training.tf32)
    network = adapted_model(settings.model, training).to(device)
    objective, optimizer = make_objective(training), make_optimizer(network, training)
    shape = (sequences, training.sequence_length)
    tokens = torch.randint(settings.model.vocab_size, shape, device=device)
    seconds = []
    for _ in range(1 + STEPS):
        began = time.perf_counter()
        with autocast(device, dtype):
            output = network(tokens, tokens, objective=objective)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def seconds_to_start(processes: int = 1) -> float:
    """Seconds until the processes of a run can start training."""
    command = [sys.executable, "-c", "import train"]
    if processes > 1:  # torchrun starts scripts; with --no-python, any command
        command = launched([sys.executable, "--no-python", *command], processes)
    began = time.perf_counter()
    subprocess.run(command, cwd=PROJECT, check=True)
    return time.perf_counter() - began
