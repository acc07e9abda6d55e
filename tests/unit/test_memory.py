"""The memory that a run is expected to need, against what a real step allocates."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from components.ffns import FFNS
from model_builder import GPT
from model_config import ModelArchitectureConfig
from recipe.optimizers import OPTIMIZERS, make_optimizer
from tests.parametrized import one_in
from tests.tiny import tiny_config, training_loss
from training import memory
from training.activation_checkpointing import MODES, checkpoint_block
from training.memory import ExpectedMemory, expected_memory, least_parameters, least_state
from training.optim import clip_gradients
from training.step_guard import StepGuard
from training_config import TrainingConfig


def training(batch: int, length: int, **keys: Any) -> TrainingConfig:
    return TrainingConfig(batch_size=batch, sequence_length=length, **keys)


def expected(
    config: ModelArchitectureConfig, batch: int = 8, dtype: torch.dtype = torch.float32, **keys: Any
) -> ExpectedMemory | None:
    """The memory of a step of sequences of the longest length."""
    return expected_memory(config, training(batch, config.block_size, **keys), "cpu", dtype)


def peak_bytes(
    config: ModelArchitectureConfig,
    batch: int,
    dtype: torch.dtype,
    optimizer_name: str,
    checkpointing: str = "none",
) -> tuple[int, int]:
    """The most that a real step after the first holds, by torch's own profiler of allocations; and
    what is held of it before the step, which that does not see: weights and optimizer state."""
    model = GPT(config)
    for block in model.all_blocks:
        checkpoint_block(block, checkpointing)
    optimizer = make_optimizer(model, training(batch, 24, optimizer=optimizer_name))
    guard = StepGuard(optimizer, 10)
    idx = torch.zeros(batch, 24, dtype=torch.long)
    autocast = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
    for profiled in (False, True):
        gc.collect()  # memory that other tests left would be freed while the profiler counts
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            with autocast:
                loss = training_loss(model, idx, idx)
            loss.backward()
            norm = guard.check(loss)
            clip_gradients(optimizer, norm, 1.0)
            assert guard.allows_update()
            optimizer.step()
            del loss, norm
        if not profiled:
            optimizer.zero_grad()
    live = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    state = [tensor for kept in optimizer.state.values() for tensor in kept.values()]
    weights = [*model.parameters(), *model.buffers()]
    return peak, sum(tensor.nbytes for tensor in (*weights, *state))


class TestExpectedMemory:
    @pytest.fixture(autouse=True)
    def no_slack(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tensors alone, which is what can be known exactly."""
        monkeypatch.setattr(memory, "HEAP_SLACK", dict.fromkeys(MODES, 0.0))

    @pytest.mark.parametrize("dtype", one_in(2, [torch.float32, torch.bfloat16]))
    @pytest.mark.parametrize(
        "keys",
        one_in(
            2,
            [
                {},
                {"position_encoding": "rope", "ffn_type": "swiglu", "weight_tying": False},
                {"dropout": 0.1, "n_layer": 1},
                {"vocab_size": 5000},
                {"mtp": "sequential", "mtp_depth": 2, "vocab_size": 500},
            ],
        ),
    )
    def test_agrees_with_what_a_real_step_allocates(self, keys: dict, dtype: torch.dtype) -> None:
        config = tiny_config(**keys)
        allocated, held = peak_bytes(config, 8, dtype, "adamw")
        assert expected(config, 8, dtype).total == pytest.approx(allocated + held, rel=0.05)

    @pytest.mark.parametrize("mode", one_in(2, ["selective", "block"]))
    def test_activations_that_are_computed_again_are_not_held(self, mode: str) -> None:
        config = tiny_config(n_layer=6, mtp="parallel")
        allocated, held = peak_bytes(config, 8, torch.float32, "adamw", mode)
        found = expected(config, 8, activation_checkpointing=mode)
        assert found.total == pytest.approx(allocated + held, rel=0.05)
        assert found.activations < 0.8 * expected(config, 8).activations

    @pytest.mark.parametrize(
        "keys", one_in(2, [{"ffn_type": "swiglu"}, {"n_embd": 128, "vocab_size": 512}])
    )
    @pytest.mark.parametrize("name", one_in(3, OPTIMIZERS.names))
    def test_every_optimizer_has_its_state_and_what_a_step_needs(
        self, name: str, keys: dict
    ) -> None:
        config = tiny_config(**keys)
        allocated, held = peak_bytes(config, 1, torch.float32, name)
        found = expected(config, 1, optimizer=name)
        assert found.total == pytest.approx(allocated + held, rel=0.05)
        gradients = 4 * GPT(config).num_parameters()
        assert found.state == pytest.approx(held + gradients, rel=0.03)  # but the buffers
        least = least_state(config, config.vocab_size, TrainingConfig(optimizer=name))
        assert least - memory.LAYER_BYTES * config.n_layer <= found.state

    @pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 32])
    @pytest.mark.parametrize(
        "keys",
        one_in(
            3,
            [
                {},
                {"sliding_window": "5+none", "attention_backend": "sdpa"},
                {
                    "ffn_type": "standard+swiglu",
                    "n_kv_head": "1+4",
                    "position_encoding": "rope+none",
                },
                {"normalization": "none*2+layernorm*", "ffn_type": "standard+swiglu*"},
                {"ffn_type": "standard+swiglu*", "n_kv_head": "1+4", "mtp": "sequential"},
                {"n_embd": 128, "vocab_size": 5000},
            ],
        ),
    )
    def test_two_depths_tell_of_a_deeper_one_exactly(
        self, monkeypatch: pytest.MonkeyPatch, keys: dict, batch: int
    ) -> None:
        config = tiny_config(**{"n_layer": 9, **keys})
        assert len(memory._depths_to_trace(config)) == 2
        found = expected(config, batch)
        monkeypatch.setattr(memory, "_depths_to_trace", lambda config: [config.n_layer])
        assert expected(config, batch) == found

    @pytest.mark.slow
    def test_two_depths_tell_of_the_blocks_of_attention_residuals(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = tiny_config(n_layer=16, residual="attention", attn_res_block=3)
        assert len(memory._depths_to_trace(config)) == 2
        found = expected(config, 32)
        monkeypatch.setattr(memory, "_depths_to_trace", lambda config: [config.n_layer])
        assert found.total == pytest.approx(expected(config, 32).total, rel=0.02)

    def test_two_numbers_of_loops_tell_of_more_exactly(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = tiny_config(n_layer=3, loop_count=6, loop_prelude=1)
        assert [c.loop_count for c in memory._smaller_models(config)] == [2, 3]
        found = expected(config, 4)
        monkeypatch.setattr(memory, "_smaller_models", lambda config: [config])
        assert expected(config, 4) == found

    def test_a_cpu_needs_more_for_the_gaps_between_blocks(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tensors = expected(tiny_config(), 2).total
        monkeypatch.setattr(memory, "HEAP_SLACK", dict.fromkeys(MODES, 0.5))
        found = expected(tiny_config(), 2)
        assert found.total == pytest.approx(1.5 * tensors, rel=0.2)  # the optimizer's has none
        assert found.state == expected(tiny_config(), 2).state

    def test_gradients_of_earlier_micro_batches_are_held(self) -> None:
        config = tiny_config(vocab_size=5000, weight_tying=False)
        once = expected(config)
        again = expected(config, gradient_accumulation_steps=2)
        assert again.total - once.total >= 4 * 5000 * 32

    def test_a_part_that_cannot_be_traced_is_unknown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def depends_on_data(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
            return x * len(x[x > 0])

        monkeypatch.setattr(FFNS["standard"], "forward", depends_on_data)
        assert expected(tiny_config(block_size=8), 2) is None

    def test_the_bound_without_a_trace_is_below(self) -> None:
        for keys in ({}, {"n_kv_head": 1}, {"head_dim": 16}, {"weight_tying": False}):
            config = tiny_config(**keys)
            assert 0 < least_parameters(config, 61) <= GPT(config).num_parameters()

    def test_activations_grow_with_the_batch(self) -> None:
        one, two = (expected(tiny_config(block_size=16), size) for size in (4, 8))
        assert one.state == two.state
        assert 1.8 < (two.total - 0.75 * two.state) / (one.total - 0.75 * one.state) < 2.2

    def test_a_model_that_would_not_fit_is_only_traced(self) -> None:
        large = tiny_config(n_layer=4, n_head=64, n_embd=16384, vocab_size=50304, ffn_hidden=65536)
        found = expected(large, 512)
        assert found.state > 200e9

    def test_random_state_is_untouched(self) -> None:
        before = torch.get_rng_state()
        expected(tiny_config(dropout=0.1), 1)
        assert torch.equal(before, torch.get_rng_state())
