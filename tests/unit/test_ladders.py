"""Ladders: which sweeps they consist of, and what their rungs show together."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import compare_architectures
from comparison import ladder_plot
from comparison.design import Design
from comparison.findings import Findings, compare
from comparison.ladder_findings import climb_ladder
from comparison.ladder_plot import write_ladder_plot
from comparison.ladder_tables import ladder_document, ladder_sections
from comparison.runs import LoggedRun
from comparison.tables import markdown_of, text_of
from errors import ConfigError, UserError
from experiment.budgets import Budget
from experiment.ladders import Steps, make_rungs, parse_ladder
from experiment.series_file import LADDER, SERIES_FILE, Member, Series, read_series, write_series
from tests.simulated import FLOPS_PER_TOKEN, simulated_arm
from tests.tiny_sweep import tiny_request

NORMS = {"normalization": ("rmsnorm",)}

# What is asked


def test_the_steps_of_a_ladder():
    steps = parse_ladder("params=1M,2M,4.5M")
    assert steps == Steps("params", (("1M", 1e6), ("2M", 2e6), ("4.5M", 4.5e6)))
    assert parse_ladder("tokens=1M,4M,16M").amounts[-1] == ("16M", 16e6)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("params", "cannot parse 'params'"),
        ("width=1,2,3", "cannot parse"),
        ("params=1M,1M,4M", "with increasing numbers"),
        ("params=4M,2M,1M", "with increasing numbers"),
        ("params=0,1M,2M", "above 0"),
        ("params=1M,x,4M", "cannot parse"),
        ("params=1M,4M", "has 2 rungs; a ladder needs 3 to 100"),
        ("params=1M,2M,3M", "spans 9x in compute; a ladder needs 16x"),
        ("tokens=1M,2M,4M", "spans 4x in compute"),
    ],
)
def test_what_is_no_ladder(words, problem):
    with pytest.raises(UserError, match=problem):
        parse_ladder(words)


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"seeds": 2}, "needs at least 3 seeds, not 2"),
        ({"until_sure": True, "seeds": 20}, "not --until_sure"),
        ({"flags": {"n_embd": "32"}}, "sets n_embd; drop it"),
        ({"budget": Budget("minutes", 1)}, "drop --budget"),
    ],
)
def test_requests_that_cannot_be_a_ladder(tiny_dataset, asked, problem):
    request = tiny_request(tiny_dataset, **{"vary": NORMS, "flags": {"n_embd": None}, **asked})
    with pytest.raises(ConfigError, match=problem):
        make_rungs(request, parse_ladder("params=10K,20K,40K"), Path())


def test_tokens_set_the_budget_of_each_rung(tiny_dataset, tmp_path):
    request = tiny_request(tiny_dataset, vary=NORMS, budget=Budget("tokens", 1e4))
    with pytest.raises(ConfigError, match="drop --budget"):
        make_rungs(request, parse_ladder("tokens=10K,40K,160K"), tmp_path)


def test_sizes_grow_in_width_and_tokens_in_proportion(tiny_dataset, tmp_path):
    request = tiny_request(
        tiny_dataset,
        vary={"position_encoding": ("rope",)},
        flags={"n_embd": None},
        budget=Budget("tokens", 20_000),
        name="it",
    )
    plans = make_rungs(request, parse_ladder("params=20K,40K,80K"), tmp_path)
    assert [label for label, _ in plans] == ["params=20K", "params=40K", "params=80K"]
    widths = []
    for (_, plan), wanted in zip(plans, (20e3, 40e3, 80e3), strict=True):
        settings = plan.baseline.settings
        widths.append(settings.model.n_embd)
        assert plan.baseline.parameters == pytest.approx(wanted, rel=0.25)
        tokens = settings.training.max_iters * settings.training.tokens_per_step
        assert tokens == pytest.approx(wanted, rel=0.01)
        assert all(arm.settings.model.n_embd == widths[-1] for arm in plan.arms)
    assert widths == sorted(set(widths))
    assert [plan.folder.name for _, plan in plans] == [
        "it-params-20K",
        "it-params-40K",
        "it-params-80K",
    ]
    folder = plans[0][1].folder.with_name("it")
    members = tuple(Member(label, plan.folder) for label, plan in plans)
    series = Series(LADDER, members, "a command")
    write_series(folder, series)
    assert read_series(folder) == series


@pytest.mark.parametrize(
    "content", ["", "[]", '{"version": 1, "kind": "ladder", "sweeps": []}', '{"version": 2}']
)
def test_a_damaged_ladder(tmp_path, content, capsys):
    (tmp_path / SERIES_FILE).write_text(content)
    with pytest.raises(UserError, match=SERIES_FILE):
        read_series(tmp_path)
    assert compare_architectures.main([str(tmp_path)]) == 1
    assert SERIES_FILE in capsys.readouterr().err


# What it shows


def rung(
    compute_factor: int,
    multiplier: float,
    seed: int,
    n: int = 4,
    flops_ratio: float = 1.0,
    design: Design | None = None,
    **settings,
) -> Findings:
    """A baseline on a power law, and an arm that reaches what it would with `multiplier` times its
    compute, at `flops_ratio` times the FLOPs."""

    def losses(factor: float) -> list[float]:
        rng = np.random.default_rng(seed)  # pairs share their noise, of which a little is left
        shared = rng.normal(0, 0.003, n)
        own = np.random.default_rng([seed, int(1e6 * factor)]).normal(0, 0.001, n)
        return list(1.7 + 4 * (compute_factor * factor) ** -0.1 + shared + own)

    common = {"flops_per_token": FLOPS_PER_TOKEN * compute_factor, **settings}
    base = simulated_arm("base", losses(1.0), model={"arm": "base"}, start="2025-01-01", **common)
    common["flops_per_token"] = round(flops_ratio * common["flops_per_token"])
    arm = simulated_arm("good", losses(multiplier), model={"arm": "good"}, **common)
    return compare([*base, *arm], "arch-base", design)


def rungs(multipliers=(1.5, 1.5, 1.5), step: int = 8, **settings) -> dict[str, Findings]:
    return {
        f"params={k}": rung(step**k, multiplier, seed=k, **settings)
        for k, multiplier in enumerate(multipliers)
    }


def test_a_gain_that_holds():
    found = climb_ladder(rungs())
    [arm] = found.arms
    assert found.labels == ("params=0", "params=1", "params=2")
    assert found.compute[1] / found.compute[0] == pytest.approx(8)
    assert arm.word == "holds"
    assert arm.ladder.multipliers == pytest.approx((1.5, 1.5, 1.5), rel=0.1)
    for multiplier, (low, high) in zip(arm.ladder.multipliers, arm.ladder.intervals, strict=True):
        assert low < multiplier < high


def test_a_gain_that_fades():
    [arm] = climb_ladder(rungs((2.5, 1.6, 1.05))).arms
    assert arm.word == "fades"
    assert arm.ladder.exponent_interval[1] < 0


def said(found: Mapping[str, Findings]) -> str:
    """The tables of a ladder on one line."""
    return " ".join(text_of(ladder_sections(climb_ladder(found))).split())


@pytest.mark.parametrize(
    ("multipliers", "sentence"),
    [
        ((1.5, 1.5, 1.5), "holds: its gain holds: the exponent is within 0.05 of 0."),
        ((1.2, 1.6, 2.4), "grows: its gain grows with compute."),
        ((2.5, 1.8, 1.3), "fades: its gain fades with compute."),
        ((0.6, 0.6, 0.6), "holds: its disadvantage holds: the exponent"),
        ((0.9, 0.7, 0.5), "fades: its disadvantage grows with compute."),
        ((0.5, 0.7, 0.9), "grows: its disadvantage shrinks with compute."),
        ((1.0001, 1.0001, 1.0001), "holds: no gain is shown; the multiplier holds"),
        (
            (2.0, 1.0001, 0.5),
            "fades: a gain is shown at 1 of 3 rungs and a disadvantage is shown at 1 of 3 rungs; "
            "the multiplier fades with compute.",
        ),
    ],
)
def test_the_sentence_is_true_of_gains_and_of_disadvantages(multipliers, sentence):
    assert sentence in said(rungs(multipliers))


def test_an_arm_that_spends_more_is_charged_for_it():
    """The losses of the baseline at twice its FLOPs: half the multiplier."""
    own = rungs((1.0001,) * 3, flops_ratio=2.0)
    [arm] = climb_ladder(own).arms
    assert arm.ladder.multipliers == pytest.approx((0.5, 0.5, 0.5), rel=0.02)
    assert arm.compute == pytest.approx([2 * c for c in climb_ladder(own).compute])
    text = said(own)
    assert "The arm runs at equal parameters and tokens, 2.00x the FLOPs (every rung)" in text
    assert "The arm runs" not in said(rungs(flops_ratio=1.005))


def test_the_figure_shows_losses_over_what_each_arm_spent(monkeypatch):
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr(ladder_plot, "write_figure", lambda draw, path: figures.append(draw()))
    found = climb_ladder(rungs(flops_ratio=2.0))
    ladder_plot.write_ladder_plot(found, Path("unused.svg"))
    lines = {line.get_label(): line.get_xdata() for line in figures[0].axes[0].lines}
    assert list(lines["arch-base"]) == pytest.approx(found.compute)
    assert list(lines["arch-good"]) == pytest.approx([2 * c for c in found.compute])


def test_the_exponents_hold_for_the_declared_arms_together():
    one, eight = rungs(), rungs(design=Design(arms=8))
    ends = [climb_ladder(own).arms[0].ladder.exponent_interval for own in (one, eight)]
    assert ends[1][0] < ends[0][0] < ends[0][1] < ends[1][1]
    assert climb_ladder(eight).family == 8
    assert "which holds for 8 arms together" in said(eight)
    assert "arms together" not in said(one)


def test_seeds_that_were_added_after_a_verdict_bar_a_trend():
    own = rungs(design=Design(seeds=4, looks=(4,)))
    assert climb_ladder(own).arms[0].word == "holds"
    own["params=1"] = rung(8, 1.5, seed=1, design=Design(seeds=4, looks=(3, 4)))
    [arm] = climb_ladder(own).arms
    assert (arm.word, arm.ladder) == ("inconclusive", None)
    assert "inconclusive: seeds were added after a verdict had been shown at some rung" in said(own)


def test_what_is_odd_at_rungs_is_said_once():
    def changed(own: Findings, **environment) -> Findings:
        runs = [
            dataclasses.replace(run, environment=run.environment | environment)
            for run in runs_of(own)
        ]
        return compare(runs, "arch-base")

    own = rungs()
    assert "differ in" not in said(own)
    own["params=1"] = changed(own["params=1"], source_sha256="bad", torch="9.9")
    assert "The rungs differ in source code, torch version." in said(own)
    assert "within 0.05 of 0; the rungs differ in source code, torch version. The" in said(own)
    assert climb_ladder(own).unlike == ("source code", "torch version")

    arm = [run for run in runs_of(own["params=2"]) if run.architecture["name"] == "arch-good"]
    slow = [dataclasses.replace(r, environment=r.environment | {"host": "elsewhere"}) for r in arm]
    base = [run for run in runs_of(own["params=2"]) if run not in arm]
    again = dataclasses.replace(base[0], run_name="again", start_time="2026")
    own["params=2"] = compare([*base, again, *slow], "arch-base")
    text = said(own)
    assert "Notes: host differs (elsewhere against unknown) (params=2)." in text
    assert text.count("params=2: Excluded: again: same seeds as base-1.") == 1


def test_caveats_of_every_rung_are_listed_once():
    environment = {"device": "a CPU", "dtype": "float32", "threads": 1}
    own = {
        label: compare(
            [dataclasses.replace(run, environment=environment) for run in runs_of(found)],
            "arch-base",
        )
        for label, found in rungs().items()
    }
    assert said(own).count("no digest of the source code in the log") == 1
    assert "runs are grouped by commit (every rung)." in said(own)


def test_every_view_has_the_same_numbers(tmp_path):
    found = climb_ladder(rungs())
    [arm] = found.arms
    document = json.loads(json.dumps(ladder_document(found)))
    assert document["arms"][0]["multipliers"] == pytest.approx(arm.ladder.multipliers)
    assert document["arms"][0]["verdict"] == "holds"
    assert document["rungs"][2]["compute"] == found.compute[2]
    for view in (text_of(ladder_sections(found)), markdown_of(ladder_sections(found))):
        assert "arch-good: compute multiplier" in view
        assert f"{arm.ladder.multipliers[0]:.3g}x" in view
        assert "holds: its gain holds" in " ".join(view.split())
    pytest.importorskip("matplotlib")
    write_ladder_plot(found, tmp_path / "ladder.svg")
    assert "arch-good: holds" in (tmp_path / "ladder.svg").read_text()


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: rungs((1.5, 1.5)), "2 rungs have runs; 3 are needed"),
        (lambda: rungs(n=2), "fewer than 3 seeds have finished at every rung"),
        (lambda: rungs(step=2), "the rungs span less than 16x in compute"),
        (lambda: {**rungs(), "params=1": rungs()["params=0"]}, "does not fall from each rung"),
    ],
)
def test_what_cannot_be_climbed_says_why(made, reason):
    [arm] = climb_ladder(made()).arms
    assert arm.ladder is None
    assert arm.word == "inconclusive"
    assert reason in arm.reason
    view = text_of(ladder_sections(climb_ladder(made())))
    assert f"inconclusive: {arm.reason}." in " ".join(view.split())


def test_rungs_of_other_data_are_no_ladder():
    """Losses on another validation set are on no curve with these."""
    own = rungs()
    data = {"val_fingerprint": "other"}
    runs = [dataclasses.replace(run, data=run.data | data) for run in runs_of(own["params=1"])]
    own["params=1"] = compare(runs, "arch-base")
    [arm] = climb_ladder(own).arms
    assert (arm.word, arm.reason) == ("inconclusive", "the rungs differ in validation set")


def test_an_arm_that_a_rung_lacks_is_named():
    own = rungs()
    base = [run for row in own["params=2"].rows[:1] for run in row.group.runs]
    other = simulated_arm("other", [3.0] * 4, model={"arm": "other"}, flops_per_token=64 * 6)
    own["params=2"] = compare([*base, *other], baseline="arch-base")
    reasons = {arm.name: arm.reason for arm in climb_ladder(own).arms}
    assert reasons["arch-good"] == "it has no runs at some rung"


def test_failed_runs_bar_the_ladder():
    own = rungs()
    base, good = (row.group.runs for row in own["params=0"].rows)
    failed = dataclasses.replace(good[0], status="diverged")
    own["params=0"] = compare([*base, failed, *good[1:]], baseline="arch-base")
    [arm] = climb_ladder(own).arms
    assert arm.reason == "runs failed at some rung"


def test_intervals_allow_for_tuning():
    """Both arms carry an allowance at the last rung: its interval is wider at both ends, and those
    of the others, whose multipliers are read along the same curve, are no narrower."""
    [before], [after] = (climb_ladder(own).arms for own in (rungs(), tuned_rungs()))
    assert after.allowance == pytest.approx(0.16)
    widened = [
        (math.log(old[0] / new[0]), math.log(new[1] / old[1]))
        for old, new in zip(before.ladder.intervals, after.ladder.intervals, strict=True)
    ]
    assert min(min(own) for own in widened) >= -1e-9
    assert min(widened[2]) > 3 * max(max(own) for own in widened[:2])
    assert (before.word, after.word) == ("holds", "inconclusive")
    view = " ".join(text_of(ladder_sections(climb_ladder(tuned_rungs()))).split())
    assert "The intervals include allowances for tuning: up to 0.1600 nats at a rung" in view


def tuned_rungs() -> dict[str, Findings]:
    """Rungs of which the last has an allowance of 0.08 nats for each arm."""
    own = rungs()
    runs = runs_of(own["params=2"])
    design = Design(allowances={(run.sweep, run.arm): 0.08 for run in runs})
    return {**own, "params=2": compare(runs, "arch-base", design)}


def runs_of(findings: Findings) -> list[LoggedRun]:
    return [run for row in findings.rows for run in row.group.runs]
