"""A run that stops and goes on is the run that never stopped, bit for bit."""

from __future__ import annotations

import csv
import json
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import train
from data.tokenizers import ByteTokenizer
from errors import UserError
from model_components import REGISTRIES
from recipe.optimizers import OPTIMIZERS
from tests.integration.runs import (
    Workshop,
    assert_equal_tensors,
    assert_same_course,
    checkpoint_at,
    log_of,
    make_dataset,
    metrics_of,
    moments_at,
    printed,
    weights_at,
)
from tests.parametrized import one_in
from tests.tiny import PATTERNS, presets, tiny_config
from training.signals import SAME_REQUEST_SECONDS

COURSE = ("--lr_decay_iters=12", "--eval_interval=6", "--log_interval=3", "--dropout=0.2")
"""Settings that do not depend on max_iters."""

MODELS = {**presets(), **PATTERNS}

SHORT_COURSE = ("--lr_decay_iters=4", "--eval_interval=2", "--dropout=0.2")
"""Likewise, for four steps."""


def corrupt(checkpoint: Path) -> None:
    """Flip a byte of the weights."""
    file = checkpoint / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def flags_of(keys: dict[str, Any]) -> list[str]:
    return [f"--{key}={'none' if value is None else value}" for key, value in keys.items()]


BY_LAYER = ("mixer", "ffn_type", "norm_position")
"""Registries of parts that layers may differ in."""

STREAMS = sorted({*REGISTRIES["residual"].names} - {"ngpt"})
"""Residual streams that go with every mixer."""

MIXTURE = (
    "--mixer=short_conv+attention",
    "--ffn_type=moe",
    "--n_experts=4",
    "--router_bias_rate=0.01",
    "--residual=unet",
    "--mtp=sequential",
)


