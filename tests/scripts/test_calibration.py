"""The calibration: its simulations notice a procedure that is wrong, and its page is whole."""

from __future__ import annotations

import re

import pytest

from inference.rules import DeclaredSeeds
from scripts import calibration
from scripts.calibration import (
    CASES,
    CURVES,
    LADDERS,
    MANY_ARMS,
    MANY_TEXTS,
    REPORT,
    TEXTS,
    TUNED_CURVES,
    TUNED_LADDERS,
    climbed,
    family_rates,
    page,
    peeked,
    rates,
    text_rates,
    tuned_climbs,
    tuned_rates,
)
from scripts.claims import CASES as CLAIMS

EQUAL = CASES[0]


def test_the_error_of_declared_seeds_is_below_what_is_promised():
    error, power = rates(EQUAL, 4, 5, trials=400)
    assert error <= 0.05
    assert power == pytest.approx(0.73, abs=0.08)


def test_an_interval_that_is_too_narrow_shows(monkeypatch):
    """Without the adjustment for 8 arms."""
    monkeypatch.setattr("inference.rules.sidak_level", lambda alpha, family: alpha)
    assert rates(EQUAL, 8, 5, trials=200)[0] > 0.1


def test_looking_after_each_seed_shows():
    assert peeked(4, DeclaredSeeds(4), trials=150) > 0.1


def test_tuning_without_an_allowance_shows():
    without, allowed = tuned_rates(CURVES[1], 20, trials=100)
    assert without > 0.2
    assert allowed < 0.1


def test_blocks_taken_as_independent_show():
    covered, naive, _ = text_rates(60, 5, rho=0.5, ratio=10, trials=400)
    assert covered == pytest.approx(0.94, abs=0.04)
    assert naive < 0.85


def test_single_t_intervals_for_new_text_fail_in_large_families():
    covered, single = family_rates(20, 27, rho=0.5, ratio=10, trials=150)
    assert covered >= 0.93
    assert single < 0.9


def test_a_rung_with_more_noise_gives_no_false_trend():
    error, coverage = climbed(LADDERS[-1], 3, trials=100)
    assert LADDERS[-1].noise == (1.0, 3.0)
    assert error <= 0.05
    assert coverage >= 0.95


def test_tuning_at_each_rung_is_allowed_for():
    _, without, error, coverage = tuned_climbs(TUNED_LADDERS[0], TUNED_CURVES[2], 20, trials=60)
    assert without < 0.9
    assert error <= 0.05
    assert coverage >= 0.95


def test_the_error_of_trends_is_below_what_is_promised():
    error, coverage = climbed(LADDERS[3], 3, trials=100)
    assert error <= 0.05
    assert coverage >= 0.93


@pytest.mark.slow
def test_the_page_has_every_cell():
    made = page(trials=3)
    cells = [line for line in made.splitlines() if line.startswith("| ")]
    rows = len(CASES) + len(CLAIMS) + 2 + 3 + len(CURVES) + 3 * len(TEXTS) + len(LADDERS)
    rows += len(MANY_ARMS) * len(MANY_TEXTS) + len(TUNED_LADDERS) * len(TUNED_CURVES)
    assert len(cells) == 9 + rows
    assert "{" not in made


def test_the_page_that_is_there_was_made_with_enough_trials():
    written = REPORT.read_text(encoding="utf-8")
    assert f"{calibration.TRIALS:,} trials per cell" in written
    errors = [float(cell) for cell in re.findall(r"(0\.\d{3}) / \d\.\d\d(?= \|)", written)]
    assert len(errors) == 8 * len(CASES)
