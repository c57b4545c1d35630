"""open_picture: every supported kind of picture is read correctly, hostile files are refused."""

from __future__ import annotations

import hashlib
import os
import struct
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from hostile_pictures import HEIC, HOSTILE, encoded, png
from imageprompt.core.errors import PictureError
from imageprompt.encoding.images import open_image
from imageprompt.encoding.images.open_image import open_picture, open_with_hash

RED, WHITE = (255, 0, 0), (255, 255, 255)


def two_tone(mode: str = "RGB") -> Image.Image:
    """16x12, left half red."""
    image = Image.new("RGB", (16, 12), WHITE)
    image.paste(RED, (0, 0, 8, 12))
    return image.convert(mode)


# ── supported ones ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_formats_as_path_bytes_and_image(kind: str, tmp_path: Path) -> None:
    data = encoded(two_tone(), kind)
    path = tmp_path / "picture.dat"  # the content counts, not the name
    path.write_bytes(data)
    opened = [open_picture(source) for source in (data, path, str(path), Image.open(path))]
    for image in opened:
        assert (image.mode, image.size) == ("RGB", (16, 12))
        assert np.abs(np.asarray(image, int)[:, :4] - RED).max() <= 60  # lossy formats
    assert len({image.tobytes() for image in opened}) == 1


def test_opening_the_result_again_changes_nothing() -> None:
    exif = Image.Exif()
    exif[274] = 6
    once = open_picture(encoded(two_tone(), "JPEG", exif=exif))
    assert once.info == {}
    assert open_picture(once).tobytes() == once.tobytes()
    assert open_picture(once) is not once


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    upright = two_tone()
    # what a camera stores so that a viewer that follows the tag shows `upright`
    turn = open_image._UPRIGHT.get(orientation)
    inverse = {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270}
    inverse |= {back: turn for turn, back in inverse.items()}
    stored = upright if turn is None else upright.transpose(inverse.get(turn, turn))
    opened = open_picture(encoded(stored, "PNG", exif=exif))
    assert opened.tobytes() == upright.tobytes()


def test_hidden_colour_stays_hidden() -> None:
    pixels = np.zeros((12, 16, 4), np.uint8)
    pixels[..., :3] = (1, 200, 3)  # a colour under transparent pixels
    pixels[:, 8:, 3] = 255
    pixels[:, 4:8, 3] = 128
    opened = np.asarray(open_picture(encoded(Image.fromarray(pixels))), int)
    assert (opened[:, :4] == 255).all()
    assert (opened[:, 8:] == (1, 200, 3)).all()
    assert np.abs(opened[:, 4:8] - np.mean([(1, 200, 3), WHITE], axis=0)).max() <= 1


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBa", "La"])
def test_other_modes_with_alpha_show_white(mode: str) -> None:
    if mode == "PA":
        image = Image.new("P", (16, 12))
        image.putalpha(0)
    else:
        image = Image.new("LA", (16, 12), (0, 0)).convert("RGBA" if mode == "RGBa" else "LA")
        image = image.convert(mode)
    assert image.mode == mode
    assert open_picture(image).getcolors() == [(16 * 12, WHITE)]


def test_palette_with_transparency() -> None:
    image = two_tone().convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    transparent = image.getpixel((0, 0))
    opened = open_picture(encoded(image, transparency=transparent))
    assert opened.getcolors() == [(16 * 12, WHITE)]
    assert open_picture(encoded(image)).tobytes() == two_tone().tobytes()


def test_rgb_with_a_transparent_colour() -> None:
    opened = open_picture(encoded(two_tone(), transparency=RED))
    assert opened.getcolors() == [(16 * 12, WHITE)]


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 16 * 12).astype(np.uint16).reshape(12, 16)
    image = Image.fromarray(ramp)
    assert image.mode == "I;16"
    expected = np.round(ramp / 257).astype(int)
    for opened in (open_picture(encoded(image)), open_picture(image)):
        assert np.abs(np.asarray(opened, int)[..., 0] - expected).max() <= 1
        assert opened.getextrema() == ((0, 255),) * 3


def test_sixteen_bit_grey_with_a_transparent_value() -> None:
    ramp = np.full((12, 16), 30000, np.uint16)
    ramp[:, :8] = 10
    image = Image.fromarray(ramp)
    image.info["transparency"] = 10
    opened = np.asarray(open_picture(image), int)
    assert (opened[:, :8] == 255).all()
    assert (opened[:, 8:] == 117).all()


