"""Which settings a resumed run goes on with; tests/integration/test_resume.py has the rest."""

from __future__ import annotations

import pytest

from configurator import load
from training.resume import FIXED_KEYS, OF_THE_COMMAND, _conflicts, find_start


def saved(*argv: str) -> dict:
    return load(argv).to_dict()


def conflicts(now: list[str], before: list[str]) -> dict[str, str]:
    return {problem.keys[0]: problem.message for problem in _conflicts(load(now), saved(*before))}


class TestKeys:
    def test_every_one_exists(self) -> None:
        assert saved().keys() >= FIXED_KEYS | OF_THE_COMMAND
        assert not FIXED_KEYS & OF_THE_COMMAND


class TestConflicts:
    def test_what_is_not_given_is_the_runs(self) -> None:
        assert conflicts([], ["--n_layer=3", "--batch_size=9"]) == {}

    def test_what_is_given_alike_agrees(self) -> None:
        flags = ["config/arch_llama.py", "--n_layer=3", "--batch_size=9"]
        assert conflicts(flags, flags) == {}

    def test_what_is_free_agrees(self) -> None:
        assert conflicts(["--max_iters=5", "--eval_interval=7"], ["--max_iters=3"]) == {}

    def test_message_names_both_and_the_flag(self) -> None:
        message = conflicts(["--n_layer=4"], ["--n_layer=3"])["n_layer"]
        assert message.startswith("--n_layer: n_layer=4, but the run to resume has n_layer=3")

    @pytest.mark.parametrize("flag", ["--position_encoding=rope", "--n_kv_head=3"])
    def test_a_preset_stands_for_its_keys(self, flag: str) -> None:
        found = conflicts(["config/arch_gpt2.py"], ["config/arch_gpt2.py", flag])
        key = flag.removeprefix("--").partition("=")[0]
        assert found.keys() == {key}
        assert found[key].startswith("config/arch_gpt2.py:3 (arch_preset='gpt2'): ")

    def test_a_preset_does_not_stand_for_the_vocabulary(self) -> None:
        """Which is the data's."""
        assert conflicts(["config/arch_gpt2.py"], ["config/arch_gpt2.py", "--vocab_size=65"]) == {}


class TestFindStart:
    def test_none_is_a_new_run(self) -> None:
        settings = load([])
        start = find_start(settings)
        assert start.settings is settings
        assert start.checkpoint is None
        assert start.run_folder is None
