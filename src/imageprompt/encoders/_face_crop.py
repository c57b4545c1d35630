"""The face upright in a square, as ArcFace and FaceID-plus were shown it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imageprompt.errors import PictureError

CROP = 224  # px; what FaceID-plus' image encoder is shown

# Where ArcFace wants eyes, nose and corners of the mouth in a crop of 112 pixels.
_POINTS = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655),
           (70.7299, 92.2041))  # fmt: skip
_POINTS_SIDE = 112


def aligned(picture: Image.Image, points: NDArray[Any], side: int = CROP) -> Image.Image:
    """The face of these key points [5, 2] upright in a square: the published 224 norm-crop.

    It is turned, scaled and moved so that the points come nearest to where ArcFace has them, in
    least squares; black is what lies outside. Raises PictureError for points that are no face's.
    """
    wanted = np.asarray(_POINTS) @ [1, 1j] * (side / _POINTS_SIDE)
    found = np.asarray(points, np.float64) @ [1, 1j]  # a similarity is z -> turn * z + move
    spread = found - found.mean()
    size = float((abs(spread) ** 2).sum())
    if not np.isfinite(size) or size == 0:
        raise PictureError("key points of a face", rule="they lie in one place, or nowhere")
    turn = (spread.conj() * (wanted - wanted.mean())).sum() / size
    move = wanted.mean() - turn * found.mean()
    column, row = np.meshgrid(np.arange(side), np.arange(side))
    return Image.fromarray(_sampled(np.asarray(picture), (column + 1j * row - move) / turn))


def _sampled(pixels: NDArray[np.uint8], places: NDArray[Any]) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] at places x + iy, between them bilinear, outside black."""
    height, width = pixels.shape[:2]
    framed = np.pad(pixels, ((1, 1), (1, 1), (0, 0))).astype(np.float64)
    x, y = np.clip(places.real, -1, width) + 1, np.clip(places.imag, -1, height) + 1
    left, top = np.minimum(x.astype(int), width), np.minimum(y.astype(int), height)
    right_share, lower_share = (x - left)[..., None], (y - top)[..., None]
    upper = framed[top, left] * (1 - right_share) + framed[top, left + 1] * right_share
    lower = framed[top + 1, left] * (1 - right_share) + framed[top + 1, left + 1] * right_share
    mixed: NDArray[np.float64] = np.rint(upper * (1 - lower_share) + lower * lower_share)
    return mixed.astype(np.uint8)
