"""The data that the plot and the page draw, and the labels of arms."""

from __future__ import annotations

from statistics import fmean

import pytest

from comparison.figures import Difference, contrast_figure, figures_of
from comparison.findings import compare
from comparison.labels import labels
from inference.verdicts import BETTER, INCONCLUSIVE, WORSE
from tests.simulated import simulated_arm, simulated_run
from tests.study import study


@pytest.fixture(scope="module")
def findings():
    return study()


def test_labels_number_the_rows_and_say_what_names_do_not(findings):
    found = labels(findings)
    assert [label.number for label in found] == [1, 2, 3, 4, 5, 6]
    assert [label.is_baseline for label in found] == [True] + 5 * [False]
    assert [label.set_apart for label in found] == 4 * [False] + 2 * [True]
    assert (found[0].name, found[0].details) == ("arch-plain", "")
    assert found[3].name == "normalization=rmsnorm, ffn_type=swiglu"
    assert found[3].details == "arch-both"


def test_a_label_lists_the_statuses_of_unfinished_runs():
    runs = [simulated_run("a", 1, 3.0), simulated_run("a", 2, 3.1, status="crashed")]
    (label,) = labels(compare(runs))
    assert label.unfinished == ("crashed",)


def test_differences_are_those_of_the_verdicts(findings):
    figures = figures_of(findings)
    assert figures.margin == findings.design.margin
    assert [arm.label.number for arm in figures.compared] == [1, 2, 3, 4]
    assert [arm.difference is None for arm in figures.arms] == [True] + 3 * [False] + 2 * [True]
    verdict = findings.rows[1].verdict
    arm, base = (findings.rows[i].group.losses for i in (1, 0))
    pairs = tuple(arm[seed] - base[seed] for seed in arm)
    expected = Difference(verdict.difference.value, *verdict.interval, BETTER, pairs)
    assert fmean(pairs) == pytest.approx(verdict.difference.value)
    assert figures.arms[1].difference == expected


def test_effects_are_better_or_worse_only_if_the_interval_excludes_0(findings):
    effects = {" x ".join(effect.changes): effect for effect in findings.effects}
    assert {name: contrast_figure(effect.contrast).verdict for name, effect in effects.items()} == {
        "normalization=rmsnorm": BETTER,
        "ffn_type=swiglu": WORSE,
        "normalization=rmsnorm x ffn_type=swiglu": INCONCLUSIVE,
    }


def test_seconds_of_different_machines_are_not_comparable():
    runs = simulated_arm("a", [3.0, 3.1])
    runs += simulated_arm("b", [3.2, 3.3], model={"bias": False}, device="a GPU")
    axes = figures_of(compare(runs)).axes
    assert {axis.unit: axis.comparable for axis in axes} == {
        "tokens": True,
        "flops": True,
        "seconds": False,
    }


def test_no_axis_without_a_curve():
    runs = [simulated_run(curve=[(0, None)])]
    assert figures_of(compare(runs)).axes == ()
