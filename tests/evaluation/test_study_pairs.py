"""A pair of adapters in a study: each picture is measured against both of its references."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import imageprompt as ip
from imageprompt import cli
from imageprompt.adapter.pair import AdapterPair
from imageprompt.core.errors import ImagePromptError, OptionError
from imageprompt.demo.scenes import ATTRIBUTES
from imageprompt.evaluation.metrics import METRICS
from imageprompt.evaluation.settings import mean_of
from imageprompt.evaluation.study import run
from imageprompt.evaluation.study.config import StudyConfig
from imageprompt.evaluation.study.run import Study, evaluate
from imageprompt.loading.recipe import read_picture

COUNT = 3


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is tested elsewhere."""
    monkeypatch.setattr(run, "_write_report", lambda folder: folder / "report.html")


@pytest.fixture(scope="module")
def study(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A study of a pair whose two adapters differ, and of an ordinary adapter."""
    top = tmp_path_factory.mktemp("pairs")
    plus = tiny_folder / "adapters" / "plus.safetensors"
    pair = AdapterPair(ip.Adapter.load(plus), ip.Adapter.load(plus))
    with torch.no_grad():
        for weight in pair.style.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    pair.save(top / "both.safetensors")
    (top / "photos").mkdir()
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        picture = Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8))
        picture.save(top / "photos" / f"{index}.png")
    return {
        "base": str(tiny_folder),
        "references": str(top / "photos"),
        "adapters": [str(top / "both.safetensors"), "plus"],
        "scales": [0.5, 1.0],
        "prompts": ["a star", ""],
        "steps": 1,
    }


@pytest.fixture(scope="module")
def finished(study: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_write_report", lambda folder: folder / "report.html")
        evaluate(study | {"output": str(folder)}, progress=False)
    return folder


def test_a_picture_has_a_line_for_each_of_its_references(finished: Path) -> None:
    results = ip.read_results(finished)
    content, style = (results.where(adapter=f"both, {part}") for part in ("content", "style"))
    assert len(content) == len(style) == COUNT * 2 * 2
    assert content.picture.distinct() == style.picture.distinct()
    assert {Path(name).parent.name for name in content.picture.distinct()} == {"both-0.5", "both-1"}
    for row in range(len(content)):
        made = read_picture(content.picture_path(row))[0].references
        assert [one.adapter.name.rpartition("#")[2] for one in made] == ["content", "style"]
        read = [one.pictures[0].hash for one in made]
        stated = [str(one.hashes["reference"][row]) for one in (content, style)]
        assert [one[: len(stated[0])] for one in read] == stated
        assert read[0] != read[1]
    assert sorted(style.reference.distinct()) == sorted(content.reference.distinct())
    assert "layout" in results.metrics  # of a base without a judge
    assert np.isfinite(results.metrics["layout"]).all()


def test_pictures_are_made_once(study: dict[str, Any], tmp_path: Path) -> None:
    planned = Study(StudyConfig.load(study | {"output": str(tmp_path / "out")})).plan
    rows = [row for chunk in planned.chunks() for row in chunk]
    assert len(rows) == len(planned)
    made = [row.picture for row in rows if row.new and row.row != "ceiling"]
    assert len(made) == len({*made}) == planned.pictures == 2 + 2 * 2 * COUNT * 2


def test_a_finished_study_goes_on_unchanged(study: dict[str, Any], finished: Path) -> None:
    before = (finished / "results.jsonl").read_bytes()
    result = evaluate(study | {"output": str(finished)}, progress=False)
    assert (finished / "results.jsonl").read_bytes() == before
    parts = [row.get("part") for row in result.summary if row["row"] == "adapter"]
    assert parts == ["content", "content", "style", "style", None, None]
    assert not any("both" in line for line in result.conclusions)


def test_one_axis_alone(study: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    """The pictures are the same, made with both, and measured against one reference."""
    entry = {"adapter": study["adapters"][0], "part": "style", "name": "look"}
    changes = {"adapters": [entry], "scales": [1.0], "output": str(tmp_path / "out")}
    evaluate(study | changes, progress=False)
    alone, whole = ip.read_results(tmp_path / "out"), ip.read_results(finished)
    whole = whole.where(adapter="both, style", scale=1.0)
    alone = alone.where(row="adapter")
    assert [*alone.hashes["picture"]] == [*whole.hashes["picture"]]
    for name, values in alone.metrics.items():
        assert np.array_equal(values, whole.metrics[name], equal_nan=True)


def test_content_is_not_compared_with_style(finished: Path) -> None:
    results = ip.read_results(finished).where(scale=1.0)
    content, style, plus = (
        results.where(adapter=name) for name in ("both, content", "both, style", "plus")
    )
    for other, told in ((style, "the style of a pair"), (plus, "a single adapter")):
        with pytest.raises(OptionError, match=f"the content of a pair and {told}: not comparable"):
            ip.compare(content, other)
    ip.compare(content, ip.read_results(finished).where(adapter="both, content", scale=0.5))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "one reference": ({"references": "0.png"}, "one reference for a pair of adapters: content and"),
    "a preset": ({"preset": "style"}, "preset 'style' with a pair of adapters"),
    "half of a single adapter": (
        {"adapters": [{"adapter": "plus", "part": "style"}]},
        "holds no pair of adapters",
    ),
    "no such part": ({"adapters": [{"adapter": "plus", "part": "colour"}]}, "part"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, study: dict[str, Any], tmp_path: Path) -> None:
    changes, told = REFUSED[name]
    if "references" in changes:
        changes = {"references": str(Path(study["references"]) / changes["references"])}
    with pytest.raises(ImagePromptError, match=told) as caught:
        evaluate(study | changes | {"output": str(tmp_path / "out")}, progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "pictures").exists()


def test_a_protocol_has_one_reference_a_case(study: dict[str, Any], tmp_path: Path) -> None:
    keys = {"base": study["base"], "adapters": study["adapters"], "output": str(tmp_path / "out")}
    with pytest.raises(OptionError, match="protocol dreambench with a pair of adapters"):
        evaluate(keys | {"protocol": "dreambench", "data": str(tmp_path)}, progress=False)


def test_tune_takes_one_of_them(study: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    pair = study["adapters"][0]
    flags = ["--base", study["base"], "--references", study["references"], "--adapter", pair]
    assert cli.main(["tune", *flags]) != 0
    error = capsys.readouterr().err
    assert "holds a pair of adapters, with a scale each" in error
    assert f"{pair}#content or {pair}#style" in error


def test_the_command(
    study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--base", study["base"], "--references", study["references"], "--steps", "1"]
    flags += [
        "--adapter",
        f"mine={study['adapters'][0]}",
        "--scales",
        "1",
        "--metric",
        "lab,layout",
    ]
    assert cli.main(["evaluate", *flags, "--output", str(tmp_path / "out"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["summary"]
    found = {row["adapter"]: row["metrics"]["lab"] for row in rows if row["row"] == "adapter"}
    assert found.keys() == {"mine, content", "mine, style"}
    assert found["mine, content"]["value"] != found["mine, style"]["value"]
    assert all(one["n"] == COUNT for one in found.values())


def test_the_metrics_of_the_axes() -> None:
    """Rows of words in the order of ATTRIBUTES."""
    assert ATTRIBUTES[:4] == ("shape", "colour", "texture", "background")
    reference = np.array([[1, 2, 3, 4, 5]] * 4, np.float32)
    pictures = np.array(
        [[1, 0, 0, 0, 0], [0, 2, 3, 4, 5], [1, 2, 0, 4, 0], [np.nan] * 5], np.float32
    )
    shape, look = (METRICS[name].compare(pictures, reference) for name in ("shape", "look"))
    assert np.array_equal(shape, [1, 0, 1, np.nan], equal_nan=True)
    assert np.allclose(look, [0, 1, 2 / 3, np.nan], equal_nan=True)


def test_a_share_without_exception_is_not_certain() -> None:
    """Wilson's interval for 96 of 96; with Student's quantile, so a little wider."""
    mean = mean_of(np.ones(96), np.arange(96), 0, 1)
    assert (mean.value, mean.interval.high) == (1, 1)
    assert mean.interval.low == pytest.approx(0.9605, abs=5e-4)
    assert mean_of(np.zeros(96), np.arange(96), 0, 1).interval.high == pytest.approx(
        1 - mean.interval.low
    )
    assert mean_of(np.ones(96), np.arange(96)).interval.low == 1  # of no share


def test_layout_sees_places_and_no_colours() -> None:
    def square(x: int, colour: str, size: int = 64) -> Any:
        picture = Image.new("RGB", (size, size), "white")
        picture.paste(Image.new("RGB", (size // 4, size // 4), colour), (x, size // 4))
        return np.asarray(picture)

    compare = METRICS["layout"].compare
    assert compare(square(8, "red"), square(8, "red")) == pytest.approx(0, abs=1e-9)
    assert compare(square(8, "red"), square(8, "blue")) < 0.05
    assert compare(square(16, "red", 128), square(8, "red")) < 0.1
    assert compare(square(40, "red"), square(8, "red")) > 0.8
