"""Words of strength: parsed, calibrated, kept in the library, and used by the workflow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import imageprompt as ip
from guides import DOCS, commands
from imageprompt import cli
from imageprompt.core.errors import EncoderError, ImagePromptError, OptionError
from imageprompt.demo import scenes
from imageprompt.library import Library
from imageprompt.library.encoder_setup import load_with_encoder
from imageprompt.workflows.concept import calibration
from imageprompt.workflows.concept.phrase import LADDER, parse

NAMES: dict[str, tuple[str, ...]] = {
    "watercolour": ("paint", "wet"),
    "ukiyo-e": ("japan",),
    "ink": ("paint",),
    "black and white": (),
    "水彩": (),
    "浮世绘": (),
    "Öl": (),
}

PHRASES: dict[str, list[tuple[str, float]]] = {
    "strongly watercolour, a hint of ukiyo-e": [("watercolour", 1.0), ("ukiyo-e", 0.25)],
    "30% ink and without ukiyo-e": [("ink", 0.3), ("ukiyo-e", 0)],
    "Watercolour": [("watercolour", 0.7)],
    "watercolour, a bit more": [("watercolour", 0.875)],
    "strongly ink, more ink": [("ink", 1.2)],
    "less wet": [("watercolour", 0.56)],
    "half ink; japan 40 percent": [("ink", 0.5), ("ukiyo-e", 0.4)],
    "ein Hauch von ukiyo-e und stark öl": [("ukiyo-e", 0.25), ("Öl", 1.0)],
    "ohne ink, deutlich watercolour": [("ink", 0), ("watercolour", 0.85)],
    "强烈水彩，一点点浮世绘": [("水彩", 1.0), ("浮世绘", 0.25)],  # noqa: RUF001
    "不要水彩和30％浮世绘": [("水彩", 0), ("浮世绘", 0.3)],  # noqa: RUF001
    "浮世绘强一点": [("浮世绘", 0.875)],
    "百分之30水彩": [("水彩", 0.3)],
    "clearly black and white and slightly ink": [("black and white", 0.85), ("ink", 0.45)],
    "in the style of ukiyo-e": [("ukiyo-e", 0.7)],
    "only ink, without ukiyo-e": [("ink", 1.2), ("ukiyo-e", 0)],
}

REFUSED = {
    "strongli ink": "Did you mean 'strongly'",
    "strongly watercolr": "Did you mean 'watercolour'",
    "more blue": "not in the library",
    "paint": "tag of 2 styles: ink, watercolour",
    "ink, strongly ink": "contradict",
    "without ink, more ink": "contradict",
    "only ink, a hint of ukiyo-e": "contradict",
    "without ink": "no style at all",
    "0 % ink": "no style at all",
    "200% ink": "more than 120 %",
    "not very ink": "not known here",
    "": "not a printable text",
    "ink" * 300: "not a printable text",
    "\x1b[2Jink": "not a printable text",
}


@pytest.mark.parametrize("phrase", PHRASES)
def test_phrases(phrase: str) -> None:
    assert [(one.style, one.strength) for one in parse(phrase, NAMES)] == PHRASES[phrase]


@pytest.mark.parametrize("phrase", REFUSED)
def test_what_is_refused(phrase: str) -> None:
    with pytest.raises(OptionError, match=REFUSED[phrase]) as error:
        parse(phrase, NAMES)
    assert "\n" not in str(error.value)


def test_the_ladder_rises() -> None:
    found = [parse(f"{word} ink, wet", NAMES)[0].strength for word in LADDER]
    assert found == sorted(set(found))
    assert (found[0], found[-1]) == (0, 1.2)


def test_a_curve_spaces_strengths_evenly() -> None:
    facts: dict[str, Any] = {"prompt": "", "styles": 1, "pictures": 3}
    curve = calibration.curve_of((0, 0.2, 0.6, 1.0, 1.3), (0.1, 0.3, 0.25, 0.5, 0.5), **facts)
    assert curve.scales == [0, 0.2, 1.0]  # it rises, up to where it is saturated
    assert [curve.scale(one) for one in (0, 0.3, 0.6, 1.2)] == [0, 0.1, 0.2, 1.0]
    assert calibration.Curve.of(json.loads(json.dumps(vars(curve)))) == curve.of(vars(curve))
    with pytest.raises(OptionError, match="no nearer to the styles at any scale"):
        calibration.curve_of((0, 0.5), (0.4, 0.41), **facts)


def test_curves_of_strangers_are_checked() -> None:
    sound = {"scales": [0, 1], "scores": [0, 1], "cosines": [0, 1]}
    sound |= {"prompt": "", "styles": 1, "pictures": 2}
    assert calibration.Curve.of(sound) is not None
    bad: list[dict[str, Any]] = [
        {"scales": [0, 1, 2]},
        {"scales": [0, 9]},
        {"scores": [1, 0]},
        {"scores": [0, float("nan")]},
        {"cosines": "ab"},
        {"other": 1},
    ]
    assert [calibration.Curve.of(sound | one) for one in bad] == [None] * len(bad)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    found, loaded = Library(tmp_path_factory.mktemp("styles")), load_with_encoder()
    for name, scene in zip(("oil", "ukiyo-e"), scenes.stream("test", seed=5), strict=False):
        found.add(
            name, loaded.adapter, scenes.draw(scene), tags=[f"t{name}"], made_with=loaded.made_with
        )
    return found


def test_words_are_calibrated_once(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SCALES", (0.3, 0.8))
    monkeypatch.setattr(calibration, "SEEDS", 1)
    before = library.show("oil")
    options: dict[str, Any] = {"prompt": "a star", "library": library.folder, "steps": 3}
    options |= {"num_images": 1, "engine": ip.Engine(), "progress": False}
    style = "strongly oil, a hint of ukiyo-e"

    plain = ip.workflows.concept(style=style, **options)
    assert [one["scale"] for one in plain.measured["words"]] == [1, 0.25]
    assert not plain.measured["calibrated"]
    assert any("--calibrate samples 5 pictures" in one for one in plain.notes)
    labels = ["as said", "weaker", "stronger", "more oil", "more ukiyo-e"]
    assert [one.label for one in plain.pictures] == [f"{one}, seed 1" for one in labels]
    assert plain.measured["style_oil"] > plain.measured["style_oil_text_alone"]
    assert plain.measured["switch_ms"] > 0
    assert len(plain.checks) == 2  # the thumbnails of both styles

    first = ip.workflows.concept(style=style, calibrate=True, **options)
    again = ip.workflows.concept(style=style, **options)
    assert first.cost["generated"] == again.cost["generated"] + 5
    scales = [one["scale"] for one in again.measured["words"]]
    assert scales == [one["scale"] for one in first.measured["words"]] != [1, 0.25]
    assert "strongly oil: strength 1" in "\n".join(again.notes)
    after = library.show("oil")
    assert (after.hash, after.tags) == (before.hash, before.tags)
    assert cli.main(["library", "show", "oil", "--library", str(library.folder)]) == 0


def test_the_guide(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SCALES", (0.3, 0.8))
    monkeypatch.setattr(calibration, "SEEDS", 1)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(library.folder, "styles")
    for number, command in enumerate(commands(DOCS / "workflows" / "concept.md")):
        assert cli.main([*command, "--steps", "2", "--num-images", "1"]) == 0
        assert len(list(Path("pictures").glob("*-sheet.png"))) == number + 1


def test_what_the_workflow_refuses(
    library: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    for words, folder in (("stongly oil", library.folder), ("oil", tmp_path / "none")):
        line = ["workflow", "run", "concept", "--style", words, "--library", str(folder)]
        assert cli.main([*line, "--output", str(output)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not output.exists()
    options: dict[str, Any] = {"library": library.folder, "progress": False}
    with pytest.raises(OptionError, match="no such preset"):
        ip.workflows.concept(style="oil", preset="styl", **options)
    with pytest.raises(ImagePromptError, match="another encoder made it") as error:
        calibration.encoder_of(  # type: ignore[call-overload]
            _Job(), [library.show("oil"), _of_another_encoder(library.show("ukiyo-e"))]
        )
    assert error.type is EncoderError


class _Job:
    """What the search for an encoder asks of a job."""

    on_bundled_base = False

    class inputs:
        base = adapter = encoder = None

    class engine:
        class loaded:
            name = "bundled"


def _of_another_encoder(style: Any) -> Any:
    from dataclasses import replace

    return replace(style, encoder=replace(style.encoder, hash="0" * 16))
