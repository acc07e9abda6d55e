"""Checkpoints that a thread writes while training goes on: `async_save`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import train
from errors import UserError
from tests.integration.runs import (
    Workshop,
    assert_equal_tensors,
    assert_same_course,
    checkpoint_at,
    log_of,
    moments_at,
    weights_at,
)
from training import checkpoint
from training.hardware import resolve_async_save
from training.run import Run

COURSE = ("--max_iters=12", "--eval_interval=6", "--dropout=0.2", "--keep_checkpoints=9")
BESIDE = "--async_save=True"
LONGEST_WAIT = 60.0


@pytest.fixture
def step_reached(monkeypatch: pytest.MonkeyPatch) -> dict[int, threading.Event]:
    """Events for steps 1 to 20, each set once that step is done."""
    reached = {step: threading.Event() for step in range(1, 21)}
    advance = Run.advance

    def advance_and_tell(run: Run) -> None:
        advance(run)
        reached[run.step].set()

    monkeypatch.setattr(Run, "advance", advance_and_tell)
    return reached


def before_writing(monkeypatch: pytest.MonkeyPatch, action: Callable[[], Any]) -> None:
    """Let whatever writes a checkpoint call `action` before the first tensor is written."""
    save_tensors = checkpoint._save_tensors

    def act_and_save(file: Path, tensors: dict[str, Tensor]) -> None:
        if file.name == "model.safetensors":
            action()
        save_tensors(file, tensors)

    monkeypatch.setattr(checkpoint, "_save_tensors", act_and_save)


@pytest.fixture
def whole(workshop: Workshop) -> Path:
    """A run that waits for its checkpoints."""
    return workshop.train(*COURSE, run_name="whole")


def test_training_goes_on_while_a_checkpoint_of_its_step_is_written(
    workshop: Workshop,
    monkeypatch: pytest.MonkeyPatch,
    whole: Path,
    step_reached: dict[int, threading.Event],
) -> None:
    """The first checkpoint is written after step 9, and is that of step 6 all the same."""
    went_on: list[bool] = []
    before_writing(
        monkeypatch, lambda: went_on or went_on.append(step_reached[9].wait(LONGEST_WAIT))
    )
    run = workshop.train(*COURSE, BESIDE, run_name="beside")
    assert went_on == [True]
    assert_same_course(run, whole, step=12)
    for tensors_at in (weights_at, moments_at):
        assert_equal_tensors(tensors_at(run, 6), tensors_at(whole, 6))
    assert [saved["step"] for saved in log_of(run)["checkpoints"]] == [6, 12]


def test_a_run_goes_on_from_a_checkpoint_that_was_written_late(
    workshop: Workshop,
    monkeypatch: pytest.MonkeyPatch,
    whole: Path,
    step_reached: dict[int, threading.Event],
) -> None:
    """The states of the random generators and the length of the log are those of its step."""
    before_writing(monkeypatch, lambda: step_reached[9].wait(LONGEST_WAIT))
    workshop.train(*COURSE, BESIDE, run_name="late")
    saved = checkpoint_at(workshop.out_dir / "late", 6)
    late = workshop.train(*COURSE, BESIDE, f"--resume={saved}", run_name="late")
    assert_same_course(late, whole, step=12)


def test_a_checkpoint_that_cannot_be_written_ends_the_run_soon(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(28, "No space left on device")

    before_writing(monkeypatch, refuse)
    flags = ("--max_iters=100000", "--eval_interval=50000", "--checkpoint_minutes=0.001")
    with pytest.raises(UserError, match="No space left on device; it has no checkpoint yet"):
        workshop.train(*flags, BESIDE)
    log = log_of(workshop.out_dir / "run")
    assert log["status"] == "failed"
    assert log["training_iterations"][-1]["iter"] < 50000


def test_an_error_of_ours_in_the_thread_keeps_its_traceback(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_writing(monkeypatch, lambda: {}["missing"])
    with pytest.raises(KeyError, match="missing") as raised:
        workshop.train(*COURSE, BESIDE)
    assert any(entry.name == "save_checkpoint" for entry in raised.traceback)


def test_a_run_that_fails_leaves_the_checkpoint_under_way_whole(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, failed = train.train_step, threading.Event()

    def fail_at_last(run: Run, *arguments: Any, **keys: Any) -> Any:
        if run.step == 8:
            failed.set()
            raise ZeroDivisionError
        return step(run, *arguments, **keys)

    monkeypatch.setattr(train, "train_step", fail_at_last)
    before_writing(monkeypatch, lambda: failed.wait(LONGEST_WAIT))
    with pytest.raises(ZeroDivisionError):
        workshop.train(*COURSE, BESIDE)
    run = workshop.out_dir / "run"
    checkpoint.verify(checkpoint_at(run, 6))
    assert [saved["step"] for saved in log_of(run)["checkpoints"]] == [6]


def test_a_run_that_fails_says_that_its_checkpoint_failed_too(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = threading.Event()

    def refuse() -> None:
        failed.wait(LONGEST_WAIT)
        raise OSError(28, "No space left on device")

    def fail(run: Run, *arguments: Any, **keys: Any) -> Any:
        if run.step == 6:
            failed.set()
            raise ZeroDivisionError
        return step(run, *arguments, **keys)

    step = train.train_step
    monkeypatch.setattr(train, "train_step", fail)
    before_writing(monkeypatch, refuse)
    with pytest.raises(ZeroDivisionError):
        workshop.train(*COURSE, BESIDE)
    assert "the checkpoint of step 6 was not written: cannot save" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wanted", "device", "beside"),
    [
        ("auto", "cpu", False),
        ("auto", "cuda", True),
        ("auto", "mps", True),
        (True, "cpu", True),
        (False, "cuda", False),
    ],
)
def test_auto_waits_on_a_cpu(wanted: bool | str, device: str, beside: bool) -> None:
    assert resolve_async_save(wanted, torch.device(device)) is beside
