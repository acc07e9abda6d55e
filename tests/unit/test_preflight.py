"""What is refused before a run creates or trains anything."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch

from configurator import load
from errors import ConfigError
from training import preflight
from training.memory import ExpectedMemory, expected_memory
from training.preflight import _memory_fix, fitting, refuse_machine
from training.workers import Workers

CPU = torch.device("cpu")


class TestMemory:
    """A tiny model, on a machine that has more or less than it needs."""

    TINY = ("--n_layer=1", "--n_head=2", "--n_embd=32", "--vocab_size=256", "--sequence_length=32")

    def fitting(self, *argv: str, compiled: bool = False):
        return fitting(load([*self.TINY, *argv]), CPU, torch.float32, compiled)["none"]

    @pytest.fixture
    def has(self, monkeypatch: pytest.MonkeyPatch):
        """Say how much the machine has, in bytes; of a device that does not tell, None."""

        def say(size: int | None) -> None:
            monkeypatch.setattr(preflight, "total_memory", lambda device: size)
            monkeypatch.setattr(preflight, "host_memory", lambda: size or 10**18)

        return say

    def test_what_fits_exactly_is_taken(self, has) -> None:
        needed = self.fitting()
        total = needed.total + 5 * 16 * 4 * 32  # with the batches of a CPU
        has(total)
        assert self.fitting() == needed
        has(total - 1)
        with pytest.raises(ConfigError, match="lower batch_size and raise gradient_acc"):
            self.fitting()

    def test_both_numbers_and_what_takes_them(self, has) -> None:
        has(2_000_000)
        with pytest.raises(ConfigError) as refused:
            self.fitting("--batch_size=64")
        message = str(refused.value)
        settings = load([*self.TINY, "--batch_size=64"])
        needed = expected_memory(settings.model, settings.training, "cpu", torch.float32)
        total = needed.total + 5 * 16 * 64 * 32
        assert f"batch_size=64 with sequence_length=32 needs about {total / 1e6:.1f} MB" in message
        assert f"({needed.state / 1e3:.1f} kB of it for weights" in message
        assert "has 2.0 MB; lower batch_size" in message

    def test_workers_on_a_cpu_share_its_memory(self, has) -> None:
        """Each needs that of its share of the batch, and gets its share of the memory."""
        alone = self.fitting("--batch_size=2", "--gradient_accumulation_steps=1")
        flags = (*self.TINY, "--batch_size=8", "--gradient_accumulation_steps=1")
        workers = Workers(size=4, local_size=4)
        each = alone.of_worker("ddp", 1, 4)
        assert each.total == alone.total + alone.weights // 2
        total = each.total + 5 * 16 * 2 * 32
        has(4 * total)
        assert fitting(load(flags), CPU, torch.float32, False, workers)["ddp"] == each
        has(4 * total - 4)
        with pytest.raises(ConfigError, match="for each of 4 workers; lower batch_size"):
            fitting(load([*flags, "--parallelism=ddp"]), CPU, torch.float32, False, workers)

    def test_a_model_that_does_not_fit_each_worker_is_sharded(self, has) -> None:
        flags = (
            *self.TINY[1:],
            "--n_layer=16",
            "--batch_size=8",
            "--gradient_accumulation_steps=1",
        )
        workers = Workers(size=4, local_size=4)
        has(10**9)
        fits = fitting(load(flags), CPU, torch.float32, False, workers)
        assert list(fits) == ["ddp", "fsdp"]
        whole = fits["ddp"]
        has(4 * (whole.total - 1))
        fits = fitting(load(flags), CPU, torch.float32, False, workers)
        assert list(fits) == ["fsdp"]
        sharded = fits["fsdp"]
        assert sharded.state == whole.weights // 4 + whole.optimizer // 4
        messages = 3 * (whole.ends + 2 * whole.block)
        assert sharded.activations + whole.weights // 2 == whole.activations + messages
        assert whole.weights == whole.ends + 16 * whole.block
        alone = fitting(load([*flags, "--parallelism=zero1"]), CPU, torch.float32, False, workers)
        assert alone["zero1"].state == whole.weights + whole.optimizer // 4

    def test_a_batch_of_one_must_be_shorter(self, has) -> None:
        has(self.fitting("--batch_size=1").total - 1)
        with pytest.raises(ConfigError, match="lower sequence_length"):
            self.fitting("--batch_size=1")

    def test_a_model_that_is_too_large_must_be_smaller(self, has) -> None:
        has(self.fitting().state - 1)
        with pytest.raises(ConfigError, match="lower n_layer, n_embd or vocab_size"):
            self.fitting()

    def test_compiled_it_may_need_less(self, has) -> None:
        needed = self.fitting()
        has(needed.total - 1)
        assert self.fitting(compiled=True) == needed
        has(needed.state + needed.activations // 4 - 1)
        with pytest.raises(ConfigError, match="needs at least"):
            self.fitting(compiled=True)

    def test_where_the_platform_does_not_say_nothing_is_refused(self, has) -> None:
        has(None)
        assert self.fitting("--batch_size=100000000").total > 1e12


class TestSizesThatNeverFit:
    """Refused by arithmetic alone: nothing is built, and the data are not opened."""

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (["--n_layer=100000"], ("n_layer=100000 with n_embd=768 needs at least 3.8 TB",)),
            ([f"--n_layer={10**18}"], (f"n_layer={10**18} with n_embd=768", "parameters or more")),
            ([f"--n_layer={10**7}", "--n_embd=1", "--n_head=1"], ("needs at least 200.6 GB",)),
            ([f"--n_embd={10**12}", "--n_head=1"], (f"with n_embd={10**12} needs",)),
            ([f"--head_dim={10**15}"], ("n_layer=12 with n_embd=768 needs",)),
            (
                [f"--vocab_size={10**15}"],
                ("lower n_layer, n_embd, n_head, head_dim or vocab_size",),
            ),
            (
                [f"--batch_size={10**8}", "--vocab_size=256"],
                (f"batch_size={10**8}", "for logits over"),
            ),
            (
                [f"--gradient_accumulation_steps={10**8}"],
                ("102400000000 tokens per step, which need 8.2 TB", "the machine has 24.0 GB"),
            ),
            (
                ["--position_encoding=none", f"--block_size={10**15}"],
                (f"sequence_length={10**15} are", "tokens per step"),
            ),
        ],
    )
    def test_both_numbers(self, monkeypatch, flags, words) -> None:
        monkeypatch.setattr(preflight, "total_memory", lambda device: 24 * 10**9)
        monkeypatch.setattr(preflight, "host_memory", lambda: 24 * 10**9)
        monkeypatch.setattr(preflight, "expected_memory", None)
        with pytest.raises(ConfigError) as refused:
            refuse_machine(load(flags), CPU, torch.float32)
        message = " ".join(problem.message for problem in refused.value.problems)
        assert "24.0 GB" in message
        for part in words:
            assert part in message

    def test_one_that_cannot_be_traced_starts(self, monkeypatch) -> None:
        monkeypatch.setattr(preflight, "expected_memory", lambda *args, **keys: None)
        assert fitting(load([]), CPU, torch.float32, False) == {"none": None}


class TestProblems:
    def test_all_are_reported_at_once(self) -> None:
        settings = load(["--tf32=True", "--attention_backend=flash"])
        plugins = {"a/part.py": "", "b/part.py": ""}
        settings = dataclasses.replace(settings, plugins=plugins)
        with pytest.raises(ConfigError) as refused:
            refuse_machine(settings, CPU, torch.float32)
        message = str(refused.value)
        assert message.startswith("3 config errors:")
        assert "attention_backend='flash'" in message
        assert "tf32=True has no effect" in message
        assert "2 plugins have the file name part.py" in message

    def test_packages_that_the_log_needs(self, monkeypatch) -> None:
        settings = load(["--log_to=csv,tensorboard,wandb"])
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ConfigError) as refused:
            refuse_machine(settings, CPU, torch.float32)
        assert [problem.message for problem in refused.value.problems] == [
            "log_to='csv,tensorboard,wandb' needs packages that are not installed: "
            "pip install tensorboard wandb; or change log_to."
        ]


def test_the_fix_for_memory_names_the_model_where_no_batch_fits() -> None:
    training = load(["--batch_size=4"]).training
    memory = ExpectedMemory(weights=12, optimizer=8, activations=40)
    assert _memory_fix(memory, 25, training).startswith("batch_size and n_layer")
    assert _memory_fix(memory, 35, training).startswith("batch_size and raise")
