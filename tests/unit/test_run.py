"""How far a run is, and what it records of itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from configurator import load
from training.run import Run


def run_at(step: int, seconds: float, *argv: str) -> Run:
    """A run that is so far, of which nothing but its settings exists."""
    fields = {field.name: None for field in dataclasses.fields(Run)}
    return Run(**{**fields, "settings": load(argv), "step": step, "seconds": seconds})


class TestPosition:
    """With 100 steps and 2 minutes as limits."""

    LIMITS = ("--max_iters=100", "--max_minutes=2")

    @pytest.mark.parametrize(
        ("step", "seconds", "position", "over"),
        [
            (0, 0.0, 0.0, False),
            (10, 6.0, 10.0, False),  # time would allow 200 steps
            (10, 30.0, 25.0, False),  # and here 40
            (40, 119.9, 119.9 / 1.2, False),
            (40, 120.0, 100.0, True),
            (41, 150.0, 125.0, True),
            (100, 20.0, 100.0, True),
        ],
    )
    def test_is_the_larger_share(self, step, seconds, position, over) -> None:
        run = run_at(step, seconds, *self.LIMITS)
        assert run.position == pytest.approx(position)
        assert run.over == over

    def test_without_a_limit_time_does_not_matter(self) -> None:
        run = run_at(10, 1e9, "--max_iters=100")
        assert (run.position, run.over) == (10, False)

    def test_finished_is_over_and_validated(self) -> None:
        run = run_at(40, 120.0, *self.LIMITS)
        assert not run.finished
        run.evaluated_at = 40
        assert run.finished


def test_its_config_has_the_name_of_its_folder(tmp_path: Path) -> None:
    run = dataclasses.replace(run_at(0, 0.0, "--n_layer=3"), folder=tmp_path / "llama-2026")
    assert run.config == {**run.settings.to_dict(), "run_name": "llama-2026"}
    assert run.settings.training.run_name == "auto"