class TestTwiceNIsNAndN:
    @pytest.mark.parametrize(
        "settings",
        one_in(
            4,
            {
                "mixture of experts, muon": (*COURSE, "--n_layer=2", "--optimizer=muon", *MIXTURE),
                "cosine": ("--lr_schedule=cosine", *COURSE),
                "linear, accumulated": (
                    *("--lr_schedule=linear", "--gradient_accumulation_steps=3", *COURSE),
                ),
                "wsd, bfloat16": (
                    "--lr_schedule=wsd",
                    "--grad_clip=0",
                    "--dtype=bfloat16",
                    *COURSE,
                ),
                "constant, float16": (
                    *("--lr_schedule=constant", "--warmup_iters=4", "--dtype=float16", *COURSE[1:]),
                ),
                "qk_clip": (*COURSE, "--qk_clip=0.001", "--gradient_accumulation_steps=2"),
                "sgd, nesterov": (*COURSE, "--optimizer=sgd", "--sgd_nesterov=True"),
                **{name: (*COURSE, f"--optimizer={name}") for name in OPTIMIZERS.names},
            },
        ),
    )
    def test_weights_moments_and_log(self, workshop: Workshop, settings: tuple[str, ...]) -> None:
        whole = workshop.train("--max_iters=12", *settings, run_name="whole")
        workshop.train("--max_iters=6", *settings, run_name="halves")
        halves = workshop.train("--max_iters=12", "--resume=auto", *settings, run_name="halves")
        assert_same_course(whole, halves, step=12)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "residual",
        [
            "plain",
            *(pytest.param(name, marks=pytest.mark.slow) for name in STREAMS if name != "plain"),
        ],
    )
    def test_of_every_part(self, workshop: Workshop, residual: str) -> None:
        """All in one model, layer by layer, with value residuals of two attention layers and a
        router bias."""
        parts = {key: [*REGISTRIES[key].names] for key in BY_LAYER}
        parts["mixer"].append("attention")
        if not REGISTRIES["residual"][residual].normalized:
            parts["norm_position"].remove("post")
        deepest = max(map(len, parts.values()))
        flags = (
            *(f"--{key}={'+'.join(names)}" for key, names in parts.items()),
            f"--residual={residual}",
            f"--n_layer={deepest}",
            "--value_residual=learned",
            "--n_experts=4",
            "--router_bias_rate=0.01",
            "--rwkv_head_dim=16",
            *SHORT_COURSE,
        )
        whole = workshop.train("--max_iters=4", *flags, run_name="whole")
        workshop.train("--max_iters=2", *flags, run_name="halves")
        halves = workshop.train("--max_iters=4", "--resume=auto", *flags, run_name="halves")
        assert_same_course(whole, halves, step=4)

    @pytest.mark.slow
    @pytest.mark.parametrize("keys", MODELS.values(), ids=MODELS)
    def test_of_every_architecture(self, workshop: Workshop, keys: dict[str, Any]) -> None:
        attends = "n_head" in tiny_config(**keys)

        def train_to(steps: int, run_name: str, *more: str) -> Path:
            flags = flags_of({"n_layer": 2, "n_head": 4, **keys, "max_iters": steps})
            argv = workshop.argv(*flags, *SHORT_COURSE, *more, run_name=run_name)
            train.main([flag for flag in argv if attends or not flag.startswith("--n_head=")])
            return workshop.out_dir / run_name

        whole = train_to(4, "whole")
        train_to(2, "halves")
        assert_same_course(whole, train_to(4, "halves", "--resume=auto"), step=4)

    def test_the_weights_do_change(self, workshop: Workshop) -> None:
        run = workshop.train("--max_iters=12", *COURSE)
        with pytest.raises(AssertionError):
            assert_equal_tensors(weights_at(run, 6), weights_at(run, 12))

    def test_log_tells_of_the_resumption(self, workshop: Workshop) -> None:
        workshop.train("--max_iters=6", *COURSE)
        workshop.train("--max_iters=12", "--resume=auto", *COURSE)
        log = log_of(workshop.out_dir / "run")
        assert log["status"] == "completed"
        assert [start["step"] for start in log["starts"]] == [0, 6]
        assert [saved["step"] for saved in log["checkpoints"]] == [6, 12]
        assert log["config"]["max_iters"] == 12

    def test_resuming_from_an_earlier_checkpoint(self, workshop: Workshop) -> None:
        run = workshop.train("--max_iters=12", *COURSE)
        weights, moments = weights_at(run, 12), moments_at(run, 12)
        checkpoint = checkpoint_at(run, 6)
        workshop.train(f"--resume={checkpoint}", "--max_iters=12", *COURSE, run_name=None)
        assert_equal_tensors(weights, weights_at(run, 12))
        assert_equal_tensors(moments, moments_at(run, 12))
        assert [record["iter"] for record in log_of(run)["eval_steps"]] == [0, 6, 12]

    def test_a_finished_run_stays_as_it_is(self, workshop: Workshop) -> None:
        run = workshop.train("--max_iters=6", *COURSE)
        before = log_of(run)
        workshop.train("--max_iters=6", "--resume=auto", *COURSE)
        assert log_of(run)["training_iterations"] == before["training_iterations"]
        assert log_of(run)["eval_steps"] == before["eval_steps"]
        assert log_of(run)["status"] == "completed"

    def test_the_best_stays_known_when_its_checkpoint_is_saved_again(
        self, workshop: Workshop
    ) -> None:
        """checkpoint_minutes so small that the first thing after a resume is a save."""
        workshop.train("--max_iters=6", *COURSE)
        run = workshop.train(
            "--max_iters=7", "--resume=auto", "--checkpoint_minutes=1e-9", "--eval_interval=6"
        )
        state = (checkpoint_at(run, 6) / "state.json").read_text()
        assert '"val_loss": null' not in state


