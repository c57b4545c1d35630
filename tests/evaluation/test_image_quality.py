"""`imageprompt check`: known damage is found, many pictures are summarised, all of it is advice."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

import check as known  # benchmarks/check.py: pictures of known quality and blur
from imageprompt.cli import main
from imageprompt.core.errors import EncoderError, PictureError
from imageprompt.encoding.images import open_image
from imageprompt.evaluation.image_quality import blur, jpeg
from imageprompt.evaluation.image_quality.picture import PATCH, WHOLE, PictureQuality, check
from imageprompt.evaluation.image_quality.report import (
    QualityReport,
    check_pictures,
    duplicate_groups,
)


@pytest.fixture(scope="module")
def leaves() -> list[Image.Image]:
    return [known.leaves(seed, 320, 256) for seed in range(2)]


# ── JPEG ────────────────────────────────────────────────────────────────────────────────────────


def test_tables_reveal_every_quality() -> None:
    """libjpeg's own from 1 to 100 exactly, other tables by the nearest."""
    flat = Image.new("RGB", (16, 16))
    for quality in range(1, 101):
        with Image.open(io.BytesIO(known.as_jpeg(flat, quality))) as image:
            assert jpeg.from_tables(image.quantization) == jpeg.JpegQuality(quality, exact=True)
    near = jpeg.luminance_table(80)
    near[5] += 3
    assert jpeg.from_tables({0: near.tolist()}) == jpeg.JpegQuality(80, exact=False)
    assert jpeg.from_tables({}) is None


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 90])
def test_pixels_reveal_the_quality(quality: int, leaves: list[Image.Image]) -> None:
    """Within 1, from the pixels of a decoded JPEG; the JPEG itself shows nothing earlier."""
    for picture in leaves:
        data = known.as_jpeg(picture, quality)
        shown = check(known.decoded(data))
        assert shown.jpeg is None
        assert shown.earlier == pytest.approx(quality, abs=1)
        assert (check(data).jpeg, check(data).earlier) == (quality, None)


@pytest.mark.parametrize(("first", "then"), known.RECOMPRESSED)
def test_an_earlier_worse_compression(first: int, then: int, leaves: list[Image.Image]) -> None:
    for picture in leaves:
        found = check(known.as_jpeg(picture, first, then))
        assert found.jpeg == then
        assert found.earlier == pytest.approx(first, abs=1)
    better = check(known.as_jpeg(leaves[0], then, first))  # hidden by the later one
    assert (better.jpeg, better.earlier) == (first, None)


def test_no_traces_where_there_were_none(leaves: list[Image.Image]) -> None:
    smaller = known.decoded(known.as_jpeg(leaves[1], 50)).resize(
        (150, 120), Image.Resampling.LANCZOS
    )
    flat = Image.new("RGB", (64, 64), "white")
    grain = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))
    for picture in (*leaves, smaller, flat, grain, Image.new("RGB", (8, 9))):
        assert check(picture).earlier is None


def test_a_crop_moves_the_blocks(leaves: list[Image.Image]) -> None:
    cut = known.decoded(known.as_jpeg(leaves[0], 30)).crop((3, 5, 310, 250))
    assert check(cut).earlier == pytest.approx(30, abs=1)


# ── blur ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("pixels", [1.0, 2.0, 3.0])
def test_blur_is_measured_in_pixels(pixels: float, leaves: list[Image.Image]) -> None:
    for picture in leaves:
        found = check(known.blurred(picture, pixels)).edge
        assert found == pytest.approx(pixels, rel=0.25)


def test_sharpness_does_not_grow_with_pixels(leaves: list[Image.Image]) -> None:
    """An enlarged picture is as sharp as before."""
    for picture in leaves:
        assert check(picture).sharp_as > 0.85 * min(picture.size)
    for factor in (2, 3):
        found = check(known.enlarged(leaves[0], factor)).sharp_as
        assert found == pytest.approx(min(leaves[0].size), rel=0.15)


