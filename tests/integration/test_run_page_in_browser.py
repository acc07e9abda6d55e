"""The page of a run in Chromium: what it shows, and how it follows a run that trains."""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.integration.chromium import (
    DESKTOP,
    PHONE,
    browser,  # noqa: F401
    least_contrast,
    texts_that_meet,
    visits,
)
from tests.parametrized import one_in
from tests.study import HOSTILE
from tests.unit.test_training_logger import log_eval, log_step, make_logger
from training.run_page import page as run_page

PANELS = ["loss", "lr", "gradient", "throughput", "memory"]


def log_steps(logger, first: int, last: int, **changes) -> None:
    """Log every 5th step and evaluate after every 10th."""
    for step in range(first, last + 1):
        if step % 5 == 0:
            log_step(logger, step, lr=1e-3 * step / 100, **changes)
        if step % 10 == 0:
            log_eval(logger, step)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that completed, with a spike, samples and a hostile name and config."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    with make_logger(folder, config={"learning_rate": 1e-3, "note": HOSTILE}) as logger:
        logger._run["run_name"] = HOSTILE
        log_eval(logger, 0)
        log_steps(logger, 1, 50)
        log_step(logger, 55, loss=9.75)
        log_steps(logger, 56, 100)
        logger.log_sample(iter=50, tokens_seen=1, prompt="Once", text=" upon")
        logger.log_sample(iter=100, tokens_seen=1, prompt=HOSTILE, text="\n  there <b>was</b>")
    return folder


@pytest.fixture
def visit(browser, finished):  # noqa: F811
    with visits(browser, (finished / "report.html").as_uri()) as opened:
        yield opened


def numbers_of(page, panel: str) -> str:
    return page.inner_text(f"#{panel} .readout")


def test_every_panel_is_drawn_and_read(visit):
    page = visit()
    assert page.locator(".panel").evaluate_all("all => all.map(one => one.id)") == PANELS
    counts = [page.locator(f"#{name} .curve").count() for name in PANELS]
    assert counts == [2, 1, 1, 1, 2]
    assert "training 0.0990" in numbers_of(page, "loss")
    assert "validation 0.0792" in numbers_of(page, "loss")
    assert "lr 1.00e-3" in numbers_of(page, "lr")
    assert "peak so far 700.0 MB" in numbers_of(page, "memory")
    assert "tokens/s 71.30" in numbers_of(page, "throughput")
    assert page.inner_text("#status") == "completed"
    assert "Validation loss\n0.0792\nbest 0.0792 at step 100" in page.inner_text("#tiles")


def test_one_cursor_reads_all_charts(visit):
    page = visit()
    page.focus("#chart-loss")
    page.keyboard.press("Home")
    for _ in range(11):
        page.keyboard.press("ArrowRight")
    assert "step 55" in numbers_of(page, "lr")
    page.focus("#chart-lr")
    page.keyboard.press("Home")
    assert "step 5" in numbers_of(page, "loss")
    assert page.get_attribute("#chart-lr", "aria-valuetext") == "step 5"
    page.keyboard.press("Escape")
    assert "step 100" in numbers_of(page, "loss")


def test_a_spike_is_in_sight(visit):
    page = visit()
    levels = page.locator("#loss .tick.y").all_text_contents()
    assert max(map(float, levels)) >= 5
    line = page.locator("#loss .curve[data-key='training'] .line").get_attribute("d")
    heights = [float(point.split(" ")[1]) for point in line.removeprefix("M").split("L")]
    assert heights.index(min(heights)) == 10  # the 11th log line


def test_the_axis_is_a_choice_that_the_address_keeps(visit):
    page = visit()
    page.check("input[value='tokens']")
    assert page.text_content("#loss .title") == "training tokens"
    assert "102.4K tokens" in numbers_of(page, "loss")
    again = visit(place=page.evaluate("location.hash"))
    assert again.text_content("#loss .title") == "training tokens"


def test_samples_are_text(visit):
    page = visit()
    shown = page.locator("#samples .sample-text").first
    assert shown.inner_text() == f"{HOSTILE}\n  there <b>was</b>"
    assert page.locator("#samples details").count() == 1
    assert page.text_content("h1").startswith(HOSTILE)


@pytest.mark.parametrize("width", one_in(3, [320, 390, 768, 1280]))
def test_nothing_scrolls_sideways_or_meets(visit, width):
    page = visit({"width": width, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert texts_that_meet(page, ".tick") == []


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", one_in(2, ["light", "dark"]))
def test_numbers_and_a_chart_are_on_the_first_screen(visit, viewport, scheme):
    page = visit(viewport, scheme)
    assert page.locator("#chart-loss").bounding_box()["y"] + 50 < viewport["height"]
    assert least_contrast(page)[0] >= 4.5, least_contrast(page)


# --- A run that trains ---


@contextlib.contextmanager
def served(folder):
    """The address of a folder, as `python -m http.server` serves it."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
def test_a_served_page_follows_the_run_and_stops_with_it(browser, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(run_page, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(run_page, "MOST_SHARE", 1e9)
    with served(tmp_path) as root, visits(browser, f"{root}/run/report.html") as opened:
        with make_logger(tmp_path / "run") as logger:
            page = opened()
            assert page.is_visible("#waiting")
            page.evaluate("window.opened = 'once'")
            log_steps(logger, 1, 40)
            page.locator("#status", has_text="40").wait_for()
            assert page.inner_text("#status") == "running 40 %"
            assert "step 40" in numbers_of(page, "loss")
            assert "left" in page.inner_text("#tiles")
            page.check("input[value='tokens']")
            logger.log_sample(iter=40, tokens_seen=1, prompt="It", text=" was")
            log_steps(logger, 41, 80)
            page.locator("#status", has_text="80").wait_for()
            assert page.is_visible("#samples")
            assert page.is_checked("input[value='tokens']")
        page.locator("#status", has_text="completed").wait_for()
        assert page.evaluate("window.opened") == "once"  # it was never loaded again
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.wait_for_timeout(3500)
        assert asked == []


@pytest.mark.slow
def test_a_file_follows_the_run_too(browser, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(run_page, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(run_page, "MOST_SHARE", 1e9)
    with (
        visits(browser, (tmp_path / "report.html").as_uri()) as opened,
        make_logger(tmp_path) as logger,
    ):
        log_steps(logger, 1, 20)
        page = opened()
        page.check("input[value='time']")
        log_steps(logger, 21, 60)
        page.locator("#status", has_text="60").wait_for()
        assert page.is_checked("input[value='time']")


def test_a_page_whose_run_was_killed_says_how_old_it_is(browser, tmp_path):  # noqa: F811
    with make_logger(tmp_path) as logger:
        log_steps(logger, 1, 10)
        path = tmp_path / "report.html"
        text = path.read_text(encoding="utf-8")
    written = text.split('<time datetime="')[1].split('"')[0]
    path.write_text(text.replace(written, "2025-01-01T00:00:00+00:00"), encoding="utf-8")
    with visits(browser, path.as_uri()) as opened:
        assert "the run may have been stopped" in opened().inner_text("#updated")
