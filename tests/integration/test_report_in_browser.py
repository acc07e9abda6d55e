"""The page of a comparison as a person uses it, in Chromium: by mouse, by keyboard, on a phone."""

from __future__ import annotations

import shutil
import subprocess

import pytest

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
from tests.study import study

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


def runs(path: str | None) -> bool:
    """Whether there is a browser; what is installed by that name may only say how to get one."""
    if path is None:
        return False
    return subprocess.run([path, "--version"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def browser():
    """Started once, with a profile of its own."""
    path = next(filter(runs, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "page.html"
    write_page(study(), path)
    return path.as_uri()


@pytest.fixture
def visit(browser, url):
    """Opens the page; no test may leave a message on the console or ask for anything else."""
    contexts, complaints = [], []

    def opened(viewport=DESKTOP, scheme="light"):
        contexts.append(
            browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
        )
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on(
            "request",
            lambda asked: (
                None if asked.url.startswith(("data:,", url)) else complaints.append(asked.url)
            ),
        )
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


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
    plain = page.inner_text("#readout li[data-arm='1']").split()
    assert plain == ["1", "3.2535", "3.2450", "to", "3.2620"]  # a quarter above the end
    assert page.locator("#chart .cursor circle").count() == 4
    page.mouse.move(0, 0)
    assert where(page) == "At 100.0K tokens, the end"


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
    curve = page.locator("#chart .curve[data-arm='2']")
    box = page.locator("#arms input[value='2']")
    assert curve.count() == 1
    box.uncheck()
    assert curve.count() == page.locator("#readout li[data-arm='2']").count() == 0
    assert page.locator("#chart .end").count() == 3
    box.check()
    assert curve.count() == 1
    page.click("#show-none")
    assert page.text_content("#chart svg") == "No curve is shown."
    page.click("#show-all")
    assert page.locator("#chart .curve").count() == 5  # of one arm the only run diverged
    page.click("#show-first")
    assert page.locator("#chart .curve").count() == 4


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
    assert float(ticks(page, "x")[0].removesuffix("K")) > 0


def test_curves_differ_in_more_than_colour(page):
    dashes = page.locator("#chart .line").evaluate_all(
        "lines => lines.map(line => line.getAttribute('stroke-dasharray'))"
    )
    shapes = page.locator("#chart .curve").evaluate_all(
        "curves => curves.map(curve => curve.querySelector('.marker').getAttribute('d'))"
    )
    assert len(set(dashes)) == len(set(shapes)) == 4


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


@pytest.mark.parametrize("width", [320, 360, 768, 1024])
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


def test_the_tab_key_reaches_everything(page):
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        name = page.evaluate(
            """() => {
                const at = document.activeElement;
                return at.id || at.getAttribute("href") || at.value || at.className;
            }"""
        )
        reached.add(name)
        if name == "all-keys":
            break
    wanted = page.locator("button:visible, input:enabled:visible, nav a").evaluate_all(
        "all => all.map(one => one.id || one.getAttribute('href') || one.value)"
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


LEAST_CONTRAST = """() => {
    const luminance = (rgb) => {
        const [r, g, b] = rgb.map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const parts = (color) => color.match(/[\\d.]+/g).map(Number);
    const ground = (element) => {
        const [r, g, b, alpha = 1] = parts(getComputedStyle(element).backgroundColor);
        return alpha ? [r, g, b] : ground(element.parentElement);
    };
    const ratio = (element) => {
        const style = getComputedStyle(element);
        const ink = parts(element instanceof SVGElement ? style.fill : style.color).slice(0, 3);
        const box = element instanceof SVGElement ? element.closest("div, th") : element;
        const [low, high] = [luminance(ink), luminance(ground(box))].sort((a, b) => a - b);
        return [(high + 0.05) / (low + 0.05), element.textContent.slice(0, 30)];
    };
    const told = [...document.querySelectorAll("body *")].filter((element) =>
        element.checkVisibility() && !element.closest("script, style") &&
        [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
    return told.map(ratio).sort(([one], [other]) => one - other)[0];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(visit, scheme):
    page = visit(scheme=scheme)
    page.click("#show-all")
    ratio, text = page.evaluate(LEAST_CONTRAST)
    assert ratio >= 4.5, text


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
