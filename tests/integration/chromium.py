"""Chromium for tests of pages: started once for a module, and watched."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


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


@contextlib.contextmanager
def visits(browser: Any, url: str) -> Iterator[Callable[..., Any]]:
    """Gives a function that opens the page; at the end nothing may have been left on the console or
    asked of another address."""
    contexts, complaints = [], []

    def opened(viewport=DESKTOP, scheme="light", place=""):
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
                None
                if asked.url.startswith(("data:,", "blob:", url))
                else complaints.append(asked.url)
            ),
        )
        page.goto(url + place)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


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
        const badge = element.closest(".end")?.querySelector("rect");
        const under = badge ? parts(getComputedStyle(badge).fill) : ground(box);
        const [low, high] = [luminance(ink), luminance(under)].sort((a, b) => a - b);
        return [(high + 0.05) / (low + 0.05), element.textContent.slice(0, 30)];
    };
    const told = [...document.querySelectorAll("body *")].filter((element) =>
        element.checkVisibility() && !element.closest("script, style") &&
        [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
    return told.map(ratio).sort(([one], [other]) => one - other)[0];
}"""


def least_contrast(page: Any) -> tuple[float, str]:
    """The least contrast of a text in sight with what is under it, and the text."""
    return tuple(page.evaluate(LEAST_CONTRAST))


NO_TEXTS_MEET = """(selector) => {
    const boxes = [...document.querySelectorAll(selector)]
        .filter((text) => text.checkVisibility() && text.textContent)
        .map((text) => [text.closest("svg"), text.getBoundingClientRect(), text.textContent]);
    return boxes.flatMap(([svg, box, text], i) => boxes.slice(i + 1)
        .filter(([other, b]) => other === svg && box.left < b.right && b.left < box.right
            && box.top < b.bottom && b.top < box.bottom)
        .map(([, , second]) => `${text} | ${second}`));
}"""


def texts_that_meet(page: Any, selector: str) -> list[str]:
    """Pairs of texts of one drawing that overlap."""
    return page.evaluate(NO_TEXTS_MEET, selector)
