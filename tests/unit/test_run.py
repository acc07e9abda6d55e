"""What the data, the clock and the machine decide of a run's settings."""

from __future__ import annotations

import dataclasses
import importlib.util
from types import SimpleNamespace

import pytest
import torch

from configurator import load
from options import ConfigError
from training.run import complete, named, padded_vocabulary, refuse_machine

CPU = torch.device("cpu")


def data(vocab_size: int) -> SimpleNamespace:
    """What `complete` looks at of a dataset."""
    return SimpleNamespace(vocab_size=vocab_size)


def completed(*argv: str, vocab_size: int = 256):
    return complete(load(argv), data(vocab_size))


class TestVocabulary:
    @pytest.mark.parametrize(
        ("tokens", "model"), [(65, 65), (256, 256), (4095, 4095), (4096, 4096), (50257, 50304)]
    )
    def test_padding(self, tokens: int, model: int) -> None:
        assert padded_vocabulary(tokens) == model

    def test_is_the_datas_unless_it_is_given(self) -> None:
        assert completed(vocab_size=65).model.vocab_size == 65
        assert completed("--vocab_size=100", vocab_size=65).model.vocab_size == 100

    def test_too_small(self) -> None:
        with pytest.raises(ConfigError, match="vocab_size=64 is too small for the 65 tokens"):
            completed("--vocab_size=64", vocab_size=65)


class TestName:
    def test_auto_is_the_preset_and_time_of_a_new_folder(self, tmp_path) -> None:
        name = named(load(["config/arch_llama.py", f"--out_dir={tmp_path}"])).training.run_name
        assert name.startswith("llama-2")
        assert [folder.name for folder in tmp_path.iterdir()] == [name]

    def test_given_stays(self, tmp_path) -> None:
        settings = load(["--run_name=mine", f"--out_dir={tmp_path}"])
        assert named(settings) is settings
        assert not list(tmp_path.iterdir())


class TestProblems:
    def test_all_are_told_at_once(self) -> None:
        settings = load(["--tf32=True", "--attention_backend=flash"])
        plugins = {"a/part.py": "", "b/part.py": ""}
        settings = dataclasses.replace(settings, plugins=plugins)
        with pytest.raises(ConfigError) as refused:
            refuse_machine(settings, CPU, torch.float32)
        message = str(refused.value)
        assert "3 problems" in message
        assert "attention_backend='flash'" in message
        assert "tf32=True does nothing" in message
        assert "2 plugins are called part.py" in message

    def test_packages_that_the_log_needs(self, monkeypatch) -> None:
        settings = load(["--log_to=csv,tensorboard,wandb"])
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ConfigError) as refused:
            refuse_machine(settings, CPU, torch.float32)
        assert [problem.message for problem in refused.value.problems] == [
            "log_to='csv,tensorboard,wandb' needs what is not installed: "
            "pip install tensorboard wandb; or change log_to."
        ]
