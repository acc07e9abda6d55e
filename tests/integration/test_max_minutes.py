"""Runs that end when their minutes are spent."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import train
from configurator import settings_from_dict
from recipe.schedules import learning_rate_at
from tests.integration.runs import (
    Workshop,
    assert_equal_tensors,
    assert_same_course,
    checkpoint_at,
    log_of,
    moments_at,
    untimed,
    weights_at,
)
from training import clock

SEVEN_SECONDS = f"--max_minutes={7 / 60}"
COURSE = ("--max_iters=100", "--eval_interval=4", "--log_interval=3", "--dropout=0.2")


def iters(records: list[dict[str, Any]]) -> list[int]:
    return [record["iter"] for record in records]


class TestByAClockOfTheTests:
    @pytest.fixture(autouse=True)
    def _second_per_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A clock that stands still but for the second that each step takes."""
        now = SimpleNamespace(seconds=1000.0)
        a_step = train.train_step

        def step(*args: Any, **settings: Any) -> Any:
            now.seconds += 1
            return a_step(*args, **settings)

        monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
        monkeypatch.setattr(train, "train_step", step)

    def test_ends_logged_validated_and_saved(self, workshop: Workshop) -> None:
        run = workshop.train(SEVEN_SECONDS, *COURSE)
        log = log_of(run)
        assert log["status"] == "completed"
        assert iters(log["training_iterations"]) == [3, 6, 7]
        assert iters(log["eval_steps"]) == [0, 4, 7]
        assert log["eval_steps"][-1]["seconds"] == 7
        assert [saved["step"] for saved in log["checkpoints"]] == [4, 7]

    def test_the_last_line_has_what_was_measured(self, workshop: Workshop) -> None:
        """That step 7 is the last shows too late for the statistics that cost time."""
        *_, before, last = log_of(workshop.train(SEVEN_SECONDS, *COURSE))["training_iterations"]
        assert before["gradients"]["std"] > 0
        assert last["gradients"]["norm"] > 0
        assert (last["gradients"]["mean"], last["gradients"]["std"]) == (None, None)

    def test_the_learning_rate_comes_down_with_the_time(self, workshop: Workshop) -> None:
        log = log_of(workshop.train(SEVEN_SECONDS, *COURSE[:-2], "--log_interval=1"))
        training = settings_from_dict(log["config"]).training
        rates = [record["lr"] for record in log["training_iterations"]]
        expected = [learning_rate_at(100 * step / 7, training) for step in range(7)]
        assert rates == pytest.approx(expected)
        assert training.warmup_iters == 5
        assert rates[1] == max(rates)
        assert rates[-1] < 0.2 * max(rates)

    def test_max_iters_may_come_first(self, workshop: Workshop) -> None:
        """Then the run is the one without a limit."""
        course = ("--max_iters=5", *COURSE[1:])
        plain = workshop.train(*course, run_name="plain")
        timed = workshop.train("--max_minutes=1", *course, run_name="timed")
        assert_same_course(plain, timed, step=5)

    def test_going_on_from_a_checkpoint_ends_the_same(self, workshop: Workshop) -> None:
        run = workshop.train(SEVEN_SECONDS, *COURSE)
        before, weights, moments = log_of(run), weights_at(run, 7), moments_at(run, 7)
        workshop.train(f"--resume={checkpoint_at(run, 4)}", SEVEN_SECONDS, *COURSE, run_name=None)
        assert log_of(run)["starts"][1]["step"] == 4
        for kind in ("training_iterations", "eval_steps"):
            assert untimed(log_of(run)[kind]) == untimed(before[kind])
        assert_equal_tensors(weights, weights_at(run, 7))
        assert_equal_tensors(moments, moments_at(run, 7))

    def test_a_run_that_is_over_ends_at_once(self, workshop: Workshop) -> None:
        run = workshop.train(SEVEN_SECONDS, *COURSE)
        before = log_of(run)
        workshop.train("--resume=auto", SEVEN_SECONDS, *COURSE)
        assert log_of(run)["training_iterations"] == before["training_iterations"]
        assert log_of(run)["eval_steps"] == before["eval_steps"]
        assert log_of(run)["status"] == "completed"

    def test_fewer_minutes_than_are_spent_end_it_validated(self, workshop: Workshop) -> None:
        run = workshop.train("--max_iters=3", "--eval_interval=100")
        workshop.train("--resume=auto", "--max_iters=50", f"--max_minutes={2 / 60}")
        assert iters(log_of(run)["eval_steps"]) == [0, 3]
        assert log_of(run)["status"] == "completed"

    def test_more_minutes_let_it_go_on(self, workshop: Workshop) -> None:
        workshop.train(SEVEN_SECONDS, *COURSE)
        run = workshop.train("--resume=auto", f"--max_minutes={9 / 60}", *COURSE)
        assert iters(log_of(run)["eval_steps"]) == [0, 4, 7, 8, 9]


class TestByTheRealClock:
    ENDLESS = ("--max_iters=1000000", "--eval_interval=1000000", "--eval_tokens=32")

    def check_end(self, run: Path, seconds: float) -> None:
        log = log_of(run)
        last = log["eval_steps"][-1]
        assert log["status"] == "completed"
        assert seconds <= last["seconds"] < seconds + 5
        done = last["iter"]
        assert 0 < done < 1000000
        assert iters(log["training_iterations"]) == list(range(1, done + 1))
        assert log["checkpoints"][-1]["step"] == done
        assert log["training_iterations"][-1]["lr"] < 2e-4  # 1e-4 is the lowest

    def test_ends_when_time_is_up(self, workshop: Workshop, capsys) -> None:
        run = workshop.train("--max_minutes=0.02", *self.ENDLESS)
        self.check_end(run, seconds=1.2)
        shown = capsys.readouterr().out
        assert "0.02 minutes of training, at most 1,000,000 steps" in shown
        assert re.search(r"step 1 \| loss", shown)
        assert re.search(r"step \d+ \| val loss", shown)
        assert "/1000000" not in shown

    @pytest.mark.slow
    def test_an_interruption_takes_no_time_away(self, workshop: Workshop) -> None:
        process = workshop.start("--max_minutes=0.05", *self.ENDLESS)
        process.wait_for("| loss ")
        process.send(signal.SIGTERM)
        assert process.finish() == 0
        stopped = log_of(workshop.out_dir / "run")
        assert stopped["status"] == "interrupted"
        run = workshop.train("--resume=auto", "--max_minutes=0.05", *self.ENDLESS)
        self.check_end(run, seconds=3)
        assert [start["step"] for start in log_of(run)["starts"][1:]] == [
            stopped["checkpoints"][-1]["step"]
        ]
