"""How long a run will take, by a few steps of it on random tokens."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import torch

from configurator import Settings
from data.batches import Shares
from experiment.jobs import PROJECT, launched
from model_builder import GPT
from recipe.objectives import make_objective
from recipe.optimizers import make_optimizer
from training.hardware import autocast, prepare_device, resolve_device, resolve_dtype, synchronize

STEPS = 3
"""Timed micro-batches, after one that warms up."""

FORWARD_SHARE = 1 / 3
"""Of a step's time, what validating as many tokens takes: the backward pass is twice the forward
one."""


def seconds_of_run(settings: Settings, steps: int, val_tokens: int, processes: int = 1) -> float:
    """Seconds that the training and the validations of so many steps take on this machine, without
    the start of the process, without compiling, and without what processes send each other.

    Args:
        settings: The run's.
        steps: Optimizer steps.
        val_tokens: Those of the validation split, which eval_tokens=0 reads whole.
        processes: That share every batch.
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
    """The median time of forward, backward and update of one micro-batch of so many sequences."""
    training = settings.training
    device = resolve_device(training.device)
    dtype = resolve_dtype(training.dtype, device)
    prepare_device(device, tf32=training.tf32)
    network = GPT(settings.model).to(device)
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
    """Seconds that the processes of a run take until they can begin to train."""
    command = [sys.executable, "-c", "import train"]
    if processes > 1:  # torchrun starts scripts, and with --no-python anything
        command = launched([sys.executable, "--no-python", *command], processes)
    began = time.perf_counter()
    subprocess.run(command, cwd=PROJECT, check=True)
    return time.perf_counter() - began