def test_parts_out_of_focus_do_not_count(leaves: list[Image.Image]) -> None:
    """One sharp half is enough."""
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
    """Nine patches give the result of the whole picture, in bounded time."""
    tile = known.decoded(known.as_jpeg(leaves[0], 60))
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
    for words in ("small: 400 px", "loses 33%", "25% of it becomes white", "squash"):
        assert words in advice
    exif = Image.Exif()
    exif[274] = 6
    leaves[0].save(tmp_path / "turned.jpg", quality=85, exif=exif)
    turned = check(tmp_path / "turned.jpg")
    assert (turned.width, turned.height, turned.jpeg, turned.earlier) == (256, 320, 85, None)


def _made(**changes: Any) -> PictureQuality:
    good = {"picture": "a.png", "width": 800, "height": 800, "jpeg": None, "earlier": None}
    good |= {"edge": 0.5, "sharp_as": 727, "crop_loses": 0.0, "transparent": 0.0}
    return PictureQuality(**{**good, **changes})


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
        ({"transparent": 0.004}, "transparent: 0%"),
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
    assert "similarity" not in out
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


class Fixed:
    """An encoder with these embeddings, one for each picture in turn."""

    def __init__(self, *embeddings: Any) -> None:
        self.rows = list(embeddings)

    def width(self, feature: str) -> int:
        return 2

    def encode(self, pictures: Any, feature: str) -> torch.Tensor:
        assert feature == "image_embeds"
        taken, self.rows = self.rows[: len(pictures)], self.rows[len(pictures) :]
        return torch.tensor(taken)


def test_similarity_is_the_encoders(leaves: list[Image.Image]) -> None:
    """Two embeddings 60 degrees apart."""
    report = check_pictures(leaves, Fixed([2.0, 0.0], [1.0, 3.0**0.5]), "fixed")
    (pair,) = report.pairs()
    assert (pair.similarity, pair.advice()) == (0.5, "differ")
    assert report.near_duplicates == []
    assert "similarity by fixed" in str(report)
    assert check_pictures(leaves).embeddings is None
    with pytest.raises(EncoderError, match="image_embeds"):
        check_pictures(leaves, Refusing())


class Refusing:
    def width(self, feature: str) -> int:
        raise EncoderError("an encoder", reason=f"makes no {feature}")

    def encode(self, pictures: Any, feature: str) -> torch.Tensor:
        raise EncoderError("an encoder", reason=f"makes no {feature}")


# ── many pictures ───────────────────────────────────────────────────────────────────────────────


