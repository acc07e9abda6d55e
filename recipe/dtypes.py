"""Compute dtypes of matmuls: `dtype`. Weights, gradients and optimizer state are float32."""

from __future__ import annotations

from typing import ClassVar

import torch

from components.registry import Registry
from options import Role


class ComputeType:
    """A compute dtype, and the devices that support it."""

    dtype: ClassVar[torch.dtype]
    cuda_capability: ClassVar[tuple[int, int]] = (0, 0)
    """Minimum CUDA compute capability."""
    macos: ClassVar[int] = 0
    """Minimum macOS version for MPS."""


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
    """8 exponent bits, 23 mantissa bits."""

    dtype = torch.float32


@DTYPES.register("bfloat16", label="BF16")
class BFloat16(ComputeType):
    """8 exponent bits, 7 mantissa bits: the range of float32."""

    dtype = torch.bfloat16
    cuda_capability = (8, 0)
    macos = 14


@DTYPES.register("float16", label="FP16")
class Float16(ComputeType):
    """5 exponent bits, 10 mantissa bits: needs loss scaling."""

    dtype = torch.float16
