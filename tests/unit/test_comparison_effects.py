"""Main effects and interactions of a factorial design."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from comparison.effects import effects, factors_of
from comparison.findings import compare
from comparison.groups import group_runs
from tests.simulated import simulated_arm, simulated_run

NORMS = ("layernorm", "rmsnorm", "none")
FFNS = ("standard", "swiglu")
NOISE = np.random.default_rng(0).normal(0, 0.001, (6, 5))


def design(loss_of, norms=NORMS[:2], ffns=FFNS, derived=lambda norm, ffn: {}):
    """A group for each norm and network, of five seeds; the baseline first."""
    cells = list(itertools.product(norms, ffns))
    runs = []
    for i, (norm, ffn) in enumerate(cells):
        model = {"normalization": norm, "ffn_type": ffn, **derived(norm, ffn)}
        losses = (3 + loss_of(norm, ffn) + NOISE[i]).tolist()
        runs += simulated_arm(f"{norm}-{ffn}", losses, model=model, start=f"2025-01-0{i + 1}")
    return group_runs(runs)


def additive(norm: str, ffn: str) -> float:
    return {"layernorm": 0, "rmsnorm": -0.1, "none": 0.3}[norm] - 0.2 * (ffn == "swiglu")


def test_effects_that_add_up_have_no_interaction():
    rms, swiglu, both = effects(design(additive))
    assert rms.changes == ("normalization=rmsnorm",)
    assert swiglu.changes == ("ffn_type=swiglu",)
    assert both.changes == ("normalization=rmsnorm", "ffn_type=swiglu")
    assert rms.contrast.estimate.value == pytest.approx(-0.1, abs=0.002)
    assert swiglu.contrast.estimate.value == pytest.approx(-0.2, abs=0.002)
    assert both.contrast.estimate.value == pytest.approx(0, abs=0.003)
    assert max(rms.contrast.p_adjusted, swiglu.contrast.p_adjusted) < 0.001
    assert both.contrast.p_adjusted > 0.05


def test_an_interaction_is_what_two_changes_add_to_their_sum():
    def only_together(norm, ffn):
        return -0.4 * (norm == "rmsnorm" and ffn == "swiglu")

    rms, swiglu, both = effects(design(only_together))
    assert both.contrast.estimate.value == pytest.approx(-0.4, abs=0.003)
    assert both.contrast.p_adjusted < 0.001
    for main in (rms, swiglu):  # averaged over both levels of the other
        assert main.contrast.estimate.value == pytest.approx(-0.2, abs=0.002)


def test_every_level_is_compared_with_that_of_the_baseline():
    found = {
        effect.changes: effect.contrast.estimate.value
        for effect in effects(design(additive, NORMS))
    }
    assert found[("normalization=none",)] == pytest.approx(0.3, abs=0.002)
    assert found[("normalization=rmsnorm",)] == pytest.approx(-0.1, abs=0.002)
    assert len(found) == 2 + 1 + 2


def test_the_error_of_a_contrast_comes_from_its_cells():
    groups = design(additive)
    losses = np.array([list(group.losses.values()) for group in groups])
    interaction = losses[0] - losses[1] - losses[2] + losses[3]
    estimate = effects(groups)[2].contrast.estimate
    assert estimate.value == pytest.approx(interaction.mean())
    assert estimate.error == pytest.approx(interaction.std(ddof=1) / 5**0.5)


def test_derived_keys_are_not_factors():
    def derived(norm, ffn):
        width = 100 * NORMS.index(norm) + 10 * FFNS.index(ffn)  # matched: another in each cell
        return {"activation": "silu" if ffn == "swiglu" else "gelu", "ffn_hidden": width}

    groups = design(additive, derived=derived)
    assert factors_of(groups) == {"normalization": ["layernorm", "rmsnorm"], "ffn_type": [*FFNS]}


def test_an_incomplete_factorial_has_no_effects():
    groups = design(additive)
    assert effects(groups[:3]) == []
    assert effects(groups[:2]) == []  # one factor: the verdict says it all
    assert effects(groups[:1]) == []


def test_a_cell_with_one_seed_gives_no_effects():
    groups = design(additive)
    lonely = group_runs([run for group in groups for run in group.runs][:-4])
    assert len(lonely) == 4
    assert effects(lonely) == []


def test_a_cell_with_a_diverged_run_gives_no_effects():
    runs = [run for group in design(additive) for run in group.runs]
    assert len(compare(runs).effects) == 3
    last = runs[-1]
    model = {key: last.config[key] for key in ("normalization", "ffn_type")}
    curve = [(0, 4.0), (100, None)]
    name = last.architecture["name"].removeprefix("arch-")
    lost = simulated_run(name, 6, model=model, curve=curve, start="2025-01-04")
    assert compare([*runs, lost]).effects == ()
