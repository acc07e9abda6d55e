"""The LM head's loss in chunks: the numbers of the loss of all logits, which are never held."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from components import head as heads
from components.head import CHUNK_BYTES, CPU_CHUNK_BYTES, MOST_CHUNKS, LMHead, tokens_at_a_time
from tests.measured import assert_close

VOCABULARY = 13


def made(bias: bool = False, softcap: float | None = None) -> tuple[LMHead, Tensor, Tensor]:
    """A head in float64, what it reads, and targets, one of which is left out."""
    torch.manual_seed(0)
    config = {"n_embd": 4, "vocab_size": VOCABULARY, "head_bias": bias, "output_softcap": softcap}
    config |= {"logit_scale": 0.7, "logit_gain": bias}
    head = LMHead(SimpleNamespace(**config)).double()
    targets = torch.randint(VOCABULARY, (2, 5))
    targets[0, 3] = -1
    return head, torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True), targets


def in_chunks_of(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "tokens_at_a_time", lambda *sizes: tokens)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("z_coef", [0.0, 0.1])
def test_chunks_give_the_loss_and_the_gradients_of_the_formula(monkeypatch, bias, softcap, z_coef):
    head, x, targets = made(bias, softcap)
    logits = head(x)
    counted = targets != -1
    losses = F.cross_entropy(logits[counted], targets[counted])
    z = logits[counted].logsumexp(dim=-1).square().mean()
    expected = losses + z_coef * z
    weights = [x, *head.parameters()]
    gradients = torch.autograd.grad(expected, weights)
    for tokens in (100, 3, 1):
        in_chunks_of(tokens, monkeypatch)
        found = head.loss(x, targets, z_coef)
        assert_close(found.total, expected, 1e-12)
        assert not found.z.requires_grad
        if z_coef:
            assert_close(found.z, z, 1e-12)
        own = torch.autograd.grad(found.total, weights)
        for one, other in zip(own, gradients, strict=True):
            assert_close(one, other, 1e-12)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_loss_of_each_window(monkeypatch, softcap):
    head, x, targets = made(softcap=softcap)
    targets = targets.clamp(min=0)
    expected = [F.cross_entropy(head(x)[i], targets[i]) for i in range(2)]
    for tokens in (100, 5, 1):
        in_chunks_of(tokens, monkeypatch)
        found = head.window_losses(x, targets)
        assert_close(found, torch.stack(expected), 1e-12)
        assert not found.requires_grad


def test_gradcheck(monkeypatch):
    in_chunks_of(3, monkeypatch)
    head, x, targets = made(bias=True, softcap=2.0)
    assert gradcheck(lambda x: head.loss(x, targets, 0.1).total, x)


class LargestTensor(TorchDispatchMode):
    """Notes the most numbers of any tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("trains", [True, False])
def test_no_tensor_holds_all_logits(monkeypatch, trains):
    in_chunks_of(3, monkeypatch)
    head, x, targets = made()
    with LargestTensor() as largest, torch.set_grad_enabled(trains):
        total = head.loss(x, targets).total
        if trains:
            total.backward()
    assert total.requires_grad == trains
    assert largest.numel <= max(3 * VOCABULARY, head.weight.numel())


def test_chunks_are_as_large_as_memory_allows_and_not_too_many():
    assert tokens_at_a_time(2048, 50304, "cuda") == CHUNK_BYTES // (4 * 50304)
    assert tokens_at_a_time(2048, 50304, "cpu") == CPU_CHUNK_BYTES // (4 * 50304)
    for device in ("cuda", "cpu"):
        assert tokens_at_a_time(2**20, 50304, device) == 2**20 // MOST_CHUNKS
        assert tokens_at_a_time(10, 2**40, device) == 1


@pytest.mark.slow
def test_a_compiled_loss_in_chunks(monkeypatch):
    in_chunks_of(4, monkeypatch)
    head, x, targets = made(bias=True)
    plain = head.loss(x, targets).total
    compiled = torch.compile(head.loss, backend="aot_eager", fullgraph=True)(x, targets).total
    gradients = [torch.autograd.grad(total, [x, head.weight]) for total in (plain, compiled)]
    assert_close(compiled, plain, 1e-12)
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, 1e-12)
