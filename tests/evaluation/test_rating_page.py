"""The page of `imageprompt rate` in a headless Chromium: rated by keys and clicks, as people do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import Page, chromium, needs_chromium
from imageprompt.evaluation.rating.answers import read_key, read_raters
from imageprompt.evaluation.rating.page import KEY, write_page
from imageprompt.evaluation.rating.subjects import of_study
from imageprompt.evaluation.rating.summary import summarise
from rated import ADAPTERS, make_study

pytestmark = needs_chromium
PLUS, BASE = ADAPTERS
SHOWN = "[...document.querySelectorAll('main > section')].find(one => !one.hidden).id"
COUNT = "document.getElementById('count').textContent"
SIDES = "[...document.querySelectorAll('.choose')].map(one => one.dataset.id)"
PLACE = "document.getElementById('question').dataset.place"


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
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        opened.resize(1100, 800)
        yield opened


@pytest.fixture
def saved(page: Page, tmp_path: Path) -> Path:
    """Where files that the page saves arrive; the browser's memory is empty."""
    page.downloads(tmp_path)
    return tmp_path


def start(page: Page, path: Path, rater: str, *, anew: bool = True) -> None:
    page.open(path)
    if anew:
        page.run("localStorage.clear()")
        page.open(path)
    page.run(f"document.getElementById('rater').value = {json.dumps(rater)}")
    page.run("document.querySelector('#start button').click()")


def press(page: Page, key: str) -> None:
    """Press a key, and wait until the page has gone on."""
    before = page.run(PLACE)
    page.press(key)
    page.wait(f"{PLACE} !== {json.dumps(before)} || {SHOWN} === 'done'")


def download(page: Page, folder: Path, button: str) -> Path:
    page.run(f"document.getElementById('{button}').click()")
    for _ in range(200):
        if found := [path for path in folder.glob("*.json") if path.stat().st_size]:
            return found[0]
        page.run("new Promise(done => setTimeout(done, 20))")
    raise AssertionError(list(folder.iterdir()))


def rate_all(page: Page, key: dict[str, Any], prefer: str) -> list[dict[str, Any]]:
    """Answer all questions by keys; returns what was shown."""
    known = {one["id"]: one["pictures"] for one in key["items"]}
    by_pictures = {frozenset(pictures): item for item, pictures in known.items()}
    expected = {one["id"]: one["expected"] for one in key["items"]}
    shown = []
    while page.run(SHOWN) == "question":
        sides = page.run(SIDES)
        item = by_pictures[frozenset(sides)]
        wanted = expected[item] or next(one for one in sides if known[item][one] == prefer)
        shown.append({"item": item, "left": sides[0]})
        press(page, ["ArrowLeft", "ArrowRight"][sides.index(wanted)])
    return shown


def test_pairs_are_rated_by_keys(page: Page, folders: dict[str, Path], saved: Path) -> None:
    """To the end, with one repeat; the saved file is what `ratings` reads."""
    folder = folders["pairs"]
    key = json.loads((folder / KEY).read_text())
    start(page, folder / "rate.html", "Änne O'Neil")
    assert page.run(COUNT) == "0 of 6"
    shown = rate_all(page, key, PLUS)
    assert page.run(SHOWN) == "done"
    assert page.run(COUNT) == "6 of 6"
    assert len(shown) == 6
    (twice,) = {one["item"] for one in shown if shown.count(one) == 1} & {
        one["item"] for one in shown if [other["item"] for other in shown].count(one["item"]) == 2
    }
    lefts = [one["left"] for one in shown if one["item"] == twice]
    assert len(set(lefts)) == 2  # the sides are the other way round
    path = download(page, saved, "save-all")
    assert path.name == f"ratings-{key['study']}-Änne_O_Neil.json"
    plain = json.loads(path.read_text("utf-8"))
    assert plain["complete"]
    assert [one["left"] for one in plain["answers"]] == [one["left"] for one in shown]
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
        found = [page.run(SIDES)]
        for _ in range(2):
            press(page, "ArrowDown")
            found.append(page.run(SIDES))
        return found

    first = order("1")
    assert order("1") == first
    others = [order(str(number)) for number in range(2, 5)]
    assert len({str(one) for one in (first, *others)}) == 4
    lefts = {one[0] for questions in (first, *others) for one in questions}
    assert len(lefts) > 5  # pictures of a pair are on either side


