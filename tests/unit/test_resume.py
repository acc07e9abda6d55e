"""Which settings a resumed run goes on with; tests/integration/test_resume.py has the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from configurator import load, read
from errors import ConfigError, UserError
from options import KEYS
from tests.saved_run import SIZES, change_config, save_run
from training.resume import _is_fixed, find_start, is_restored


def conflicts(out_dir: Path, now: list[str], before: list[str]) -> dict[str, str]:
    """Why a run of `before` does not go on with `now`, by key."""
    save_run(out_dir / "run", flags=before)
    try:
        find_start(read([f"--out_dir={out_dir}", "--resume=run", *now]))
    except ConfigError as error:
        return {problem.keys[0]: problem.message for problem in error.problems}
    return {}


class TestKeys:
    def test_what_says_where_things_are_is_never_the_saved_run_s(self) -> None:
        of_the_command = {key for key in KEYS if not is_restored(key)}
        assert of_the_command == {
            "out_dir",
            "run_name",
            "resume",
            "plugins",
            "allow_changed_plugins",
            "log_to",
            "parallelism",
            "shard_size",
            "tensor_parallel",
        }
        assert not any(map(_is_fixed, of_the_command))

    def test_what_is_fixed_follows_the_role(self) -> None:
        assert all(_is_fixed(key) for key in ("n_layer", "rope_theta", "dataset", "seed"))
        assert not any(_is_fixed(key) for key in ("arch_preset", "max_iters", "learning_rate"))
        assert not any(_is_fixed(key) for key in ("attention_backend", "compile", "eval_interval"))


class TestConflicts:
    def test_what_is_not_given_is_the_runs(self, tmp_path) -> None:
        assert conflicts(tmp_path, [], ["--n_layer=3", "--batch_size=9"]) == {}

    def test_what_is_given_alike_agrees(self, tmp_path) -> None:
        flags = ["config/arch_llama.py", *SIZES[1:], "--n_layer=3", "--batch_size=9"]
        assert conflicts(tmp_path, flags, flags) == {}

    def test_a_run_keeps_its_optimizer_but_may_change_its_options(self, tmp_path) -> None:
        lion = ["--optimizer=lion", "--lion_beta2=0.9"]
        found = conflicts(tmp_path, ["--optimizer=sgd"], lion)["optimizer"]
        assert found.startswith(
            "--optimizer: optimizer='sgd', but the run to resume has optimizer="
        )
        assert conflicts(tmp_path, ["--lion_beta2=0.95"], lion) == {}

    def test_what_is_free_agrees(self, tmp_path) -> None:
        now = ["--max_iters=5", "--eval_interval=7", "--attention_backend=manual"]
        assert conflicts(tmp_path, now, ["--max_iters=3"]) == {}

    def test_message_names_both_and_the_flag(self, tmp_path) -> None:
        message = conflicts(tmp_path, ["--n_layer=4"], ["--n_layer=3"])["n_layer"]
        assert message.startswith("--n_layer: n_layer=4, but the run to resume has n_layer=3")

    @pytest.mark.parametrize("flag", ["--position_encoding=rope", "--n_kv_head=1"])
    def test_a_preset_stands_for_its_keys(self, tmp_path, flag: str) -> None:
        gpt2 = ["config/arch_gpt2.py", *SIZES]
        found = conflicts(tmp_path, gpt2, [*gpt2, flag])
        key = flag.removeprefix("--").partition("=")[0]
        assert found.keys() == {key}
        assert found[key].startswith("config/arch_gpt2.py:3 (arch_preset='gpt2'): ")

    def test_a_preset_does_not_stand_for_the_vocabulary(self, tmp_path) -> None:
        """Which is the data's."""
        now = ["config/arch_gpt2.py", *(size for size in SIZES if "vocab" not in size)]
        assert conflicts(tmp_path, now, ["config/arch_gpt2.py", "--vocab_size=65"]) == {}

    def test_patterns_agree_however_they_are_spelled(self, tmp_path) -> None:
        before = ["--n_layer=4", "--sliding_window=8+none", "--attention_backend=sdpa"]
        assert conflicts(tmp_path, ["--sliding_window=8+none+8+none"], before) == {}
        assert conflicts(tmp_path, [], before) == {}

    def test_another_pattern_conflicts(self, tmp_path) -> None:
        found = conflicts(
            tmp_path, ["--sliding_window=8*2+none"], ["--n_layer=4", "--sliding_window=8+none"]
        )
        assert found["sliding_window"].startswith(
            "--sliding_window: sliding_window='8*2+none', but the run to resume has "
            "sliding_window='8+none'; drop it"
        )

    def test_a_key_of_a_part_that_the_run_lacks(self, tmp_path) -> None:
        [message] = conflicts(tmp_path, ["--rope_theta=5e5"], []).values()
        assert (
            "rope_theta=500000.0 belongs to position_encoding=rope, which no layer uses" in message
        )


class TestForeignRun:
    """What a checkpoint that somebody else made cannot decide."""

    def resumed(self, out_dir, *flags: str):
        return find_start(read([f"--out_dir={out_dir}", "--resume=run", *flags]))

    def test_where_the_log_is_sent(self, tmp_path) -> None:
        change_config(save_run(tmp_path / "run"), log_to="wandb", out_dir="/elsewhere")
        start = self.resumed(tmp_path)
        assert start.settings.training.log_to == ""
        assert start.settings.training.out_dir == str(tmp_path)
        wanted = "log_to: 'wandb' -> ''; pass --log_to=wandb to keep it."
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
            with pytest.raises(UserError, match="kept is not in the `checkpoints` folder of a run"):
                find_start(read([f"--resume={where}"]))


class TestFindStart:
    def test_none_is_a_new_run(self) -> None:
        start = find_start(read(["--n_layer=3"]))
        assert start.settings == load(["--n_layer=3"])
        assert start.checkpoint is None
        assert start.run_folder is None
