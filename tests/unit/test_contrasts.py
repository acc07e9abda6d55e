"""Contrasts of mean losses: their values, and what tuning leaves open."""

from __future__ import annotations

import pytest

from inference.contrasts import Term, estimate_contrast, judge_contrast
from inference.rules import DeclaredSeeds

ONE = {1: 3.01, 2: 3.03, 3: 3.00, 4: 3.02}
OTHER = {2: 2.99, 3: 2.97, 4: 3.00, 5: 2.98}


def test_a_contrast_is_taken_over_the_shared_seeds():
    found = estimate_contrast([Term(1, OTHER), Term(-1, ONE)])
    assert found.n == 3
    assert found.value == pytest.approx((-0.04 - 0.03 - 0.02) / 3)


def test_no_contrast_without_two_seeds_that_vary():
    assert estimate_contrast([Term(1, {1: 3.0}), Term(-1, ONE)]) is None
    assert estimate_contrast([Term(1, ONE), Term(-1, ONE)]) is None
    assert judge_contrast([Term(1, ONE), Term(-1, ONE)], DeclaredSeeds(1)) is None


def test_allowances_widen_the_interval_on_the_side_of_their_sign():
    rule = DeclaredSeeds(2)
    plain = judge_contrast([Term(0.5, OTHER), Term(-2, ONE)], rule)
    wider = judge_contrast([Term(0.5, OTHER, 0.01), Term(-2, ONE, 0.002)], rule)
    low, high = plain.interval
    assert wider.interval == pytest.approx((low - 0.5 * 0.01, high + 2 * 0.002))
    assert wider.p_adjusted > plain.p_adjusted


def test_it_is_shown_exactly_if_the_p_value_is_below_5_percent():
    for allowance in (0.0, 0.005, 0.01, 0.015, 0.02, 0.03):
        found = judge_contrast([Term(1, OTHER), Term(-1, ONE, allowance)], DeclaredSeeds(1))
        assert found.shown == (found.p_adjusted < 0.05)
