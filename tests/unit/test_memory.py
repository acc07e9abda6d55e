"""The memory that a run is expected to need, against what a real step allocates."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from components.ffns import FFNS
from model_builder import GPT
from tests.tiny import tiny_config
from training import memory
from training.memory import STATE_BYTES, expected_memory, least_parameters


def peak_bytes(model: GPT, idx: torch.Tensor, dtype: torch.dtype) -> int:
    """The most that a real step holds, by torch's own profiler of allocations; moments included."""
    idx = idx.clone()
    autocast = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        with autocast:
            loss = model(idx, idx)[1]
        loss.backward()
    live = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak + 12 * model.num_parameters()


class TestExpectedMemory:
    @pytest.fixture(autouse=True)
    def no_slack(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tensors alone, which is what can be known exactly."""
        monkeypatch.setattr(memory, "HEAP_SLACK", 0.0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize(
        "keys",
        [
            {},
            {"position_encoding": "rope", "ffn_type": "swiglu", "weight_tying": False},
            {"dropout": 0.1, "n_layer": 1},
            {"vocab_size": 5000},
        ],
    )
    def test_agrees_with_what_a_real_step_allocates(self, keys: dict, dtype: torch.dtype) -> None:
        config = tiny_config(**keys)
        model = GPT(config)
        found = expected_memory(config, 8, 24, "cpu", dtype)
        assert found.state == STATE_BYTES * model.num_parameters()
        real = peak_bytes(model, torch.zeros(8, 24, dtype=torch.long), dtype)
        assert found.total == pytest.approx(real, rel=0.05)

    @pytest.mark.parametrize("batch", [1, 32])
    @pytest.mark.parametrize(
        "keys",
        [
            {},
            {"sliding_window": "5+none", "attention_backend": "sdpa"},
            {"ffn_type": "standard+swiglu", "n_kv_head": "1+4", "position_encoding": "rope+none"},
            {"normalization": "none*2+layernorm*", "ffn_type": "standard+swiglu*"},
            {"ffn_type": "standard+swiglu*", "n_kv_head": "1+4"},
            {"n_embd": 128, "vocab_size": 5000},
        ],
    )
    def test_two_depths_tell_of_a_deeper_one_exactly(
        self, monkeypatch: pytest.MonkeyPatch, keys: dict, batch: int
    ) -> None:
        config = tiny_config(**{"n_layer": 9, **keys})
        assert len(memory._depths_to_trace(config)) == 2
        found = expected_memory(config, batch, 24, "cpu", torch.float32)
        monkeypatch.setattr(memory, "_depths_to_trace", lambda config: [config.n_layer])
        assert expected_memory(config, batch, 24, "cpu", torch.float32) == found

    def test_blocks_of_the_heap_stay_when_they_are_freed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Logits are freed before the last gradient of the table is made, but not returned."""
        config = tiny_config(vocab_size=5000, n_embd=128, weight_tying=False)
        table, logits = 4 * 5000 * 128, 4 * 2 * 24 * 5000
        found = {}
        for block in (0, table):
            monkeypatch.setattr(memory, "HEAP_BLOCK", block)
            found[block] = expected_memory(config, 2, 24, "cpu", torch.float32).total
        assert found[table] - found[0] >= logits

    def test_gradients_of_earlier_micro_batches_are_held(self) -> None:
        config = tiny_config(vocab_size=5000, weight_tying=False)
        once = expected_memory(config, 8, 24, "cpu", torch.float32)
        again = expected_memory(config, 8, 24, "cpu", torch.float32, accumulates=True)
        assert again.total - once.total >= 4 * 5000 * 32

    def test_a_part_that_cannot_be_traced_is_unknown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def depends_on_data(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
            return x * len(x[x > 0])

        monkeypatch.setattr(FFNS["standard"], "forward", depends_on_data)
        assert expected_memory(tiny_config(), 2, 8, "cpu", torch.float32) is None

    def test_the_bound_without_a_trace_is_below(self) -> None:
        for keys in ({}, {"n_kv_head": 1}, {"head_dim": 16}, {"weight_tying": False}):
            config = tiny_config(**keys)
            assert 0 < least_parameters(config, 61) <= GPT(config).num_parameters()

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
        assert 1.8 < (two.total - 0.75 * two.state) / (one.total - 0.75 * one.state) < 2.2

    def test_a_model_that_would_not_fit_is_only_traced(self) -> None:
        large = tiny_config(n_layer=4, n_head=64, n_embd=16384, vocab_size=50304, ffn_hidden=65536)
        found = expected_memory(large, 512, 24, "cpu", torch.float32)
        assert found.state > 200e9

    def test_random_state_is_untouched(self) -> None:
        before = torch.get_rng_state()
        expected_memory(tiny_config(dropout=0.1), 1, 8, "cpu", torch.float32)
        assert torch.equal(before, torch.get_rng_state())
