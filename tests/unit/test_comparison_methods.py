"""What is said of how a comparison was made: the box of methods, the headline, tuning curves."""

from __future__ import annotations

import dataclasses
import math

import pytest

from comparison.design import Declared, Design, TuningCurve
from comparison.exports import document
from comparison.figures import figures_of
from comparison.findings import compare
from comparison.methods import methods
from comparison.report.answer import answer
from comparison.report.document_numbers import DocumentNumbers
from comparison.tuning_plot import write_tuning_plot
from errors import UserError
from inference.looks import scheduled_looks
from inference.tuning import at_grid, fit
from tests.simulated import simulated_arm, simulated_run

BASE = [3.00, 3.02, 3.01, 2.99, 3.03]
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
CURVE = TuningCurve("base", "learning_rate", RATES, (2.10, 2.03, 2.00, 2.02, None), 4e-3, 0.002)
DECLARED = Declared("python sweep.py --vary a=1", "params", "tokens=2e+06", (CURVE,))


def runs_of(**shifts: float) -> list:
    runs = simulated_arm("base", BASE, model={"arm": "base"}, start="2025-01-01")
    for day, (name, shift) in enumerate(shifts.items(), start=2):
        wobble = [0.001, -0.001, 0.002, 0.0, -0.002]
        losses = [loss + shift + more for loss, more in zip(BASE, wobble, strict=True)]
        runs += simulated_arm(name, losses, model={"arm": name}, start=f"2025-01-{day:02}")
    return runs


def lines(design: Design, **shifts: float) -> dict[str, str]:
    return dict(methods(compare(runs_of(**shifts), design=design)))


def test_the_methods_of_a_sweep_are_complete():
    found = lines(Design(arms=2, seeds=5, declared=DECLARED), good=-0.05, bad=0.05)
    assert found["Budget"] == "tokens=2e+06 for every run"
    assert found["Sizes"] == "equal parameters, within 0.5 %"
    assert found["Tuning"] == ("learning_rate: 5 values per arm, final runs at the fitted optimum")
    assert found["Seeds"] == "5 declared; paired by seed and data order"
    assert found["Test"].startswith("paired t; simultaneous 95 % intervals for 2 arms (Sidak)")
    assert found["Command"] == "python sweep.py --vary a=1"


def test_single_runs_say_what_was_not_declared():
    found = lines(Design(), good=-0.05)
    assert found.keys() == {"Budget", "Tuning", "Seeds", "Test"}
    assert found["Tuning"] == "none: all arms share one recipe"
    assert "not declared before the runs" in found["Seeds"]
    assert "for 1 arm (Sidak)" in found["Test"]


def test_arms_without_shared_seeds_are_not_called_pairs():
    runs = [*simulated_arm("base", BASE, model={"arm": "base"}, start="2025-01-01")]
    runs += [
        simulated_run("good", seed, loss - 0.1, model={"arm": "good"})
        for seed, loss in enumerate(BASE, start=101)
    ]
    found = dict(methods(compare(runs, design=Design())))
    assert found["Test"].startswith("Welch t; simultaneous")
    assert "pairs share" not in found["Seeds"]
    assert found["Seeds"].endswith("unpaired for arms that share fewer than two seeds")


def test_a_confidence_sequence_is_described():
    found = lines(Design(arms=1, seeds=5, looks=(3, 5)), good=-0.05)
    assert "simultaneous 95 % confidence sequences for 1 arm (union bound" in found["Test"]


def test_tuning_without_a_curve_is_described():
    design = Design(allowances={("out/sweeps/it", "good"): 0.01})
    assert lines(design, good=-0.05)["Tuning"].startswith("every arm was trained with")


def test_looks_are_described():
    design = Design(
        arms=1,
        schedule=tuple(scheduled_looks(10)),
        seed_order=tuple((seed, seed) for seed in range(1, 11)),
    )
    assert "with looks at 5, 10" in lines(design, good=-0.05)["Seeds"]


@pytest.mark.parametrize(
    ("shifts", "leads"),
    [
        (
            {"bad": 0.3, "good": -0.02, "better": -0.05},
            "arm=better is better than the baseline, arch-base, by 0.0500 nats",
        ),
        (
            {"bad": 0.03, "worse": 0.3},
            "arm=worse is worse than the baseline, arch-base, by 0.3000 nats",
        ),
    ],
)
def test_the_headline_is_the_largest_gain_or_else_loss(shifts, leads):
    findings = compare(runs_of(**shifts))
    found = answer(DocumentNumbers(document(findings)), figures_of(findings))
    assert found.headline.startswith(leads)
    assert found.headline.endswith(") at equal parameters, tokens and FLOPs, n=5.")


def test_without_a_verdict_the_count_leads():
    findings = compare(runs_of(same=0.0))
    found = answer(DocumentNumbers(document(findings)), figures_of(findings))
    assert found.headline == ""
    assert found.count == "The only arm besides the baseline is equal."


def test_tuning_curves_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    other = dataclasses.replace(CURVE, arm="other", losses=(2.0, None, None, None, None))
    lost = dataclasses.replace(CURVE, arm="lost", losses=(None,) * 5, fitted=math.nan)
    path = tmp_path / "curves.svg"
    write_tuning_plot([CURVE, other, lost], path)
    text = path.read_text()
    assert text.count("allowance 0.0020") == 3
    assert "learning_rate; line: fitted parabola" in text
    assert at_grid(RATES, fit(CURVE.losses).optimum) == pytest.approx(4e-3, rel=0.2)


def test_nothing_tuned_has_no_plot(tmp_path):
    with pytest.raises(UserError, match="no sweep tuned a single number"):
        write_tuning_plot([], tmp_path / "curves.svg")
