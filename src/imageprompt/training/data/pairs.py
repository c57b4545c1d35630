"""The references of a pair: one that shows the content, one that shows the style.

They come from columns of the data, or are made from each picture: the content reference has other
colours and less detail, the style reference has its pieces elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from imageprompt.training.data.dataset import RandomStreams

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.training.data.feature_extractors import FeatureExtractors
    from imageprompt.training.data.sources import Record

Rng = np.random.Generator
Opened = tuple["Image", "Image"]

TILES = (3, 6)
"""Pieces of a style reference on a side, fewest and most."""
PATTERN = 0.5
"""Share of the content references with a pattern over them."""
BLUR = 0.03
"""Largest blur of a content reference, as a share of its shorter side."""


@dataclass(frozen=True)
class PairReferences:
    """Encodes the two references of every sample with one image encoder."""

    source: Literal["columns", "self-made"]
    extractors: FeatureExtractors

    def open(self, record: Record) -> Opened:
        """The pictures of a sample that its references come from. Raises PictureError."""
        if self.source == "columns":
            return record.open_pair()
        picture = record.open_picture()
        return picture, picture

    def features(self, opened: Sequence[Opened], streams: RandomStreams) -> tuple[Tensor, ...]:
        """Features of the content references [b, ...], then of the style references."""
        seeds = streams.integers(2**62).tolist()
        return self._encode(opened, 0, seeds), self._encode(opened, 1, seeds)

    def features_of(self, part: int, opened: Sequence[Opened], streams: RandomStreams) -> Tensor:
        """The features of one of them alone."""
        return self._encode(opened, part, streams.integers(2**62).tolist())

    def _encode(self, opened: Sequence[Opened], part: int, seeds: Sequence[int]) -> Tensor:
        pictures = [pair[part] for pair in opened]
        if self.source == "self-made":
            make = (content_reference, style_reference)[part]
            rngs = [np.random.default_rng([seed, part]) for seed in seeds]
            pictures = [make(*pair) for pair in zip(pictures, rngs, strict=True)]
        return self.extractors.encode_references(pictures)

    def null_features(self) -> tuple[Tensor, ...]:
        """Those of the null image, for both."""
        null = self.extractors.null_encoded
        return null, null


def content_reference(picture: Image, rng: Rng) -> Image:
    """The picture in other colours, blurred, with a pattern over it: what is where stays, how it
    looks does not.

    Its channels are mixed at random, and often inverted; each gets a tone curve of its own.
    """
    from PIL import Image as Pillow
    from PIL import ImageFilter

    small = picture.convert("RGB")
    blurred = small.filter(ImageFilter.GaussianBlur(rng.uniform(0, BLUR) * min(small.size)))
    pixels = np.asarray(blurred, np.float32) / 255
    mixed: Any = pixels @ rng.dirichlet(np.full(3, 0.5), size=3).T.astype(np.float32)
    low, high = mixed.min((0, 1)), mixed.max((0, 1))
    mixed = (mixed - low) / np.maximum(high - low, 1e-3)
    mixed = mixed ** np.exp(rng.uniform(-0.7, 0.7, 3)).astype(np.float32)
    mixed = np.where(rng.random(3) < 0.5, 1 - mixed, mixed)
    span = rng.uniform(0.3, 1, 3)
    mixed = rng.uniform(0, 1 - span) + span * mixed
    if rng.random() < PATTERN:
        mixed = mixed + rng.uniform(-0.2, 0.2, 3) * _pattern(mixed.shape[:2], rng)[:, :, None]
    return Pillow.fromarray((mixed.clip(0, 1) * 255).astype(np.uint8))


def _pattern(size: tuple[int, int], rng: Rng) -> Any:
    """Stripes or checks of -1 and 1 in a random direction and width, [height, width]."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.06, 0.25) * min(size)
    down, across = np.mgrid[: size[0], : size[1]] * (2 * np.pi / period)
    turned = np.cos(angle) * across + np.sin(angle) * down
    other = np.cos(angle) * down - np.sin(angle) * across
    waves = np.sin(turned + rng.uniform(0, 6))
    return np.sign(waves * np.sin(other) if rng.random() < 0.5 else waves)


def style_reference(picture: Image, rng: Rng) -> Image:
    """The picture cut into tiles, which are shuffled and mirrored: its look without what it shows.

    Pixels that fill no whole tile are left out.
    """
    from PIL import Image as Pillow

    count = int(rng.integers(TILES[0], TILES[1] + 1))
    side = max(1, min(picture.size) // count)
    pixels = np.asarray(picture.convert("RGB"))
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    cut = pixels[: rows * side, : columns * side].reshape(rows, side, columns, side, 3)
    tiles = cut.swapaxes(1, 2).reshape(rows * columns, side, side, 3)
    moved = [
        tile[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
        for tile in tiles[rng.permutation(len(tiles))]
    ]
    whole = np.stack(moved).reshape(rows, columns, side, side, 3).swapaxes(1, 2)
    return Pillow.fromarray(np.ascontiguousarray(whole).reshape(rows * side, columns * side, 3))
