"""`imageprompt check`: pictures of known damage are told as such; what is told is advice."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

import check as known  # benchmarks/check.py: pictures of known quality and blur
from imageprompt.cli import main
from imageprompt.core.errors import EncoderError
from imageprompt.evaluation.image_quality import blur, jpeg
from imageprompt.evaluation.image_quality.report import PATCH, WHOLE, Check, check, similarities


@pytest.fixture(scope="module")
def leaves() -> list[Image.Image]:
    return [known.leaves(seed, 320, 256) for seed in range(2)]


# ── JPEG ────────────────────────────────────────────────────────────────────────────────────────


def test_tables_tell_every_quality() -> None:
    """libjpeg's own from 1 to 100, exactly; tables of others by the nearest."""
    flat = Image.new("RGB", (16, 16))
    for quality in range(1, 101):
        with Image.open(io.BytesIO(known.saved(flat, quality))) as image:
            assert jpeg.of_tables(image.quantization) == jpeg.Estimate(quality, exact=True)
    near = jpeg.table(80)
    near[5] += 3
    assert jpeg.of_tables({0: near.tolist()}) == jpeg.Estimate(80, exact=False)
    assert jpeg.of_tables({}) is None


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 90])
def test_pixels_tell_the_quality(quality: int, leaves: list[Image.Image]) -> None:
    """Within 1, from a PNG of what a JPEG showed; the file itself tells nothing earlier."""
    for picture in leaves:
        data = known.saved(picture, quality)
        shown = check(known.decoded(data))
        assert shown.jpeg is None
        assert shown.earlier == pytest.approx(quality, abs=1)
        assert (check(data).jpeg, check(data).earlier) == (quality, None)


@pytest.mark.parametrize(("first", "then"), known.TWICE)
def test_a_worse_compression_before(first: int, then: int, leaves: list[Image.Image]) -> None:
    for picture in leaves:
        found = check(known.saved(picture, first, then))
        assert found.jpeg == then
        assert found.earlier == pytest.approx(first, abs=1)
    better = check(known.saved(leaves[0], then, first))  # the later one has hidden it
    assert (better.jpeg, better.earlier) == (first, None)


def test_no_traces_where_there_were_none(leaves: list[Image.Image]) -> None:
    smaller = known.decoded(known.saved(leaves[1], 50)).resize((150, 120), Image.Resampling.LANCZOS)
    flat = Image.new("RGB", (64, 64), "white")
    grain = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))
    for picture in (*leaves, smaller, flat, grain, Image.new("RGB", (8, 9))):
        assert check(picture).earlier is None


def test_a_cut_moves_the_blocks(leaves: list[Image.Image]) -> None:
    cut = known.decoded(known.saved(leaves[0], 30)).crop((3, 5, 310, 250))
    assert check(cut).earlier == pytest.approx(30, abs=1)


# ── blur ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("pixels", [1.0, 2.0, 3.0])
def test_blur_is_measured_in_pixels(pixels: float, leaves: list[Image.Image]) -> None:
    for picture in leaves:
        found = check(known.blurred(picture, pixels)).edge
        assert found == pytest.approx(pixels, rel=0.25)


def test_sharpness_does_not_grow_with_pixels(leaves: list[Image.Image]) -> None:
    """However far a picture is enlarged, it is as sharp as it was."""
    for picture in leaves:
        assert check(picture).sharp_as > 0.85 * min(picture.size)
    for factor in (2, 3):
        found = check(known.enlarged(leaves[0], factor)).sharp_as
        assert found == pytest.approx(min(leaves[0].size), rel=0.15)


def test_what_is_out_of_focus_does_not_count(leaves: list[Image.Image]) -> None:
    """A sharp half is enough."""
    picture = leaves[0].filter(ImageFilter.GaussianBlur(5))
    picture.paste(leaves[0].crop((0, 0, 160, 256)))
    assert check(picture).edge < 0.8


def test_pictures_without_edges() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8)[:, None, None], (1, 64, 3))
    for picture in (Image.new("RGB", (64, 64), "red"), Image.fromarray(ramp)):
        found = check(picture)
        assert (found.edge, found.sharp_as) == (None, None)
    assert blur.edge_width([np.zeros((8, 8))]) is None