@pytest.mark.parametrize("color", [2, 6])
def test_sixteen_bit_colour(color: int) -> None:
    channels = [0xFFFF, 0x8000, 0x0000] + [0xFFFF] * (color == 6)
    row = b"\0" + struct.pack(f">{len(channels)}H", *channels) * 16
    opened = open_picture(png(16, 12, depth=16, color=color, data=row * 12))
    assert opened.getcolors() == [(16 * 12, (255, 128, 0))]


def test_cmyk_jpeg() -> None:
    opened = np.asarray(open_picture(encoded(two_tone("CMYK"), "JPEG", quality=95)), int)
    assert np.abs(opened[:, :6] - RED).max() <= 25
    assert np.abs(opened[:, 10:] - WHITE).max() <= 25


def test_one_bit() -> None:
    image = Image.new("1", (16, 12), 1)
    image.paste(0, (0, 0, 8, 12))
    opened = np.asarray(open_picture(encoded(image)))
    assert (opened[:, :8] == 0).all()
    assert (opened[:, 8:] == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_gives_its_first_frame_with_a_warning(kind: str) -> None:
    frames = [Image.new("RGB", (16, 12), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with pytest.warns(UserWarning, match="3 frames; only the first"):
        opened = open_picture(data)
    assert opened.getcolors() == [(16 * 12, RED)]


def test_a_jpeg_with_a_second_picture_inside_is_a_plain_photo() -> None:
    data = encoded(two_tone(), "MPO", save_all=True, append_images=[Image.new("RGB", (16, 12))])
    assert open_picture(data).size == (16, 12)


def test_damaged_exif_is_ignored() -> None:
    image = two_tone()
    image.info["exif"] = b"Exif\0\0II*\0\xff\xff\xff\xff"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        opened = open_picture(image)
    assert opened.tobytes() == two_tone().tobytes()
    assert len(said) <= 1


def test_avif_by_pillows_own_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PIL.AvifImagePlugin")
    if not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    data = encoded(two_tone().resize((64, 48), Image.Resampling.NEAREST), "AVIF", quality=90)
    opened = np.asarray(open_picture(data), int)
    assert opened.shape == (48, 64, 3)
    assert np.abs(opened[:, :28] - RED).max() <= 25
    with pytest.raises(PictureError, match="damaged"):
        open_picture(data[: len(data) - 20])
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(PictureError, match="AVIF is not supported by this build of Pillow"):
        open_picture(data)


def test_heic_by_pillow_heif() -> None:
    pytest.importorskip("pillow_heif", reason="the optional extra heic is not installed")
    opened = np.asarray(open_picture(HEIC), int)
    assert opened.shape == (24, 32, 3)
    assert np.abs(opened[:, :12] - RED).max() <= 40
    assert np.abs(opened[:, 20:] - WHITE).max() <= 40
    assert open_image.picture_size(HEIC) == (32, 24)
    with pytest.raises(PictureError, match="damaged"):
        open_picture(HEIC[:-20])


def test_heic_without_pillow_heif_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Recognised by its bytes, whatever the file is called."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / "photo.jpg"
    path.write_bytes(HEIC)
    for read in (open_picture, open_image.picture_size):
        with pytest.raises(PictureError) as caught:
            read(path)
        assert "photo.jpg': HEIC needs pillow-heif, which is not installed" in str(caught.value)
        assert "pip install pillow-heif" in str(caught.value)


def test_the_picture_and_its_hash_in_one_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(two_tone())
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    opens: list[Any] = []
    real_open = open_image.open_regular
    monkeypatch.setattr(open_image, "open_regular", lambda p: opens.append("file") or real_open(p))
    for source in (path, str(path), data):
        picture, digest = open_with_hash(source)
        assert picture.tobytes() == two_tone().tobytes()
        assert digest == hashlib.sha256(data).hexdigest()
    assert opens == ["file"] * 2
    picture, digest = open_with_hash(two_tone("L"))
    assert digest == hashlib.sha256(two_tone("L").tobytes()).hexdigest()
    assert picture.mode == "RGB"
    with pytest.raises(PictureError, match="is empty"):
        open_with_hash(b"")
    with pytest.raises(PictureError, match="no such file"):
        open_with_hash(tmp_path / "missing.png")


# ── hostile and broken ones ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pictures_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    data, reason = HOSTILE[name]
    path = tmp_path / "hostile.png"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(PictureError) as caught:
            open_picture(source)
        message = str(caught.value)
        assert reason in message
        assert "\n" not in message
        assert message.endswith((".", "?"))
        assert ("hostile.png" in message) == (source is path)


def test_a_bomb_is_refused_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", never)
    with pytest.raises(PictureError, match="million pixels"):
        open_picture(png(9_000, 8_000))


def test_a_picture_in_memory_has_the_same_limits() -> None:
    with pytest.raises(PictureError, match="less than 8 pixels"):
        open_picture(Image.new("RGB", (300, 7)))
    with pytest.raises(PictureError, match="does not define which value is white"):
        open_picture(Image.new("F", (16, 16)))


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as stream:
        stream.truncate(open_image.MAX_FILE_BYTES + 1)
    with pytest.raises(PictureError, match="more than 64 MiB"):
        open_picture(path)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("missing.png", "no such file"),
        (".", "is a folder, not a file"),
        ("nul\0.png", "cannot be read|no such file"),
        ("x" * 5000, "cannot be read"),
        (7, "type int"),
        (None, "type NoneType"),
    ],
)
def test_sources_that_are_not_pictures(source: Any, reason: str) -> None:
    with pytest.raises(PictureError, match=reason):
        open_picture(source)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PictureError, match="it is a pipe or device"):
        open_picture(tmp_path / "pipe")


