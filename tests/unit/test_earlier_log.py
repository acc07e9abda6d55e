"""The log that a run directory holds already: what is continued, refused, or renamed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from errors import UserError
from tests.unit.test_training_logger import log_step, make_logger, metrics_lines, read_run, train
from training.earlier_log import lines_to_resume, set_aside_unfinished_log
from training_logger import ResumePoint


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """The directory of a run of 20 steps: 6 records, of iter 5, 10, 10, 15, 20 and 20."""
    with make_logger(tmp_path) as logger:
        train(logger, 5, 20)
    return tmp_path


def rewrite(run_dir: Path, lines: list[dict[str, Any]]) -> None:
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


class TestHistory:
    def test_a_checkpoint_takes_up_the_records_it_knows(self, logged: Path) -> None:
        lines = metrics_lines(logged)
        assert lines_to_resume(logged, 20, 6) == lines
        assert lines_to_resume(logged, 10, 3) == lines[:3]
        assert lines_to_resume(logged, 10, None) == lines[:3]

    def test_a_record_after_the_save_of_the_same_step_is_dropped(self, logged: Path) -> None:
        """A validation, interrupted before, that a killed run repeated without saving again."""
        assert lines_to_resume(logged, 10, 2) == metrics_lines(logged)[:2]

    def test_what_metrics_lack_comes_from_run_json(self, logged: Path) -> None:
        whole = metrics_lines(logged)
        rewrite(logged, whole[:1] + whole[4:])
        assert lines_to_resume(logged, 20, 6) == whole
        (logged / "metrics.jsonl").unlink()
        assert lines_to_resume(logged, 20, 6) == whole

    def test_a_gap_is_refused_with_both_numbers(self, logged: Path) -> None:
        rewrite(logged, metrics_lines(logged)[:4])
        (logged / "run.json").unlink()
        with pytest.raises(UserError, match=r"step 20 continues: it has 4 of 6 records\. Restore"):
            lines_to_resume(logged, 20, 6)

    @pytest.mark.parametrize("logged_records", [6, None])
    def test_a_repeat_is_refused(self, logged: Path, logged_records: int | None) -> None:
        lines = metrics_lines(logged)
        rewrite(logged, [*lines[:2], lines[0], *lines[2:]])
        with pytest.raises(UserError, match="'train' record of iter 5 follows that of iter 10"):
            lines_to_resume(logged, 20, logged_records)

    def test_records_of_later_steps_are_refused(self, logged: Path) -> None:
        with pytest.raises(UserError, match="its record 6 is from iter 20"):
            lines_to_resume(logged, 10, 6)


class TestWhichRun:
    def test_a_checkpoint_of_another_run_is_refused(self, logged: Path) -> None:
        with pytest.raises(UserError, match="run_id another, but .* was copied here from another"):
            make_logger(logged, resume=ResumePoint(10, 3, "another")).__enter__()
        assert len(metrics_lines(logged)) == 6

    def test_a_run_keeps_its_id_and_the_environment_of_each_start(self, logged: Path) -> None:
        before = read_run(logged)
        resume = ResumePoint(10, 3, before["run_id"])
        with make_logger(logged, resume=resume, environment={"device": "a GPU"}):
            pass
        run = read_run(logged)
        assert run["run_id"] == before["run_id"]
        assert run["environment"] == {"device": "a GPU"}
        assert [(start["step"], start["environment"]["device"]) for start in run["starts"]] == [
            (0, "a CPU"),
            (10, "a GPU"),
        ]

    def test_it_keeps_what_earlier_starts_had_otherwise(self, tmp_path: Path) -> None:
        def started(rate: float, digest: str, step: int | None) -> None:
            config = {"learning_rate": rate, "n_layer": 2, "seed": 1}
            settings = {"config": config, "plugins": {"mine.py": digest}}
            resume = ResumePoint(step) if step else None
            with make_logger(tmp_path, resume=resume, **settings) as logger:
                train(logger, (step or 0) + 5, (step or 0) + 5)

        started(1e-3, "aa", None)
        assert set(read_run(tmp_path)["starts"][0]) >= {"step", "time", "environment"}
        started(1e-3, "aa", 5)
        assert not any({"plugins", "config"} & set(own) for own in read_run(tmp_path)["starts"])
        started(2e-3, "bb", 10)
        started(3e-3, "bb", 15)
        starts = read_run(tmp_path)["starts"]
        changed = [own.get("config") for own in starts]
        assert changed == [*[{"learning_rate": 1e-3}] * 2, {"learning_rate": 2e-3}, None]
        assert [own.get("plugins") for own in starts] == [*[{"mine.py": "aa"}] * 2, None, None]
        started(1e-3, "bb", 20)
        changed = [own.get("config") for own in read_run(tmp_path)["starts"]]
        assert changed == [None, None, {"learning_rate": 2e-3}, {"learning_rate": 3e-3}, None]

    def test_an_older_log_says_what_its_starts_were(self, logged: Path) -> None:
        run = read_run(logged)
        del run["starts"], run["run_id"]
        run["resumed"] = [{"step": 5, "time": "then"}]
        (logged / "run.json").write_text(json.dumps(run))
        with make_logger(logged, resume=ResumePoint(20)):
            pass
        assert [start["step"] for start in read_run(logged)["starts"]] == [0, 5, 20]

    def test_two_runs_have_different_ids(self, tmp_path: Path) -> None:
        ids = set()
        for name in "ab":
            with make_logger(tmp_path / name) as logger:
                ids.add(logger.run_id)
        assert len(ids) == 2

    def test_without_any_log_a_new_one_starts_at_the_step(self, logged: Path, capsys) -> None:
        for name in ("run.json", "metrics.jsonl"):
            (logged / name).unlink()
        with make_logger(logged, resume=ResumePoint(10, 3, "its own")) as logger:
            assert logger.run_id == "its own"
        assert "has no log; a new one starts at step 10" in capsys.readouterr().out


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
@pytest.mark.parametrize("name", ["metrics.jsonl", "run.json"])
def test_a_file_that_is_a_fifo_is_refused_and_not_waited_for(logged: Path, name: str) -> None:
    (logged / name).unlink()
    os.mkfifo(logged / name)
    with pytest.raises(UserError, match=f"{name} is not a regular file"):
        make_logger(logged, resume=ResumePoint(20, 6)).__enter__()


class TestSetAside:
    def test_the_log_of_an_unfinished_run_is_renamed(self, tmp_path: Path) -> None:
        for number in (1, 2):
            with make_logger(tmp_path) as logger:
                log_step(logger, number)
                logger.interrupted()
            assert set_aside_unfinished_log(tmp_path) == f"run.before-{number}.json"
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            *("metrics.before-1.jsonl", "metrics.before-2.jsonl", "report.html"),
            *("run.before-1.json", "run.before-2.json"),
        ]
        assert '"iter": 2' in (tmp_path / "metrics.before-2.jsonl").read_text()

    def test_a_damaged_log_is_kept_too(self, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_text("{")
        assert set_aside_unfinished_log(tmp_path) == "run.before-1.json"

    def test_that_of_a_completed_run_stays(self, logged: Path) -> None:
        assert set_aside_unfinished_log(logged) is None
        assert (logged / "run.json").exists()