def test_a_rater_goes_on_after_closing_the_page(
    page: Page, folders: dict[str, Path], saved: Path
) -> None:
    path = folders["pairs"] / "rate.html"
    start(page, path, "ben")
    press(page, "ArrowLeft")
    press(page, "2")
    place = page.run(SIDES)
    page.open(path)
    assert page.run("document.getElementById('known').textContent") == "Go on as ben"
    page.run("document.querySelector('#known button').click()")
    assert page.run(COUNT) == "2 of 6"
    assert page.run(SIDES) == place
    part = download(page, saved, "save")
    assert not json.loads(part.read_text())["complete"]
    page.run("localStorage.clear()")  # another browser
    page.open(path)
    page.choose_file("#import", part)
    page.wait(f"{SHOWN} === 'question'")
    assert page.run(SIDES) == place
    assert page.run(COUNT) == "2 of 6"


def test_answers_can_be_changed(page: Page, folders: dict[str, Path], saved: Path) -> None:
    start(page, folders["pairs"] / "rate.html", "cy")
    first = page.run(SIDES)
    press(page, "ArrowLeft")
    press(page, "Backspace")
    assert page.run(SIDES) == first
    assert page.run("document.querySelector('.chosen').dataset.id") == first[0]
    press(page, "ArrowDown")
    press(page, "Backspace")
    assert page.run("document.getElementById('equal').classList.contains('main')")
    page.run("document.querySelectorAll('.choose')[1].click()")
    page.wait(f"{COUNT} === '1 of 6' && {SIDES}[0] !== '{first[0]}'")
    (one,) = json.loads(download(page, saved, "save").read_text())["answers"]
    assert (one["choice"], one["left"], one["repeat"]) == (first[1], first[0], False)
    assert one["seconds"] >= 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "This file is damaged."),
        ("[]", "This file holds no answers."),
        ('{"format": "imageprompt-ratings", "study": "x"}', "These answers are of another page."),
    ],
)
def test_a_file_that_does_not_belong_is_told(
    text: str, message: str, page: Page, folders: dict[str, Path], tmp_path: Path
) -> None:
    page.open(folders["pairs"] / "rate.html")
    (tmp_path / "x.json").write_text(text)
    page.choose_file("#import", tmp_path / "x.json")
    page.wait("!document.getElementById('notice').hidden")
    assert page.run("document.getElementById('notice').textContent") == message
    assert page.run(SHOWN) == "welcome"


def test_scales_are_rated_by_digits(page: Page, folders: dict[str, Path], saved: Path) -> None:
    folder = folders["scales"]
    start(page, folder / "rate.html", "dana")
    assert page.run("document.querySelectorAll('fieldset').length") == 4
    assert page.run("document.querySelector('fieldset').textContent").startswith("Content Does")
    key = json.loads((folder / KEY).read_text())
    while page.run(SHOWN) == "question":
        assert page.run("document.getElementById('next').disabled")
        page.press("Enter")  # does nothing yet
        page.press("1", "2", "9", "3", "5")
        assert not page.run("document.getElementById('next').disabled")
        press(page, "Enter")
    path = download(page, saved, "save-all")
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
    assert page.run("document.getElementById('text').textContent").startswith("a <b>")
    assert page.run("document.querySelectorAll('#text *').length") == 0
    page.open(folders["pairs"] / "rate.html")
    assert "<img" in page.run("document.getElementById('known').textContent")
    assert page.run("document.querySelectorAll('#known img').length") == 0


def test_pictures_beside_the_page(page: Page, folders: dict[str, Path]) -> None:
    start(page, folders["folder"] / "rate" / "index.html", "eve")
    page.wait("[...document.querySelectorAll('#question img')].every(one => one.naturalWidth)")
    assert page.run("document.querySelectorAll('#question img').length") == 3


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_needs_no_scrolling_sideways(
    dark: bool, page: Page, folders: dict[str, Path]
) -> None:
    """And a picture's card, text and button have colours of the scheme."""
    page.resize(360, 640, dark=dark, mobile=True)
    for mode in ("pairs", "scales"):
        page.open(folders[mode] / "rate.html")
        assert page.run("document.documentElement.scrollWidth") == 360
        start(page, folders[mode] / "rate.html", "fay")
        assert page.run("document.documentElement.scrollWidth") == 360
        action = "equal" if mode == "pairs" else "next"
        box = page.run(f"document.getElementById('{action}').getBoundingClientRect().toJSON()")
        assert box["bottom"] <= 640
    colour = page.run("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(20, 20, 22)" if dark else "rgb(252, 252, 250)")
    page.resize(1100, 800)