# ── large ones ──────────────────────────────────────────────────────────────────────────────────


def modes() -> dict[str, bytes]:
    """A picture with soft colours in every mode that is stored, 61 x 45."""
    soft = Image.merge("RGB", [Image.radial_gradient("L").resize((61, 45))] * 3)
    clear = soft.copy()
    clear.putalpha(Image.linear_gradient("L").resize((61, 45)))
    grey_16 = Image.fromarray(np.asarray(soft.convert("L"), np.uint16) * 257)
    return {
        "RGB": encoded(soft),
        "RGBA": encoded(clear),
        "LA": encoded(clear.convert("LA")),
        "L": encoded(soft.convert("L")),
        "1": encoded(soft.convert("1")),
        "P": encoded(soft.quantize(200)),
        "P with a transparent colour": encoded(soft.quantize(9), transparency=3),
        "16-bit grey": encoded(grey_16),
        "CMYK": encoded(soft.convert("CMYK"), "JPEG", quality=95),
        "WebP": encoded(clear, "WEBP", lossless=True),
    }


@pytest.mark.parametrize("mode", modes())
def test_strips_change_nothing(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_picture(modes()[mode])
    monkeypatch.setattr(open_image, "_STRIP", 61 * 4)
    assert open_picture(modes()[mode]).tobytes() == whole.tobytes()


@pytest.mark.parametrize("mode", modes())
def test_a_large_picture_is_halved(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As averaging 2x2 pixels would; strips or not."""
    data = modes()[mode]
    wanted = np.asarray(open_picture(data).reduce(2), int)
    monkeypatch.setattr(open_image, "KEPT_PIXELS", 1000)
    opened, _ = open_with_hash(data)
    assert opened.size == open_image.picture_size(data) == (31, 23)
    difference = abs(np.asarray(opened, int) - wanted)
    assert difference.max() <= (8 if mode == "CMYK" else 2)
    monkeypatch.setattr(open_image, "_STRIP", 61 * 4)
    assert open_picture(data).tobytes() == opened.tobytes()
    assert open_image.open_stored(data).size == (61, 45)


def test_a_large_photograph_that_lies_on_its_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_image, "KEPT_PIXELS", 1000)
    exif = Image.Exif()
    exif[274] = 6
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encoded(Image.new("RGB", (61, 45), "red"), kind, exif=exif)
        assert open_image.picture_size(data) == open_picture(data).size == (23, 31)
        assert open_image.upright_size(open_image.open_stored(data)) == (45, 61)


def test_the_frames_of_an_avif() -> None:
    """What its AV1 data say: of a still picture, its alpha, an animation."""
    from imageprompt.encoding.images.avif_frames import largest_frame

    frames = [Image.new("RGB", (61, 45), colour) for colour in ("red", "blue")]
    several = encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:])
    clear = encoded(Image.new("RGBA", (61, 45), (9, 9, 9, 99)), "AVIF")
    for data in (encoded(frames[0], "AVIF"), clear, several):
        assert largest_frame(data) == 61 * 45
    assert largest_frame(b"ftyp" * 9) == 0
