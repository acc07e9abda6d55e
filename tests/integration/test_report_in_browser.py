"""The page of a comparison as a person uses it, in Chromium: by mouse, by keyboard, on a phone."""

from __future__ import annotations

import csv
from pathlib import Path
from xml.etree import ElementTree

import pytest

from comparison.findings import compare
from comparison.formatting import (
    ACTIVE,
    QUANTITIES,
    format_budget,
    format_difference,
    format_factor,
    format_loss,
    format_p,
)
from comparison.report.page import write_page
from comparison.runs import find, load_runs
from tests.integration.chromium import (
    DESKTOP,
    PHONE,
    browser,  # noqa: F401
    least_contrast,
    texts_that_meet,
    visits,
)
from tests.parametrized import one_in
from tests.study import HOSTILE, study
from tests.unit.test_compare_architectures import make_arm

PAGES = Path(__file__).resolve().parents[2] / "pages"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "page.html"
    write_page(study(), path)
    return path.as_uri()


@pytest.fixture
def visit(browser, url):  # noqa: F811
    """Opens the page; no test may leave a message on the console or ask for anything else."""
    with visits(browser, url) as opened:
        yield opened


@pytest.fixture
def page(visit):
    return visit()


def where(page) -> str:
    """What the read-out says of where the cursor is."""
    return page.inner_text("#readout .where")


def ticks(page, axis: str) -> list[str]:
    return page.locator(f"#chart .tick.{axis}").all_text_contents()


# --- The curves ---


def test_the_mouse_reads_the_nearest_evaluation(page):
    assert where(page) == "At 100.0K tokens, the end"
    middle = page.locator("#chart").bounding_box()["width"] / 2
    page.hover("#chart", position={"x": middle, "y": 100})  # of what is shown, 50K to 100K
    assert where(page) == "At 75.00K tokens"
    plain = page.inner_text("#readout li[data-key='1']").split()
    # a quarter above the end
    assert plain == ["1", "3.2535", "3.2450", "to", "3.2620", "arch-plain"]
    assert page.locator("#chart .cursor circle").count() == 4
    page.mouse.move(0, 0)
    assert where(page) == "At 100.0K tokens, the end"


@pytest.mark.slow
def test_the_arrow_keys_move_from_evaluation_to_evaluation(page):
    page.uncheck("#second-half")
    page.focus("#chart")
    seen = []
    for key in ("ArrowLeft", "ArrowLeft", "ArrowRight", "Home", "End", "Escape"):
        page.keyboard.press(key)
        seen.append(where(page).removesuffix(" tokens"))
    assert seen == ["At 75.00K", "At 50.00K", "At 75.00K", "At 0", "At 100.0K"] + [
        "At 100.0K tokens, the end"
    ]
    assert page.get_attribute("#readout", "aria-live") == "polite"
    page.keyboard.press("Home")
    slider = page.locator("#chart")
    told = [slider.get_attribute(f"aria-value{part}") for part in ("now", "max", "text")]
    assert told == ["0", "4", "0 tokens"]


def test_an_arm_comes_and_goes_with_its_box(page):
    curve = page.locator("#chart .curve[data-key='2']")
    box = page.locator("#arms input[value='2']")
    assert curve.count() == 1
    box.uncheck()
    assert curve.count() == page.locator("#readout li[data-key='2']").count() == 0
    assert page.locator("#chart .end").count() == 3
    box.check()
    assert curve.count() == 1
    page.click("#show-none")
    assert page.text_content("#chart svg") == "No curve is shown."
    page.click("#show-all")
    assert page.locator("#chart .curve").count() == 5  # of one arm the only run diverged
    page.click("#show-first")
    assert page.locator("#chart .curve").count() == 4


