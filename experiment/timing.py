"""How long a run will take, by a few steps of it on random tokens."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import torch

from configurator import Settings
from experiment.jobs import PROJECT
from model_builder import GPT
from recipe.objectives import make_objective
from recipe.optimizers import make_optimizer
from training.hardware import autocast, resolve_device, resolve_dtype, synchronize

STEPS = 3
"""Timed micro-batches, after one that warms up."""

FORWARD_SHARE = 1 / 3
"""Of a step's time, what validating as many tokens takes: the backward pass is twice the forward
one."""


def seconds_of_run(settings: Settings, steps: int, val_tokens: int) -> float:
    """Seconds that the training and the validations of so many steps take on this machine, without
    the start of the process and without compiling.

    Args:
        settings: The run's.
        steps: Optimizer steps.
        val_tokens: Those of the validation split, which eval_tokens=0 reads whole.
    """
    training = settings.training
    micro_batch = _seconds_of_micro_batch(settings)
    tokens = training.batch_size * training.sequence_length
    evaluations = 1 + -(-steps // training.eval_interval)
    validated = evaluations * (training.eval_tokens or val_tokens) / tokens
    trained = steps * training.gradient_accumulation_steps
    return micro_batch * (trained + FORWARD_SHARE * validated)


def _seconds_of_micro_batch(settings: Settings) -> float:
    """The median time of forward, backward and update of one micro-batch."""
    training = settings.training
    device = resolve_device(training.device)
    dtype = resolve_dtype(training.dtype, device)
    network = GPT(settings.model).to(device)
    objective, optimizer = make_objective(training), make_optimizer(network, training)
    shape = (training.batch_size, training.sequence_length)
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


def seconds_to_start() -> float:
    """Seconds that a process takes until it can begin to train."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import train"], cwd=PROJECT, check=True)
    return time.perf_counter() - began
