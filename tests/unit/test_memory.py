"""The memory that a run is told to need, against what autograd keeps in a real forward pass."""

from __future__ import annotations

import pytest
import torch

from model_builder import GPT
from tests.tiny import tiny_config
from training.memory import STATE_BYTES, expected_memory


def kept_bytes(model: GPT, idx: torch.Tensor, dtype: torch.dtype) -> int:
    """What a real forward pass keeps for the backward pass, weights left out."""
    owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage
        return tensor

    autocast = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
    with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(idx, idx)
    return sum(storage.nbytes() for storage in kept.values())


class TestExpectedMemory:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize(
        "keys", [{}, {"position_encoding": "rope", "ffn_type": "swiglu"}, {"dropout": 0.1}]
    )
    def test_agrees_with_a_real_forward_pass(self, keys: dict, dtype: torch.dtype) -> None:
        config = tiny_config(**keys)
        model = GPT(config)
        found = expected_memory(config, 3, 16, "cpu", dtype)
        assert found.state == 16 * model.num_parameters()
        real = kept_bytes(model, torch.zeros(3, 16, dtype=torch.long), dtype)
        assert found.activations == pytest.approx(real, rel=0.02)
        assert found.total == found.state + found.activations

    def test_state_is_what_training_holds(self) -> None:
        """Weight, gradient and two moments, 4 bytes each."""
        model = GPT(tiny_config())
        optimizer = torch.optim.AdamW(model.parameters())
        idx = torch.zeros(1, 8, dtype=torch.long)
        model(idx, idx)[1].backward()
        optimizer.step()
        held = sum(p.nbytes + p.grad.nbytes for p in model.parameters())
        held += sum(
            state[moment].nbytes
            for state in optimizer.state.values()
            for moment in ("exp_avg", "exp_avg_sq")
        )
        assert held == STATE_BYTES * model.num_parameters()

    def test_activations_grow_with_the_batch(self) -> None:
        one, two = (
            expected_memory(tiny_config(), size, 16, "cpu", torch.float32) for size in (4, 8)
        )
        assert one.state == two.state
        assert two.activations == pytest.approx(2 * one.activations, rel=0.05)

    def test_a_model_that_would_not_fit_is_only_traced(self) -> None:
        large = tiny_config(n_layer=4, n_head=64, n_embd=16384, vocab_size=50304, ffn_hidden=65536)
        found = expected_memory(large, 512, 24, "cpu", torch.float32)
        assert found.state > 200e9

    def test_random_state_is_untouched(self) -> None:
        before = torch.get_rng_state()
        expected_memory(tiny_config(dropout=0.1), 1, 8, "cpu", torch.float32)
        assert torch.equal(before, torch.get_rng_state())
