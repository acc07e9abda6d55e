"""Linear layers whose frozen weight is stored in 4 bits, by bitsandbytes (QLoRA).

The values of a weight are divided into blocks of 64. Each value is stored as the index of one of
the 16 numbers of NF4, which are quantiles of a normal distribution, and each block has a scale in
float32. Double quantization also stores the scales in 8 bits, in blocks of 256 (Dettmers et al.
2023, arXiv 2305.14314). A weight that stacks several matrices is quantized matrix by matrix, as in
models where they are separate layers.

The weight is dequantized whenever it is used, and again in the backward pass, so that only its 4
bits are held in between.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from components.part import Part
from errors import UserError

DOUBLE = {"nf4": False, "nf4-dq": True}
"""Whether the scales are quantized, too, by the value of `quantize_base`."""

BLOCK = 64
"""Values with a common scale."""

SCALE_BLOCK = 256
"""Scales with a common scale, with double quantization."""

_CODES = 256
"""Number of values that an 8-bit scale can take."""


class QuantizedMatrix(nn.Module):
    """A frozen matrix (rows, columns) in NF4.

    Attributes:
        packed: Two values per byte, ((rows * columns + 1) // 2, 1).
        scales: The scale of each block, (blocks,); with double quantization, an 8-bit code.
        scales_of_scales: With double quantization: the scale of each block of scales.
        offset: With double quantization: the mean of the scales, ().
    """

    def __init__(self, shape: tuple[int, int], tensors: Mapping[str, Tensor]):
        super().__init__()
        self.shape = shape
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    @property
    def tensors(self) -> list[Tensor]:
        """The stored tensors, in the order that `_dequantized` takes."""
        return [*self._buffers.values()]


class QuantizedLinear(nn.Linear, Part):
    """A Linear with a frozen weight in 4 bits.

    Attributes:
        quantized: The matrices that are stacked in the weight, by section.
        codebook: With double quantization: the number that each 8-bit code stands for, (256,).
    """

    quantized: nn.ModuleDict
    codebook: Tensor | None

    @property
    def weight(self) -> Tensor:
        """The dequantized weight (out, in), in float32."""
        return _stacked([self.section(name) for name in self.quantized])

    def section(self, name: str) -> Tensor:
        """The dequantized weight of a section, in float32."""
        own = self.quantized[name]
        return _dequantized(own.shape, self.codebook, own.tensors)

    def forward(self, x: Tensor) -> Tensor:
        shapes = tuple(own.shape for own in self.quantized.values())
        tensors = [tensor for own in self.quantized.values() for tensor in own.tensors]
        return _FrozenProduct.apply(x, self.bias, shapes, self.codebook, *tensors)

    def forward_flops(self, seq_len: int, causal: bool = False) -> int:
        return 2 * self.in_features * self.out_features * seq_len


class _FrozenProduct(torch.autograd.Function):
    """x W^T + bias for a frozen quantized W; keeps W in 4 bits for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        shapes: tuple[tuple[int, int], ...],
        codebook: Tensor | None,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(codebook, *tensors)
        ctx.shapes, ctx.dtype, ctx.inputs = shapes, x.dtype, 4 + len(tensors)
        return F.linear(x, _weight(shapes, codebook, tensors).to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_others = (None,) * (ctx.inputs - 1)
        if not ctx.needs_input_grad[0]:
            return None, *of_others
        codebook, *tensors = ctx.saved_tensors  # checkpointing allows reading this only once
        weight = _weight(ctx.shapes, codebook, tensors).to(gradient.dtype)
        return (gradient @ weight).to(ctx.dtype), *of_others


def _weight(
    shapes: tuple[tuple[int, int], ...], codebook: Tensor | None, tensors: Sequence[Tensor]
) -> Tensor:
    """The weight whose matrices have these shapes, from the tensors of all of them."""
    each = len(tensors) // len(shapes)
    parts = (tensors[each * index : each * (index + 1)] for index in range(len(shapes)))
    matrices = zip(shapes, parts, strict=True)
    return _stacked([_dequantized(shape, codebook, own) for shape, own in matrices])


def _stacked(matrices: list[Tensor]) -> Tensor:
    return torch.cat(matrices) if len(matrices) > 1 else matrices[0]


def _dequantized(
    shape: tuple[int, int], codebook: Tensor | None, tensors: Sequence[Tensor]
) -> Tensor:
    """The matrix of the tensors of a `QuantizedMatrix`, in float32."""
    ops = torch.ops.bitsandbytes
    packed, scales = tensors[:2]
    if codebook is not None:
        scales_of_scales, offset = tensors[2:]
        scales = offset + ops.dequantize_blockwise(
            scales, scales_of_scales, codebook, SCALE_BLOCK, torch.float32
        )
    # As one row: with AVX-512, bitsandbytes 0.50 restarts the blocks in each row of a matrix, which
    # is wrong if rows do not consist of whole blocks.
    row = (1, math.prod(shape))
    return ops.dequantize_4bit(packed, scales, BLOCK, "nf4", row, torch.float32).view(shape)


# Quantizing


def quantize_linear(linear: nn.Linear, rows: Mapping[str, int], scheme: str) -> None:
    """Turn a Linear into a `QuantizedLinear`; `scheme` is a key of `DOUBLE`, `rows` are the rows of
    each section.

    Quantizes on the CPU, so that the result does not depend on the device. Raises UserError if
    bitsandbytes is not installed.
    """
    matrices = zip(rows, linear.weight.detach().split([*rows.values()]), strict=True)
    made = {name: _quantized(weight, scheme) for name, weight in matrices}
    codebook = _codebook(linear.weight) if DOUBLE[scheme] else None
    del linear.weight
    linear.__class__ = QuantizedLinear
    linear.quantized = nn.ModuleDict(made)
    linear.register_buffer("codebook", codebook)
    linear.requires_grad_(False)


def dequantize_linear(linear: QuantizedLinear, weight: Tensor | None = None) -> None:
    """Turn a `QuantizedLinear` into a plain frozen Linear, with another weight if one is given."""
    weight = linear.weight if weight is None else weight
    del linear.quantized, linear.codebook
    linear.__class__ = nn.Linear
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)


def _quantized(weight: Tensor, scheme: str) -> QuantizedMatrix:
    library = bitsandbytes()
    shape = (weight.shape[0], weight.shape[1])
    if weight.is_meta or isinstance(weight, FakeTensor):
        return QuantizedMatrix(shape, _placeholders(weight, DOUBLE[scheme]))
    packed, state = library.quantize_4bit(
        weight.cpu().float().contiguous(),
        blocksize=BLOCK,
        quant_type="nf4",
        compress_statistics=DOUBLE[scheme],
    )
    tensors = {"packed": packed, "scales": state.absmax}
    if DOUBLE[scheme]:
        tensors |= {"scales_of_scales": state.state2.absmax, "offset": state.offset}
    return QuantizedMatrix(shape, {name: own.to(weight.device) for name, own in tensors.items()})


def _placeholders(weight: Tensor, double: bool) -> dict[str, Tensor]:
    """Tensors like those of a quantized matrix, for estimates."""
    values = weight.numel()
    blocks = -(values // -BLOCK)
    sizes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "packed": (((values + 1) // 2, 1), torch.uint8),
        "scales": ((blocks,), torch.uint8 if double else torch.float32),
    }
    if double:
        sizes["scales_of_scales"] = ((-(blocks // -SCALE_BLOCK),), torch.float32)
        sizes["offset"] = ((), torch.float32)
    return {
        name: torch.empty(shape, dtype=dtype, device=weight.device)
        for name, (shape, dtype) in sizes.items()
    }


def _codebook(weight: Tensor) -> Tensor:
    """The number that each 8-bit code of a scale stands for, (256,), on the device of a weight."""
    if isinstance(weight, FakeTensor):
        return torch.empty(_CODES, device=weight.device)
    return _shared_codebook(weight.device)


@functools.cache
def _shared_codebook(device: torch.device) -> Tensor:
    """The codebook, which all layers share."""
    if device.type == "meta":
        return torch.empty(_CODES, device=device)
    return bitsandbytes().create_dynamic_map().to(device)


def bitsandbytes() -> ModuleType:
    """The functions of bitsandbytes. Raises UserError if it is not installed."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns about missing kernels for inference
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise UserError(
            "quantize_base needs bitsandbytes: pip install bitsandbytes; or drop quantize_base."
        ) from error
    finally:
        logger.setLevel(level)
    return functional


# The quantized weights of a model


def quantized_linears(model: nn.Module) -> Iterator[tuple[str, QuantizedLinear]]:
    """The quantized layers of a model by name."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            yield name, module


def quantized_parameters(model: nn.Module) -> int:
    """Number of quantized weights, which `model.parameters()` does not contain."""
    linears = (linear for _, linear in quantized_linears(model))
    return sum(linear.in_features * linear.out_features for linear in linears)


def quantized_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors in which a model's quantized weights are stored, by name."""
    return {
        f"{name}.{part}": tensor
        for name, linear in quantized_linears(model)
        for part, tensor in _own_buffers(linear)
    }


def _own_buffers(linear: QuantizedLinear) -> Iterator[tuple[str, Tensor]]:
    yield from linear.quantized.named_buffers()
    if linear.codebook is not None:
        yield "codebook", linear.codebook


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of tensors, counting shared storages once."""
    storages = {own.untyped_storage()._cdata: own.untyped_storage() for own in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def quantized_sha256(model: nn.Module) -> str | None:
    """SHA-256 of the names and values of a model's quantized weights; None if it has none."""
    tensors = quantized_tensors(model)
    if not tensors:
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()
