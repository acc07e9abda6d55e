"""What a person gets from train.py: any architecture trained, and a log that is true."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import configurator
import train
import training.preflight
from configurator import load, read
from data.prepare_scripts import prepare_tiny_shakespeare
from data.text_files import read_pieces
from data.tokenizers import ByteTokenizer, CharTokenizer
from model_builder import GPT
from model_presets import PRESETS
from options import KEYS
from recipe.objectives import OBJECTIVES
from tests.integration.child import ROOT
from tests.integration.runs import (
    Workshop,
    assert_equal_tensors,
    assert_same_course,
    log_of,
    make_dataset,
    metrics_of,
    moments_at,
    untimed,
    weights_at,
)
from tests.other_values import others
from tests.tiny import tiny_file
from training.report import COMPONENTS
from training.resume import find_start
from training.step_guard import Diverged, StepGuard

TINY_SHAKESPEARE = ROOT.parent / "shared/data/tinyshakespeare/input.txt"


class TestConfigFiles:
    @pytest.mark.parametrize(
        "preset",
        sorted(name for name in PRESETS.keys() - {"legacy"} if not tiny_file(name).exists()),
    )
    def test_presets(self, workshop: Workshop, preset: str) -> None:
        run = workshop.train(f"config/arch_{preset}.py", "--max_iters=2", "--sequence_length=32")
        log = log_of(run)
        model = GPT(GPT.Config.from_preset(preset, **sizes(log["config"])))
        assert log["status"] == "completed"
        assert log["architecture"]["name"] == model.config.architecture_name
        assert log["architecture"]["parameters"] == model.num_parameters()
        assert log["architecture"]["parameters"] == sum(
            tensor.numel() for tensor in weights_at(run, 2).values()
        )

    @pytest.mark.parametrize("file", ["train_gpt2.py", "train_shakespeare.py"])
    def test_nanogpt_files(self, workshop: Workshop, file: str) -> None:
        flags = ("--max_iters=2", "--warmup_iters=1", "--gradient_accumulation_steps=2")
        log = log_of(workshop.train(f"config/{file}", *flags))
        assert log["status"] == "completed"
        assert log["config"]["learning_rate"] == load([f"config/{file}"]).training.learning_rate
        assert log["config"]["arch_preset"] == "legacy"

    def test_a_flag_beside_a_preset_really_trains_that(self, workshop: Workshop) -> None:
        flags = ("--position_encoding=rope", "--normalization=rmsnorm")
        run = workshop.train("config/arch_gpt2.py", *flags, "--max_iters=1")
        names = weights_at(run, 1).keys()
        assert log_of(run)["architecture"]["name"].startswith("1L-2H-32D-RoPE-RMS-GELU-PreNorm")
        assert not any(name.startswith("positions") for name in names)
        assert not any("norm" in name and name.endswith("bias") for name in names)

    def test_files_compose(self, workshop: Workshop, tmp_path: Path) -> None:
        recipe = tmp_path / "run_fast.py"
        recipe.write_text("learning_rate = 5e-3\nmax_iters = 1\n")
        log = log_of(workshop.train("config/arch_llama.py", str(recipe)))
        assert log["config"]["learning_rate"] == 5e-3
        assert log["config"]["ffn_type"] == "swiglu"

    @pytest.mark.skipif(not TINY_SHAKESPEARE.exists(), reason=f"{TINY_SHAKESPEARE} is absent")
    def test_shakespeare_by_characters(self, workshop: Workshop, tmp_path: Path) -> None:
        folder = tmp_path / "shakespeare_char"
        prepare_tiny_shakespeare(
            [f"--input={TINY_SHAKESPEARE}", f"--out={folder}"],
            "",
            "shakespeare_char",
            lambda path: CharTokenizer("".join(read_pieces(path))),
        )
        flags = (f"--dataset={folder}", "--max_iters=30", "--log_interval=10", "--warmup_iters=2")
        log = log_of(workshop.train("config/train_shakespeare.py", *flags, "--dropout=0"))
        assert log["config"]["vocab_size"] == 65
        assert log["data"]["train_tokens"] == 1003854  # nanoGPT's README says the same
        assert log["data"]["val_tokens"] == 111540
        first, last = log["eval_steps"][0]["val_loss"], log["eval_steps"][-1]["val_loss"]
        assert first == pytest.approx(math.log(65), abs=0.1)
        assert last < first - 0.2


def sizes(config: dict) -> dict:
    keys = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
    return {key: config[key] for key in keys}


class TestLearning:
    def test_the_loss_falls(self, workshop: Workshop) -> None:
        log = log_of(workshop.train("--max_iters=60", "--learning_rate=0.01", "--batch_size=8"))
        assert log["eval_steps"][0]["val_loss"] == pytest.approx(math.log(257), abs=0.1)
        assert log["eval_steps"][-1]["val_loss"] < 3

    def test_accumulation_equals_one_large_batch(self, workshop: Workshop) -> None:
        common = ("--max_iters=3", "--eval_interval=3")
        small = workshop.train(
            *common, "--gradient_accumulation_steps=4", "--batch_size=2", run_name="small"
        )
        large = workshop.train(
            *common, "--gradient_accumulation_steps=1", "--batch_size=8", run_name="large"
        )
        steps = (log_of(run)["training_iterations"] for run in (small, large))
        for one, other in zip(*steps, strict=True):
            assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)
            assert one["tokens_seen"] == other["tokens_seen"]
            assert one["gradients"]["norm"] == pytest.approx(other["gradients"]["norm"], rel=1e-5)
        for name, weight in weights_at(small, 3).items():
            torch.testing.assert_close(weight, weights_at(large, 3)[name], atol=2e-5, rtol=1e-4)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_half_precision_on_a_cpu(self, workshop: Workshop, dtype: str) -> None:
        run = workshop.train(f"--dtype={dtype}", "--max_iters=8", "--learning_rate=0.01")
        log = log_of(run)
        assert log["environment"]["dtype"] == dtype
        assert log["eval_steps"][-1]["val_loss"] < log["eval_steps"][0]["val_loss"] - 0.1
        assert {tensor.dtype for tensor in weights_at(run, 8).values()} == {torch.float32}

    def test_every_step_reads_the_same_for_two_architectures(
        self, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: dict[str, list[torch.Tensor]] = {}
        train_step = train.train_step

        def spy(run, inputs, targets, *arguments, **options):
            seen.setdefault(run.folder.name, []).append(torch.stack((inputs, targets)))
            return train_step(run, inputs, targets, *arguments, **options)

        monkeypatch.setattr(train, "train_step", spy)
        workshop.train("config/arch_gpt2.py", "--max_iters=6", "--sequence_length=32")
        seen["gpt2"] = seen.pop("run")
        common = ("config/arch_llama.py", "--sequence_length=32", "--resume=auto", "--dropout=0.1")
        workshop.train(*common, "--max_iters=3", run_name="llama")
        workshop.train(*common, "--max_iters=6", run_name="llama")
        assert torch.equal(torch.stack(seen["gpt2"]), torch.stack(seen["llama"]))
        assert len(torch.stack(seen["gpt2"]).unique(dim=0)) == 6


class HostReads(TorchDispatchMode):
    """Counts what brings a number from the device to the host, and so waits for the device."""

    WAITS: ClassVar = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_to_cpu"}

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.WAITS:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class TestNoWaiting:
    """A step that logs nothing reads no number from the device, once the optimizer has state."""

    @pytest.mark.parametrize(
        "flags", [(), ("--grad_clip=0",), ("--gradient_accumulation_steps=2",)]
    )
    def test_no_number_is_read(self, workshop: Workshop, flags: tuple[str, ...]) -> None:
        run = train.set_up(find_start(read(workshop.argv(*flags, "--dropout=0.1"))))
        tokens = torch.ones(3, 2, 32, dtype=torch.long)
        train.train_step(run, tokens, tokens, 1e-3, statistics=False)
        with HostReads() as reads:
            train.train_step(run, tokens, tokens, 1e-3, statistics=False)
        assert reads.seen == []

    def test_the_counter_counts(self) -> None:
        with HostReads() as reads:
            float(torch.ones(()))
        assert len(reads.seen) == 1

    def test_only_log_steps_and_saves_read(
        self, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reads = []
        read = StepGuard.read
        monkeypatch.setattr(StepGuard, "read", lambda self: reads.append(1) or read(self))
        log = log_of(workshop.train("--max_iters=11", "--log_interval=5"))
        assert [record["iter"] for record in log["training_iterations"]] == [5, 10, 11]
        assert len(log["checkpoints"]) == 1
        assert len(reads) == 3 + 1


TOP = {
    "samples",
    *("schema_version", "run_name", "status", "start_time", "end_time", "config", "architecture"),
    *("environment", "data", "training_iterations", "eval_steps", "checkpoints", "summary"),
    *("run_id", "starts", "plugins", "roles", "defaults"),
}
STEP = {
    *("kind", "wall_seconds"),
    *("iter", "loss", "lr", "time_ms", "tokens_seen", "tokens_per_second", "mfu", "memory"),
    *("gradients", "bad_steps"),
}


class TestLog:
    @pytest.fixture(scope="class")
    @staticmethod
    def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        flags = ("--max_iters=7", "--log_interval=2", "--eval_interval=3")
        workshop = Workshop(dataset, tmp_path_factory.mktemp("log") / "out")
        return workshop.train(*flags, "--gradient_accumulation_steps=2")

    def test_keys(self, run: Path) -> None:
        log = log_of(run)
        assert log.keys() == TOP
        assert log["config"].keys() == load([]).to_dict().keys()
        assert log["architecture"].keys() == {
            *("name", "parameters", "flops_per_token", "flops_per_token_causal"),
            *("attention_ffn_ratio", "active_parameters", "decoding_state_bytes"),
            "optimizer_flops_per_step",
        }
        assert {"python", "torch", "cuda", "driver", "device", "commit"} <= log[
            "environment"
        ].keys()
        assert {"dataset", "fingerprint", "train_tokens", "val_tokens"} <= log["data"].keys()
        for record in log["training_iterations"]:
            assert record.keys() == STEP
            assert record["mfu"].keys() == {
                *("mfu_percent", "achieved_tflops", "peak_tflops", "flops_per_token"),
                "architecture",
            }
            assert record["gradients"].keys() == {"norm", "mean", "std"}
        for record in log["eval_steps"]:
            assert record.keys() == {
                *("iter", "val_loss", "val_bits_per_byte", "tokens_seen", "flops", "seconds"),
                *("kind", "wall_seconds"),
            }

    def test_when(self, run: Path) -> None:
        log = log_of(run)
        assert [record["iter"] for record in log["training_iterations"]] == [2, 4, 6, 7]
        assert [record["iter"] for record in log["eval_steps"]] == [0, 3, 6, 7]
        assert [saved["step"] for saved in log["checkpoints"]] == [3, 6, 7]

    def test_without_an_interval_only_the_end_is_validated(self, workshop: Workshop) -> None:
        log = log_of(workshop.train("--max_iters=3", "--eval_interval=0"))
        assert [record["iter"] for record in log["eval_steps"]] == [3]
        assert [saved["step"] for saved in log["checkpoints"]] == [3]

    def test_checkpoints_that_were_dropped_are_not_listed(self, workshop: Workshop) -> None:
        flags = ("--max_iters=5", "--eval_interval=1", "--keep_checkpoints=1")
        run = workshop.train(*flags)
        listed = [run / saved["path"] for saved in log_of(run)["checkpoints"]]
        assert sorted(listed) == sorted((run / "checkpoints").iterdir())

    def test_identities(self, run: Path) -> None:
        log = log_of(run)
        cost = log["architecture"]["flops_per_token"]
        for record in log["training_iterations"]:
            mfu = record["mfu"]
            achieved = record["tokens_per_second"] * cost / 1e12
            assert mfu["achieved_tflops"] == pytest.approx(achieved, rel=1e-12)
            share = 100 * mfu["achieved_tflops"] / mfu["peak_tflops"]
            assert mfu["mfu_percent"] == pytest.approx(share, rel=1e-12)
            assert mfu["flops_per_token"] == cost
            assert mfu["architecture"] == log["architecture"]["name"]
            assert record["tokens_seen"] == record["iter"] * 2 * 2 * 32
            per_step = record["tokens_per_second"] * record["time_ms"] / 1000
            assert per_step == pytest.approx(2 * 2 * 32, rel=1e-9)
        for record in log["eval_steps"]:
            assert record["tokens_seen"] == record["iter"] * 2 * 2 * 32
            assert record["flops"] == record["tokens_seen"] * cost
            bits = record["val_loss"] / math.log(2)  # a token is a byte here
            assert record["val_bits_per_byte"] == pytest.approx(bits, rel=1e-12)
        assert log["summary"]["total_flops"] == 7 * 2 * 2 * 32 * cost
        assert log["summary"]["final_val_loss"] == log["eval_steps"][-1]["val_loss"]

    def test_metrics_are_the_same_records(self, run: Path) -> None:
        log, lines = log_of(run), metrics_of(run)
        for kind, name in (("train", "training_iterations"), ("eval", "eval_steps")):
            assert [line for line in lines if line["kind"] == kind] == log[name]
        assert [line["iter"] for line in lines] == [0, 2, 3, 4, 6, 6, 7, 7]

    def test_trackers_change_nothing_of_the_course(self, workshop: Workshop) -> None:
        pytest.importorskip("tensorboard", reason="see requirements-dev.txt")
        flags = ("--max_iters=4", "--dropout=0.2", "--eval_interval=2")
        plain = workshop.train(*flags, run_name="plain")
        watched = workshop.train(*flags, "--log_to=csv,tensorboard", run_name="watched")
        assert_same_course(plain, watched, step=4)
        assert (watched / "metrics.csv").exists()
        assert list(watched.glob("tensorboard/events.*"))

    def test_bits_per_byte_of_characters(self, workshop: Workshop, tmp_path: Path) -> None:
        """Characters of two bytes: half as many bits a byte as a token."""
        folder = make_dataset(tmp_path / "d", CharTokenizer("äöü"), "äöü" * 100, "üöä" * 50)
        log = log_of(workshop.train(f"--dataset={folder}", "--max_iters=1", "--eval_tokens=0"))
        for record in log["eval_steps"]:
            expected = record["val_loss"] / math.log(2) / 2
            assert record["val_bits_per_byte"] == pytest.approx(expected, rel=1e-12)

    def test_the_whole_validation_split(self, workshop: Workshop, tmp_path: Path) -> None:
        folder = make_dataset(tmp_path / "d", ByteTokenizer(), "word " * 100, "text " * 40)
        log = log_of(workshop.train(f"--dataset={folder}", "--max_iters=0", "--eval_tokens=0"))
        assert log["data"]["val_tokens"] == 200
        assert log["data"]["val_tokens_read"] == 199 // 32 * 32

    def test_each_choice_is_in_the_start_report(self, workshop: Workshop, capsys) -> None:
        run = workshop.train("--max_iters=1", "--warmup_iters=1", "--output_softcap=30")
        printed = capsys.readouterr().out
        assert max(len(line) for line in printed.splitlines() if str(run.parent) not in line) <= 80
        lines = printed.partition("validating")[0].splitlines()
        assert len(lines) <= 20
        report = " ".join(" ".join(lines).split())
        model = load(["--output_softcap=30"]).model.to_dict()
        for key in model.keys() & {*COMPONENTS}:
            assert f"{key} {configurator.shown(model[key])}" in report
        for text in ("output_softcap 30", "FLOPs/token", "attention/FFN", "causal", "expected"):
            assert text in report
        assert "1 step, 64 tokens" in report
        assert "warm-up 1 step;" in report
        for at_its_default in ("attention_softcap", "rope_scaling", "residual"):
            assert at_its_default not in report
        assert "None" not in report

    def test_a_long_start_report_leaves_out_the_last_keys(self, workshop: Workshop, capsys) -> None:
        sizes = ["--n_layer=4", "--n_head=4", "--n_embd=128", "--block_size=128"]
        flags = ["config/arch_qwen3_next_tiny.py", *sizes]
        workshop.train(*flags, "--max_iters=0")
        lines = capsys.readouterr().out.partition("validating")[0].splitlines()
        assert len(lines) == 20
        assert max(map(len, lines[1:])) <= 80
        report = " ".join(" ".join(lines).split())
        settings = load(flags)
        changed = {
            key
            for key, value in settings.model.to_dict().items()
            if value != KEYS[key].default and KEYS[key].section != "Sizes"
        }
        hidden = {key for key in changed - {*settings.derived} if f" {key} " not in report}
        assert hidden
        assert f"; {len(hidden)} more with --verbose" in report
        assert not hidden & {*COMPONENTS}

    def test_a_long_name_is_broken_at_hyphens(self, workshop: Workshop, capsys) -> None:
        flags = ["--position_encoding=rope", "--qk_norm", "--init_std=0.03", "--weight_tying=False"]
        run = workshop.train("--max_iters=0", "--norm_eps=3e-4", "--bias=False", *flags)
        printed = capsys.readouterr().out
        lines = printed[printed.index("architecture") :].partition("components")[0].splitlines()
        assert len(lines) == 2
        assert max(map(len, lines)) <= 80
        name = "".join(line.removeprefix("architecture").strip() for line in lines)
        assert name == log_of(run)["architecture"]["name"]

    def test_a_long_run_says_how_long(self, workshop: Workshop, capsys, monkeypatch) -> None:
        workshop.train("--max_iters=1")
        assert "MFU, excluding validation" not in capsys.readouterr().out
        monkeypatch.setattr("training.report.LONG_SECONDS", 0.0)
        workshop.train("--max_iters=1", "--run_name=long")
        assert "at 40 % MFU, excluding validation; --max_minutes=60" in capsys.readouterr().out

    def test_a_model_without_attention_has_a_report(self, workshop: Workshop, capsys) -> None:
        flags = [flag for flag in workshop.argv() if not flag.startswith("--n_head")]
        train.main([*flags, "--max_iters=1", "--mixer=short_conv"])
        assert "attention_backend" not in capsys.readouterr().out

    def test_verbose_adds_every_key(self, workshop: Workshop, capsys) -> None:
        run = workshop.train("--max_iters=1", "--verbose")
        printed = " ".join(capsys.readouterr().out.split())
        for key, value in log_of(run)["config"].items():
            assert f"{key} {configurator.shown(value)}" in printed

    def test_samples(self, workshop: Workshop, capsys) -> None:
        """At the interval and at the end; training is the same as without."""
        flags = ("--max_iters=5", "--dropout=0.2")
        run = workshop.train(*flags, "--sample_interval=2", "--sample_tokens=7", run_name="one")
        printed = capsys.readouterr().out
        samples = log_of(run)["samples"]
        assert [sample["iter"] for sample in samples] == [2, 4, 5]
        assert all(len(sample["prompt"]) == 8 for sample in samples)
        assert all(0 < len(sample["text"]) <= 7 for sample in samples)
        assert printed.count("sample after step") == 3
        without = workshop.train(*flags, run_name="other")
        assert log_of(without)["samples"] == []
        assert "sample after step" not in capsys.readouterr().out
        assert_equal_tensors(weights_at(run, 5), weights_at(without, 5))

    def test_a_sample_that_ends_early_leaves_dropout_on(
        self, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The end-of-text token ends the text, and the model is in training mode again."""
        monkeypatch.setattr(
            "training.samples.text_of", lambda tokens, tokenizer: [str(next(tokens))]
        )
        flags = ("--max_iters=6", "--dropout=0.3", "--eval_interval=0")
        run = workshop.train(*flags, "--sample_interval=2", "--sample_tokens=7", run_name="one")
        assert [sample["iter"] for sample in log_of(run)["samples"]] == [2, 4, 6]
        without = workshop.train(*flags, run_name="other")
        assert_equal_tensors(weights_at(run, 6), weights_at(without, 6))

    def test_a_sample_that_fails_does_not_fail_the_run(
        self, workshop: Workshop, capsys: pytest.CaptureFixture[str]
    ) -> None:
        flags = ("--learning_rate=1e30", "--warmup_iters=0", "--grad_clip=0", "--eval_interval=0")
        run = workshop.train("--max_iters=5", *flags, "--sample_tokens=5")
        assert "no sample: the model's logits are not finite" in capsys.readouterr().out
        assert log_of(run)["status"] == "completed"

    def test_samples_of_a_resumed_run(self, workshop: Workshop) -> None:
        flags = ("--sample_interval=2", "--sample_tokens=7", "--lr_decay_iters=8")
        whole = workshop.train("--max_iters=8", "--eval_interval=3", *flags, run_name="whole")
        workshop.train("--max_iters=3", "--eval_interval=3", *flags, run_name="halves")
        resumed = ("--max_iters=8", "--eval_interval=3", "--resume=halves")
        halves = workshop.train(*resumed, *flags, run_name="halves")
        assert untimed(log_of(halves)["samples"]) == untimed(log_of(whole)["samples"])
        assert [sample["iter"] for sample in log_of(halves)["samples"]] == [2, 4, 6, 8]


