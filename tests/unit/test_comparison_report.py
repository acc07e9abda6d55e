"""The page without a browser: what is in it, what never is, and how large it gets."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import pytest

from compare_architectures import main
from comparison.exports import document
from comparison.figures import Difference, figures_of
from comparison.findings import compare
from comparison.report.configs import ranges
from comparison.report.curve_data import curve_data, shown_at_first
from comparison.report.intervals import scale_of, strips
from comparison.report.page import to_html
from inference.verdicts import BETTER, INCONCLUSIVE, WORSE
from tests.simulated import simulated_arm, simulated_run
from tests.study import HOSTILE, study
from tests.unit.test_compare_architectures import make_arm


class Page(HTMLParser):
    """Tags with their attributes, and the text of elements that have an id."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: dict[str, str] = {}
        self._script: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._script = dict(attributes).get("id", "") if tag == "script" else None

    def handle_data(self, data):
        if self._script is None:
            self.texts.append(data)
        else:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data

    def handle_endtag(self, tag):
        self._script = None


@pytest.fixture(scope="module")
def findings():
    return study()


@pytest.fixture(scope="module")
def text(findings):
    return to_html(findings)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_the_document_is_in_the_page(page, findings):
    assert json.loads(page.scripts["document"]) == document(findings)


def test_nothing_is_asked_of_a_network(page, text):
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith(("#", "data:,"))
    assert not re.search(r"https?:|@import|url\((?!#)", text)


def test_the_policy_allows_the_style_and_the_script_and_no_more(page, text):
    (policy,) = (a["content"] for _, a in page.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag, directive in (("style", "style-src"), ('script type="module"', "script-src")):
        (body,) = re.findall(rf"<{tag}>(.*?)</", text, re.S)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert not any("style" in attributes for _, attributes in page.tags)


def test_what_users_name_is_text(page):
    assert not [attributes for _, attributes in page.tags if "onerror" in attributes]
    assert [tag for tag, _ in page.tags].count("script") == 3  # two of data and the page's own
    assert page.texts.count(HOSTILE) > 3
    assert "</script" not in page.scripts["document"] + page.scripts["curves-data"]


def test_keys_that_users_name_are_text_and_may_be_broken_at_underscores():
    runs = simulated_arm("a", [3.0]) + simulated_arm("b", [2.0], model={"x_<b>_y": 1})
    assert '<th scope="row">x_<wbr>&lt;b&gt;_<wbr>y</th>' in to_html(compare(runs))


def test_no_number_is_missing_aloud(page, text):
    shown = " ".join(page.texts)
    assert not re.search(r"\b(nan|inf|infinity|undefined|null)\b", shown, re.I)
    assert not re.search(r"\bNaN\b|\bInfinity\b", page.scripts["curves-data"])


def test_every_section_has_a_title_and_a_link(page):
    sections = [a["id"] for tag, a in page.tags if tag == "section" and a["id"] != "answer"]
    links = [a["href"].removeprefix("#") for tag, a in page.tags if tag == "a"]
    assert sections == [
        *(
            "verdicts",
            "methods",
            "results",
            "curves",
            "budgets",
            "speedups",
            "effects",
            "pareto",
            "apart",
        ),
        *("notes", "configs", "environment"),
    ]
    assert set(sections) <= set(links)
    identities = [a["id"] for _, a in page.tags if "id" in a]
    assert len(identities) == len(set(identities))


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([simulated_run()], "There is one arm only, so there is nothing to compare."),
        (
            simulated_arm("a", [3.0]) + simulated_arm("b", [2.0], model={"bias": False}),
            "The one arm beside the baseline is inconclusive.",
        ),
        (
            simulated_arm("a", [3.0]) + simulated_arm("b", [2.0], data={"fingerprint": "x"}),
            "No arm is comparable with it, so there is nothing to compare. "
            "1 arm set apart: not comparable.",
        ),
        (
            [dataclasses.replace(simulated_run(status="running"), eval_steps=[])],
            "none of whose runs is included.",
        ),
    ],
)
def test_the_answer_where_there_is_little_to_say(runs, said):
    assert said in "".join(Page(to_html(compare(runs))).texts)


def test_the_answer_counts_every_verdict(page):
    shown = "".join(page.texts)
    assert "Of 3 arms beside the baseline, 1 is better, 1 is worse and 1 " in shown
    assert "2 arms set apart: not comparable." in shown


def test_the_answer_lists_six_arms_of_a_verdict_and_counts_the_others():
    runs = simulated_arm("a", [3.00, 3.02, 2.99, 3.01])
    for index in range(8):
        losses = [2.0 + loss / 100 for loss in range(4)]
        runs += simulated_arm(f"b{index}", losses, model={"n_head": index}, start="2025-02-01")
    shown = Page(to_html(compare(runs)))
    assert "Of 8 arms beside the baseline, 8 are better." in shown.texts
    assert "and 2 more, in " in shown.texts


def test_settings_are_told_once_where_runs_agree(page):
    rows = [a.get("class") for tag, a in page.tags if tag == "tr"]
    assert rows.count("shared") > 3
    shown = "".join(page.texts)
    assert f"{HOSTILE} (arm 6; 1 run)" in shown
    assert "not logged (arms 1 to 5; 18 runs)" in shown
    assert "f00d (arms 1 to 4, 6; 17 runs)" in shown