@pytest.mark.slow
def test_the_axes_can_be_changed(page):
    tokens = ticks(page, "x")
    assert tokens[0] == "50K"
    assert tokens[-1] == "100K"
    losses = ticks(page, "y")
    page.check("input[value='flops']")
    assert ticks(page, "x")[-1].endswith("G")
    assert page.text_content("#chart .title") == "training FLOPs"
    assert "FLOPs" in page.inner_text("#readout")
    page.check("input[value='seconds']")
    assert ticks(page, "x") != tokens
    page.check("input[value='tokens']")
    page.uncheck("#second-half")
    assert ticks(page, "x")[0] == "0"
    assert ticks(page, "y") != losses
    page.check("#logarithmic")
    zero, *others = ticks(page, "x")
    assert zero == "0"
    assert all(float(tick.removesuffix("K")) > 0 for tick in others)
    page.focus("#chart")
    page.keyboard.press("Home")
    assert where(page) == "At 0 tokens"  # step 0 is there, though a logarithm has no place for it


def test_curves_differ_in_more_than_colour(page):
    dashes = page.locator("#chart .line").evaluate_all(
        "lines => lines.map(line => line.getAttribute('stroke-dasharray'))"
    )
    shapes = page.locator("#chart .curve").evaluate_all(
        "curves => curves.map(curve => curve.querySelector('.marker').getAttribute('d'))"
    )
    assert len(set(zip(dashes, shapes, strict=True))) == len(set(shapes)) == 4


# --- Numbers ---

FORMATS = {
    **{key: quantity.format for key, quantity in QUANTITIES.items()},
    **dict.fromkeys(("n",), str),
    **dict.fromkeys(("noise_floor", "margin"), format_loss),
    **dict.fromkeys(("difference", "effect", "interval"), format_difference),
    **dict.fromkeys(("p_value", "p_adjusted"), format_p),
    "factor": format_factor,
}


def as_shown(place: list[str], value: float) -> str:
    """How the number at a place of the document is to be written."""
    key = place[-2] if place[-1] in "01" and place[-2] == "interval" else place[-1]
    if key == "budget":
        return format_budget(place[-2], value)
    if "speedup" in place and key == "interval":
        return f"{value:.3g}"
    return FORMATS[key](value)


def test_every_number_is_that_of_the_document_rounded_as_in_the_text(page):
    shown = page.evaluate(
        """() => {
            const document_ = JSON.parse(document.getElementById("document").textContent);
            const at = (place) => place.reduce((found, step) => found[step], document_);
            return [...document.querySelectorAll("data")].map((element) => {
                const place = element.dataset.at.split("/").slice(1);
                return [place, at(place), Number(element.value), element.textContent];
            });
        }"""
    )
    for place, exact, carried, written in shown:
        assert carried == exact, place
        assert written.replace("−", "-") == as_shown(place, exact), place
    places = {tuple(place) for place, *_ in shown}
    for group in range(4):
        for key in QUANTITIES.keys() - {ACTIVE}:  # no arm is a mixture of experts
            assert ("groups", str(group), key) in places
    for key in ("difference", "p_adjusted"):
        assert ("groups", "1", key) in places
    for key in ("difference", "budget"):
        assert ("groups", "1", "at_equal", "flops", key) in places
    assert ("effects", "2", "effect") in places


def test_no_table_has_a_number_that_is_not_of_the_document(page):
    strays = page.evaluate(
        """() => [...document.querySelectorAll("td.number")]
            .filter((cell) => !cell.querySelector("data"))
            .map((cell) => cell.textContent)
            .filter((text) => /[0-9]/.test(text))"""
    )
    assert strays == []


def test_intervals_are_drawn_where_they_are(page):
    ends = page.locator("#verdicts tbody tr:nth-child(2) .strip").evaluate(
        """strip => ({
            zero: parseFloat(strip.querySelector(".zero").getAttribute("x1")),
            floor: parseFloat(strip.querySelector(".floor").getAttribute("width")),
            at: parseFloat(strip.querySelector("circle:not(.seed)").getAttribute("cx")),
        })"""
    )
    told = page.evaluate("JSON.parse(document.getElementById('document').textContent)")
    ratio = told["groups"][1]["difference"] / (2 * told["noise_floor"])
    assert (ends["at"] - ends["zero"]) / ends["floor"] == pytest.approx(ratio, rel=0.01)


