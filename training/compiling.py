"""Whether `compile=auto` compiles the model: if the run is long enough to earn back the time."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from configurator import Settings
from model_builder import GPT
from training.hardware import peak_flops

SAVED_SHARE = 0.05
"""Of the time of training on a CPU, what a compiled model saves, with caution. Measured on an EPYC
with AVX512-BF16: of the CPU time of one thread, 7 % of GPT-2 124M in bfloat16 and 18 % of a model
of 0.8M parameters in float32; of the wall time of two threads, nothing of the former."""

EAGER_SHARE = 0.4
"""Of a CPU's peak, what a model that is not compiled reaches: a run is rather longer than that."""

SLOW_CPU = 20e9
"""FLOP/s of a core, at least."""


@dataclasses.dataclass(frozen=True)
class Compilation:
    """Whether a model is compiled, and why, in words for the start report."""

    compiles: bool
    reason: str = ""

    def __str__(self) -> str:
        words = "compiled" if self.compiles else "not compiled"
        return f"{words} ({self.reason})" if self.reason else words


def compilation(
    settings: Settings, device: torch.device, dtype: torch.dtype, workers: int = 1
) -> Compilation:
    """What `compile` of a run comes to.

    auto compiles on CUDA, and on a CPU if that saves more time than it takes: in the whole run, so
    that a run that is resumed is compiled as before. Parts of a user's own may not compile, so a
    run with plugins is not compiled unless it is asked for.

    Args:
        settings: Those of the run, completed for its data.
        device: Where it trains.
        dtype: Compute type of the matmuls.
        workers: How many train together.
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
    takes, saves = compile_seconds(settings.model.n_layer), SAVED_SHARE * seconds
    return Compilation(saves > takes, f"would save {saves:.0f} s and take {takes:.0f} s")


def has_compiler() -> bool:
    """Whether there is what torch.compile needs on a CPU: a C++ compiler and Python's headers."""
    compilers = (os.environ.get("CXX"), "g++", "clang++")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return headers.exists() and any(name and shutil.which(name) for name in compilers)


def compile_seconds(layers: int) -> float:
    """About how long it takes to compile a model of so many layers on a CPU."""
    return 20 + 3 * layers


def training_seconds(settings: Settings, dtype: torch.dtype, workers: int = 1) -> float:
    """About how long a run trains on CPUs if it is not compiled. If even on slow CPUs that is too
    short to be worth compiling, the time on slow CPUs."""
    training = settings.training
    limit = 60 * training.max_minutes or math.inf
    with torch.device("meta"):
        flops_per_token = GPT(settings.model).flops_per_token(training.sequence_length)
    flops = flops_per_token * training.tokens_per_step * training.max_iters / workers
    at_most = min(limit, flops / (SLOW_CPU * torch.get_num_threads()))
    if SAVED_SHARE * at_most < compile_seconds(settings.model.n_layer):
        return at_most
    peak = peak_flops(torch.device("cpu"), dtype)
    assert peak
    return min(limit, flops / (EAGER_SHARE * peak))