def test_patches_of_a_large_picture(leaves: list[Image.Image]) -> None:
    """Nine patches say what all of it would, in bounded time."""
    tile = known.decoded(known.saved(leaves[0], 60))
    large = Image.new("RGB", (tile.width * 8, tile.height * 8))
    for x in range(8):
        for y in range(8):
            large.paste(tile, (x * tile.width, y * tile.height))
    assert large.width * large.height > WHOLE
    assert min(large.size) > 3 * PATCH
    found = check(large)
    assert found.earlier == pytest.approx(60, abs=1)
    assert found.edge == pytest.approx(check(tile).edge, rel=0.2)


# ── shape, transparency, advice ─────────────────────────────────────────────────────────────────


def test_shape_and_transparency(leaves: list[Image.Image], tmp_path: Path) -> None:
    wide = leaves[0].resize((600, 400))
    wide.putalpha(
        Image.fromarray(np.repeat([0, 255], [150, 450]).astype(np.uint8)[None].repeat(400, 0))
    )
    wide.save(tmp_path / "wide.png")
    found = check(tmp_path / "wide.png")
    assert (found.width, found.height) == (600, 400)
    assert found.crop_loses == pytest.approx(1 / 3, abs=1e-3)
    assert found.transparent == 0.25
    advice = " ".join(found.advice())
    for words in ("small: 400 px", "loses 33%", "25% is transparent", "squash"):
        assert words in advice
    exif = Image.Exif()
    exif[274] = 6
    leaves[0].save(tmp_path / "turned.jpg", quality=85, exif=exif)
    turned = check(tmp_path / "turned.jpg")
    assert (turned.width, turned.height, turned.jpeg, turned.earlier) == (256, 320, 85, None)


def _made(**changes: Any) -> Check:
    good = {"picture": "a.png", "width": 800, "height": 800, "jpeg": None, "earlier": None}
    good |= {"edge": 0.5, "sharp_as": 727, "crop_loses": 0.0, "transparent": 0.0}
    return Check(**{**good, **changes})


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({}, None),
        ({"sharp_as": None, "edge": None}, None),
        ({"jpeg": 75}, None),
        ({"jpeg": 74}, "JPEG damage: saved at quality 74"),
        ({"jpeg": 95, "earlier": 49}, "heavy JPEG damage: saved before at quality 49"),
        ({"width": 511}, "small: 511"),
        ({"sharp_as": 400}, "soft: no sharper than a picture of 400 px"),
        ({"width": 300, "sharp_as": 273}, "small: 300"),
        ({"crop_loses": 0.1}, None),
        ({"crop_loses": 0.11}, "not square"),
        ({"transparent": 0.004}, "0% is transparent"),
    ],
)
def test_advice(changes: dict[str, Any], start: str | None) -> None:
    advice = _made(**changes).advice()
    assert len(advice) == (start is not None)
    assert start is None or advice[0].startswith(start)


# ── the command ─────────────────────────────────────────────────────────────────────────────────


def test_the_command(
    leaves: list[Image.Image],
    tmp_path: Path,
    tiny_bundled: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good, bad, broken = (str(tmp_path / name) for name in ("good.png", "bad.jpg", "page.png"))
    known.leaves(3, 640, 640).save(good)
    leaves[1].save(bad, quality=40)
    Path(broken).write_text("<html>")
    assert main(["check", good]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[2].split()[-1] == "good"
    assert "likeness" not in out
    assert main(["check", good, bad, broken]) == 1
    out = capsys.readouterr().out
    assert "heavy JPEG damage" in out
    assert "not read: picture" in out
    assert "an HTML page" in out
    assert (
        main(["check", good, bad, good, "--json", "--encoder", str(tiny_bundled / "image_encoder")])
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert [p["jpeg"] for p in report["pictures"]] == [None, 40, None]
    assert report["pairs"][1] == {"a": good, "b": good, "similarity": 1.0, "advice": "mix well"}
    assert len(report["pairs"]) == 3
    assert main(["check", good, bad, "--encoder", str(tmp_path)]) == 2
    assert "\n" not in capsys.readouterr().err.strip()


def test_likeness_is_the_encoders(leaves: list[Image.Image]) -> None:
    import torch

    class Fixed:
        """Two embeddings 60 degrees apart."""

        def encode(self, pictures: Any, feature: str) -> torch.Tensor:
            if feature != "image_embeds":
                raise EncoderError("another feature")
            return torch.tensor([[2.0, 0.0], [1.0, 3.0**0.5]])[: len(pictures)]

    (pair,) = similarities(leaves, Fixed())
    assert (pair.similarity, pair.advice()) == (0.5, "differ")