NAN_PART = '''
import torch

from components.activations import ACTIVATIONS, Activation


@ACTIVATIONS.register("sometimes_nan", label="SometimesNaN")
class SometimesNaN(Activation):
    """GELU, but NaN in the training steps of a list."""

    bad = {bad}
    calls = 0

    def forward(self, x):
        if self.training:
            SometimesNaN.calls += 1
            if self.calls in self.bad:
                x = x * float("nan")
        return torch.nn.functional.gelu(x)


activation = "sometimes_nan"
'''


class TestNotFinite:
    def plugin(self, folder: Path, *bad: int) -> str:
        path = folder / "nan_part.py"
        path.write_text(NAN_PART.format(bad=bad))
        return str(path)

    def test_a_bad_step_changes_nothing_and_is_counted(
        self, workshop: Workshop, tmp_path: Path
    ) -> None:
        run = workshop.train(self.plugin(tmp_path, 3), "--max_iters=4", "--eval_interval=1")
        log = log_of(run)
        assert log["status"] == "completed"
        assert [record["bad_steps"] for record in log["training_iterations"]] == [0, 0, 1, 1]
        assert log["training_iterations"][2]["loss"] is None
        assert log["training_iterations"][3]["loss"] is not None
        assert_equal_tensors(weights_at(run, 2), weights_at(run, 3))
        assert_equal_tensors(moments_at(run, 2), moments_at(run, 3))
        assert not torch.equal(*(weights_at(run, s)["embedding.weight"] for s in (3, 4)))
        assert log["summary"]["bad_steps"] == 1

    def test_too_many_in_a_row_stop_the_run(self, workshop: Workshop, tmp_path: Path) -> None:
        plugin = self.plugin(tmp_path, *range(3, 99))
        flags = ("--max_bad_steps=4", "--max_iters=50", "--eval_interval=2")
        process = workshop.start(plugin, *flags)
        assert process.finish() == 1
        assert process.errors.startswith("4 steps in a row had a non-finite loss or gradient")
        assert "Traceback" not in process.errors
        assert "skipped steps 4" in process.output
        log = log_of(workshop.out_dir / "run")
        assert log["status"] == "diverged"
        assert log["training_iterations"][-1]["iter"] == 6

    def test_no_checkpoint_is_saved_after_too_many(
        self, workshop: Workshop, tmp_path: Path
    ) -> None:
        """Though no line is logged between."""
        plugin = self.plugin(tmp_path, 3, 4)
        flags = ("--max_bad_steps=2", "--eval_interval=2", "--log_interval=100", "--max_iters=50")
        with pytest.raises(Diverged, match="2 steps in a row had a non-finite loss"):
            workshop.train(plugin, *flags)
        run = workshop.out_dir / "run"
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000002"]
        assert log_of(run)["status"] == "diverged"

    def test_single_ones_do_not(self, workshop: Workshop, tmp_path: Path) -> None:
        plugin = self.plugin(tmp_path, 1, 3, 5, 7)
        log = log_of(workshop.train(plugin, "--max_bad_steps=2", "--max_iters=8"))
        assert log["status"] == "completed"
        assert log["summary"]["bad_steps"] == 4


