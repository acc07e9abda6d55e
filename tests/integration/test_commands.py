"""The scripts as a shell runs them: exit codes, a clear sentence for what is wrong, terminals."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.tokenizers import ByteTokenizer
from tests.integration.child import ROOT, Child
from tests.integration.runs import Workshop, log_of, make_dataset
from tests.parametrized import one_in


class TestDataErrors:
    """Each ends train.py with a sentence, before it has made the folder of a run."""

    @pytest.fixture
    def copy(self, dataset: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(dataset, tmp_path / "copy"))

    def refusal(self, workshop: Workshop, *flags: str) -> str:
        message = workshop.refused(*flags)
        assert not workshop.out_dir.exists()
        return message

    def test_truncated_file(self, workshop: Workshop, copy: Path) -> None:
        os.truncate(copy / "val.bin", 1000)
        message = self.refusal(workshop, f"--dataset={copy}")
        assert "val.bin has 1000 bytes" in message
        assert "prepare it again" in message

    def test_token_outside_the_vocabulary(self, workshop: Workshop, copy: Path) -> None:
        tokens = np.memmap(copy / "train.bin", dtype="<u2", mode="r+")
        tokens[77] = 257
        tokens.flush()
        message = self.refusal(workshop, f"--dataset={copy}")
        assert "token 257 at position 77, outside the vocabulary of 257" in message

    def test_changed_tokens(self, workshop: Workshop, copy: Path) -> None:
        tokens = np.memmap(copy / "train.bin", dtype="<u2", mode="r+")
        tokens[77] ^= 1
        tokens.flush()
        assert "has changed since" in self.refusal(workshop, f"--dataset={copy}")

    def test_short_split(self, workshop: Workshop, tmp_path: Path) -> None:
        folder = make_dataset(tmp_path / "short", ByteTokenizer(), "word " * 99, "x" * 32)
        message = self.refusal(workshop, f"--dataset={folder}")
        assert "val.bin has 32 tokens" in message
        assert "33" in message

    def test_unknown_dataset(self, workshop: Workshop) -> None:
        message = self.refusal(workshop, "--dataset=python_stdlb")
        assert "did you mean 'python_stdlib'" in message

    def test_damaged_meta(self, workshop: Workshop, copy: Path) -> None:
        (copy / "meta.json").write_text("{")
        assert "meta.json is damaged" in self.refusal(workshop, f"--dataset={copy}")

    def test_vocabulary_too_small(self, workshop: Workshop) -> None:
        message = self.refusal(workshop, "--vocab_size=256")
        assert "vocab_size=256 is too small for the 257 tokens" in message


class TestMachineErrors:
    @pytest.mark.parametrize(
        ("flag", "said"),
        [
            ("--attention_backend=flash", "attention_backend='flash'"),
            ("--tf32=True", "tf32=True has no effect"),
            ("--device=cuda", "device='cuda' is not available"),
            ("--seed=4294967296", "seed=4294967296 must be below 4294967296."),
        ],
    )
    def test_are_told_before_a_dataset_is_prepared(
        self, workshop: Workshop, tmp_path: Path, flag: str, said: str
    ) -> None:
        if flag == "--device=cuda" and torch.cuda.is_available():
            pytest.skip("there is a CUDA device")
        (tmp_path / "costly").mkdir()
        mark = tmp_path / "was_prepared"
        (tmp_path / "costly/prepare.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
        assert said in workshop.refused(flag, f"--dataset={tmp_path / 'costly'}")
        assert not mark.exists()

    def test_flash_on_a_cpu(self, workshop: Workshop) -> None:
        message = workshop.refused("--attention_backend=flash", "--device=cpu")
        assert "attention_backend='flash'" in message
        assert "cpu" in message

    def test_a_batch_beyond_the_memory(self, workshop: Workshop) -> None:
        message = workshop.refused("--batch_size=100000000")
        assert "batch_size=100000000 x sequence_length=32 are 3200000000 tokens per step" in message
        assert re.search(r"need 256\.0 GB for inputs and targets, .* the machine has ", message)
        assert not workshop.out_dir.exists()

    def test_out_dir_that_is_a_file(self, workshop: Workshop, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert "Not a directory" in workshop.refused(f"--out_dir={tmp_path / 'file'}")

    def test_a_run_is_never_overwritten(self, workshop: Workshop) -> None:
        run = workshop.train("--max_iters=1")
        before = (run / "run.json").read_bytes()
        assert "already contains a run" in workshop.refused("--max_iters=1")
        assert (run / "run.json").read_bytes() == before


def shell(*command: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", **options},
    )


class TestExitCodes:
    @pytest.mark.parametrize(
        ("script", "flags", "code", "said"),
        [
            ("train.py", ["--help"], 0, "--learning_rate"),
            ("train.py", ["config/arch_llama.py", "--print_config"], 0, "preset llama"),
            ("train.py", ["--n_layers=2"], 2, "did you mean 'n_layer'"),
            ("train.py", ["--n_layer=True"], 2, "n_layer"),
            ("train.py", ["--dataset=nothing"], 1, "unknown dataset 'nothing'"),
            ("sample.py", ["--help"], 0, "--prompt_file"),
            ("sample.py", ["--top_k=x"], 2, "invalid int value"),
            ("sample.py", ["--plugins=no_such.py"], 2, "no file 'no_such.py'"),
            ("sample.py", ["--out_dir=no_such_folder"], 1, "no run under"),
        ],
    )
    def test_scripts(
        self, tmp_path: Path, script: str, flags: list[str], code: int, said: str
    ) -> None:
        where = [] if "--help" in flags else [f"--out_dir={tmp_path / 'out'}"]
        child = Child(script, [*flags, *where], tmp_path / "child")
        assert child.finish() == code, child.errors
        assert said in (child.output if code == 0 else child.errors)
        assert "Traceback" not in child.errors
        assert not (tmp_path / "out").exists()

    @pytest.mark.slow
    def test_real_processes(self, workshop: Workshop) -> None:
        """As a person types them: train, sample, compare, and the catalog."""
        done = shell("train.py", *workshop.argv("--max_iters=2"))
        assert (done.returncode, done.stderr) == (0, "")
        sampled = shell(
            "sample.py",
            f"--out_dir={workshop.out_dir}",
            "--max_new_tokens=20",
            "--prompt=cat",
            PYTHONIOENCODING="ascii",  # a terminal that cannot show all that a model writes
        )
        assert sampled.returncode == 0, sampled.stderr
        assert sampled.stdout.startswith("cat")
        compared = shell("compare_architectures.py", f"--out_dir={workshop.out_dir}")
        assert compared.returncode == 0
        assert "1L-2H-32D-AbsPos-LN-NB-GELU-PreNorm" in compared.stdout

    @pytest.mark.parametrize(
        "command", one_in(2, [["train.py", "--help"], ["model_components.py"]])
    )
    def test_nobody_reading_the_output_is_no_error(self, command: list[str]) -> None:
        """As under `| head`."""
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True
        )
        os.close(writer)
        assert done.stderr == ""
        assert done.returncode != 0

    def test_catalogue(self) -> None:
        listed = shell("model_components.py")
        assert listed.returncode == 0
        assert "swiglu" in listed.stdout
        assert shell("model_components.py", "x").returncode == 2


class TestComparison:
    def test_latest(self, workshop: Workshop, capsys) -> None:
        from compare_architectures import main

        for bias, name in ((True, "one"), (True, "two"), (False, "three")):
            workshop.train("--max_iters=1", f"--attention_bias={bias}", run_name=name)
        capsys.readouterr()
        assert main(["--latest", "2", f"--out_dir={workshop.out_dir}"]) == 0
        table = " ".join(capsys.readouterr().out.split())
        code = "1L-2H-32D-AbsPos-LN-NB-GELU-PreNorm-T32"
        assert f"1 {code}-AttnBias-NoBias: the baseline" in table
        changed = "attention_bias=False, attention_out_bias=False"
        assert f"2 {changed}: {code}-NoBias" in table
        assert "seeds of" not in table  # the older run like the baseline is not among them


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
class TestTerminal:
    def in_a_terminal(self, workshop: Workshop, *flags: str) -> str:
        import termios

        controller, terminal = os.openpty()
        termios.tcsetwinsize(terminal, (24, 100))
        process = subprocess.Popen(
            [sys.executable, "train.py", *workshop.argv(*flags)],
            cwd=ROOT,
            stdout=terminal,
            stderr=terminal,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        os.close(terminal)
        shown = b""
        try:
            while piece := os.read(controller, 4096):
                shown += piece
        except OSError:  # Linux: the other end is closed
            pass
        finally:
            os.close(controller)
        assert process.wait(60) == 0
        return shown.decode()

    @pytest.mark.slow
    def test_a_bar_in_a_terminal(self, workshop: Workshop) -> None:
        shown = self.in_a_terminal(workshop, "--max_iters=200", "--log_interval=100")
        assert "/200 [" in shown
        assert "\r" in shown
        assert "step 200/200" in shown

    def test_plain_lines_elsewhere(self, workshop: Workshop, capfd) -> None:
        workshop.train("--max_iters=3")
        printed = capfd.readouterr()
        assert "\r" not in printed.out
        assert "steps/s" not in printed.out
        assert printed.err == ""


class TestPlugins:
    PART = '''
from components.activations import ACTIVATIONS, Activation


@ACTIVATIONS.register("cube", label="Cube")
class Cube(Activation):
    """The cube."""

    def forward(self, x):
        return x**3
'''

    @pytest.fixture
    def part(self, tmp_path: Path) -> str:
        path = tmp_path / "cube.py"
        path.write_text(self.PART)
        return str(path)

    @pytest.mark.parametrize("as_flag", [True, False])
    def test_a_part_of_ones_own(self, workshop: Workshop, part: str, as_flag: bool) -> None:
        given = f"--plugins={part}" if as_flag else part
        run = workshop.train(given, "--activation=cube", "--max_iters=1")
        assert "Cube" in log_of(run)["architecture"]["name"]
        kept = run / "checkpoints/step_00000001/plugins/cube.py"
        assert kept.read_text() == self.PART
        resumed = workshop.train(given, "--activation=cube", "--max_iters=2", "--resume=auto")
        assert (resumed / "checkpoints/step_00000002/plugins/cube.py").exists()

    def test_nothing_of_a_checkpoint_is_run_unasked(
        self, workshop: Workshop, part: str, tmp_path: Path
    ) -> None:
        mark = tmp_path / "was_run"
        with open(part, "a", encoding="utf-8") as file:
            file.write(f"\nopen({str(mark)!r}, 'w').close()\n")
        trained = workshop.start(part, "--activation=cube", "--max_iters=1")
        assert trained.finish() == 0, trained.errors
        mark.unlink()
        out = f"--out_dir={workshop.out_dir}"
        kept = workshop.out_dir / "run/checkpoints/step_00000001/plugins/cube.py"

        for child in (
            Child("sample.py", [out], tmp_path / "sample"),
            workshop.start("--resume=auto", "--max_iters=2"),
        ):
            assert child.finish() == 1
            assert "custom parts, whose code is not run automatically" in child.errors
            assert f"Review {kept}, then allow it with --plugins=saved.\n  python " in child.errors
            assert "Traceback" not in child.errors
        assert not mark.exists()

        flags = [out, f"--plugins={kept}", "--max_new_tokens=5", "--prompt=abc"]
        child = Child("sample.py", flags, tmp_path / "asked")
        assert child.finish() == 0, child.errors
        assert child.output.startswith("abc")
        assert mark.exists()

    def test_another_mistake_is_not_put_down_to_the_plugin(
        self, workshop: Workshop, part: str
    ) -> None:
        flags = (f"--plugins={part}", "--activation=cube", "--max_iters=1", "--min_lr=1e-4")
        workshop.train(*flags)
        message = workshop.refused("--resume=auto", f"--plugins={part}", "--learning_rate=1e-5")
        assert "min_lr=0.0001 is above learning_rate=1e-05" in message
        assert "(min_lr: the run run; learning_rate: --learning_rate)" in message
        assert "parts of its own" not in message

    def test_two_files_of_one_name(self, workshop: Workshop, part: str, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        other = tmp_path / "other" / "cube.py"
        other.write_text(self.PART.replace("cube", "cube2").replace("Cube", "Cube2"))
        message = workshop.refused(f"--plugins={part},{other}", "--activation=cube")
        assert "2 plugins have the file name cube.py" in message


class TestUnfinishedLogs:
    def test_a_log_that_a_kill_cut_short_is_compared(self, workshop: Workshop, capsys) -> None:
        from compare_architectures import main

        run = workshop.train("--max_iters=2")
        document = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**document, "status": "running"}))
        with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write('{"kind": "train", "it')
        assert main([str(run)]) == 0
        assert "(running)" in capsys.readouterr().out
