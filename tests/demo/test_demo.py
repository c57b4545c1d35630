"""`imageprompt demo`: files, figures and recipes, from a stack of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from imageprompt.core import bundled
from imageprompt.core.errors import OptionError
from imageprompt.demo import judge, scenes, showcase, worlds


class Oracle:
    """Stands in for the judge: sees a red plain solid square on blue in every picture."""

    LABELS = scenes.Scene("square", "red", "solid", "blue", "plain").words()

    @classmethod
    def classify(cls, pictures: list[Image.Image]) -> list[dict[str, str]]:
        return [dict(cls.LABELS) for _ in pictures]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shown") / "demo"


@pytest.fixture(scope="module")
def report(tiny_folder: Path, folder: Path) -> dict[str, object]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled, "folder", lambda _=bundled.NAME: tiny_folder)
        patch.setattr(judge, "classify", Oracle.classify)
        patch.setattr(bundled, "STEPS", 4)
        return showcase.run(folder, seed=3, count=2, progress=False)


def test_a_run_leaves_sheet_pictures_and_recipe(
    report: dict[str, object], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Image.open(folder / "contact-sheet.png") as sheet:
        assert min(sheet.size) > 400
    written = json.loads((folder / "recipe.json").read_text())
    assert written == json.loads(json.dumps(report))
    for row in written["rows"]:
        assert (folder / row["reference"]).is_file()
        pictures = [path for paths in row["pictures"].values() for path in paths]
        assert len(set(pictures)) >= 4
        assert all((folder / path).is_file() for path in pictures)
        scene = scenes.Scene(**row["scene"])
        assert scenes.draw(scene).tobytes() == Image.open(folder / row["reference"]).tobytes()


def test_figures_are_counted_correctly(report: dict[str, object]) -> None:
    rows = report["rows"]
    assert isinstance(rows, list)
    expected = {
        name: round(sum(row["scene"][name] == Oracle.LABELS[name] for row in rows) / 2, 3)
        for name in scenes.ATTRIBUTES
    }
    assert report["match"] == {"words": expected, "picture": expected}


def test_references_are_held_out_and_texts_contradict_them(report: dict[str, object]) -> None:
    rows = report["rows"]
    assert isinstance(rows, list)
    for row, name in zip(rows, worlds.OVERRIDES, strict=False):
        assert row["scene"][name] not in row["text"].split()


@pytest.mark.usefixtures("report", "tiny_bundled")
def test_the_same_seed_makes_the_same_pictures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "classify", Oracle.classify)
    monkeypatch.setattr(bundled, "STEPS", 4)
    showcase.run(tmp_path / "again", seed=3, count=2, progress=False)
    sheets = [place / "contact-sheet.png" for place in (folder, tmp_path / "again")]
    assert sheets[0].read_bytes() == sheets[1].read_bytes()


def test_json_is_all_that_is_printed(
    tiny_bundled: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(judge, "classify", Oracle.classify)
    monkeypatch.setattr(bundled, "STEPS", 4)
    made = showcase.run(tmp_path, count=1, json=True, progress=False)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(made))


def test_impossible_requests_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="count 0"):
        showcase.run(tmp_path / "demo", count=0)
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="is a file"):
        showcase.run(tmp_path / "file" / "demo")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