EXITING_PART = '''
import sys

import torch

from components.activations import ACTIVATIONS, Activation


@ACTIVATIONS.register("exiting", label="Exiting")
class Exiting(Activation):
    """GELU, but it ends the process in the fifth training step."""

    calls = 0

    def forward(self, x):
        if self.training:
            Exiting.calls += 1
            if self.calls == 5:
                sys.exit(0)
        return torch.nn.functional.gelu(x)


activation = "exiting"
'''


def test_a_part_that_exits_fails_the_run(workshop: Workshop, tmp_path: Path) -> None:
    """With a traceback that begins in its file."""
    path = tmp_path / "exiting.py"
    path.write_text(EXITING_PART)
    process = workshop.start(str(path), "--max_iters=9")
    assert process.finish() == 1
    lines = process.errors.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].startswith(f'  File "{path}", line ')
    assert lines[-2:] == [
        "SystemExit: 0",
        "A config file or plugin must not call sys.exit(); raise an exception.",
    ]
    log = log_of(workshop.out_dir / "run")
    assert log["status"] == "failed"
    assert log["training_iterations"][-1]["iter"] == 4


SHARING_PART = '''
import functools

import torch
from torch import nn

from components.norms import NORMS


_layers = []


@functools.cache
def _ramp(length):
    return torch.linspace(0, 1, length)[:, None]


@NORMS.register("sharing", label="Sharing")
class Sharing(nn.Module):
    """A norm with a layer and a tensor that are the same in all blocks."""

    def __init__(self, dim, config):
        super().__init__()
        if not _layers:
            _layers.append(nn.Linear(dim, dim))
        self.linear = _layers[0]

    def forward(self, x):
        return x + self.linear(x) * _ramp(x.shape[1])


normalization = "sharing"
'''


