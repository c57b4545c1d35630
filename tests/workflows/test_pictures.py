"""The workflows of pictures, by the command and in Python: files, figures, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import imageprompt as ip
from imageprompt import cli
from imageprompt.demo import scenes
from imageprompt.workflows import WORKFLOWS, _pixels

SCENES = list(zip(range(6), scenes.stream("test", seed=5), strict=False))


@pytest.fixture
def folder(tiny_bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: pictures of scenes, masks, and a fast stack."""
    for index, scene in SCENES:
        scenes.draw(scene).save(tmp_path / f"{index}.png")
        Image.fromarray(scenes.mask(scene)).save(tmp_path / f"mask{index}.png")
    Image.new("L", (64, 64), 0).save(tmp_path / "black.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "white.png")
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "noise.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run_json(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `imageprompt workflow run ... --steps 2` and returns its JSON."""

    def run(line: str) -> Any:
        assert cli.main(["workflow", "run", *line.split(), "--steps", "2", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def opened(path: str | Path) -> Image.Image:
    return Image.open(path).convert("RGB")


RUNS = {
    "product": "product --product 0.png --style 3.png --num-images 2 --output out",
    "product by its mask": "product --product 0.png --mask mask0.png --style 3.png --output out",
    "product, small": "product --product 0.png --style 3.png --width 8 --output out",
    "product, rendered": "product --product 0.png --style 3.png --method render --output out",
    "restyle": "restyle --content 0.png --style 3.png --strengths 0.6,0.9 --output out",
    "restyle by layout": "restyle --content 0.png --style 3.png --method layout --output out",
    "replace": "replace --picture 0.png --mask mask0.png --object 3.png --output out",
    "colourise": "colourise --picture 0.png --colours 3.png --truth 0.png --output out",
    "variations": "variations --picture 0.png --picture 1.png --scales 0.5 --output out",
}


@pytest.mark.parametrize("name", RUNS)
def test_it_runs_and_measures(name: str, folder: Path, run_json: Any) -> None:
    told = run_json(RUNS[name])
    workflow = WORKFLOWS[told["workflow"]]
    assert told["pictures"]
    assert all(Path(one["path"]).is_file() for one in told["pictures"])
    assert Path(told["sheet"]).is_file()
    assert told["cost"]["generated"] == len(told["pictures"])
    assert told["cost"]["denoising_steps"] >= told["cost"]["generated"]
    families = [one.removesuffix("*") for one in workflow.measures if one.endswith("*")]
    for figure in told["measured"]:
        assert figure in workflow.measures or figure.startswith(tuple(families)), figure
    assert told["inputs"]["steps"] == 2


def test_a_kept_product_is_bit_equal(folder: Path, run_json: Any) -> None:
    told = run_json("product --product 0.png --mask mask0.png --style 3.png --size 64 --output out")
    inside = np.asarray(opened("mask0.png"))[..., 0] > 127
    made = np.asarray(opened(told["pictures"][0]["path"]))
    assert np.array_equal(made[inside], np.asarray(opened("0.png"))[inside])
    assert not np.array_equal(made, np.asarray(opened("0.png")))
    assert told["measured"]["product_difference"] == 0


def test_replacing_changes_nothing_outside_in_the_pictures_own_size(
    folder: Path, run_json: Any
) -> None:
    told = run_json(RUNS["replace"])
    old, new = (np.asarray(opened(one)) for one in ("0.png", told["pictures"][0]["path"]))
    assert new.shape == old.shape  # though the base's pictures have 16x16 pixels
    area = np.asarray(Image.open("mask0.png").convert("L").resize((16, 16), Image.Resampling.BOX))
    reach = _pixels.grown((area > 127).astype(np.float32), 3)
    outside = np.asarray(Image.fromarray(reach).resize((64, 64), Image.Resampling.BOX)) == 0
    assert outside.any()
    assert np.array_equal(new[outside], old[outside])
    assert not np.array_equal(new, old)
    assert told["measured"]["outside_difference"] == 0


def test_colourising_keeps_the_lightness_and_shows_the_baseline(
    folder: Path, run_json: Any
) -> None:
    told = run_json(RUNS["colourise"])
    measured = told["measured"]
    assert measured["lightness_error"] < 0.5
    given, made = (opened(one) for one in ("0.png", told["pictures"][0]["path"]))
    assert np.abs(_pixels.lightness(made) - _pixels.lightness(given)).max() < 0.5
    assert measured["grey"]["colourfulness"] < 1 < measured["baseline"]["colourfulness"]
    assert measured["delta_e"] > 0


def test_restyling_is_a_curve_with_the_baseline_beside_it(folder: Path, run_json: Any) -> None:
    measured = run_json(RUNS["restyle"])["measured"]
    assert [row["strength"] for row in measured["curve"]] == [0.6, 0.9]
    assert measured["baseline"]["style_distance"] < measured["content_picture"]["style_distance"]
    assert measured["content_picture"]["content_distance"] == 0


def test_near_copies_are_flagged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from imageprompt.generation.engine import Engine

    engine = Engine()
    original = opened("0.png")
    generate = engine.generate

    def copies(*arguments: Any, **options: Any) -> Any:
        result = generate(*arguments, **options)
        result.images[0] = original
        return result

    monkeypatch.setattr(engine, "generate", copies)
    result = ip.workflows.variations(
        picture="0.png", scales=[0.5, 1.0], num_images=2, steps=1, engine=engine, progress=False
    )
    flags = [one.measured["near_copy"] for one in result.pictures]
    assert flags[0] == flags[2] == "near-copy of the picture"
    assert result.measured["near_copies"] >= 2
    assert any("near-copies" in note for note in result.notes)


# ── refusals ────────────────────────────────────────────────────────────────────────────────────

REFUSED = {
    "no style": ("product --product 0.png", "without --style: it must be given"),
    "one picture twice": ("product --product 0.png --style 0.png", "are the same picture"),
    "no plain background": ("product --product noise.png --style 3.png", "not plain"),
    "empty mask": ("product --product 0.png --style 3.png --mask black.png", "nothing in it"),
    "full mask": ("product --product 0.png --style 3.png --mask white.png", "covers everything"),
    "larger than the frame": (
        "product --product 0.png --style 3.png --width 900",
        "larger than the frame",
    ),
    "no such picture": ("product --product none.png --style 3.png", "no such file"),
    "replace without a mask": ("replace --picture 0.png --object 3.png", "without --mask"),
    "replace, empty mask": ("replace --picture 0.png --object 3.png --mask black.png", "nothing"),
    "replace, full mask": (
        "replace --picture 0.png --object 3.png --mask white.png",
        "covers everything",
    ),
    "replace everything": (
        "replace --picture 0.png --object 3.png --mask mask0.png --grow 64",
        "covers everything",
    ),
    "restyle with one": ("restyle --content 0.png", "without --style"),
    "restyle, same": ("restyle --content 0.png --style 0.png", "are the same picture"),
    "strength": ("restyle --content 0.png --style 1.png --strengths 1.5", "from 0 to 1"),
    "colourise with one": ("colourise --picture 0.png", "without --colours"),
    "truth": ("colourise --picture 0.png --colours 1.png --truth big.png", "the picture has 64x64"),
    "variations of nothing": ("variations", "without --picture"),
    "scales": ("variations --picture 0.png --scales 3", "from 0 to 2"),
    "size": ("variations --picture 0.png --size 17", "multiples of 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_line_and_nothing_is_written(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, words = REFUSED[name]
    Image.new("RGB", (80, 64), "red").save("big.png")
    code = cli.main(["workflow", "run", *line.split(), "--output", "out", "--steps", "2"])
    assert code == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert words in told
    assert not Path("out").exists()
