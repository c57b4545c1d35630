"""A library with a pair of adapters: what is kept for the shape and what for the look, apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import imageprompt as ip
from imageprompt import cli
from imageprompt.core import bundled
from imageprompt.core.errors import ImagePromptError
from imageprompt.demo import scenes
from imageprompt.library import Library

QUICK: dict[str, Any] = {"steps": 1, "seed": 3, "progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    drawn = {}
    for name, scene in zip(("pose", "ink"), scenes.stream("test", seed=5), strict=False):
        drawn[name] = folder / f"{name}.png"
        scenes.draw(scene).save(drawn[name])
    return drawn


@pytest.fixture(scope="module", params=[*bundled.ONE_OBJECT])
def filled(
    request: pytest.FixtureRequest,
    pictures: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path]:
    """A stack, and a library with a content, a style, and a picture of its Plus adapter."""
    folder = tmp_path_factory.mktemp("library")
    made = {"pose": "dual#content", "ink": "dual#style", "all": "plus"}
    for name, adapter in made.items():
        picture = str(pictures["ink" if name == "all" else name])
        flags = ["--adapter", adapter, "--base", request.param, "--library", str(folder)]
        assert cli.main(["library", "add", name, picture, *flags]) == 0
    return request.param, folder


def bits(**arguments: Any) -> bytes:
    return ip.generate(**QUICK, **arguments).images[0].tobytes()


def test_names_stand_for_the_pictures(
    filled: tuple[str, Path], pictures: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, folder = filled
    more = {"base": base, "library": folder}
    wanted = bits(content=pictures["pose"], style=pictures["ink"], base=base)
    assert bits(content="pose", style="ink", **more) == wanted
    assert bits(content=["pose"], style=pictures["ink"], **more) == wanted
    assert bits(content=pictures["pose"], style="ink", **more) == wanted
    alone = bits(content=pictures["pose"], base=base)
    assert bits(content="pose", **more) == bits(style="pose", **more) == alone != wanted


def test_a_recipe_repeats_it(filled: tuple[str, Path], tmp_path: Path) -> None:
    base, folder = filled
    made = ip.generate(content="pose", style="ink", base=base, library=folder, **QUICK)
    path = made.save(tmp_path)[0]
    again = ip.repeat(path, library=tmp_path / "none", progress=False)
    assert again.images[0].tobytes() == made.images[0].tobytes()


def test_the_list_tells_them_apart(
    filled: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = filled
    capsys.readouterr()
    assert cli.main(["library", "list", "--library", str(folder), "--json"]) == 0
    found = {one["name"]: one["part"] for one in json.loads(capsys.readouterr().out)}
    assert found == {"pose": "content", "ink": "style", "all": None}
    assert cli.main(["library", "list", "--library", str(folder)]) == 0
    assert "plus, content" in capsys.readouterr().out


def test_an_exported_style_keeps_its_part(filled: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = filled
    file = Library(folder).export("pose", tmp_path / "pose.safetensors")
    assert Library(tmp_path / "other").import_(file, "stance").part == "content"


REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "content as style": ({"content": "pose", "style": "pose"}, "--style pose: .* content adapter"),
    "style as content": ({"content": "ink"}, "--content ink: .* style adapter.* as --style"),
    "all of a picture as content": ({"content": "all", "style": "ink"}, "by a single adapter"),
    "no such name": ({"content": "stance"}, "stance"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_two_readings_are_refused(name: str, filled: tuple[str, Path]) -> None:
    base, folder = filled
    names, told = REFUSED[name]
    with pytest.raises(ImagePromptError, match=told) as caught:
        bits(base=base, library=folder, **names)
    assert "\n" not in str(caught.value)


def test_content_and_style_have_no_mean(
    filled: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = filled
    names = ["pose", "ink", "--as", "both", "--library", str(folder)]
    assert cli.main(["library", "mix", *names]) != 0
    assert "made with different adapters (dual#content" in capsys.readouterr().err
    assert "both" not in Library(folder).names()


def test_a_pair_needs_one_of_its_names(
    filled: tuple[str, Path], pictures: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    base, folder = filled
    flags = ["--adapter", "dual", "--base", base, "--library", str(folder)]
    assert cli.main(["library", "add", "both", str(pictures["ink"]), *flags]) != 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "dual.safetensors#content or dual.safetensors#style" in error


def test_what_a_style_of_one_adapter_is_beside_content(filled: tuple[str, Path]) -> None:
    """One that takes all of a picture may stand beside a content picture, as before."""
    base, folder = filled
    picture = Image.new("RGB", (64, 64), "red")
    assert bits(content=picture, style="all", base=base, library=folder)
