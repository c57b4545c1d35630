"""The page of a study: what it says, that it is whole without a network, and how large it gets."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from imageprompt.core.errors import OptionError
from imageprompt.evaluation.balance import Axes, balance, pareto
from imageprompt.evaluation.comparability import within
from imageprompt.evaluation.report import write_report
from imageprompt.evaluation.settings import Front, settings_of
from imageprompt.evaluation.study.results import read_results
from studies import Line, line, sweep, write_study

VOID = {"meta", "link", "img", "br", "path"}


class Page(HTMLParser):
    """Text, tags that are left open, addresses, and pictures of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.pictures: list[str] = []
        self.ids: list[str] = []
        self.said: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.said).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.addresses += [found[name] for name in ("src", "href", "xlink:href") if name in found]
        self.ids += [found["id"]] if "id" in found else []
        if tag == "img" and found["src"].startswith("data:image"):
            self.pictures.append(found["alt"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.said.append(data)


def _page(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("report") / "study", [*sweep()], pictures=64)


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return _page(folder)


# ── the axes ────────────────────────────────────────────────────────────────────────────────────


def test_front_and_knee() -> None:
    likeness = [0.1, 0.5, 0.6, 0.55, 0.7]
    text = [0.9, 0.88, 0.7, 0.65, 0.2]
    assert pareto(likeness, text).tolist() == [True, True, True, False, True]
    assert pareto([0.5, 0.5], [0.5, 0.5]).tolist() == [True, True]  # equal ones beat nobody
    assert pareto([np.nan, 0.5], [0.9, 0.5]).tolist() == [False, True]
    assert int(np.argmax(balance(likeness, text))) == 1
    assert balance([1, 1, 1], [0, 1, 2]).tolist() == [0, 0.5, 1]  # one axis that does not move


def test_the_knee_is_where_text_following_bends(folder: Path) -> None:
    results = read_results(folder)
    settings = settings_of(results)
    axes = Axes.of(results.metrics)
    assert axes == Axes("dino", "clip-t")
    front = Front.of(settings, axes)
    assert {name: settings[i].scale for name, i in front.knees.items()} == {
        "base": 0.5,
        "plus": 0.5,
    }
    on_front = [one.name for one, on in zip(settings, front.on_front, strict=True) if on]
    assert on_front == ["text alone", *(f"plus, scale {scale:g}" for scale in (0.25, 0.5, 0.75, 1))]


def test_axes_by_name(folder: Path) -> None:
    assert Axes.of(["lab", "clip-i", "clip-t"]) == Axes("clip-i", "clip-t")
    assert Axes.of(["lab", "words", "attributes", "dino"]) == Axes("attributes", "words")
    assert Axes.of(["lab", "psnr"]) is None
    with pytest.raises(OptionError, match=r"metric dina: not in this study. Did you mean dino\?"):
        Axes.of(["dino", "clip-t"], "dina")


# ── the page ────────────────────────────────────────────────────────────────────────────────────


def test_every_section_says_its_part(page: Page) -> None:
    text = page.text
    assert "base and plus on bundled" in text
    assert "144 pictures: 8 prompts, 8 references, 2 seeds, scales 0.25, 0.5, 0.75 and 1" in text
    for name in ("text alone", "plus, scale 0.75", "ceiling"):
        assert name in text
    assert re.search(r"plus scale 0\.5 best balance of likeness and text likeness 0\.4\d+", text)
    assert text.count("knee") >= 2
    assert "B better" in text  # plus against base
    assert "Best 12" in text
    assert "Worst 12" in text
    assert "Not measured. Add the metric copying" in text
    assert "own encoder 64 px, bicubic d1n0" in text
    assert "torch 2.13.0" in text
    assert "DreamBooth" in text or "ViT" in text  # the source of DINO
    assert "not finished" not in text
    assert "Not comparable" not in text


def test_the_page_is_whole_without_a_network(page: Page, folder: Path) -> None:
    assert page.open == []
    outside = [one for one in page.addresses if not one.startswith(("#", "data:"))]
    assert outside == []
    assert not re.search(r"url\((?!#)|@import|https?://", (folder / "report.html").read_text())
    assert len(page.ids) == len(set(page.ids))


def test_pictures_stand_in_the_grid_with_what_they_are(page: Page) -> None:
    # 8 rows of a reference, text alone and 8 settings; 24 extremes beside their references
    assert len(page.pictures) == 8 * 10 + 2 * 24
    assert any("“prompt 3”, plus, scale 0.75, seed 0" in alt for alt in page.pictures)


def test_plots_have_text_and_colours_of_the_page(page: Page, folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    plots = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(plots) == 3 + 2  # balance, two over scale, two distributions
    assert all("<text" in plot for plot in plots)
    assert all("var(--series-1)" in plot for plot in plots)
    colours = {colour for plot in plots for colour in re.findall(r"#[0-9a-f]{6}\b", plot)}
    assert colours == set()


def test_equal_results_give_equal_bytes(page: Page, folder: Path, tmp_path: Path) -> None:
    again = write_study(tmp_path / "study", [*sweep()], pictures=64)
    assert write_report(again).read_bytes() == (folder / "report.html").read_bytes()


def _without(name: str, of: Callable[[Line], bool] = lambda line: True) -> list[Line]:
    lines = [*sweep(prompts=6, seeds=1)]
    for one in lines:
        if of(one):
            one["metrics"].pop(name, None)
    return lines


def test_what_keeps_settings_from_being_compared_is_said(tmp_path: Path) -> None:
    lines = [*sweep(prompts=6, seeds=1)]
    lines[10]["extractors"] = {"dino": "changed", "clip": "c11p"}
    lines[12]["base"] = "another"
    lines[14]["metrics"]["dino"] = None
    del lines[-10]
    results = read_results(write_study(tmp_path, lines))
    problems = within(results, settings_of(results))
    assert [problem.split()[0:3] for problem in problems] == [
        ["the", "dino", "encoder"],
        ["there", "are", "several"],
        ["the", "number", "of"],
        ["dino", "has", "no"],
    ]
    text = _page(tmp_path).text
    assert "Not comparable because" in text
    assert all(problem in text for problem in problems)


def test_a_study_without_an_axis_still_has_a_page(tmp_path: Path) -> None:
    text = _page(write_study(tmp_path, _without("clip-t"))).text
    assert "This needs a metric of likeness, such as dino" in text
    assert "scale 1 the largest: a balance needs a metric of likeness and one of the text" in text


def test_a_study_without_texts_has_no_trade_off(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Without a text, text following has no value anywhere."""
    lines = [one | {"metrics": one["metrics"] | {"clip-t": None}} for one in sweep()]
    page = _page(write_study(tmp_path / "study", lines, pictures=16))
    assert "Numbers are scales" not in page.text
    assert not [one for one in recwarn if issubclass(one.category, RuntimeWarning)]


def test_two_scales_have_no_best_balance(tmp_path: Path) -> None:
    lines = [line(scale=scale, dino=scale, clip_t=1 - scale) for scale in (0.5, 1.0)]
    text = _page(write_study(tmp_path, lines)).text
    assert "scale 1 too few scales for a best balance" in text
    assert "knee" not in text.split("Means with")[0]


def test_what_only_the_study_has(tmp_path: Path) -> None:
    """Metrics of whole sets, a protocol's own figures, and weights that nobody published."""
    folder = write_study(tmp_path, [*sweep(prompts=2, seeds=1)])
    path = folder / "study.json"
    study = json.loads(path.read_text("utf-8"))
    recall = {"value": 0.4321, "interval": [0.4, 0.5], "n": 2}
    study["summary"] = [{"adapter": "plus", "scale": 0.5, "metrics": {"recall": recall}}]
    study["extractors"]["dino"]["name"] = "file.pth (unverified weights)"
    figure = {"name": "DINO", "setting": "plus, scale 0.5", "value": 0.77, "interval": None, "n": 2}
    study["protocol"] = {
        "title": "DreamBench",
        "data": "all 30 subjects",
        "source": "a paper",
        "figures": [figure],
        "published": {"their method": {"DINO": 0.5678}},
        "choices": [{"topic": "seeds", "stated": "not stated", "here": "0 to 3"}],
    }
    path.write_text(json.dumps(study), encoding="utf-8")
    text = _page(folder).text
    assert "0.432 0.400 to 0.500" in text
    assert "file.pth (unverified weights) DINO" in text  # above its column
    assert "DreamBench: all 30 subjects. Source: a paper." in text
    assert "DINO plus, scale 0.5 0.770 2 DINO their method, published 0.568" in text
    assert "seeds not stated 0 to 3" in text


def test_copies_are_listed(tmp_path: Path) -> None:
    lines = [line(prompt=f"p{n}", seed=n, copying=n / 10) for n in range(10)]
    text = _page(write_study(tmp_path, lines, pictures=16)).text
    assert "2 of 10 pictures are copies of their reference (above 0.7), 2 are related" in text
    assert text.index("plus 0.5: 0.900 copy") < text.index("plus 0.5: 0.600 related")


def test_a_picture_that_is_gone_is_named(tmp_path: Path) -> None:
    folder = write_study(tmp_path, [*sweep(prompts=2, seeds=1)], pictures=16)
    (folder / "pictures" / "adapter-plus-0.5-0-0.png").write_bytes(b"no picture")
    text = _page(folder).text
    assert "Pictures that cannot be opened: adapter-plus-0.5-0-0.png: " in text
    assert "cannot be opened" in text


def test_names_of_strangers_are_text(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>$x_'
    lines = [
        line(
            evil,
            scale,
            prompt=evil,
            seed=n,
            reference=f"{n}.png",
            **{evil: 0.5, "dino": n, "clip_t": 1},
        )
        for n in range(3)
        for scale in (0.5, 1.0)
    ]
    for one in lines:
        one["failed"] = {evil: evil}
    folder = write_study(tmp_path, lines)
    text = write_report(folder).read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert Page(text).open == []


def test_no_results_yet(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="has no results yet"):
        write_report(write_study(tmp_path, []))


def test_without_matplotlib_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_study(tmp_path, [*sweep(prompts=2, seeds=1)])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = _page(folder).text
    assert 'pip install "imageprompt[evaluate]"' in text


def test_a_thousand_pictures_stay_below_five_megabytes(tmp_path: Path) -> None:
    """Lines share 16 files, which stand in the page as often; grain makes them large as WebP."""
    lines = [*sweep(prompts=111, seeds=1)]
    for number, one in enumerate(lines):
        one["picture"] = f"{number % 16}.png"
        one["reference"] = f"{len(str(one['prompt']))}-{one['reference'][-5]}.png"
    folder = write_study(tmp_path, lines, pictures=320)
    path = write_report(folder)
    assert len(lines) == 111 * 10
    assert path.read_text(encoding="utf-8").count("data:image/webp") > 600
    assert 2 * 2**20 < path.stat().st_size < 5 * 10**6