class TestAuto:
    def test_starts_anew_where_there_is_none(self, workshop: Workshop, capsys) -> None:
        run = workshop.train("--resume=auto", "--max_iters=1")
        assert f"No run to resume in {workshop.out_dir}; starting a new one." in printed(capsys)
        assert log_of(run)["status"] == "completed"

    def test_takes_the_newest_that_fits(self, workshop: Workshop) -> None:
        for name, layers in (("old", 1), ("new", 1), ("deeper", 2)):
            workshop.train("--max_iters=1", f"--n_layer={layers}", run_name=name)
        workshop.train("--max_iters=2", "--resume=auto", run_name=None)
        steps = {
            run.name: log_of(run)["summary"]["total_tokens"] for run in workshop.out_dir.iterdir()
        }
        assert steps == {"old": 64, "new": 128, "deeper": 64}

    def test_a_preset_stands_for_all_its_keys(self, workshop: Workshop) -> None:
        """Asked for plain GPT-2, auto must not go on with one that has rotary positions."""
        gpt2 = "config/arch_gpt2.py"
        workshop.train(gpt2, "--position_encoding=rope", "--max_iters=1", run_name="rope")
        plain = workshop.train(gpt2, "--max_iters=1", "--resume=auto", run_name=None)
        assert plain.name != "rope"
        assert log_of(plain)["config"]["position_encoding"] == "learned"
        again = workshop.train(
            gpt2, "--position_encoding=rope", "--max_iters=2", "--resume=auto", run_name=None
        )
        assert again.name == "rope"

    def test_a_named_run_that_does_not_fit_is_refused(self, workshop: Workshop) -> None:
        workshop.train("--max_iters=1")
        message = workshop.refused("--resume=auto", "--n_embd=64")
        assert "n_embd=64" in message
        assert "n_embd=32" in message

    def test_a_run_with_nothing_whole_is_passed_by(self, workshop: Workshop, capsys) -> None:
        workshop.train("--max_iters=1", run_name="whole")
        broken = workshop.train("--max_iters=1", run_name="broken")
        corrupt(checkpoint_at(broken, 1))
        workshop.train("--max_iters=2", "--resume=auto", run_name=None)
        assert "Skipped the run broken: no intact checkpoint" in printed(capsys)
        assert checkpoint_at(workshop.out_dir / "whole", 2).exists()

    def test_a_run_killed_before_its_first_checkpoint_begins_again(
        self, workshop: Workshop
    ) -> None:
        """The loop of a job on machines that may vanish: the same command until it is done."""
        command = ("--resume=auto", "--max_iters=100000", "--eval_interval=50000")
        process = workshop.start(*command)
        process.wait_for("| loss ")
        process.send(signal.SIGKILL)
        assert process.finish() == -signal.SIGKILL
        assert log_of(workshop.out_dir / "run")["status"] == "running"
        run = workshop.train("--resume=auto", "--max_iters=2")
        assert [record["iter"] for record in log_of(run)["training_iterations"]] == [1, 2]

    def test_never_deletes_the_log_of_a_completed_run(self, workshop: Workshop) -> None:
        run = workshop.train("--max_iters=0")
        assert "already contains a run" in workshop.refused("--resume=auto", "--max_iters=2")
        assert log_of(run)["status"] == "completed"


class TestOneAtATime:
    """A run that is still alive keeps its folder and its log."""

    ENDLESS = ("--max_iters=100000", "--eval_interval=100000")

    def test_a_run_before_its_first_checkpoint(self, workshop: Workshop) -> None:
        process = workshop.start(*self.ENDLESS)
        process.wait_for("| loss ")
        message = workshop.refused("--resume=auto", "--max_iters=2")
        assert "run is being trained by process" in message
        assert "already contains a run" in workshop.refused("--max_iters=2")
        process.send(signal.SIGTERM)
        assert process.finish() == 0
        log = log_of(workshop.out_dir / "run")
        assert log["status"] == "interrupted"
        assert log["training_iterations"][0]["iter"] == 1

    def test_a_run_with_checkpoints(self, workshop: Workshop, capsys) -> None:
        run = workshop.train("--max_iters=1")
        process = workshop.start("--resume=auto", *self.ENDLESS)
        process.wait_for("| loss ")
        said = "run is being trained by process "
        assert said in workshop.refused(f"--resume={run}", run_name=None)
        assert said in workshop.refused("--resume=auto")
        other = workshop.train("--resume=auto", "--max_iters=1", run_name=None)
        assert other != run
        assert "Skipped the run run: " in printed(capsys)
        process.send(signal.SIGKILL)
        process.finish()
        workshop.train("--resume=auto", "--max_iters=2")
        assert checkpoint_at(run, 2).exists()


