"""A terminal that closes, a reader that leaves, a disk that fills up or goes away: what was trained
stays, and the log says how the run ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from errors import UserError
from tests.integration.runs import (
    Workshop,
    assert_same_course,
    checkpoint_at,
    log_of,
    printed,
)
from training import checkpoint
from training.console import Console

SHORT = ("--max_iters=6", "--eval_interval=3")
ENDLESS = ("--max_iters=1000000", "--eval_interval=1000000", "--lr_decay_iters=100")

posix = pytest.mark.skipif(os.name != "posix", reason="terminals and pipes are POSIX's here")


def read_until_it_trains(output: int, run: Path) -> None:
    """Read what a process prints, so that it never waits, until its run has logged a step."""
    os.set_blocking(output, False)
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + 60
    while not metrics.exists() or '"train"' not in metrics.read_text():
        assert time.monotonic() < deadline
        with contextlib.suppress(BlockingIOError):
            os.read(output, 2**16)
        time.sleep(0.01)


@posix
class TestOutputThatCannotBeWritten:
    """The console never ends a run."""

    @pytest.fixture
    def whole(self, workshop: Workshop) -> Path:
        return workshop.train(*SHORT, run_name="whole")

    @pytest.mark.slow
    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
    def test_a_full_disk_under_the_output(self, workshop: Workshop, whole: Path) -> None:
        process = workshop.start(*SHORT, output=Path("/dev/full"))
        assert (process.finish(), process.errors) == (0, "")
        assert_same_course(workshop.out_dir / "run", whole, step=6)

    def test_a_reader_that_leaves(self, workshop: Workshop, whole: Path, tmp_path: Path) -> None:
        """As `| head -1` does."""
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        process = workshop.start(*SHORT, output=pipe)
        read_until_it_trains(reader, workshop.out_dir / "run")
        os.close(reader)
        assert (process.finish(), process.errors) == (0, "")
        assert_same_course(workshop.out_dir / "run", whole, step=6)

    @pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
    def test_a_terminal_that_closes(self, workshop: Workshop, number: signal.Signals) -> None:
        """Writing to it fails from then on; the signal says that it is gone."""
        terminal, end_of_run = os.openpty()
        process = workshop.start(*ENDLESS, output=Path(os.ttyname(end_of_run)))
        run = workshop.out_dir / "run"
        read_until_it_trains(terminal, run)
        os.close(end_of_run)
        os.close(terminal)
        time.sleep(0.2)
        process.send(number)
        assert process.finish() == 0
        log = log_of(run)
        assert log["status"] == "interrupted"
        step = log["checkpoints"][-1]["step"]
        workshop.train("--resume=auto", f"--max_iters={step + 1}")
        assert checkpoint_at(run, step + 1).exists()

    def test_an_encoding_that_lacks_a_character(self, capfd, monkeypatch) -> None:
        with open(1, "w", encoding="ascii", closefd=False) as stream:
            monkeypatch.setattr("sys.stdout", stream)
            console = Console()
            console.say("run Ω")
            console.say("next")
            monkeypatch.undo()
        assert capfd.readouterr().out == "run \\u03a9\nnext\n"


@posix
def test_ctrl_c_is_acknowledged_at_once_and_saves_before_it_speaks(workshop: Workshop) -> None:
    process = workshop.start(*ENDLESS)
    process.wait_for("| loss ")
    process.send(signal.SIGINT)
    assert process.finish() == 0
    assert process.errors == "\nSIGINT: finishing this step; press Ctrl-C again to quit now\n"
    saved = process.output.index("checkpoint of step")
    assert process.output.index("SIGINT received: stopped after") > saved


class TestDirectoryThatFails:
    def test_a_disk_that_fills_up(self, workshop: Workshop, monkeypatch, capsys) -> None:
        real, saves = checkpoint.save_file, []

        def filling(*arguments: object, **metadata: object) -> None:
            saves.append(arguments)
            if len(saves) > 2:  # weights and moments of the first checkpoint fit
                raise OSError(28, "No space left on device")
            real(*arguments, **metadata)

        monkeypatch.setattr(checkpoint, "save_file", filling)
        with pytest.raises(
            UserError, match="cannot save a checkpoint .* newest checkpoint is step_0+3"
        ):
            workshop.train(*SHORT)
        run = workshop.out_dir / "run"
        assert log_of(run)["status"] == "failed"
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000003"]

        monkeypatch.undo()
        workshop.train(*SHORT, "--resume=auto")
        assert_same_course(run, workshop.train(*SHORT, run_name="whole"), step=6)

    @posix
    def test_a_run_directory_that_vanishes(self, workshop: Workshop) -> None:
        process = workshop.start(*ENDLESS)
        process.wait_for("| loss ")
        shutil.rmtree(workshop.out_dir / "run")
        process.send(signal.SIGTERM)
        assert process.finish() == 1
        assert "cannot save a checkpoint in" in process.errors
        assert "No such file or directory" in process.errors
        assert "Traceback" not in process.errors
        assert not (workshop.out_dir / "run").exists()

    def test_an_out_dir_that_is_a_file(self, workshop: Workshop) -> None:
        workshop.out_dir.write_text("a file")
        message = workshop.refused("--max_iters=1")
        assert "cannot write in" in message
        assert "Not a directory" in message


class TestLostCheckpoints:
    def test_auto_renames_the_log_of_a_run_that_lost_them(self, workshop: Workshop, capsys) -> None:
        process = workshop.start(*ENDLESS)
        process.wait_for("| loss ")
        process.send(signal.SIGTERM)
        process.finish()
        run = workshop.out_dir / "run"
        before = (run / "metrics.jsonl").read_text()
        shutil.rmtree(run / "checkpoints")
        workshop.train("--resume=auto", "--max_iters=1")
        assert (run / "metrics.before-1.jsonl").read_text() == before
        assert log_of(run)["status"] == "completed"
        assert ", to run.before-1.json" in printed(capsys)

    def test_a_checkpoint_copied_from_another_run(self, workshop: Workshop) -> None:
        one = workshop.train(*SHORT, run_name="one")
        other = workshop.train(*SHORT, run_name="other")
        shutil.rmtree(checkpoint_at(other, 6))
        shutil.copytree(checkpoint_at(one, 6), checkpoint_at(other, 6))
        message = workshop.refused("--resume=other", "--max_iters=9", run_name=None)
        assert "was copied here from another run" in message
        assert log_of(other)["status"] == "completed"


class TestChangedPlugin:
    PART = '''
from components.activations import ACTIVATIONS, Activation


@ACTIVATIONS.register("power", label="Power")
class Power(Activation):
    """A power."""

    def forward(self, x):
        return x ** 2
'''

    def test_is_refused_unless_the_user_insists(self, workshop: Workshop, tmp_path: Path) -> None:
        plugin = tmp_path / "power.py"
        plugin.write_text(self.PART)
        command = (f"--plugins={plugin}", "--activation=power", "--eval_interval=1")
        run = workshop.train(*command, "--max_iters=1")
        digest = log_of(run)["plugins"]["power.py"]
        plugin.write_text(self.PART.replace("x ** 2", "x ** 3"))
        message = workshop.refused(*command, "--resume=auto", "--max_iters=2")
        assert f"{plugin} has changed since the run was trained: its sha256 is " in message
        assert f"but it was {digest}" in message
        workshop.train(*command, "--resume=auto", "--max_iters=2", "--allow_changed_plugins=True")
        assert log_of(run)["plugins"]["power.py"] != digest
        assert log_of(run)["config"]["max_iters"] == 2

    def test_a_module_that_it_imports_counts_as_the_plugin(
        self, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(str(tmp_path))
        plugin, helper = tmp_path / "power.py", tmp_path / "my_exponents.py"
        helper.write_text("EXPONENT = 2\n")
        part = self.PART.replace("x ** 2", "x ** my_exponents.EXPONENT")
        plugin.write_text(f"import my_exponents\n{part}")
        command = (f"--plugins={plugin}", "--activation=power", "--eval_interval=1")
        run = workshop.train(*command, "--max_iters=1")
        before = log_of(run)["plugins"]
        assert set(before) == {"power.py", "import my_exponents"}
        helper.write_text("EXPONENT = 3\n")
        message = workshop.refused(*command, "--resume=auto", "--max_iters=2")
        assert f"{helper} has changed since the run was trained: its sha256 is " in message
        workshop.train(*command, "--resume=auto", "--max_iters=2", "--allow_changed_plugins=True")
        log = log_of(run)
        assert log["starts"][0]["plugins"] == before
        assert log["starts"][0]["config"]["max_iters"] == 1
        assert log["plugins"] != before


class TestDivergence:
    def test_a_run_stops_within_steps_of_its_limit_however_seldom_it_logs(
        self, workshop: Workshop
    ) -> None:
        with pytest.raises(UserError, match="max_bad_steps=4"):
            workshop.train(
                *("--learning_rate=1e30", "--warmup_iters=0", "--grad_clip=0"),
                *("--max_iters=400", "--log_interval=400", "--max_bad_steps=4"),
                "--eval_interval=400",
            )
        log = log_of(workshop.out_dir / "run")
        assert log["status"] == "diverged"
        (record,) = log["training_iterations"]
        assert record["bad_steps"] == 4
        assert record["iter"] <= 6


def test_the_report_names_the_directory_and_a_resumed_run_its_step(
    workshop: Workshop, capsys
) -> None:
    run = workshop.train("--max_iters=2")
    assert str(run) in capsys.readouterr().out.partition("Cost")[0]
    workshop.train("--resume=auto", "--max_iters=4")
    assert f"Resuming {run} at step 2 of 4." in printed(capsys)
    workshop.train("--resume=auto")
    out = printed(capsys)
    assert f"{run} has completed its 4 steps; to train longer" in out
