"""The grouped linear map: equal to one product per row, as an operator and with each kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from components import grouped_linear as module
from components.grouped_linear import grouped_linear

SIZES = {
    "even": [4, 4, 4],
    "uneven": [1, 9, 2],
    "some empty": [0, 12, 0],
    "last empty": [5, 7, 0],
    "no rows": [0, 0, 0],
}

sizes = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)


def operands(sizes: list[int], dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, ...]:
    """Rows (N, 8), matrices (3, 16, 8), gradients of the output (N, 16), and the ends."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((sum(sizes), 8), (3, 16, 8), (sum(sizes), 16))
    made = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    return *made, torch.tensor(sizes, device=device).cumsum(0).int()


def by_rows(x: Tensor, weight: Tensor, sizes: list[int]) -> Tensor:
    """Each row times the matrix of its own group."""
    groups = torch.arange(3, device=x.device).repeat_interleave(torch.tensor(sizes).to(x.device))
    return torch.einsum("ni,noi->no", x, weight[groups])


def assert_same_map(sizes: list[int], dtype: torch.dtype, device: str, tolerance: float) -> None:
    """Values and both gradients are those of the map row by row, in double."""
    x, weight, of_y, ends = operands(sizes, dtype, device)
    x.requires_grad_(), weight.requires_grad_()
    y = grouped_linear(x, weight, ends)
    expected = by_rows(x.double(), weight.double(), sizes)
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    assert_close(y, expected, **close)
    assert y.dtype == dtype
    found = torch.autograd.grad(y, (x, weight), of_y)
    assert_close(found, torch.autograd.grad(expected, (x, weight), of_y.double()), **close)


@sizes
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_is_the_map_row_by_row(sizes, dtype, tolerance):
    assert_same_map(sizes, dtype, "cpu", tolerance)


@pytest.mark.parametrize("sizes", [s for s in SIZES.values() if sum(s)], ids=str)
def test_the_call_of_the_fused_kernel(sizes, monkeypatch):
    """`F.grouped_mm` on a CPU, where it has a bfloat16 kernel too, gets the operands it wants."""
    monkeypatch.setattr(module, "_has_kernel", lambda x, other_width: True)
    assert_same_map(sizes, torch.bfloat16, "cpu", 2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@sizes
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_on_cuda(sizes, dtype, tolerance):
    assert_same_map(sizes, dtype, "cuda", tolerance)


@sizes
def test_gradients(sizes):
    x, weight, _, ends = operands(sizes, torch.float64)
    given = (x.requires_grad_(), weight.requires_grad_())
    assert gradcheck(lambda x, weight: grouped_linear(x, weight, ends), given)


def test_they_are_sound_operators():
    """Schemas, shapes of fake tensors, autograd, and tracing, by torch's own checks."""
    x, weight, y, ends = operands(SIZES["uneven"], torch.float32)
    x.requires_grad_(), weight.requires_grad_()
    torch.library.opcheck(torch.ops.nanoarch.grouped_linear, (x, weight, ends))
    torch.library.opcheck(torch.ops.nanoarch.grouped_linear, (y, weight.mT, ends))
    torch.library.opcheck(torch.ops.nanoarch.grouped_outer, (y, x.detach(), ends))


def test_the_counter_sees_them():
    """2 N I O forward, and as much for each gradient."""
    x, weight, _, ends = operands(SIZES["uneven"], torch.float32)
    with FlopCounterMode(display=False) as counter:
        y = grouped_linear(x.requires_grad_(), weight.requires_grad_(), ends)
        assert counter.get_total_flops() == 2 * 12 * 8 * 16
        y.sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 12 * 8 * 16
