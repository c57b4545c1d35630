"""Pictures as arrays, tensors, bytes and open files; what has two readings is an error."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imageprompt.core.errors import PictureError
from imageprompt.encoding.images.open_image import open_picture, open_with_hash, picture_size
from imageprompt.encoding.masks import open_mask
from imageprompt.generation.request import Request
from imageprompt.generation.start_images import open_start_images
from imageprompt.loading.assets import record_of

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
PNG = io.BytesIO()
Image.fromarray(PIXELS).save(PNG, "PNG")
UNIT = PIXELS / 255.0
TENSOR = torch.from_numpy(PIXELS)

SAME: dict[str, Any] = {
    "uint8": PIXELS,
    "float64": UNIT,
    "float32": UNIT.astype(np.float32),
    "a batch of one": PIXELS[None],
    "tensor, last": TENSOR,
    "tensor, first": TENSOR.permute(2, 0, 1),
    "numpy, first": PIXELS.transpose(2, 0, 1),
    "tensor, float": TENSOR.permute(2, 0, 1)[None] / 255,
    "tensor with gradients": (TENSOR / 255).requires_grad_(True),
    "opaque": np.concatenate([PIXELS, np.full((12, 20, 1), 255, np.uint8)], 2),
    "bytes": PNG.getvalue(),
    "bytearray": bytearray(PNG.getvalue()),
    "memoryview": memoryview(PNG.getvalue()),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_picture(name: str) -> None:
    source = SAME[name]
    assert np.array_equal(np.asarray(open_picture(source)), PIXELS)
    assert picture_size(source) == (20, 12)
    opened, digest = open_with_hash(source)
    assert np.array_equal(np.asarray(opened), PIXELS)
    assert digest == open_with_hash(source)[1] != open_with_hash(PIXELS[::-1])[1]
    start = open_start_images(Request.of("a star", init_image=source))
    assert np.array_equal(np.asarray(start.init), PIXELS)


def test_grey_bool_and_transparent() -> None:
    grey = PIXELS[:, :, 0]
    for source in (grey, grey[..., None], torch.from_numpy(grey)[None]):
        assert np.array_equal(np.asarray(open_picture(source))[:, :, 1], grey)
    assert np.asarray(open_picture(grey > 99)).max() == 255
    clear = np.concatenate([PIXELS, np.zeros((12, 20, 1), np.uint8)], 2)
    assert np.asarray(open_picture(clear)).min() == 255  # white


def test_open_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG.getvalue())
    expected = open_with_hash(tmp_path / "a.png")[1]
    with (tmp_path / "a.png").open("rb") as file:
        for source, at in ((file, 7), (PNG, len(PNG.getvalue())), (PNG, 0)):
            source.seek(at)
            opened, digest = open_with_hash(source)
            assert source.tell() == at
            assert digest == expected == record_of(source).hash
            assert np.array_equal(np.asarray(opened), PIXELS)
    with pytest.raises(PictureError, match="cannot be read"):
        open_picture(file)  # closed
    with pytest.raises(PictureError, match=r"as text.*'rb'"):
        open_picture(io.StringIO("x"))
    with pytest.raises(PictureError, match="is empty"):
        open_picture(io.BytesIO())


def test_masks() -> None:
    black = Image.new("L", (16, 16))
    black.paste(255, (0, 0, 8, 16))
    stream = io.BytesIO()
    black.save(stream, "PNG")
    for source in (stream, bytearray(stream.getvalue()), memoryview(stream.getvalue())):
        assert np.array_equal(open_mask(source), np.asarray(black) / 255)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (UNIT * 2 - 1, r"from -1 to 1.*\(x \+ 1\) / 2.*clip"),
        (TENSOR.permute(2, 0, 1) / 127.5 - 1, r"\(x \+ 1\) / 2"),
        (PIXELS.astype(np.float32), "uint8"),
        (np.where(UNIT > 0.5, np.nan, UNIT), "nan"),
        (PIXELS.astype(np.int64), "which is white"),
        (np.zeros((3, 12, 3), np.uint8), r"\[channels, H, W\] and as \[H, W, channels\]"),
        (np.zeros((3, 3, 3), np.uint8), r"\[channels, H, W\] and as \[H, W, channels\]"),
        (np.zeros((2, 12, 20, 3), np.uint8), "as a list"),
        (np.zeros((12, 20, 2), np.uint8), "is not"),
        (np.zeros(9, np.uint8), "is not"),
        (np.zeros((0, 9, 3), np.uint8), "less than 8 pixels"),
        (np.zeros((4, 20), np.uint8), "less than 8 pixels"),
        (torch.zeros(2, 9, 9, dtype=torch.complex64), "is not"),
    ],
)
def test_what_is_not_guessed(source: Any, why: str) -> None:
    for call in (open_picture, open_with_hash, picture_size):
        with pytest.raises(PictureError, match=why):
            call(source)


def test_a_reference() -> None:
    for source in (PIXELS, TENSOR, PNG, bytearray(PNG.getvalue())):
        request = Request.of("a star", source, scale=0.5)
        request.check()
        assert len(request.references[0].pictures) == 1
        assert len(Request.of("a star", [source, source]).references[0].pictures) == 2
