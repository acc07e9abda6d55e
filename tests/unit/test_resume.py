"""Which settings a resumed run goes on with; tests/integration/test_resume.py has the rest."""

from __future__ import annotations

import pytest

from configurator import load
from errors import UserError
from tests.saved_run import change_config, save_run
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


class TestForeignRun:
    """What a checkpoint that somebody else made cannot decide."""

    def resumed(self, out_dir, *flags: str):
        return find_start(load([f"--out_dir={out_dir}", "--resume=run", *flags]))

    def test_where_the_log_is_sent(self, tmp_path) -> None:
        change_config(save_run(tmp_path / "run"), log_to="wandb", out_dir="/elsewhere")
        start = self.resumed(tmp_path)
        assert start.settings.training.log_to == ""
        assert start.settings.training.out_dir == str(tmp_path)
        wanted = "log_to=''; it was 'wandb': pass --log_to=wandb to go on with it."
        assert wanted in start.notes

    def test_where_the_log_is_sent_may_be_given_again(self, tmp_path) -> None:
        change_config(save_run(tmp_path / "run"), log_to="csv")
        start = self.resumed(tmp_path, "--log_to=csv")
        assert start.settings.training.log_to == "csv"
        assert not any("log_to" in note for note in start.notes)

    def test_a_size_that_its_weights_do_not_have(self, tmp_path) -> None:
        change_config(save_run(tmp_path / "run"), n_layer=10**6)
        with pytest.raises(UserError, match="n_layer=1000000, but 9 weights are saved"):
            self.resumed(tmp_path)

    def test_a_checkpoint_outside_of_a_run(self, tmp_path, monkeypatch) -> None:
        kept = save_run(tmp_path / "run").rename(tmp_path / "kept")
        monkeypatch.chdir(tmp_path)
        for where in (kept, "kept"):
            with pytest.raises(UserError, match="kept is not in the folder `checkpoints` of a run"):
                find_start(load([f"--resume={where}"]))


class TestFindStart:
    def test_none_is_a_new_run(self) -> None:
        settings = load([])
        start = find_start(settings)
        assert start.settings is settings
        assert start.checkpoint is None
        assert start.run_folder is None