def test_each_picture_is_opened_once(
    leaves: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        leaves[0].save(path)
    opened: list[str] = []
    real = open_image.open_regular
    monkeypatch.setattr(open_image, "open_regular", lambda p: opened.append(p.name) or real(p))
    check_pictures(paths, Fixed([1.0, 0.0], [1.0, 0.0], [1.0, 0.0]))
    assert opened == ["0.png", "1.png", "2.png"]


def test_300_pictures_are_summarised() -> None:
    """Counts by problem, near-duplicates in groups, the worst twelve; everything in JSON."""
    pictures = [_made(picture=f"{i:03}.png") for i in range(300)]
    for i in range(40):
        pictures[i] = _made(picture=f"{i:03}.png", width=300 + i, height=300 + i, sharp_as=290)
    pictures[7] = _made(picture="007.png", width=100, height=90, sharp_as=20, jpeg=20)
    rng = np.random.default_rng(0)
    units = rng.standard_normal((300, 64)).astype(np.float32)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    for copies in ([10, 11, 12], [100, 299], [5, 200]):
        units[copies] = units[copies[0]]
    report = QualityReport(pictures, [], "fixed", units)
    text = str(report)
    lines = text.splitlines()
    assert len(lines) < 30
    assert lines[0] == "300 pictures measured: 260 without problems."
    assert report.problems() == {
        "small": 40,
        "soft": 1,
        "JPEG damage": 1,
        "not square": 0,
        "transparent": 0,
    }
    assert any(line.split()[:2] == ["small", "40"] for line in lines)
    assert "not square" not in text
    assert report.near_duplicates == [
        ["010.png", "011.png", "012.png"],
        ["005.png", "200.png"],
        ["100.png", "299.png"],
    ]
    assert "7 near-duplicates in 3 group(s) (similarity 0.97 or more by fixed):" in lines
    assert "  3: 010.png, 011.png, 012.png" in lines
    worst = report.worst()
    assert len(worst) == 12
    assert [picture.picture for picture in worst[:3]] == ["007.png", "000.png", "001.png"]
    table = lines[lines.index("The worst 12:") + 1 :]
    assert table[2].split() == [
        "007.png",
        "100x90",
        "20",
        "20",
        "0%",
        "0%",
        "small,",
        "soft,",
        "JPEG",
        "damage",
    ]
    assert table[3].split() == ["000.png", "300x300", "-", "290", "0%", "0%", "small"]
    assert table[14] == ""
    assert lines[-1].startswith("--json lists every picture and every pair")
    data = report.as_dict()
    assert len(data["pairs"]) == 300 * 299 // 2
    assert len(data["pictures"]) == 300
    assert data["near_duplicates"] == report.near_duplicates
    few = QualityReport(pictures[:12], [], "fixed", units[:12])
    assert "006.png" in str(few)
    assert len(str(few).splitlines()) > 12 + 66  # every pair


def test_many_groups_and_unreadable_pictures_stay_short() -> None:
    pictures = [_made(picture=f"{i:03}.png") for i in range(60)]
    units = np.repeat(np.eye(30, dtype=np.float32), 2, axis=0)
    report = QualityReport(pictures, [PictureError("gone.png", reason="no such file")], "e", units)
    lines = str(report).splitlines()
    assert lines[0] == "60 pictures measured: 60 without problems, 1 cannot be read."
    assert "  and 18 smaller groups" in lines
    assert not any(line.startswith("The worst") for line in lines)
    assert lines[-1] == "not read: gone.png: no such file"
    crowd = QualityReport(pictures, [], "e", np.ones((60, 1), np.float32))
    assert "  60: 000.png, 001.png, 002.png, 003.png and 56 more" in str(crowd).splitlines()
    errors = [PictureError(f"{i}.png", reason="is empty") for i in range(40)]
    lines = str(QualityReport(pictures, errors)).splitlines()
    assert sum(line.startswith("not read: ") for line in lines) == 13
    assert lines[-1] == "not read: 28 more"
    apart = QualityReport(pictures[:30], [], "e", units[::2])
    assert "No near-duplicates (similarity 0.97 or more by e)." in str(apart).splitlines()


@pytest.mark.parametrize("rows", [1, 3, 7, 1024])
def test_groups_are_connected_components(rows: int) -> None:
    """By brute force over all pairs, in blocks of any size; a chain is one group."""
    angles = np.deg2rad([0, 8, 16, 90, 180, 93, 45, 181, 300, 45.5])
    units = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    groups = duplicate_groups(units, float(np.cos(np.deg2rad(10))), rows=rows)
    assert groups == [[0, 1, 2], [3, 5], [4, 7], [6, 9]]
    rng = np.random.default_rng(rows)
    points = rng.standard_normal((40, 3)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    near = points @ points.T >= 0.9
    expected, left = [], set(range(40))
    while left:
        group = {min(left)}
        while (grown := group | {j for i in group for j in np.flatnonzero(near[i])}) != group:
            group = grown
        left -= group
        if len(group) > 1:
            expected.append(sorted(map(int, group)))
    expected.sort(key=lambda g: (-len(g), g[0]))
    assert duplicate_groups(points, 0.9, rows=rows) == expected
