"""The pages of a ladder and of changes on several baselines: what they say, and where they link."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

import compare_architectures
from comparison.findings import Findings
from comparison.interactions import interaction_document, on_baselines
from comparison.ladder_findings import LadderFindings, climb_ladder
from comparison.ladder_tables import ladder_document
from comparison.report.interactions_page import interactions_to_html
from comparison.report.intervals import FactorScale
from comparison.report.ladder_page import ladder_to_html, write_ladder_page
from comparison.report.series_page import AboutSeries
from experiment.series_file import LADDER, Member, Series, write_series
from pages.rendering import PAGE_FILE
from tests.study import HOSTILE
from tests.unit.test_comparison_interactions import findings
from tests.unit.test_comparison_report import Page, unbroken
from tests.unit.test_ladders import rungs, runs_of, tuned_rungs


def about(labels, page: Path | None = None, folder: Path = Path("nowhere")) -> AboutSeries:
    return AboutSeries("series", "python sweep.py ...", {own: folder / own for own in labels}, page)


def ladder_page(own: Mapping[str, Findings]) -> tuple[LadderFindings, Page]:
    found = climb_ladder(own)
    return found, Page(ladder_to_html(found, about(own)))


def test_a_ladder_tells_its_trend_and_every_multiplier():
    found, page = ladder_page(rungs((2.5, 1.8, 1.3)))
    assert json.loads(page.scripts["document"]) == ladder_document(found)
    text = unbroken(page)
    [arm] = found.arms
    low, high = arm.ladder.intervals[-1]
    assert (
        "arch-good: fades: its gain fades with compute. At params=2 its multiplier is "
        f"{arm.ladder.multipliers[-1]:.3g}x (95\N{NO-BREAK SPACE}% interval: {low:.3g} to "
        f"{high:.3g})."
    ) in text
    for multiplier, (low, high) in zip(arm.ladder.multipliers, arm.ladder.intervals, strict=True):
        assert f"{multiplier:.3g}x" in text
        assert f"{low:.3g} to {high:.3g}" in text
    assert "python sweep.py ..." in text
    assert "allowance, arm" not in text


def test_the_allowances_of_each_rung_stand_beside_its_multiplier():
    found, page = ladder_page(tuned_rungs())
    told = json.loads(page.scripts["document"])["arms"][0]["allowances"]
    assert [own["arm"] for own in told] == pytest.approx([0, 0, 0.08])
    assert "allowance, arm" in unbroken(page)
    places = [a["data-at"] for tag, a in page.tags if tag == "data"]
    assert "/arms/0/allowances/2/baseline" in places


def test_the_trend_that_is_drawn_is_the_fitted_one():
    found, page = ladder_page(rungs((1.2, 1.6, 2.4)))
    curves = json.loads(page.scripts["charts-data"])["multipliers"]["curves"]
    [trend] = [curve for curve in curves if curve.get("trend")]
    ends = [trend["points"][k] for k in (0, -1)]
    exponent = math.log(ends[1]["mean"] / ends[0]["mean"]) / math.log(ends[1]["x"] / ends[0]["x"])
    assert exponent == pytest.approx(found.arms[0].ladder.exponent, abs=1e-4)
    [drawn] = [curve for curve in curves if curve["number"] == 2 and not curve.get("trend")]
    assert [p["mean"] for p in drawn["points"]] == pytest.approx(
        found.arms[0].ladder.multipliers, rel=1e-4
    )


@pytest.mark.parametrize(
    "own", [rungs((1.5, 1.5)), rungs(n=2), {**rungs(), "params=1": rungs()["params=0"]}]
)
def test_a_ladder_that_cannot_be_climbed_says_why(own):
    found, page = ladder_page(own)
    assert f"arch-good: inconclusive: {found.arms[0].reason}." in unbroken(page)
    assert "strip" not in {a.get("class") for _, a in page.tags}


def test_infinite_multipliers_are_neither_drawn_nor_said():
    """A baseline that hardly learns needs unbounded compute."""
    found = climb_ladder(rungs())
    [arm] = found.arms
    ladder = dataclasses.replace(
        arm.ladder,
        multipliers=(*arm.ladder.multipliers[:2], math.inf),
        intervals=(*arm.ladder.intervals[:2], (0.0, math.inf)),
    )
    found = dataclasses.replace(found, arms=(dataclasses.replace(arm, ladder=ladder),))
    page = Page(ladder_to_html(found, about(found.labels)))
    assert json.loads(page.scripts["charts-data"])["multipliers"]["curves"] == []
    assert not re.search(r"\b(nan|null|undefined)\b", unbroken(page), re.I)


def test_rungs_link_to_their_pages(tmp_path):
    own = rungs()
    (tmp_path / "params=1").mkdir()
    (tmp_path / "params=1" / PAGE_FILE).write_text("a page")
    path = tmp_path / "it" / PAGE_FILE
    write_ladder_page(climb_ladder(own), about(own, path, tmp_path))
    links = {
        a["href"]
        for tag, a in Page(path.read_text(encoding="utf-8")).tags
        if tag == "a" and not a["href"].startswith("#")
    }
    assert links == {"./../params%3D1/report.html"}
    assert (path.parent / "../params=1/report.html").is_file()


def test_names_are_text(tmp_path):
    own = {HOSTILE: rungs()["params=0"], "b": rungs()["params=1"], "c": rungs()["params=2"]}
    page = Page(ladder_to_html(climb_ladder(own), about(own)))
    assert not [attributes for _, attributes in page.tags if "onerror" in attributes]
    assert HOSTILE in unbroken(page)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.9, 1.3, ["1x", "1.2x"]),
        (0.5, 1.9, ["0.5x", "1x", "1.5x"]),
        (0.3, 6.0, ["0.5x", "1x", "2x", "5x"]),
        (0.009, 900.0, ["0.01x", "1x", "100x"]),
    ],
)
def test_factors_have_round_ticks_and_one_at_1x(low, high, ticks):
    scale = FactorScale(math.log(low), math.log(high), None)
    found = [text for _, text in scale.tick_labels()]
    assert "1x" in found
    assert found == ticks
    places = [float(place.removesuffix("%")) for place, _ in scale.tick_labels()]
    assert places == sorted(places)


def test_several_baselines_tell_every_effect_and_interaction():
    both = {
        "arch_gpt2": findings(3.0, 1, same=-0.05, less=-0.1, own=0.1),
        "arch_llama": findings(2.8, 2, same=-0.05, less=-0.02),
    }
    found = on_baselines(both)
    page = Page(interactions_to_html(found, about(both)))
    document = json.loads(page.scripts["document"])
    assert document == json.loads(json.dumps(interaction_document(found)))
    text = unbroken(page)
    assert "The effect of arch-less on the loss is higher (worse) on arch_llama than on" in text
    places = {a["data-at"] for tag, a in page.tags if tag == "data"}
    for index in range(5):
        assert f"/effects/{index}/difference" in places
    for index in range(2):
        assert f"/interactions/{index}/interval/1" in places


def test_an_interaction_that_is_not_known_says_why():
    both = {"a": findings(3.0, 1, one=-0.1), "b": findings(2.8, 2, one=-0.4)}
    found = on_baselines(both)
    own = dataclasses.replace(found.interactions[0], contrast=None, reason="runs failed")
    page = Page(interactions_to_html(dataclasses.replace(found, interactions=(own,)), about(both)))
    assert "one: runs failed" in unbroken(page)


def test_the_command_writes_the_page_of_a_series(tmp_path, monkeypatch, capsys):
    own = rungs()
    members = tuple(Member(label, tmp_path / label) for label in own)
    write_series(tmp_path / "it", Series(LADDER, members, "python sweep.py --ladder ..."))

    class Chosen:
        def __init__(self, label: str):
            self.problems, self.runs = [], runs_of(own[label])
            self.findings = lambda *asked: own[label]

    monkeypatch.setattr(
        "experiment.series_view.select", lambda words, *_: Chosen(Path(words[0]).name)
    )
    page = tmp_path / "page.html"
    assert compare_architectures.main([str(tmp_path / "it"), f"--html={page}"]) == 0
    assert f"report written to {page}" in capsys.readouterr().err
    text = unbroken(Page(page.read_text(encoding="utf-8")))
    assert "python sweep.py --ladder ..." in text
    assert "arch-good: holds" in text
