"""The page without a browser: what it contains, what it never contains, and its size."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from compare_architectures import main
from comparison.exports import document
from comparison.figures import Difference, figures_of
from comparison.findings import compare
from comparison.groups import group_runs
from comparison.labels import labels
from comparison.plot import arms_of
from comparison.report.configs import ranges
from comparison.report.curve_data import curve_data, shown_at_first
from comparison.report.intervals import scale_of, strips
from comparison.report.page import to_html, write_page
from comparison.runs import load_runs
from comparison.training_bands import training_bands
from inference.verdicts import BETTER, INCONCLUSIVE, WORSE
from tests.simulated import simulated_arm, simulated_run
from tests.study import HOSTILE, study
from tests.unit.test_compare_architectures import make_arm, make_run
from training_logger import read_metrics


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


def unbroken(page: Page) -> str:
    """The text of the page, without the places where a line may break."""
    return "".join(page.texts)


def test_the_document_is_in_the_page(page, findings):
    assert json.loads(page.scripts["document"]) == document(findings)


def test_the_page_makes_no_network_requests(page, text):
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
        (body,) = re.findall(rf"<{tag}>(.*?)</(?:style|script)>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert not any("style" in attributes for _, attributes in page.tags)


def test_names_given_by_users_are_escaped(page):
    assert not [attributes for _, attributes in page.tags if "onerror" in attributes]
    assert [tag for tag, _ in page.tags].count("script") == 3  # two of data and the page's own
    assert unbroken(page).count(HOSTILE) > 3
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
        *("verdicts", "curves", "results", "notes", "methods", "budgets", "speedups", "effects"),
        *("pareto", "apart", "runs", "configs", "environment"),
    ]
    assert set(sections) <= set(links)
    identities = [a["id"] for _, a in page.tags if "id" in a]
    assert len(identities) == len(set(identities))


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([simulated_run()], "There is only one arm, so there is nothing to compare."),
        (
            simulated_arm("a", [3.0]) + simulated_arm("b", [2.0], model={"bias": False}),
            "The only arm besides the baseline is inconclusive.",
        ),
        (
            simulated_arm("a", [3.0]) + simulated_arm("b", [2.0], data={"fingerprint": "x"}),
            "No arm is comparable with the baseline, so there is nothing to compare. "
            "1 arm cannot be compared with it.",
        ),
        (
            [dataclasses.replace(simulated_run(status="running"), eval_steps=[])],
            "which has no included runs.",
        ),
    ],
)
def test_the_answer_without_verdicts(runs, said):
    assert said in "".join(Page(to_html(compare(runs))).texts)


def test_the_answer_counts_every_verdict(page):
    shown = "".join(page.texts)
    assert "Of 3 arms besides the baseline, 1 is better, 1 is worse and 1 " in shown
    assert "2 arms cannot be compared with it." in shown


def test_the_headline_is_a_sentence_with_its_interval(page):
    assert (
        "normalization=rmsnorm is better than the baseline, arch-plain, by 0.0992 nats per token "
        "(95\N{NO-BREAK SPACE}% interval: 0.0947 to 0.1038) at equal parameters and tokens, 1.03x "
        "the FLOPs, n=4."
    ) in unbroken(page)


def test_verdicts_of_one_kind_are_counted_together():
    runs = simulated_arm("a", [3.00, 3.02, 2.99, 3.01])
    for index in range(8):
        losses = [2.0 + loss / 100 for loss in range(4)]
        runs += simulated_arm(f"b{index}", losses, model={"n_head": index}, start="2025-02-01")
    assert "All 8 arms besides the baseline are better." in unbroken(Page(to_html(compare(runs))))


def test_the_title_says_what_of_and_when():
    runs = simulated_arm("a", [3.0, 3.1]) + simulated_arm("b", [2.0], model={"bias": False})
    runs[0] = dataclasses.replace(runs[0], start_time="2025-03-04T01")
    facts = "tiny, 100.0K tokens per run, 2025-01-01 to 2025-03-04"
    assert f"<title>2 arms compared: {facts}</title>" in to_html(compare(runs))
    swept = [dataclasses.replace(run, sweep="out/sweeps/norm<s>") for run in runs]
    assert f"<title>norm&lt;s&gt;: {facts}</title>" in to_html(compare(swept))


def test_arms_have_their_requested_names():
    def names(*configs):
        runs = [
            simulated_run(f"{index}-code", model=config, start=f"2025-01-{index + 1:02}")
            for index, config in enumerate(configs)
        ]
        return [label.name for label in labels(compare(runs))]

    gpt2, llama = {"arch_preset": "gpt2"}, {"arch_preset": "llama", "bias": False}
    assert names(gpt2, llama) == ["gpt2", "llama"]
    assert names(gpt2, {**gpt2, "bias": False}) == ["gpt2", "gpt2, bias=False"]
    long = {**gpt2, "normalization": "x" * 80}
    assert names(gpt2, long) == ["gpt2", "arch-1-code"]
    assert names({}, {"bias": False}) == ["arch-0-code", "bias=False"]
    assert names({"arch_preset": "custom"}, gpt2 | {"bias": False}) == ["arch-0-code", "gpt2"]


def test_two_arms_never_share_a_name():
    runs = [
        simulated_run("a", model={"arch_preset": "gpt2"}),
        simulated_run("b", model={"arch_preset": "gpt2"}, training={"learning_rate": 1.0}),
    ]
    names = [label.name for label in labels(compare(runs))]
    assert len(set(names)) == 2


def test_shared_settings_are_shown_once(page):
    rows = [a.get("class") for tag, a in page.tags if tag == "tr"]
    assert rows.count("shared") > 3
    shown = unbroken(page)
    assert f"{HOSTILE} (arm 6; 1 run)" in shown
    assert "not logged (arms 1 to 5; 18 runs)" in shown
    assert "f00d (arms 1 to 4, 6; 17 runs)" in shown


def test_the_machine_is_named_where_there_are_several():
    runs = [simulated_run("a"), simulated_run("b")]
    for run in runs:
        run.environment["host"] = "machine-of-mine"
        run.config["out_dir"] = "/home/me"
    assert "machine-of-mine" not in to_html(compare(runs))
    assert "/home/me" not in to_html(compare(runs))
    runs[1].environment["host"] = "machine-of-yours"
    assert "machine-of-mine" in to_html(compare(runs))


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
    plain = drawn["arms"][0]["bands"]["validation"]["tokens"]
    assert plain["spent"][0] == 0
    assert plain["mean"][-1] == round(findings.baseline.group.loss, 4)
    assert (plain["low"][-1], plain["high"][-1]) == (2.995, 3.012)
    assert [arm["shown"] for arm in drawn["arms"]] == [True] * 4 + [False] * 2
    nothing = {"validation": {}, "training": {}}
    assert drawn["arms"][5]["bands"] == nothing  # its only run diverged


def test_arms_look_as_in_the_plot(findings):
    figures = figures_of(findings)
    style = to_html(findings)
    for arm, drawn in zip(curve_data(figures)["arms"], arms_of(figures), strict=False):
        colour = re.search(rf"\.{arm['hue']} {{ --arm: (.*?);", style)[1]
        assert colour == ("var(--ink)" if drawn.colour == "black" else drawn.colour)
        dashes = drawn.line["linestyle"]
        assert arm["dash"] == (
            "none" if dashes == "-" else " ".join(f"{2 * own:g}" for own in dashes[1])
        )


def test_training_curves_show_every_spike_that_was_logged(tmp_path):
    lines = read_metrics(make_run(tmp_path / "a", start="2025-01-01") / "metrics.jsonl")
    make_run(tmp_path / "b", config={"seed": 2, "data_seed": 2})
    steps = [line for line in lines if line["kind"] == "train"]
    long = [
        {**steps[0], "iter": 10 * i, "tokens_seen": 10_000 * i, "loss": 3.0 if i != 777 else 99.5}
        for i in range(1, 1001)
    ]
    path = tmp_path / "a" / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line not in steps))
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in long)
    (run,) = load_runs([tmp_path / "a"])[0]
    band = training_bands(group_runs([run])[0], 100)["tokens"]
    assert len(band.budgets) == 100
    assert max(band.high) == 99.5
    assert min(band.low) == 3.0
    near = band.high.index(99.5)
    assert band.budgets[near] == pytest.approx(7_770_000, rel=0.01)
    assert training_bands(group_runs([simulated_run()])[0], 100) == {}  # it has no such log


def test_a_training_curve_ends_with_the_last_logged_loss_at_its_own_budget(tmp_path):
    for seed in (1, 2):
        folder = make_run(tmp_path / str(seed), config={"seed": seed, "data_seed": seed})
        lines = read_metrics(folder / "metrics.jsonl")
        step = next(line for line in lines if line["kind"] == "train")
        logged = [
            {**step, "iter": i, "tokens_seen": 1000 * i, "loss": 3 - i / 10 + seed / 100}
            for i in (1, 4, 8, 10)
        ]
        lines = [line for line in lines if line["kind"] != "train"] + logged
        (folder / "metrics.jsonl").write_text("".join(json.dumps(own) + "\n" for own in lines))
    (group,) = group_runs(load_runs([tmp_path / "1", tmp_path / "2"])[0])
    whole, thinned = (training_bands(group, most)["tokens"] for most in (100, 3))
    assert whole.budgets == [1000, 4000, 8000, 10_000]
    assert whole.mean == pytest.approx([2.915, 2.615, 2.215, 2.015])
    assert thinned.budgets == [1000, 6000, 10_000]
    for band in (whole, thinned):
        assert (band.low[-1], band.high[-1]) == pytest.approx((2.01, 2.02))


def test_runs_are_listed_and_linked_where_they_have_a_page(tmp_path):
    one, two = make_run(tmp_path / "a"), make_run(tmp_path / "b <i>#?%")
    (one / "report.html").unlink()
    runs, problems = load_runs([one, two])
    assert problems == []
    page = tmp_path / "pages" / "page.html"
    write_page(compare(runs), page)
    shown = Page(page.read_text(encoding="utf-8"))
    links = [a["href"] for tag, a in shown.tags if tag == "a" and a["href"].endswith(".html")]
    (link,) = links
    assert (page.parent / unquote(link)).resolve() == (two / "report.html").resolve()
    assert str(one) in unbroken(shown)
    assert str(two) in unbroken(shown)


def test_samples_stand_side_by_side(tmp_path):
    folder = make_run(tmp_path / "a")
    other = make_run(tmp_path / "b", start="2025-02-01", config={"arm": "b"})
    texts = [("an earlier prompt", "x"), (HOSTILE, "and \ud800 on\n <i>")]
    step = {"kind": "sample", "wall_seconds": 1.0, "tokens_seen": 1}
    samples = [
        {**step, "iter": 10 * i, "prompt": prompt, "text": text}
        for i, (prompt, text) in enumerate(texts)
    ]
    for run, lines in ((folder, samples), (other, [{**step, "iter": 1, "prompt": 1}])):
        with (run / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    runs, problems = load_runs([folder, other])
    assert problems == []
    write_page(compare(runs), tmp_path / "page.html")
    shown = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert f"{HOSTILE}and \\ud800 on\n <i>" in unbroken(shown)
    assert "an earlier prompt" not in unbroken(shown)
    assert [a.get("class") for _, a in shown.tags].count("sample-text") == 1


def test_seconds_of_different_machines_are_drawn_with_a_caution(findings):
    runs = simulated_arm("a", [3.0, 3.1])
    runs += simulated_arm("b", [3.2, 3.3], model={"bias": False}, device="a GPU")
    axes = curve_data(figures_of(compare(runs)))["axes"]
    cautions = {name: axis["caution"] for name, axis in axes.items()}
    assert cautions["seconds"].startswith("Seconds cannot be compared: ")
    assert cautions["tokens"] == cautions["flops"] == ""
    assert curve_data(figures_of(findings))["axes"]["seconds"]["caution"] == ""


def test_the_baseline_and_the_best_arms_are_shown_initially():
    runs = [
        run
        for index in range(12)
        for run in simulated_arm(f"{index:02}", [3 - index / 10], model={"n_layer": index})
    ]
    assert shown_at_first(figures_of(compare(runs))) == {1, *range(6, 13)}


@pytest.mark.slow
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
        assert printed.err == f"report written to {page}\n"
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