class TestDerivedValues:
    """They follow what they are derived from; what was given stays."""

    def config(self, run: Path, *keys: str) -> dict:
        config = log_of(run)["config"]
        return {key: config[key] for key in keys}

    def test_the_lowest_learning_rate_follows_the_highest(self, workshop: Workshop, capsys) -> None:
        run = workshop.train("--max_iters=1")
        workshop.train(f"--resume={run}", "--learning_rate=5e-5", run_name=None)
        assert self.config(run, "min_lr") == {"min_lr": pytest.approx(5e-6)}
        assert "min_lr: 0.0001 -> " in printed(capsys)

    def test_the_schedule_follows_the_length_through_every_session(
        self, workshop: Workshop, capsys
    ) -> None:
        workshop.train("--max_iters=4")
        for end in (40, 80):
            run = workshop.train("--resume=auto", f"--max_iters={end}", "--eval_interval=100")
            now = {"lr_decay_iters": end, "warmup_iters": end // 20}
            assert self.config(run, *now) == now
            assert re.search(rf"lr_decay_iters: \d+ -> {end}\b", printed(capsys))

    def test_what_was_given_stays(self, workshop: Workshop) -> None:
        given = {"lr_decay_iters": 5, "warmup_iters": 1, "min_lr": 2e-4}
        workshop.train("--max_iters=2", *(f"--{key}={value}" for key, value in given.items()))
        run = workshop.train("--resume=auto", "--max_iters=4", "--learning_rate=0.01")
        assert self.config(run, *given) == given

    def test_what_was_given_may_be_left_to_the_rest_again(self, workshop: Workshop) -> None:
        workshop.train("--max_iters=2", "--lr_decay_iters=50")
        run = workshop.train("--resume=auto", "--lr_decay_iters=none")
        assert self.config(run, "lr_decay_iters") == {"lr_decay_iters": 2}

    def test_another_schedule_has_no_use_for_some(self, workshop: Workshop) -> None:
        workshop.train("--max_iters=2")
        run = workshop.train("--resume=auto", "--max_iters=4", "--lr_schedule=constant")
        assert not {"min_lr", "lr_decay_iters"} & log_of(run)["config"].keys()


class TestWhatMayChange:
    @pytest.mark.parametrize(
        ("flag", "was", "now"),
        [
            ("--n_embd=64", "n_embd=32", "n_embd=64"),
            ("--batch_size=3", "batch_size=2", "batch_size=3"),
            ("--data_seed=7", "data_seed=1337", "data_seed=7"),
            ("--normalization=rmsnorm", "normalization='layernorm_nobias'", "'rmsnorm'"),
        ],
    )
    def test_fixed_keys_are_refused_naming_both(
        self, workshop: Workshop, flag: str, was: str, now: str
    ) -> None:
        run = workshop.train("--max_iters=1")
        message = workshop.refused(f"--resume={run}", flag)
        assert was in message
        assert now in message
        assert flag.partition("=")[0] in message

    def test_where_the_log_goes(self, workshop: Workshop, capsys) -> None:
        whole = workshop.train("--max_iters=12", *COURSE, run_name="whole")
        workshop.train("--max_iters=6", *COURSE)
        capsys.readouterr()
        run = workshop.train("--max_iters=12", "--resume=auto", "--log_to=csv", *COURSE)
        assert "log_to" not in capsys.readouterr().out  # it is the command's in every session
        assert_same_course(whole, run, step=12)
        with open(run / "metrics.csv", encoding="utf-8", newline="") as file:
            rows = [(row["kind"], int(row["iter"])) for row in csv.DictReader(file)]
        assert rows == [(line["kind"], line["iter"]) for line in metrics_of(run)]

    def test_a_dataset_that_a_checkpoint_names_is_never_prepared(
        self, workshop: Workshop, tmp_path: Path
    ) -> None:
        copy = shutil.copytree(workshop.dataset, tmp_path / "copy")
        run = workshop.train(f"--dataset={copy}", "--max_iters=1")
        (copy / "meta.json").unlink()
        (copy / "prepare.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        with pytest.raises(UserError, match=r"is not a prepared dataset: it has no meta\.json"):
            train.main([f"--resume={run}", f"--out_dir={workshop.out_dir}", "--device=cpu"])
        assert not (tmp_path / "ran").exists()

    def test_every_conflict_is_told_at_once(self, workshop: Workshop) -> None:
        run = workshop.train("--max_iters=1")
        message = workshop.refused(f"--resume={run}", "--n_embd=64", "--seed=2")
        assert "2 config errors" in message

    def test_free_keys_are_told(self, workshop: Workshop, capsys) -> None:
        run = workshop.train("--max_iters=2")
        capsys.readouterr()
        workshop.train(f"--resume={run}", "--max_iters=4", "--learning_rate=0.01", run_name=None)
        output = printed(capsys)
        assert "max_iters: 2 -> 4" in output
        assert "learning_rate: 0.001 -> 0.01" in output
        assert "batch_size" not in output.partition("max_iters: 2 -> 4")[2]
        assert log_of(run)["config"]["learning_rate"] == 0.01

    @pytest.mark.parametrize(("saved", "now"), [("float16", "float32"), ("float32", "float16")])
    def test_the_dtype(self, workshop: Workshop, saved: str, now: str) -> None:
        """Only float16 scales the loss, so only its checkpoints hold a scale."""
        run = workshop.train("--max_iters=1", f"--dtype={saved}")
        workshop.train(f"--resume={run}", "--max_iters=2", f"--dtype={now}", run_name=None)
        scales = {
            step: json.loads((checkpoint_at(run, step) / "state.json").read_text())["stepper"]
            for step in (1, 2)
        }
        assert [bool(scales[step]["scaler"]) for step in (1, 2)] == [
            saved == "float16",
            now == "float16",
        ]

    def test_other_data_are_refused(self, workshop: Workshop, tmp_path: Path) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(workshop.dataset, copy)
        run = workshop.train(f"--dataset={copy}", "--max_iters=1")
        shutil.rmtree(copy)
        make_dataset(copy, ByteTokenizer(), "other " * 100, "text " * 100)
        message = workshop.refused(f"--resume={run}", f"--dataset={copy}")
        assert "fingerprint" in message
        assert "prepare the same data again" in message

    def test_unknown_run(self, workshop: Workshop) -> None:
        workshop.train("--max_iters=1")
        assert "did you mean 'run'" in workshop.refused("--resume=runn", run_name=None)


class TestDamage:
    def test_a_damaged_newest_falls_back_and_says_so(self, workshop: Workshop, capsys) -> None:
        run = workshop.train("--max_iters=12", *COURSE)
        weights = weights_at(run, 12)
        corrupt(checkpoint_at(run, 12))
        capsys.readouterr()
        workshop.train(f"--resume={run}", *COURSE, run_name=None)
        assert "Skipped the damaged checkpoint step_00000012" in printed(capsys)
        assert_equal_tensors(weights, weights_at(run, 12))

    def test_a_damaged_checkpoint_that_was_named_is_refused(self, workshop: Workshop) -> None:
        run = workshop.train("--max_iters=1")
        corrupt(checkpoint_at(run, 1))
        message = workshop.refused(f"--resume={checkpoint_at(run, 1)}", run_name=None)
        assert "model.safetensors was altered" in message


class TestSignals:
    LONG = ("--max_iters=100000", "--eval_interval=100000", "--lr_decay_iters=100")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_stopping_and_going_on(self, workshop: Workshop, number: signal.Signals) -> None:
        process = workshop.start(*self.LONG, "--dropout=0.1", "--log_interval=5")
        process.wait_for("| loss ")
        process.send(number)
        again = {"SIGINT": "press Ctrl-C again", "SIGTERM": "send another signal"}[number.name]
        acknowledged = f"\n{number.name}: finishing this step; {again} to quit now\n"
        assert (process.finish(), process.errors) == (0, acknowledged)
        assert f"{number.name} received: stopped after" in process.output
        stopped = log_of(workshop.out_dir / "run")
        assert stopped["status"] == "interrupted"
        assert stopped["end_time"]
        step = stopped["checkpoints"][-1]["step"]

        end = 5 * (step // 5) + 10
        ends = (*self.LONG[2:], f"--max_iters={end}", "--eval_interval=100000", "--dropout=0.1")
        resumed = workshop.train("--resume=auto", *ends, "--log_interval=5")
        whole = workshop.train(*ends, "--log_interval=5", run_name="whole")
        assert_same_course(resumed, whole, step=end)

    def test_the_second_signal_stops_at_once(self, workshop: Workshop) -> None:
        """While a step goes on that takes long."""
        plugin = workshop.out_dir.parent / "slow.py"
        plugin.write_text(SLOW_PART)
        process = workshop.start(str(plugin), "--activation=slow", "--eval_tokens=32")
        process.wait_for("resting")
        began = time.monotonic()
        process.send(signal.SIGINT)
        time.sleep(2 * SAME_REQUEST_SECONDS)
        assert process.running
        process.send(signal.SIGINT)
        assert process.finish() == 128 + signal.SIGINT
        assert time.monotonic() - began < 5
        assert "Traceback" not in process.errors
        assert log_of(workshop.out_dir / "run")["status"] == "interrupted"

    def test_a_stop_during_validation_does_not_wait_for_its_end(self, workshop: Workshop) -> None:
        plugin = workshop.out_dir.parent / "slow.py"
        plugin.write_text(SLOW_PART)
        process = workshop.start(
            str(plugin), "--activation=slow", "--eval_tokens=0", "--batch_size=1"
        )
        process.wait_for("resting")
        process.send(signal.SIGTERM)
        assert process.finish() == 0
        assert "SIGTERM received: stopped after 0 steps" in process.output
        assert log_of(workshop.out_dir / "run")["eval_steps"] == []


SLOW_PART = '''
import time

import torch

from components.activations import ACTIVATIONS, Activation
from training.smoke import TOKENS


@ACTIVATIONS.register("slow", label="Slow")
class Slow(Activation):
    """An activation that rests."""

    def forward(self, x):
        checked = x.shape[1] == TOKENS  # before the run, on shorter sequences
        if not checked and not isinstance(x, torch._subclasses.FakeTensor):
            print("resting", flush=True)
            time.sleep(1)
        return x
'''


class TestKill:
    @pytest.mark.slow
    @pytest.mark.parametrize("async_save", [False, True])
    def test_at_any_moment(self, workshop: Workshop, async_save: bool) -> None:
        """Killed again and again, and resumed by the same command, a run ends the same."""
        command = ("--max_iters=60", "--eval_interval=2", "--dropout=0.1", "--eval_tokens=64")
        command += (f"--async_save={async_save}",)
        whole = workshop.train(*command, run_name="whole")
        chance = random.Random(1)
        for _ in range(3):
            process = workshop.start("--resume=auto", *command)
            process.wait_for("checkpoint of step")
            time.sleep(chance.uniform(0, 0.12))
            process.send(signal.SIGKILL)
            process.finish()
        killed = workshop.train("--resume=auto", *command)
        assert len(log_of(killed)["starts"]) >= 2
        assert_same_course(killed, whole, step=60)


def test_fewer_steps_than_are_done_are_refused(workshop: Workshop) -> None:
    workshop.train("--max_iters=4", run_name="done")
    message = workshop.refused("--resume=done", "--max_iters=3")
    assert "max_iters=3 is below 4, the step of" in message
    assert "raise it" in message
