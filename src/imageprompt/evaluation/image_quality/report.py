"""What a reference picture is like, and what to make of it: measured once, advised in words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import PictureError
from imageprompt.encoding.images.open_image import (
    PictureSource,
    open_picture,
    open_stored,
    open_upright,
)
from imageprompt.evaluation.image_quality import blur, jpeg

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.encoding.encoders import Encoder

ENOUGH_PIXELS = 512
"""Of the short side: encoders see 224 to 336 pixels, tiles and crops of a picture more of it."""
GOOD_QUALITY, POOR_QUALITY = 75, 50
SOFTENING = 2.2
"""A picture that was enlarged f times, or lost as much to blur, has edges f / 2.2 pixels wide."""
SOFT = 0.75
LOSS_TO_TELL = 0.1
SIMILAR = 0.7
"""Cosine of two references from which they mix well."""
PATCH = 448  # px; of a large picture nine patches are looked at
WHOLE = 2_000_000  # pixels up to which all of it is


@dataclass(frozen=True, kw_only=True)
class Check:
    """One picture. `jpeg` is the quality of the file, `earlier` that of a worse compression before
    (or of any, in a file that is no JPEG), `edge` the blur of its sharpest edges in pixels,
    `sharp_as` the short side of a picture that would be as sharp without blur, `crop_loses` what a
    centre crop leaves out, `transparent` what shows white; None: nothing found."""

    picture: str
    width: int
    height: int
    jpeg: int | None
    earlier: int | None
    edge: float | None
    sharp_as: int | None
    crop_loses: float
    transparent: float

    def advice(self) -> list[str]:
        """One line for each thing that stands out; empty where all is well."""
        short, sharp = min(self.width, self.height), self.sharp_as
        quality = min(q for q in (self.jpeg, self.earlier, 100) if q is not None)
        before = self.earlier is not None and self.earlier == quality
        rules = (
            (
                short < ENOUGH_PIXELS,
                f"small: {short} px on the short side, {ENOUGH_PIXELS} or more are better",
            ),
            (
                sharp is not None and sharp < min(ENOUGH_PIXELS, SOFT * short),
                f"soft: no sharper than a picture of {sharp} px; use the original, or sharpen",
            ),
            (
                quality < GOOD_QUALITY,
                f"{'heavy ' if quality < POOR_QUALITY else ''}JPEG damage: "
                f"{'saved before at' if before else 'saved at'} quality {quality}",
            ),
            (
                self.crop_loses > LOSS_TO_TELL,
                f"not square: the encoder's centre crop loses {self.crop_loses:.0%}; "
                "prepare it by squash (the author's advice), crop:POSITION, pad or tiles",
            ),
            (self.transparent > 0, f"{self.transparent:.0%} is transparent, which shows white"),
        )
        return [line for wrong, line in rules if wrong]

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "advice": self.advice()}


@dataclass(frozen=True)
class Pair:
    """How alike two references are to an encoder: the cosine of their embeddings."""

    a: str
    b: str
    similarity: float

    def advice(self) -> str:
        return "mix well" if self.similarity > SIMILAR else "differ"


def check(source: PictureSource) -> Check:
    """Measure one picture. Raises PictureError."""
    stored = open_stored(source)
    width, height = open_upright(source).size
    tables = getattr(stored, "quantization", None) if stored.format in ("JPEG", "MPO") else None
    quality = jpeg.of_tables(tables) if tables else None
    patches = _patches(stored)
    earlier = jpeg.of_pixels(patches, tables[min(tables)] if tables else None)
    edge = blur.edge_width(patches)
    short = min(width, height)
    return Check(
        picture=_name(source),
        width=width,
        height=height,
        jpeg=quality.quality if quality else None,
        earlier=earlier.quality if earlier else None,
        edge=None if edge is None else round(edge, 2),
        sharp_as=None if edge is None else round(short / max(1.0, SOFTENING * edge)),
        crop_loses=round(1 - short / max(width, height), 3),
        transparent=_transparent(stored),
    )


def similarities(sources: Sequence[PictureSource], encoder: Encoder) -> list[Pair]:
    """Every pair of pictures, by an encoder's `image_embeds`. Raises PictureError, EncoderError."""
    import torch

    embeddings = encoder.encode([open_picture(source) for source in sources], "image_embeds")
    units = torch.nn.functional.normalize(embeddings.float(), dim=1)
    cosines = (units @ units.T).tolist()
    return [
        Pair(_name(sources[i]), _name(sources[j]), round(cosines[i][j], 3))
        for i, j in combinations(range(len(sources)), 2)
    ]


def _patches(stored: Image) -> list[jpeg.Array]:
    """Luminance 0..255 of all of a picture, or of nine patches; at multiples of 8 pixels."""
    import numpy as np

    width, height = stored.size
    boxes = [(0, 0, width, height)]
    if width * height > WHOLE:
        lefts, tops = (
            [int(i * max(side - PATCH, 0) / 2) // 8 * 8 for i in range(3)] for side in stored.size
        )
        boxes = [
            (left, top, min(left + PATCH, width), min(top + PATCH, height))
            for left in lefts
            for top in tops
        ]
    weights = np.array([0.299, 0.587, 0.114])
    return [np.asarray(_opaque(stored, box), np.float64) @ weights for box in boxes]


def _opaque(stored: Image, box: tuple[int, int, int, int]) -> Image:
    part = stored.crop(box)
    part.info = {k: v for k, v in stored.info.items() if k == "transparency"}
    return open_picture(part)


def _transparent(stored: Image) -> float:
    """Share of the picture, weighed by how transparent it is."""
    if not stored.has_transparency_data:
        return 0.0
    counts = stored.convert("RGBA").getchannel("A").histogram()
    return round(sum(n * (255 - alpha) for alpha, n in enumerate(counts)) / 255 / sum(counts), 3)


def _name(source: PictureSource) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return getattr(source, "filename", "") or "in memory"


def checked(sources: Sequence[PictureSource]) -> tuple[list[Check], list[PictureError]]:
    """Those that can be read, measured; and what is wrong with the others."""
    found: list[Check] = []
    broken: list[PictureError] = []
    for source in sources:
        try:
            found.append(check(source))
        except PictureError as error:
            broken.append(error)
    return found, broken