@pytest.mark.slow
def test_every_pair_of_seeds_is_a_dot_around_the_mean(page):
    strip = page.locator("#verdicts tbody tr:nth-child(2) .strip")
    places = strip.evaluate(
        """strip => [...strip.querySelectorAll(".seed")].map(
            (dot) => parseFloat(dot.parentElement.getAttribute("x")))"""
    )
    at = strip.evaluate('s => parseFloat(s.querySelector("circle:not(.seed)").getAttribute("cx"))')
    told = page.evaluate("JSON.parse(document.getElementById('document').textContent)")
    assert len(places) == told["groups"][1]["paired_seeds"]
    assert sum(places) / len(places) == pytest.approx(at, abs=0.05)


def test_the_scatter_has_a_point_for_each_arm_of_known_loss_and_speed(page):
    told = page.evaluate("JSON.parse(document.getElementById('document').textContent)")
    known = [group for group in told["groups"] if group["pareto"] is not None]
    assert page.locator("#pareto .scatter circle").count() == len(known)
    inside = [group for group in known if group["pareto"]]
    assert page.locator("#pareto .scatter circle.inside").count() == len(inside)
    heights = page.locator("#pareto .scatter circle").evaluate_all(
        "all => all.map((one) => parseFloat(one.getAttribute('cy')))"
    )
    by_loss = sorted(zip([group["loss"] for group in known], heights, strict=True), reverse=True)
    assert [height for _, height in by_loss] == sorted(heights)  # higher is worse, and up


# --- Settings ---


def test_keys_that_all_arms_share_are_at_a_switch(page):
    shared = page.locator(".configs tr.shared")
    assert not shared.first.is_visible()
    page.check("#all-keys")
    assert shared.first.is_visible()
    changed = page.locator(".configs tr", has_text="normalization").locator("strong")
    assert changed.all_text_contents() == ["rmsnorm", "rmsnorm"]


# --- Everybody ---


@pytest.mark.parametrize("width", one_in(3, [320, 1024, 1100]))
def test_the_page_never_scrolls_sideways(visit, width):
    page = visit({"width": width, "height": 740})
    page.check("#all-keys")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = page.evaluate(
        """() => [...document.querySelectorAll("#verdicts .scroll, #budgets .scroll")]
            .filter((box) => box.scrollWidth > box.clientWidth + 1).length"""
    )
    assert cut == 0


def test_tables_are_still_tables_where_they_are_cards(visit):
    page = visit(PHONE)
    rows = page.locator("#results").get_by_role("table").get_by_role("row")
    assert rows.count() >= 6
    assert page.get_by_role("cell").count() > 50


@pytest.mark.slow
def test_the_tab_key_reaches_everything(page):
    reached = set()
    for _ in range(250):
        page.keyboard.press("Tab")
        name = page.evaluate(
            """() => {
                const at = document.activeElement;
                return at.id || at.getAttribute("href") || at.value || at.className || at.tagName;
            }"""
        )
        reached.add(name)
        if name == "all-keys":
            break
    wanted = page.locator("button:visible, input:enabled:visible, nav a").evaluate_all(
        "all => all.map(one => one.id || one.getAttribute('href') || one.value || one.className)"
    )
    radios = {"tokens", "flops", "seconds"}  # one stop; the arrow keys go on from there
    assert set(wanted) - radios <= reached
    assert reached & radios == {"tokens"}
    assert {"theme", "chart", "logarithmic", "all-keys", "1", "4"} <= reached


def test_focus_can_be_seen(page):
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate("document.activeElement.id") == "theme"
    assert page.evaluate(outline) == "solid"


@pytest.mark.parametrize("scheme", one_in(2, ["light", "dark"]))
def test_all_text_has_contrast(visit, scheme):
    page = visit(scheme=scheme)
    page.click("#show-all")
    assert least_contrast(page)[0] >= 4.5, least_contrast(page)


def test_the_theme_is_that_of_the_system_until_it_is_changed(visit):
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = visit(scheme="light"), visit(scheme="dark")
    paper, night = light.evaluate(ground), dark.evaluate(ground)
    assert paper != night
    assert dark.get_attribute("#theme", "aria-pressed") == "true"
    light.click("#theme")
    assert light.evaluate(ground) == night
    assert light.get_attribute("#theme", "aria-pressed") == "true"
    light.click("#theme")
    assert light.evaluate(ground) == paper


