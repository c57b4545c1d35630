"""The references of a pair: one that shows the content, one that shows the style.

They come from columns of the data, or are made from each picture: the content reference has its
regions in other colours and patterns, the style reference is bent out of shape or cut into pieces.
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

SIDE = 384
"""Longest side of a reference made from a picture, in pixels: encoders see less."""
REGIONS = (2, 4)
"""Colours that a content reference is reduced to, fewest and most."""
BLUR = 0.06
"""Largest blur before that, as a share of the shorter side."""
PATTERN = 0.5
"""Share of the regions with a pattern."""
WARPED = 0.7
"""Share of the style references that are bent; the others are cut into pieces."""
PIECES = (2, 5)
"""Pieces of a style reference on a side, fewest and most."""
BEND = 0.16
"""Standard deviation of how far a bent picture's points move, as a share of its shorter side."""


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

    def states_of(self, captions: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Text states [b, l, d] of captions of one side, and the number of tokens of each."""
        different = list(dict.fromkeys(captions))
        states = self.extractors.encode_text(different)[0]
        limit = min(self.extractors.max_tokens, states.shape[1])
        counts = [min(one, limit) for one in self.extractors.token_counts(different)]
        rows = [different.index(one) for one in captions]
        return states[rows], [counts[row] for row in rows]

    def null_features(self) -> tuple[Tensor, ...]:
        """Those of the null image, for both."""
        null = self.extractors.null_encoded
        return null, null


def content_reference(picture: Image, rng: Rng) -> Image:
    """What is where, without how it looks: the picture's regions in new colours and patterns.

    Regions are pixels of similar colour in the blurred picture.
    """
    from PIL import Image as Pillow
    from PIL import ImageFilter

    small = _small(picture)
    side = min(small.size)
    blurred = small.filter(ImageFilter.GaussianBlur(rng.uniform(0, BLUR) * side))
    regions = _regions(np.asarray(blurred, np.float32) / 255, rng)
    size = regions.shape
    ramp = np.linspace(0, 1, size[0])[:, None]
    made: Any = np.zeros((*size, 3))
    for region in range(regions.max() + 1):
        inside: Any = np.nonzero(regions == region)
        fill: Any = np.broadcast_to(rng.random(3), (len(inside[0]), 3))
        if rng.random() < 0.4:
            fill = fill + ramp[inside[0]] * (rng.random(3) - fill)
        if rng.random() < PATTERN:
            fill = np.where(_pattern(inside, min(size), rng)[:, None], rng.random(3), fill)
        made[inside] = fill
    drawn = Pillow.fromarray((made * 255).astype(np.uint8))
    return drawn.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.012) * side))


def _small(picture: Image) -> Image:
    """The picture in RGB, no side longer than `SIDE`."""
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    return small


def _regions(pixels: Any, rng: Rng) -> Any:
    """The number of each pixel's region [height, width], by k-means over mixed channels."""
    mix = rng.dirichlet(np.ones(3), size=3).T.astype(np.float32)
    flat = pixels.reshape(-1, 3) @ mix
    sample = flat[rng.integers(len(flat), size=min(len(flat), 1024))]
    centres = sample[:1]
    for _ in range(int(rng.integers(REGIONS[0], REGIONS[1] + 1)) - 1):
        far = _distances(sample, centres).min(1) + 1e-9
        centres = np.concatenate((centres, sample[[rng.choice(len(sample), p=far / far.sum())]]))
    for _ in range(4):
        nearest = _distances(sample, centres).argmin(1)
        for region in np.unique(nearest):
            centres[region] = sample[nearest == region].mean(0)
    return _distances(flat, centres).argmin(1).reshape(pixels.shape[:2])


def _distances(points: Any, centres: Any) -> Any:
    """Squared distances [points, centres]."""
    each = (np.square(a[:, None] - b) for a, b in zip(points.T, centres.T, strict=True))
    return sum(each)


def _pattern(pixels: Sequence[Any], side: int, rng: Rng) -> Any:
    """Stripes, checks or dots in a random direction and width, at n pixels, bool [n]."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.08, 0.3) * side
    down, across = (one * (2 * np.pi / period) for one in pixels)
    along = np.cos(angle) * across + np.sin(angle) * down + rng.uniform(0, 6)
    other = np.cos(angle) * down - np.sin(angle) * across + rng.uniform(0, 6)
    kind = rng.integers(3)
    if kind == 0:
        wave = np.sin(along)
    elif kind == 1:
        wave = np.sin(along) * np.sin(other)
    else:
        wave = np.cos(along) + np.cos(other) - 1
    return wave > rng.uniform(-0.3, 0.3)


def style_reference(picture: Image, rng: Rng) -> Image:
    """How the picture looks without what it shows: bent out of shape, or in pieces, and mirrored.

    Pieces are cut at random places, so that some parts come twice and others never.
    """
    from PIL import Image as Pillow

    pixels = np.asarray(_small(picture))
    make = _bent if rng.random() < WARPED else _pieces
    return Pillow.fromarray(np.ascontiguousarray(make(pixels, rng)))


def _bent(pixels: Any, rng: Rng) -> Any:
    """Pixels moved by a smooth random field, mirrored at the edges."""
    from PIL import Image as Pillow

    size = pixels.shape[:2]
    places = []
    for axis, field in enumerate(rng.normal(size=(2, 3, 3)) * BEND * min(size)):
        coarse = Pillow.fromarray(field.astype(np.float32))
        smooth = np.asarray(coarse.resize(size[::-1], Pillow.Resampling.BICUBIC))
        last = size[axis] - 1
        moved = np.abs(np.rint(np.indices(size)[axis] + smooth).astype(int)) % max(1, 2 * last)
        places.append(np.where(moved > last, 2 * last - moved, moved))
    return _mirrored(pixels[places[0], places[1]], rng)


def _pieces(pixels: Any, rng: Rng) -> Any:
    """A grid of pieces from random places."""
    height, width = pixels.shape[:2]
    count = int(rng.integers(PIECES[0], PIECES[1] + 1))
    tall, wide = -(-height // count), -(-width // count)
    rows = []
    for _ in range(count):
        row = []
        for _ in range(count):
            top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
            row.append(_mirrored(pixels[top : top + tall, left : left + wide], rng))
        rows.append(np.concatenate(row, axis=1))
    return np.concatenate(rows)[:height, :width]


def _mirrored(pixels: Any, rng: Rng) -> Any:
    return pixels[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
