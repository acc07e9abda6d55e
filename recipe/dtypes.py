"""What matmuls compute in: `dtype`. Weights, gradients and what the optimizer keeps are float32."""

from __future__ import annotations

from typing import ClassVar

import torch

from components.registry import Registry
from options import Role


class ComputeType:
    """A compute dtype, and the devices that have it."""

    dtype: ClassVar[torch.dtype]
    cuda_capability: ClassVar[tuple[int, int]] = (0, 0)
    """The lowest of a CUDA device that computes in it."""
    macos: ClassVar[int] = 0
    """The lowest version of macOS that does on Apple's GPUs."""


DTYPES = Registry(
    "dtype",
    "Compute dtype",
    variable="DTYPES",
    base=ComputeType,
    made_with=None,
    role=Role.RECIPE,
)


@DTYPES.register("float32", label="FP32")
class Float32(ComputeType):
    """8 bits of exponent, 23 of mantissa."""

    dtype = torch.float32


@DTYPES.register("bfloat16", label="BF16")
class BFloat16(ComputeType):
    """8 bits of exponent, 7 of mantissa: the range of float32."""

    dtype = torch.bfloat16
    cuda_capability = (8, 0)
    macos = 14


@DTYPES.register("float16", label="FP16")
class Float16(ComputeType):
    """5 bits of exponent, 10 of mantissa: needs a scaled loss."""

    dtype = torch.float16