# --- The first screen ---


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", one_in(2, ["light", "dark"]))
def test_the_answer_and_a_chart_are_on_the_first_screen(visit, viewport, scheme):
    page = visit(viewport, scheme)
    for part in (".headline", "#verdicts .axis", "#verdicts tbody tr:nth-child(2) .strip"):
        box = page.locator(part).first.bounding_box()
        assert box["y"] + box["height"] <= viewport["height"], part
        assert box["width"] > 100, part
    assert page.locator("#verdicts .side").all_text_contents() == ["← better", "worse →"]


@pytest.mark.parametrize("width", one_in(3, [390, 320, 1280]))
def test_no_ticks_meet(visit, width):
    page = visit({"width": width, "height": 800})
    assert texts_that_meet(page, ".axis text, .tick, .scatter text") == []
    page.uncheck("#second-half")
    page.check("#logarithmic")
    assert texts_that_meet(page, "#chart .tick") == []


# --- Tables ---


def column(page, number: int) -> list[str]:
    cells = page.locator(f"#results tbody tr td:nth-child({number})")
    return [text.strip() for text in cells.all_text_contents()]


def test_a_table_is_sorted_by_its_heads(page):
    given = column(page, 3)
    head = page.locator("#results thead th:nth-child(3)")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    known = [float(text) for text in given if text != "–"]
    assert column(page, 3) == [*(f"{loss:.4f}" for loss in sorted(known)), "–"]
    head.locator("button").click()
    assert column(page, 3) == [*(f"{loss:.4f}" for loss in sorted(known, reverse=True)), "–"]
    head.locator("button").click()
    assert column(page, 3) == given
    assert head.get_attribute("aria-sort") is None


def test_a_phone_sorts_by_a_list(visit):
    page = visit(PHONE)
    page.locator("#results select").select_option(label="val loss")
    losses = [float(text) for text in column(page, 3) if text != "–"]
    assert losses == sorted(losses)


# --- What can be taken away ---


def saved(page, selector: str) -> tuple[str, str]:
    """The name and the text of the file that a button saves."""
    with page.expect_download() as download:
        page.click(selector)
    return download.value.suggested_filename, download.value.path().read_text(encoding="utf-8")


def test_a_table_is_saved_unrounded(page):
    name, text = saved(page, "#verdicts .tool:text-is('CSV')")
    rows = list(csv.DictReader(text.splitlines()))
    told = page.evaluate("JSON.parse(document.getElementById('document').textContent)")
    assert name == "6_arms_compared-verdicts.csv"
    for row, group in zip(rows, told["groups"], strict=False):
        assert float(row["val loss"]) == group["loss"]
    second = told["groups"][1]
    assert float(rows[1]["difference"]) == second["difference"]
    assert [float(rows[1][f"95 % interval {end}"]) for end in ("low", "high")] == second["interval"]
    assert rows[0]["difference"] == ""


@pytest.fixture(scope="module")
def scripts(browser):  # noqa: F811
    """An empty page with the functions of the shared scripts."""
    page = browser.new_page()
    for name in ("page.js", "chart.js"):
        page.add_script_tag(path=PAGES / name)
    return page


def test_a_spreadsheet_takes_no_name_for_a_formula(scripts):
    cells = ["=1+1", "+a", "@a", "-a", "-1.5", "1e-3", 'a,"b"', HOSTILE]
    assert [scripts.evaluate("cell => csvCell(cell)", cell) for cell in cells] == [
        *("'=1+1", "'+a", "'@a", "'-a", "-1.5", "1e-3", '"a,""b"""'),
        '"' + HOSTILE.replace('"', '""') + '"',
    ]