def test_ranges():
    assert ranges([1, 2, 3, 5, 6, 9]) == "1 to 3, 5, 6, 9"


def test_an_interval_of_two_seeds_does_not_squeeze_the_others():
    differences = [
        Difference(0.01, 0.0, 0.02, WORSE),
        Difference(0.02, 0.01, 0.03, WORSE),
        Difference(0.0, -1.0, 1.0, WORSE),
    ]
    scale = scale_of([*differences, None], 0.005)
    assert -0.1 < scale.low < 0 < 0.03 < scale.high < 0.1
    assert scale_of([None], 0.1) is None
    assert 0 in scale.ticks()
    drawn = strips([*differences, None], scale)
    assert [strip.mark and strip.mark.goes_on for strip in drawn] == [
        *((False, False), (False, False), (True, True)),
        None,
    ]
    assert (drawn[2].mark.left, drawn[2].mark.right) == ("4.00%", "96.00%")


def test_an_infinite_interval_goes_on_beyond_both_ends():
    endless = Difference(-0.5, -math.inf, math.inf, INCONCLUSIVE)
    for others in ([], [Difference(0.01, 0.0, 0.02, WORSE)]):
        differences = [endless, *others]
        scale = scale_of(differences, 0.005)
        assert scale.low < -0.5 < 0 < scale.high
        assert strips(differences, scale)[0].mark.goes_on == (True, True)
        assert scale.tick_labels()


def test_curves_hold_what_the_bands_do(findings):
    drawn = curve_data(figures_of(findings))
    assert list(drawn["axes"]) == ["tokens", "flops", "seconds"]
    plain = drawn["arms"][0]["bands"]["tokens"]
    assert plain["mean"][-1] == round(findings.baseline.group.loss, 4)
    assert (plain["low"][-1], plain["high"][-1]) == (2.995, 3.012)
    assert plain["told"][-1] == "100.0K tokens"
    assert [arm["shown"] for arm in drawn["arms"]] == [True] * 4 + [False] * 2
    assert drawn["arms"][5]["bands"] == {}  # its only run diverged


def test_seconds_of_unlike_machines_are_drawn_with_a_caution(findings):
    runs = simulated_arm("a", [3.0, 3.1])
    runs += simulated_arm("b", [3.2, 3.3], model={"bias": False}, device="a GPU")
    axes = curve_data(figures_of(compare(runs)))["axes"]
    cautions = {name: axis["caution"] for name, axis in axes.items()}
    assert cautions["seconds"].startswith("Seconds cannot be compared here")
    assert cautions["tokens"] == cautions["flops"] == ""
    assert curve_data(figures_of(findings))["axes"]["seconds"]["caution"] == ""


def test_of_many_arms_the_baseline_and_the_best_are_shown_at_first():
    runs = [
        run
        for index in range(12)
        for run in simulated_arm(f"{index:02}", [3 - index / 10], model={"n_layer": index})
    ]
    assert shown_at_first(figures_of(compare(runs))) == {1, *range(6, 13)}


def test_a_thousand_runs_make_a_page_of_less_than_4_mb():
    runs = [
        simulated_run(
            f"arm{arm:03}",
            seed,
            curve=[(step, 4 - step / 100 + (7 * arm + seed) % 11 / 1000) for step in range(101)],
            model={"n_layer": arm},
            seconds_per_step=0.1 + seed / 1000,
        )
        for arm in range(200)
        for seed in range(5)
    ]
    page = to_html(compare(runs))
    assert len(page.encode()) < 4e6
    assert '"thinned":true' in page


class TestTheCommand:
    def test_it_writes_the_page_beside_the_text(self, tmp_path, capsys):
        make_arm(tmp_path / "out", "plain", [2.5, 2.6])
        page = tmp_path / "deep" / "er" / "page.html"
        capsys.readouterr()
        assert main([str(tmp_path / "out"), "--format=json", f"--html={page}"]) == 0
        printed = capsys.readouterr()
        assert printed.err == f"The page is {page}\n"
        told = json.loads(Page(page.read_text(encoding="utf-8")).scripts["document"])
        assert told == json.loads(printed.out)

    def test_a_path_that_cannot_be_written_is_a_sentence(self, tmp_path, capsys):
        make_arm(tmp_path / "out", "plain", [2.5])
        (tmp_path / "file").write_text("")
        for path, why in (
            (tmp_path / "file" / "page.html", "File exists"),
            (tmp_path, "directory"),
        ):
            assert main([str(tmp_path / "out"), f"--html={path}"]) == 1
            printed = capsys.readouterr()
            assert printed.err.startswith(f"--html={path} cannot be written: ")
            assert why in printed.err
            assert "Final validation loss" in printed.out


def test_a_scale_of_differences_that_are_all_zero():
    scale = scale_of([Difference(0.0, 0.0, 0.0, BETTER)], 0.0)
    assert scale.low < 0 < scale.high
    assert scale.at(0.0) == "50.00%"
