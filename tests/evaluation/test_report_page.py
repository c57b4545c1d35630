"""The page of a study in a headless Chromium: on a phone, in the dark, and its large pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from browser import chromium, needs_chromium, without_errors
from imageprompt.evaluation.compare import compare, part_of
from imageprompt.evaluation.report import write_comparison, write_report
from imageprompt.evaluation.study.results import read_results
from studies import sweep, write_study

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = needs_chromium
NAME = "a-name-without-any-place-to-break-it-" * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with a long name, and a comparison of its adapters."""
    lines = [*sweep({"base": 0.0, NAME: 0.04}, (0.5, 1.0), prompts=3, seeds=1)]
    lines[0]["metrics"]["dino"] = None
    folder = write_study(tmp_path_factory.mktemp("page") / "study", lines, pictures=48)
    write_report(folder)
    results = read_results(folder)
    found = compare(part_of(results, "base"), part_of(results, NAME))
    write_comparison(found, folder / "comparison.html")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def phone(browser: Browser) -> Iterator[Page]:
    """A tab 360 pixels wide, in the dark and without a network."""
    size = {"width": 360, "height": 740}
    with (
        browser.new_context(viewport=size, color_scheme="dark", offline=True) as context,
        without_errors(context.new_page()) as opened,
    ):
        yield opened


@pytest.mark.parametrize("name", ["report.html", "comparison.html"])
def test_nothing_is_wider_than_a_phone(name: str, folder: Path, phone: Page) -> None:
    phone.goto((folder / name).as_uri())
    assert phone.evaluate("document.documentElement.scrollWidth") == 360
    assert phone.evaluate("document.querySelectorAll('.scroll table').length") >= 2


def test_dark_and_light(folder: Path, phone: Page) -> None:
    """Plots too take their colours from the page."""
    phone.goto((folder / "report.html").as_uri())
    colour = "getComputedStyle(document.querySelector('{}')).{}"
    paper, text = colour.format("body", "backgroundColor"), colour.format(".plot svg text", "fill")
    dark = phone.evaluate(paper), phone.evaluate(text)
    phone.emulate_media(color_scheme="light")
    light = phone.evaluate(paper), phone.evaluate(text)
    assert (dark[0], light[0]) == ("rgb(20, 20, 22)", "rgb(252, 252, 250)")
    assert dark[1] != light[1]


def test_the_head_stays_in_sight(folder: Path, phone: Page) -> None:
    phone.goto((folder / "report.html").as_uri())
    phone.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
    phone.evaluate("document.querySelector('#metrics').scrollIntoView()")
    assert phone.evaluate("document.querySelector('nav').getBoundingClientRect().top") == 0
    phone.wait_for_selector("nav a.here[href='#metrics']")


def test_a_picture_opens_larger_and_the_next_by_key(folder: Path, phone: Page) -> None:
    phone.goto((folder / "report.html").as_uri())
    phone.locator("#grid button.picture").nth(1).click()
    words = phone.locator("dialog p")
    assert words.inner_text().startswith("“prompt 0”, text alone, seed 0\nDINO –")
    source = phone.locator("dialog img")
    phone.wait_for_function("document.querySelector('dialog img').src.startsWith('file:')")
    assert "pictures/control-None-0.0-0-0.png" in str(source.get_attribute("src"))
    phone.keyboard.press("ArrowRight")
    assert words.inner_text().startswith("“prompt 0”, base, scale 0.5, seed 0")
    phone.keyboard.press("Escape")
    assert not phone.locator("dialog").is_visible()


def test_without_the_pictures_beside_it_the_page_shows_its_own(
    folder: Path, tmp_path: Path, browser: Browser
) -> None:
    """Chromium notes that the whole file is missing: `without_errors` would take it for one."""
    alone = tmp_path / "alone.html"
    alone.write_bytes((folder / "report.html").read_bytes())
    with browser.new_page() as page:
        page.goto(alone.as_uri())
        page.locator("#grid button.picture").first.click()
        page.wait_for_function("document.querySelector('dialog img').naturalWidth == 48")
        assert str(page.locator("dialog img").get_attribute("src")).startswith("data:image/webp")