@pytest.mark.parametrize("section", one_in(3, ["verdicts", "curves", "pareto"]))
def test_a_chart_is_saved_as_a_drawing_of_its_own(page, browser, section):  # noqa: F811
    name, text = saved(page, f"#{section} .tool:text-is('SVG')")
    assert name.endswith(".svg")
    drawing = ElementTree.fromstring(text)
    tag = "{http://www.w3.org/2000/svg}"
    assert drawing.tag == f"{tag}svg"
    texts = "".join(drawing.itertext())
    assert {"verdicts": "worse →", "curves": "validation loss", "pareto": "95 %"}[section] in texts
    assert not [own for own in drawing.iter() if own.get("class")]  # it needs no style sheet
    strokes = {own.get("stroke") for own in drawing.iter()}
    assert "rgb(213, 94, 0)" in strokes  # of arm 3


# --- Links to a view ---


def test_the_address_keeps_the_view(visit):
    page = visit()
    page.check("input[value='flops']")
    page.uncheck("#second-half")
    page.uncheck("#arms input[value='3']")
    page.locator("#results thead th:nth-child(3) button").click()
    page.check("#all-keys")
    page.click("nav a[href='#curves']")
    place = page.evaluate("location.hash")
    assert place.startswith("#curves&")
    again = visit(place=place)
    assert ticks(again, "x") == ticks(page, "x")
    assert again.locator("#chart .curve[data-key='3']").count() == 0
    assert column(again, 3) == column(page, 3)
    assert again.is_checked("#all-keys")
    top = again.locator("#curves").bounding_box()["y"]
    assert -5 <= top <= 200
    assert visit().is_checked("#second-half")


def test_every_section_can_be_linked_to(page):
    page.focus("#results .permalink")
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#results"


# --- Training curves of runs that were logged ---


@pytest.fixture
def logged(browser, tmp_path):  # noqa: F811
    for arm, start in (("plain", "2025-01-01"), ("fast", "2025-01-02")):
        make_arm(tmp_path / "out", arm, [2.5, 2.6], start=start, last=100)
    page = tmp_path / "page.html"
    write_page(compare(load_runs(find([str(tmp_path / "out")]))[0]), page)
    with visits(browser, page.as_uri()) as opened:
        yield opened


@pytest.mark.slow
def test_training_loss_is_a_switch_away(logged):
    page = logged()
    assert page.locator("#losses label").all_text_contents() == ["validation", "training"]
    page.check("input[value='training']")
    assert page.text_content("#chart .title.y") == "training loss (nats per token)"
    assert page.locator("#chart .curve").count() == 2
    assert page.is_visible("#about-training")
    assert not page.is_visible("#about-validation")
    assert page.evaluate("location.hash") == "#&loss=training"
    again = logged(place="#&loss=training")
    assert again.is_checked("input[value='training']")


def test_runs_with_one_evaluation_show_their_training_first(browser, tmp_path):  # noqa: F811
    for arm in ("plain", "fast"):
        make_arm(tmp_path / "out", arm, [2.5, 2.6], last=20)
    path = tmp_path / "page.html"
    write_page(compare(load_runs(find([str(tmp_path / "out")]))[0]), path)
    with visits(browser, path.as_uri()) as opened:
        page = opened()
        assert page.is_checked("input[value='training']")
        page.check("input[value='validation']")
        assert page.locator("#chart .curve").count() == 2
        assert ticks(page, "x")[0] == "0"
        assert len(ticks(page, "x")) == len(set(ticks(page, "x"))) > 1


def test_a_run_is_a_link_to_its_page(logged):
    page = logged()
    assert page.locator("#runs tbody a").count() == 4
    target = page.locator("#runs tbody a").first.evaluate("link => link.href")
    assert target.endswith("/out/plain-1/report.html")


def test_budgets_are_told_as_in_the_text(scripts, page):
    amounts = [0, 7, 999.94, 999.96, 1234, 99_994, 99_996, 123_456, 5.5e6, 7.26e9, 3e12]
    axes = page.evaluate("JSON.parse(document.getElementById('curves-data').textContent).axes")
    for unit, axis in axes.items():
        for amount in amounts:
            said = scripts.evaluate("([amount, axis]) => told(amount, axis)", [amount, axis])
            assert said == format_budget(unit, amount)
