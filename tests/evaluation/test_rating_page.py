"""The page of `imageprompt rate` in a headless Chromium: rated by keys and clicks, as people do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from browser import chromium, needs_chromium, without_errors
from imageprompt.evaluation.rating.answers import read_key, read_raters
from imageprompt.evaluation.rating.page import KEY, write_page
from imageprompt.evaluation.rating.subjects import of_study
from imageprompt.evaluation.rating.summary import summarise
from rated import ADAPTERS, make_study

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = needs_chromium
PLUS, BASE = ADAPTERS


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of both modes, and one whose pictures lie beside it."""
    root = tmp_path_factory.mktemp("page")
    subjects = of_study(make_study(root / "study", prompts=4, seeds=1))
    write_page(subjects, root / "pairs")
    write_page(subjects, root / "scales", mode="scales", count=3)
    write_page(subjects, root / "folder", folder=True)
    return {name: root / name for name in ("pairs", "scales", "folder")}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab of a browser that remembers nothing of other tests."""
    size = {"width": 1100, "height": 800}
    with (
        browser.new_context(viewport=size) as context,
        without_errors(context.new_page()) as opened,
    ):
        yield opened


def start(page: Page, path: Path, rater: str) -> None:
    page.goto(path.as_uri())
    page.fill("#rater", rater)
    page.press("#rater", "Enter")


def shown(page: Page) -> str:
    """Which part of the page is shown: welcome, question or done."""
    return str(page.locator("main > section:visible").get_attribute("id"))


def count(page: Page) -> str:
    return page.inner_text("#count")


def sides(page: Page) -> list[str]:
    """The ids of the pictures, from left to right."""
    found: list[str] = page.locator(".choose").evaluate_all("all => all.map(one => one.dataset.id)")
    return found


def press(page: Page, key: str) -> None:
    """Press a key, and wait until the page has gone on."""
    place = page.get_attribute("#question", "data-place")
    page.keyboard.press(key)
    page.wait_for_function(
        "place => document.getElementById('question').dataset.place !== place"
        " || !document.getElementById('done').hidden",
        arg=place,
    )


def save(page: Page, button: str, folder: Path) -> Path:
    """The file that a button saves."""
    with page.expect_download() as download:
        page.click(button)
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def rate_all(page: Page, key: dict[str, Any], prefer: str) -> list[tuple[str, str]]:
    """Answer all questions by keys; returns their ids, and the pictures on the left."""
    items = {frozenset(one["pictures"]): one for one in key["items"]}
    found = []
    while shown(page) == "question":
        pictures = sides(page)
        item = items[frozenset(pictures)]
        conditions = {name: picture for picture, name in item["pictures"].items()}
        wanted = item["expected"] or conditions[prefer]
        found.append((item["id"], pictures[0]))
        press(page, ["ArrowLeft", "ArrowRight"][pictures.index(wanted)])
    return found


def test_pairs_are_rated_by_keys(page: Page, folders: dict[str, Path], tmp_path: Path) -> None:
    """To the end, with one repeat; the saved file is what `ratings` reads."""
    folder = folders["pairs"]
    key = json.loads((folder / KEY).read_text())
    start(page, folder / "rate.html", "Änne O'Neil")
    assert count(page) == "0 of 6"
    seen = rate_all(page, key, PLUS)
    assert shown(page) == "done"
    assert count(page) == "6 of 6"
    items = [item for item, _ in seen]
    assert len(set(items)) == 5
    (twice,) = {item for item in items if items.count(item) == 2}
    assert len({left for item, left in seen if item == twice}) == 2  # the sides are swapped
    path = save(page, "#save-all", tmp_path)
    assert path.name == f"ratings-{key['study']}-Änne_O_Neil.json"
    plain = json.loads(path.read_text("utf-8"))
    assert plain["complete"]
    assert [(one["item"], one["left"]) for one in plain["answers"]] == seen
    known = read_key(folder / KEY)
    (rater,) = read_raters([path], known)
    assert rater.name == "Änne O'Neil"
    report = summarise(known, [rater])
    assert report.comparisons[0].win_rate == 0
    (one,) = report.raters
    assert (one.answers, one.repeated, one.consistent, one.failed) == (4, 1, 1, ())


def test_order_and_sides_are_those_of_the_rater(page: Page, folders: dict[str, Path]) -> None:
    def order(rater: str) -> list[list[str]]:
        start(page, folders["pairs"] / "rate.html", rater)
        found = [sides(page)]
        for _ in range(2):
            press(page, "ArrowDown")
            found.append(sides(page))
        page.evaluate("localStorage.clear()")
        return found

    first = order("1")
    assert order("1") == first
    others = [order(str(number)) for number in range(2, 5)]
    assert len({str(one) for one in (first, *others)}) == 4
    lefts = {one[0] for questions in (first, *others) for one in questions}
    assert len(lefts) > 5  # pictures of a pair are on either side


def test_a_rater_goes_on_after_closing_the_page(
    page: Page, folders: dict[str, Path], tmp_path: Path
) -> None:
    path = folders["pairs"] / "rate.html"
    start(page, path, "ben")
    press(page, "ArrowLeft")
    press(page, "2")
    place = sides(page)
    page.goto(path.as_uri())
    assert page.inner_text("#known") == "Go on as ben"
    page.click("#known button")
    assert count(page) == "2 of 6"
    assert sides(page) == place
    part = save(page, "#save", tmp_path)
    assert not json.loads(part.read_text())["complete"]
    page.evaluate("localStorage.clear()")  # another browser
    page.goto(path.as_uri())
    page.set_input_files("#import", part)
    page.wait_for_selector("#question:visible")
    assert sides(page) == place
    assert count(page) == "2 of 6"


def test_answers_can_be_changed(page: Page, folders: dict[str, Path], tmp_path: Path) -> None:
    start(page, folders["pairs"] / "rate.html", "cy")
    first = sides(page)
    press(page, "ArrowLeft")
    press(page, "Backspace")
    assert sides(page) == first
    assert page.get_attribute(".chosen", "data-id") == first[0]
    press(page, "ArrowDown")
    press(page, "Backspace")
    assert "main" in str(page.get_attribute("#equal", "class"))
    page.click(f".choose[data-id={first[1]}]")
    page.wait_for_selector(f".choose[data-id={first[1]}]", state="detached")
    assert count(page) == "1 of 6"
    (one,) = json.loads(save(page, "#save", tmp_path).read_text())["answers"]
    assert (one["choice"], one["left"], one["repeat"]) == (first[1], first[0], False)
    assert one["seconds"] >= 0


def test_files_that_do_not_belong_are_told(
    page: Page, folders: dict[str, Path], tmp_path: Path
) -> None:
    page.goto((folders["pairs"] / "rate.html").as_uri())
    for text, message in (
        ("{", "This file is damaged."),
        ("[]", "This file holds no answers."),
        ('{"format": "imageprompt-ratings", "study": "x"}', "These answers are of another page."),
    ):
        (tmp_path / "x.json").write_text(text)
        page.set_input_files("#import", tmp_path / "x.json")
        page.wait_for_selector(f"#notice:has-text('{message}')")
        assert shown(page) == "welcome"


def test_scales_are_rated_by_digits(page: Page, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["scales"]
    start(page, folder / "rate.html", "dana")
    assert page.locator("fieldset").count() == 4
    assert page.locator("fieldset").first.inner_text().startswith("Content Does the picture")
    key = json.loads((folder / KEY).read_text())
    while shown(page) == "question":
        assert page.is_disabled("#next")
        page.keyboard.press("Enter")  # does nothing yet
        for digit in "12935":
            page.keyboard.press(digit)
        assert page.is_enabled("#next")
        press(page, "Enter")
    path = save(page, "#save-all", tmp_path)
    plain = json.loads(path.read_text())
    assert len(plain["answers"]) == len(key["items"]) + 1 == 5
    scores = {"content": 1, "style": 2, "text": 3, "overall": 5}
    assert all(one["scores"] == scores for one in plain["answers"])
    known = read_key(folder / KEY)
    report = summarise(known, read_raters([path], known))
    assert {one.axis: one.value for one in report.means} == scores
    assert report.raters[0].consistent == 1


def test_markup_of_strangers_is_text(page: Page, folders: dict[str, Path]) -> None:
    start(page, folders["pairs"] / "rate.html", "<img src=x onerror=alert(1)>")
    assert page.inner_text("#text").startswith("a <b>")
    assert page.locator("#text *").count() == 0
    page.goto((folders["pairs"] / "rate.html").as_uri())
    page.wait_for_function("document.querySelector('#known').innerText")
    assert "<img" in page.inner_text("#known")
    assert page.locator("#known img").count() == 0


def test_pictures_beside_the_page_and_enlarged(page: Page, folders: dict[str, Path]) -> None:
    start(page, folders["folder"] / "rate" / "index.html", "eve")
    page.wait_for_function(
        "[...document.querySelectorAll('#question img')].every(one => one.naturalWidth)"
    )
    assert page.locator("#question img").count() == 3
    page.locator(".magnify").first.click()
    assert page.is_visible("#zoom img")
    page.keyboard.press("ArrowLeft")  # no choice behind the picture
    page.keyboard.press("Escape")
    assert not page.is_visible("#zoom")
    assert count(page) == "0 of 6"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_scrolling_sideways(
    scheme: Any, browser: Browser, folders: dict[str, Path]
) -> None:
    """The buttons are on the screen, and the colours are those of the scheme."""
    phone = {"width": 360, "height": 640}
    with browser.new_context(viewport=phone, color_scheme=scheme, has_touch=True) as context:
        page = context.new_page()
        for mode, action in (("pairs", "#equal"), ("scales", "#next")):
            start(page, folders[mode] / "rate.html", "fay")
            assert page.evaluate("document.documentElement.scrollWidth") == 360
            box = page.locator(action).bounding_box()
            assert box is not None
            assert box["y"] + box["height"] <= 640
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert colour == ("rgb(20, 20, 22)" if scheme == "dark" else "rgb(252, 252, 250)")
