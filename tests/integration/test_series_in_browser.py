"""The pages of a ladder and of several baselines in Chromium, on a desktop and on a phone."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from comparison.interactions import on_baselines
from comparison.ladder_findings import climb_ladder
from comparison.report.interactions_page import write_interactions_page
from comparison.report.ladder_page import write_ladder_page
from comparison.report.series_page import AboutSeries
from tests.integration.chromium import (
    PHONE,
    browser,  # noqa: F401
    least_contrast,
    texts_that_meet,
    visits,
)
from tests.parametrized import one_in
from tests.unit.test_comparison_interactions import findings
from tests.unit.test_ladders import tuned_rungs

PAGES = ("ladder", "baselines")


@pytest.fixture(scope="module")
def urls(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("series")
    paths = {name: folder / f"{name}.html" for name in PAGES}

    def about(name: str, labels) -> AboutSeries:
        return AboutSeries(name, "", dict.fromkeys(labels, Path("none")), paths[name])

    rungs = tuned_rungs()
    write_ladder_page(climb_ladder(rungs), about("ladder", rungs))
    both = {
        "arch_gpt2": findings(3.0, 1, same=-0.05, less=-0.1),
        "arch_llama": findings(2.8, 2, same=-0.05, less=-0.02),
    }
    write_interactions_page(on_baselines(both), about("baselines", both))
    return {name: path.as_uri() for name, path in paths.items()}


@pytest.fixture(params=PAGES)
def visit(request, browser, urls) -> Iterator:  # noqa: F811
    """Opens a page, which may leave nothing on the console."""
    with visits(browser, urls[request.param]) as opened:
        yield opened


@pytest.fixture
def ladder(browser, urls) -> Iterator:  # noqa: F811
    with visits(browser, urls["ladder"]) as opened:
        yield opened()


@pytest.mark.parametrize("width", one_in(2, [320, 390, 768, 1280]))
def test_no_page_scrolls_sideways_and_no_ticks_meet(visit, width):
    page = visit({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert texts_that_meet(page, ".axis text, .tick") == []


@pytest.mark.parametrize("scheme", one_in(2, ["light", "dark"]))
def test_all_text_has_contrast(visit, scheme):
    page = visit(scheme=scheme)
    assert least_contrast(page)[0] >= 4.5, least_contrast(page)


def test_a_phone_has_the_axis_of_every_forest(visit):
    page = visit(PHONE)
    assert page.locator(".forest .axis").count() == page.locator(".forest .axis:visible").count()
    assert page.locator(".forest .axis:visible").count() >= 1


def test_the_charts_read_the_multiplier_and_the_loss_of_each_rung(ladder):
    told = ladder.evaluate("JSON.parse(document.getElementById('document').textContent)")
    readout = ladder.locator("#chart-multipliers").locator("xpath=preceding-sibling::p")
    ladder.focus("#chart-multipliers")
    ladder.keyboard.press("Home")
    first = told["arms"][0]["multipliers"][0]
    assert f"arch-good {first:.2f}" in readout.inner_text()
    ladder.keyboard.press("End")
    assert f"arch-good {told['arms'][0]['multipliers'][2]:.2f}" in readout.inner_text()
    losses = ladder.locator("#chart-losses").locator("xpath=preceding-sibling::p")
    assert f"arch-base {told['rungs'][2]['loss']:.4f}" in losses.inner_text()
    assert ladder.locator("#chart-multipliers .whisker").count() == 3
    assert ladder.locator("#chart-multipliers .curve[data-key='2-trend']").count() == 1


def test_tables_and_charts_are_saved(ladder):
    told = ladder.evaluate("JSON.parse(document.getElementById('document').textContent)")
    with ladder.expect_download() as download:
        ladder.click("#verdicts .tool:text-is('CSV')")
    rows = list(csv.DictReader(download.value.path().read_text(encoding="utf-8").splitlines()))
    assert [float(row["multiplier"]) for row in rows] == told["arms"][0]["multipliers"]
    with ladder.expect_download() as download:
        ladder.click("[data-save='multipliers'] .tool:text-is('SVG')")
    assert download.value.suggested_filename == "ladder-multipliers.svg"
    assert "compute multiplier" in download.value.path().read_text(encoding="utf-8")
