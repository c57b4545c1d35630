"""Several people, each in a region: who goes where, what is seen, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import imageprompt as ip
from face_finder import Analysis, embedding, install, picture
from guides import DOCS, commands
from imageprompt import cli
from imageprompt.core.errors import ImagePromptError
from imageprompt.demo import scenes
from imageprompt.demo.judge import classify
from imageprompt.encoding.face_encoder import FaceEncoder
from tiny_stack import make_pipeline

SCENES = [one for _, one in zip(range(2), scenes.stream("test", seed=5), strict=False)]
COLUMN = np.zeros((64, 128), np.uint8)
COLUMN[:, :64] = 255
LEFT, RIGHT = Image.fromarray(COLUMN), Image.fromarray(255 - COLUMN)


@pytest.fixture(scope="module")
def engine() -> ip.Engine:
    return ip.Engine()


def test_each_is_in_its_own_region(engine: ip.Engine) -> None:
    people = [scenes.draw(one) for one in SCENES]
    options: dict[str, Any] = {"steps": 6, "engine": engine, "progress": False}
    made = ip.workflows.people(person=people, prompt="a shape", **options)
    assert made.measured["own_region"] >= 0.8
    assert made.measured["other_region"] <= 0.2
    assert made.images[0].size == (128, 64)
    assert made.cost["generated"] == 3  # all together, then each region alone
    swapped = ip.workflows.people(
        person=people, order=[1, 0], region=[LEFT, RIGHT], refine=0.8, prompt="a shape", **options
    )
    sides = [swapped.images[0].crop((x, 0, x + 64, 64)) for x in (0, 64)]
    backgrounds = [words["background"] for words in classify(sides)]
    assert backgrounds == [SCENES[1].background, SCENES[0].background]
    # regions that are given from right to left: the first person is on the left
    placed = ip.workflows.people(
        person=people, region=[RIGHT, LEFT], refine=0, prompt="a shape", **options
    )
    left = classify([placed.images[0].crop((0, 0, 64, 64))])[0]
    assert left["background"] == SCENES[0].background


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "one person": ({"person": "a.png"}, "1 people: this workflow takes 2 to 8"),
    "nobody": ({}, "0 people"),
    "a black region": ({"region": ["black.png", "left.png"]}, "nothing in it is white"),
    "a region everywhere": ({"region": ["left.png", "white.png"]}, "covers everything"),
    "regions in one place": ({"region": ["left.png", "left.png"]}, "shares 100% of its area"),
    "too few regions": ({"region": ["left.png"]}, "1 regions for 2 people"),
    "no such person": ({"order": [0, 2]}, "there is no person 2"),
    "order in words": ({"order": "first"}, "not position, nor"),
    "embeddings for pictures": ({"person": None, "embedding": ["two.npy"]}, "it reads pictures"),
    "faces of whole pictures": ({"face": "all"}, "a model pack finds the faces"),
    "no such face": ({"face": "smallest"}, "neither largest nor all"),
    "narrow embeddings": ({"person": None, "embedding": ["narrow.npy"]}, r"not \[512\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(
    name: str, tiny_bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file, scene in zip("ab", SCENES, strict=True):
        scenes.draw(scene).save(f"{file}.png")
    LEFT.save("left.png")
    Image.new("L", (128, 64), 0).save("black.png")
    Image.new("L", (128, 64), 255).save("white.png")
    np.save("two.npy", np.stack([embedding("red"), embedding("blue")]) / 20)
    np.save("narrow.npy", np.ones(511, np.float32))
    changes, message = REFUSED[name]
    given = {"person": ["a.png", "b.png"]} if name != "nobody" else {}
    with pytest.raises(ImagePromptError, match=message) as error:
        ip.workflows.people(**{**given, **changes}, progress=False)
    assert "\n" not in str(error.value)


def test_faces_of_one_picture_and_a_second_recogniser(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    torch.manual_seed(0)
    adapter = ip.Adapter.create("faceid", denoiser=make_pipeline().unet, encoder=None)
    adapter.save(tmp_path / "faceid.safetensors")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "rec.onnx").write_bytes(b"weights")
    # the larger face, with index 0, is on the right
    picture(red=(10, 10, 30, 40), blue=(50, 20, 90, 70)).save(tmp_path / "two.png")
    options: dict[str, Any] = {"base": tiny_folder, "adapter": tmp_path / "faceid.safetensors"}
    options |= {"steps": 2, "size": (32, 16), "refine": 0, "progress": False}
    seen = FaceEncoder(Analysis())
    pack = tmp_path / "pack"
    made = ip.workflows.people(
        person=tmp_path / "two.png", face="all", faces=pack, recogniser=seen, **options
    )
    assert [label.rpartition(" ")[2] for label, _ in made.shown] == ["1", "0"]  # left to right
    assert made.measured["assigned"] == 0  # a random base shows no faces
    assert made.measured["own_similarity"] is None
    with pytest.raises(ImagePromptError, match="it is the pack that the adapter reads"):
        ip.workflows.people(
            person=tmp_path / "two.png", face="all", faces=pack, recogniser=pack, **options
        )
    np.save(tmp_path / "two.npy", np.stack([embedding("red"), embedding("blue")]) / 20)
    made = ip.workflows.people(embedding=tmp_path / "two.npy", **options)
    assert len(made.images) == 1
    assert any("nothing was measured: give --recogniser" in one for one in made.notes)


def test_random_embeddings_go_where_position_and_order_say(
    tiny_folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    adapter = ip.Adapter.create("faceid", denoiser=make_pipeline().unet, encoder=None)
    adapter.save(tmp_path / "faceid.safetensors")
    rows = np.random.default_rng(3).normal(size=(2, 512)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    files = {name: tmp_path / f"{name}.npy" for name in ("two", "swapped", "twice")}
    for path, found in zip(files.values(), (rows, rows[::-1], rows[[0, 0]]), strict=True):
        np.save(path, found)
    options: dict[str, Any] = {"base": tiny_folder, "steps": 2, "size": (32, 16)}
    options |= {"adapter": tmp_path / "faceid.safetensors", "scale": 2.0, "progress": False}

    def made(name: str, **more: Any) -> Any:
        found = ip.workflows.people(embedding=files[name], **{"refine": 0, **options, **more})
        return np.asarray(found.images[0], np.int16)

    plain = made("two")
    assert np.array_equal(made("two", order=[1, 0]), made("swapped"))
    half = Image.fromarray(np.repeat(np.uint8([[255, 0]]), 16, 1).repeat(16, 0))
    other = Image.fromarray(255 - np.asarray(half))
    assert np.array_equal(made("swapped", region=[other, half], order=[0, 1]), plain)
    assert not np.array_equal(made("twice"), plain)
    assert made("two", refine=0.5).shape == plain.shape
    checked = ip.workflows.people(
        embedding=files["two"], refine=0, recogniser=FaceEncoder(Analysis()), **options
    )
    assert any("a second recogniser needs pictures" in one for one in checked.notes)


def test_the_second_recogniser_tells_who_is_where() -> None:
    from imageprompt.evaluation.extractors.face import Faces
    from imageprompt.workflows.people import Person, _recognised

    boxes = {"red": (8, 12, 52, 68), "blue": (104, 12, 148, 68)}
    both = Image.new("RGB", (192, 80), (90, 90, 90))
    for name, box in boxes.items():
        both.paste({"red": (255, 0, 0), "blue": (0, 0, 255)}[name], box)
    masks = [np.zeros((80, 192), np.float32) for _ in boxes]
    masks[0][:, :96], masks[1][:, 96:] = 1, 1
    one, two = (Person(name, picture(**{name: (10, 10, 60, 70)})) for name in boxes)
    faces = Faces("stand-in", FaceEncoder(Analysis()))
    right = _recognised(faces, [(0, one), (1, two)], masks, both)
    assert right["assigned"] == 1
    assert right["own_similarity"] == pytest.approx(1)
    assert right["other_similarity"] < 0.5
    assert _recognised(faces, [(1, two), (0, one)], masks, both)["assigned"] == 0


def test_the_command(tiny_bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file, scene in zip("ab", SCENES, strict=True):
        scenes.draw(scene).save(f"{file}.png")
    line = "workflow run people --person a.png --person b.png --steps 2"
    assert cli.main([*line.split(), "--order", "1,0", "--output", "out"]) == 0
    assert Path("out/0001-sheet.png").is_file()
    assert cli.main([*line.split(), "--order", "left", "--output", "none"]) == 2
    assert not Path("none").exists()


def test_the_guide(tiny_bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, scene in zip(("anna", "ben"), SCENES, strict=True):
        scenes.draw(scene).save(f"{name}.png")
    for number, command in enumerate(commands(DOCS / "workflows" / "people.md")):
        assert cli.main([*command, "--steps", "2"]) == 0
        assert len(list(Path("pictures").glob("*-sheet.png"))) == number + 1