def test_what_blocks_share_is_not_that_of_the_check(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check makes a layer of another width, and gradients; the trace, tensors of no data."""
    path = tmp_path / "sharing.py"
    path.write_text(SHARING_PART)
    flags = (str(path), "--n_layer=2", "--n_head=4", "--max_iters=3")
    checked = workshop.train(*flags)
    monkeypatch.setattr(training.preflight, "check_own_parts", lambda *_: None)
    monkeypatch.setattr(training.preflight, "expected_memory", lambda *_, **__: None)
    unchecked = workshop.train(*flags, run_name="unchecked")
    assert_same_course(checked, unchecked, step=3)


class TestAuxiliaryLosses:
    @pytest.fixture(scope="class")
    @staticmethod
    def log(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
        workshop = Workshop(dataset, tmp_path_factory.mktemp("moe") / "out")
        flags = ("--ffn_type=standard+moe", "--n_layer=2", "--n_experts=4", "--z_loss_coef=0.01")
        return log_of(workshop.train("--max_iters=4", "--log_interval=2", *flags))

    def test_the_terms_add_up_and_the_loss_is_the_cross_entropy(self, log: dict) -> None:
        for record in log["training_iterations"]:
            terms = record["terms"]
            assert terms.keys() == {"cross_entropy", "z_loss", "balance_loss"}
            assert sum(terms.values()) == pytest.approx(record["objective"], rel=1e-5)
            assert record["loss"] == terms["cross_entropy"]
            assert min(terms.values()) > 0

    @pytest.mark.parametrize("name", OBJECTIVES.names)
    def test_validation_leaves_out_what_an_objective_adds(
        self, workshop: Workshop, name: str
    ) -> None:
        """The first validation comes before the first step, so both runs have the same weights."""
        changed = others(OBJECTIVES.entry(name).keys.values())
        flags = (f"--objective={name}", *(f"--{key}={value}" for key, value in changed.items()))
        logs = [
            log_of(workshop.train("--max_iters=1", *more, run_name=run_name))
            for run_name, more in (("plain", ()), ("changed", flags))
        ]
        validations = [log["eval_steps"][0]["val_loss"] for log in logs]
        assert validations[0] == validations[1]
        plain, first = (log["training_iterations"][0] for log in logs)
        assert first["loss"] == pytest.approx(plain["loss"], rel=1e-5)
        assert first["objective"] > 1.01 * first["loss"]
        assert sum(first["terms"].values()) == pytest.approx(first["objective"], rel=1e-5)

    def test_the_load_of_the_experts_is_logged_by_layer(self, log: dict) -> None:
        for record in log["training_iterations"]:
            dense, mixture = record["metrics"]["ffn.load"]
            assert dense is None
            assert sum(mixture) == pytest.approx(1.0)

    def test_active_parameters_are_told_apart(self, log: dict) -> None:
        cost = log["architecture"]
        assert 0 < cost["active_parameters"] < cost["parameters"]
