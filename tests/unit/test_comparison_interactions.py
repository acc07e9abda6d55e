"""Changes on several baselines: the effect on each, and by how much it differs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import sweep
from comparison.design import Design
from comparison.findings import Findings, compare
from comparison.interactions import interaction_document, interaction_sections, on_baselines
from comparison.tables import text_of
from comparison.verdict_lines import verdict_line
from errors import UserError
from inference.rules import DeclaredSeeds
from tests.simulated import simulated_arm
from tests.tiny_sweep import config_file, tiny_request


def findings(level: float, seed: int, **shifts: float) -> Findings:
    """A baseline at a level and arms that differ from it, with 5 shared seeds."""
    rng = np.random.default_rng(seed)

    def losses(shift: float) -> list[float]:
        return list(level + shift + rng.normal(0, 0.002, 5))

    runs = simulated_arm("base", losses(0), model={"arm": "base"}, start="2025-01-01")
    for day, (name, shift) in enumerate(shifts.items(), start=2):
        model = {"arm": name}
        runs += simulated_arm(name, losses(shift), model=model, start=f"2025-01-{day:02}")
    return compare(runs)


@pytest.fixture
def both() -> dict[str, Findings]:
    return {
        "arch_gpt2": findings(3.0, 1, same=-0.05, less=-0.1, own=0.1),
        "arch_llama": findings(2.8, 2, same=-0.05, less=-0.02),
    }


def test_interactions_are_contrasts_over_the_shared_seeds(both):
    found = on_baselines(both)
    assert [own.change for own in found.interactions] == ["arch-same", "arch-less"]
    less = found.interactions[1]
    groups = [{row.group.name: row.group.losses for row in own.rows} for own in both.values()]
    first, other = groups
    differences = [
        np.subtract(list(own["arch-less"].values()), list(own["arch-base"].values()))
        for own in (first, other)
    ]
    changes = differences[1] - differences[0]
    assert less.contrast.estimate.value == pytest.approx(changes.mean())
    half = DeclaredSeeds(2).half_width(less.contrast.estimate)
    assert less.contrast.interval == pytest.approx((changes.mean() - half, changes.mean() + half))
    assert less.contrast.shown
    assert less.contrast.interval[0] < 0.08 < less.contrast.interval[1]
    assert not found.interactions[0].contrast.shown


def test_every_view_shows_interactions(both):
    found = on_baselines(both)
    text = " ".join(text_of(interaction_sections(found)).split())
    effect = "on the loss is higher (worse) on arch_llama than on arch_gpt2."
    assert f"The effect of arch-less {effect}" in text
    assert "The effect of arch-same" not in text
    row = found.rows["arch_gpt2"]["arch-less"]
    assert f"arch-less: {verdict_line(row.verdict, row.terms)}" in text
    assert "Simultaneous 95 % intervals for all 3 arms." in text
    assert "Simultaneous 95 % intervals for all 2 interactions, n=5." in text
    assert "arch-own was tested on arch_gpt2 only: a sweep skips values that its baseline" in text
    document = json.loads(json.dumps(interaction_document(found)))
    assert len(document["effects"]) == 5
    [own] = [own for own in document["effects"] if own["change"] == "arch-own"]
    assert own["words"].startswith("worse: +0.0")
    assert (
        document["interactions"][1]["difference"] == found.interactions[1].contrast.estimate.value
    )


def test_changes_that_are_not_shared_have_no_interaction():
    found = on_baselines({"a": findings(3.0, 1, one=0.1), "b": findings(3.0, 2, two=0.1)})
    assert found.interactions == ()
    assert "No change was tested on all baselines" in text_of(interaction_sections(found))


def test_a_sweep_on_each_baseline(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = config_file(tmp_path, "one", normalization="layernorm")
    two = config_file(tmp_path, "two", normalization="rmsnorm")
    request = tiny_request(tiny_dataset, vary={"bias": ("True",)}, name="it")
    plans = dict(sweep.baseline_plans(request, [str(one), str(two)]))
    assert {label: plan.folder.name for label, plan in plans.items()} == {
        "one": "it-one",
        "two": "it-two",
    }
    norms = [plan.baseline.settings.model.normalization for plan in plans.values()]
    assert norms == ["layernorm", "rmsnorm"]


def test_a_baseline_that_has_a_change_already_skips_it(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [
        str(config_file(tmp_path, name, normalization=name)) for name in ("layernorm", "rmsnorm")
    ]
    request = tiny_request(
        tiny_dataset, vary={"normalization": ("rmsnorm",), "bias": ("True",)}, name="it"
    )
    plans = dict(sweep.baseline_plans(request, files))
    names = {label: [arm.name for arm in plan.arms[1:]] for label, plan in plans.items()}
    assert names == {"layernorm": ["normalization=rmsnorm", "bias=True"], "rmsnorm": ["bias=True"]}
    alone = tiny_request(tiny_dataset, vary={"normalization": ("rmsnorm",)}, name="it")
    with pytest.raises(UserError, match="^on rmsnorm: there is nothing to compare baseline with"):
        sweep.baseline_plans(alone, files)


@pytest.mark.parametrize("files", [["a.py"], ["a.py", "a.py"], ["a.py", "b/a.py"]])
def test_it_takes_two_different_baselines(tiny_dataset, files):
    request = tiny_request(tiny_dataset, vary={"bias": ("False",)})
    with pytest.raises(UserError, match="at least two config files with different names"):
        sweep.baseline_plans(request, list(map(str, map(Path, files))))


def test_failed_runs_bar_an_interaction():
    """A change must not gain by losing its worst runs on one of the baselines."""
    two = {"a": findings(3.0, 1, one=-0.1), "b": findings(2.8, 2, one=-0.4)}
    assert on_baselines(two).interactions[0].contrast.shown
    runs = [run for row in two["b"].rows for run in row.group.runs]
    failed = [
        dataclasses.replace(run, status="diverged") if run.run_name == "one-5" else run
        for run in runs
    ]
    [found] = on_baselines({**two, "b": compare(failed)}).interactions
    assert (found.contrast, found.reason) == (None, "runs failed on one of the baselines")


@pytest.mark.parametrize(
    ("changes", "reason", "note"),
    [
        ({"data": {"val_fingerprint": "x"}}, "the sweeps differ in validation set", None),
        ({"environment": {"source_sha256": "x"}}, "", "The sweeps differ in source code."),
    ],
)
def test_sweeps_of_other_data_or_code(changes, reason, note):
    [(place, values)] = changes.items()
    two = {"a": findings(3.0, 1, one=-0.1), "b": findings(2.8, 2, one=-0.4)}
    runs = [
        dataclasses.replace(run, **{place: getattr(run, place) | values})
        for row in two["b"].rows
        for run in row.group.runs
    ]
    found = on_baselines({**two, "b": compare(runs)})
    assert found.interactions[0].reason == reason
    assert (found.interactions[0].contrast is None) == bool(reason)
    assert note is None or note in found.notes["a"]


def test_added_seeds_and_allowances_are_noted_for_each_baseline():
    plain = {"a": findings(3.0, 1, one=-0.1), "b": findings(2.8, 2, one=-0.12)}
    runs = [run for row in plain["b"].rows for run in row.group.runs]
    design = Design(seeds=5, looks=(3,), allowances={(None, None): 0.02})
    both = {**plain, "b": compare(runs, design=design)}
    [before], [after] = (on_baselines(own).interactions for own in (plain, both))
    width = [high - low for low, high in (own.contrast.interval for own in (before, after))]
    assert width[1] > width[0] + 0.04
    text = " ".join(text_of(interaction_sections(on_baselines(both))).split())
    assert "includes allowances for tuning: 0.0200 nats (arm)" in text
    assert "the intervals are confidence sequences" in text
