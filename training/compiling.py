"""Decide whether `compile=auto` compiles the model: if the run is long enough to pay for it."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from configurator import Settings
from recipe.adapters import adapted_model
from training.hardware import peak_flops

SAVED_SHARE = 0.05
"""Fraction of the training time that compilation saves on a CPU, a conservative estimate. Measured
on an EPYC with AVX512-BF16: with one thread, 7 % of CPU time for GPT-2 124M in bfloat16 and 18 %
for a 0.8M-parameter model in float32; with two threads, no wall time for GPT-2 124M."""

EAGER_SHARE = 0.4
"""Fraction of a CPU's peak that an uncompiled model reaches, used to estimate the run's time."""

SLOW_CPU = 20e9
"""FLOP/s per core that any CPU reaches."""


@dataclasses.dataclass(frozen=True)
class Compilation:
    """Whether a model is compiled, and the reason shown in the start report."""

    compiles: bool
    reason: str = ""

    @property
    def summary(self) -> str:
        return "compiled" if self.compiles else "not compiled"

    def __str__(self) -> str:
        return f"{self.summary} ({self.reason})" if self.reason else self.summary


def compilation(
    settings: Settings, device: torch.device, dtype: torch.dtype, workers: int = 1
) -> Compilation:
    """Decide whether to compile the model of a run.

    `auto` compiles on CUDA, and on a CPU if compilation saves more time than it takes. It considers
    the whole run, so that a resumed run makes the same decision. Custom components may not compile,
    so `auto` does not compile runs with plugins on a CPU.

    Args:
        settings: The settings of the run, completed for its dataset.
        device: The training device.
        dtype: Compute dtype of the matmuls.
        workers: Number of workers.
    """
    wanted = settings.training.compile
    if wanted != "auto":
        return Compilation(bool(wanted))
    if device.type != "cpu":
        return Compilation(device.type == "cuda")
    if settings.plugins:
        return Compilation(False, "plugins")
    if not has_compiler():
        return Compilation(False, "no C++ compiler")
    seconds = training_seconds(settings, dtype, workers)
    takes, saves = compile_seconds(settings.model.effective_depth), SAVED_SHARE * seconds
    return Compilation(saves > takes, f"compiling takes {takes:.0f} s and would save {saves:.0f} s")


def has_compiler() -> bool:
    """Whether the C++ compiler and the Python headers that torch.compile needs are installed."""
    compilers = (os.environ.get("CXX"), "g++", "clang++")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return headers.exists() and any(name and shutil.which(name) for name in compilers)


def compile_seconds(layers: int) -> float:
    """Estimated seconds to compile a model with this many layers on a CPU, without a cache.
    Measured on 2 cores of an EPYC: 28 and 34 s for LLaMA with 4 layers, 39 and 40 s with 12."""
    return 25 + 1.3 * layers


def training_seconds(settings: Settings, dtype: torch.dtype, workers: int = 1) -> float:
    """Estimated training time of an uncompiled run on CPUs, in seconds. The peak is measured only
    if the run would be worth compiling on slow CPUs; otherwise this is the time on slow CPUs."""
    training = settings.training
    limit = 60 * training.max_minutes or math.inf
    with torch.device("meta"):
        model = adapted_model(settings.model, training)
    flops_per_token = model.flops_per_token(training.sequence_length)
    flops = flops_per_token * training.tokens_per_step * training.max_iters / workers
    at_most = min(limit, flops / (SLOW_CPU * torch.get_num_threads()))
    if SAVED_SHARE * at_most < compile_seconds(settings.model.effective_depth):
        return at_most
    peak = peak_flops(torch.device("cpu"), dtype)
    assert peak
    return min(limit, flops / (EAGER_SHARE * peak))
